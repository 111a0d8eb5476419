//! With the feature `cuda`, compiles `kernels/*.cu` to PTX that the program carries: for compute capability 8.0, which
//! every later device runs. No kernel uses instructions of one architecture alone, so there is no other form. Nothing is
//! fetched. Without the feature there is nothing to do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(cause) = compile() {
        println!("cargo::error={cause}");
    }
}

fn compile() -> Result<(), String> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Some(built) = compute_cap() {
        println!("cargo::rustc-env=MSJOE_COMPUTE_CAP={built}");
    }
    let nvcc = nvcc()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; run this through cargo")?);
    let mut sources = vec![];
    let folder = Path::new("kernels");
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.is_file() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    let (nvcc, out) = (&nvcc, &out);
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let threads: Vec<_> =
            sources.iter().map(|source| scope.spawn(move || to_ptx(nvcc, source, out))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread ended early".into()))).collect()
    });
    results.into_iter().collect()
}

fn to_ptx(nvcc: &Path, source: &Path, out: &Path) -> Result<(), String> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    let (partial, done) = (out.join(format!("{name}.partial.ptx")), out.join(format!("{name}.ptx")));
    let run = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-ptx", "-arch=sm_80", "-o"])
        .arg(&partial)
        .arg(source)
        .output()
        .map_err(|e| format!("{} does not run: {e}", nvcc.display()))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr).replace('\n', " | ");
        return Err(format!("{}: {} {said}", source.display(), run.status));
    }
    fs::rename(&partial, &done).map_err(|e| format!("{}: {e}", done.display()))
}

/// The compiler: `NVCC`, else that of the toolkit that `CUDA_HOME` and the like name, else the one in `PATH`.
fn nvcc() -> Result<PathBuf, String> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = (env::var_os("NVCC").map(PathBuf::from).into_iter())
        .chain(toolkits.into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin/nvcc")))
        .chain(env::split_paths(&path).map(|folder| folder.join("nvcc")))
        .chain([PathBuf::from("/usr/local/cuda/bin/nvcc")]);
    places.find(|path| path.is_file()).ok_or_else(|| {
        "the feature `cuda` needs NVIDIA's compiler, but nvcc is neither in PATH nor in /usr/local/cuda/bin: install the \
         CUDA toolkit (12 or later), or set CUDA_HOME or NVCC, or build without --features cuda"
            .to_owned()
    })
}

/// What the tensor library's kernels are built for: `CUDA_COMPUTE_CAP`, else the machine's first device. `90` for 9.0.
fn compute_cap() -> Option<String> {
    if let Ok(set) = env::var("CUDA_COMPUTE_CAP") {
        return Some(set.trim().to_owned());
    }
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .output()
        .ok()?;
    let first = String::from_utf8(asked.stdout).ok()?.lines().next()?.trim().replace('.', "");
    first.chars().all(|c| c.is_ascii_digit()).then_some(first).filter(|digits| !digits.is_empty())
}
