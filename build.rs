//! With the feature `cuda`, compiles `kernels/*.cu` to PTX that the program carries: for compute capability 8.0, which
//! every later device runs. No kernel uses instructions of one architecture alone, so there is no other form. Nothing is
//! fetched. Without the feature there is nothing to do.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io, thread};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Some(commit) = commit() {
        println!("cargo::rustc-env=MSJOE_COMMIT={commit}");
    }
    if let Err(cause) = compile() {
        println!("cargo::error={cause}");
    }
}

/// What is checked out here, `-dirty` where tracked files were changed when this ran; none outside a checkout of this crate.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let asked = Command::new("git").arg("--no-optional-locks").args(arguments).output().ok()?;
        let said = String::from_utf8(asked.stdout).ok()?.trim().to_owned();
        asked.status.success().then_some(said)
    };
    // A copy within another project's repository has that project's commits.
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    (top == env::current_dir().ok()?.canonicalize().ok()?).then_some(())?;
    // The log of HEAD moves with every commit and checkout, and git says where it is for this worktree.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for path in [log.as_str(), "src", "examples", "Cargo.toml", "Cargo.lock"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if changed { format!("{commit}-dirty") } else { commit })
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
    let (mut sources, mut state) = (vec![], DefaultHasher::new());
    let folder = Path::new("kernels");
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.iter().map(fs::DirEntry::path).filter(|path| path.is_file()).collect();
    paths.sort();
    // A toolkit may be replaced behind the same path.
    println!("cargo::rerun-if-changed={}", nvcc.canonicalize().unwrap_or_else(|_| nvcc.clone()).display());
    let version =
        Command::new(&nvcc).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    (&nvcc, version, FLAGS).hash(&mut state);
    for path in paths {
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?.hash(&mut state);
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    // What this compiler made of these sources is not made again when only the rest of the crate has changed.
    let (state, stamp) = (format!("{:016x}", state.finish()), out.join("state"));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == state) {
        record_release(&out);
        return Ok(());
    }
    // While some files are new and others old, neither state is true.
    if stamp.exists() {
        fs::remove_file(&stamp).map_err(|e| format!("{}: {e}", stamp.display()))?;
    }
    let (nvcc, out) = (&nvcc, &out);
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let threads: Vec<_> =
            sources.iter().map(|source| scope.spawn(move || to_ptx(nvcc, source, out))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread ended early".into()))).collect()
    });
    results.into_iter().collect::<Result<Vec<()>, String>>()?;
    record_release(out);
    fs::write(&stamp, state).map_err(|e| format!("{}: {e}", stamp.display()))
}

/// The toolkit's release, `13.0`, as the compiler writes it above its code: an older driver does not read that code.
fn record_release(out: &Path) {
    let ptx = fs::read_to_string(out.join("layer.ptx")).unwrap_or_default();
    let said = ptx.split_once("compilation tools, release ").map(|(_, rest)| rest);
    if let Some(release) = said.and_then(|rest| rest.split([',', '\n']).next()) {
        println!("cargo::rustc-env=MSJOE_CUDA={}", release.trim());
    }
}

const FLAGS: [&str; 4] = ["-std=c++17", "-O3", "-ptx", "-arch=sm_80"];

fn to_ptx(nvcc: &Path, source: &Path, out: &Path) -> Result<(), String> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    let (partial, done) = (out.join(format!("{name}.partial.ptx")), out.join(format!("{name}.ptx")));
    let run = Command::new(nvcc)
        .args(FLAGS)
        .arg("-o")
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
