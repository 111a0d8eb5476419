//! The CUDA kernels as g++ compiles them for the host (`kernels/host`), loaded into this process: threads are fibers,
//! memory starts as NaN and ends at pages that may not be touched. What a device would leave undefined (a stray access, a
//! barrier that not all reach) ends the process with a message.

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use msjoe::ops::kernels::{Argument, Buffer, Launch, Program};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

type Known = unsafe extern "C" fn(*const c_char, *mut u32, *mut usize) -> bool;
type Run = unsafe extern "C" fn(*const c_char, u32, usize, *mut *mut c_void, *const usize, usize) -> bool;
type Schedule = unsafe extern "C" fn(u32);

struct Emulator {
    known: Known,
    run: Run,
    schedule: Schedule,
}

fn emulator() -> &'static Emulator {
    static LOADED: OnceLock<Emulator> = OnceLock::new();
    LOADED.get_or_init(|| {
        let path = CString::new(library().as_os_str().as_bytes()).unwrap();
        // SAFETY: the library is the one that was just built; it runs nothing but the registration of its kernels.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives a message after a failure.
            panic!("{}: {:?}", path.to_string_lossy(), unsafe { CStr::from_ptr(libc::dlerror()) });
        }
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open and stays so.
            let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!found.is_null(), "the emulation lacks {name:?}");
            found
        };
        // SAFETY: the types are those of `kernels/host/launch.cpp`.
        unsafe {
            Emulator {
                known: std::mem::transmute::<*mut c_void, Known>(symbol(c"emulated_kernel")),
                run: std::mem::transmute::<*mut c_void, Run>(symbol(c"emulated_launch")),
                schedule: std::mem::transmute::<*mut c_void, Schedule>(symbol(c"emulated_schedule")),
            }
        }
    })
}

/// Compiles the kernels once for each state of their sources.
fn library() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let listed = |folder: &Path| {
        let mut files: Vec<PathBuf> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_file()).collect();
        files.sort();
        files
    };
    let (own, host) = (listed(&folder), listed(&folder.join("host")));
    let mut hash = Sha256::new();
    for path in own.iter().chain(&host) {
        hash.update(path.file_name().unwrap().as_bytes());
        hash.update(std::fs::read(path).unwrap());
    }
    let tag: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let done = target.join(format!("kernels-{tag}.so"));
    if done.exists() {
        return done;
    }
    let work = tempfile::tempdir_in(target).unwrap();
    let mut sources: Vec<PathBuf> =
        own.into_iter().filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    sources.push(folder.join("host/launch.cpp"));
    let objects: Vec<PathBuf> = (sources.par_iter())
        .map(|source| {
            let object = work.path().join(source.file_name().unwrap()).with_extension("o");
            let flags = ["-std=c++17", "-O2", "-fPIC", "-Wno-unknown-pragmas", "-x", "c++", "-c"];
            compile(Command::new("g++").args(flags).arg(source).arg("-o").arg(&object));
            object
        })
        .collect();
    let linked = work.path().join("kernels.so");
    compile(Command::new("g++").arg("-shared").args(&objects).arg("-o").arg(&linked));
    std::fs::rename(&linked, &done).unwrap();
    done
}

fn compile(command: &mut Command) {
    let run = command.output().unwrap_or_else(|e| {
        panic!("the kernels are emulated with g++, which does not run ({e}); scripts/setup says how to install it")
    });
    assert!(run.status.success(), "{command:?}: {}", String::from_utf8_lossy(&run.stderr));
}

/// The next launches of this thread's programs run with other orders of warps and arrivals of copies: what must not matter.
pub fn schedule(number: u32) {
    // SAFETY: it sets two numbers; launches take turns, and any of their values is fine for each.
    unsafe { (emulator().schedule)(number) }
}

/// Bytes behind which lies a page that may not be touched.
struct Guarded {
    base: *mut u8,
    whole: usize,
    start: usize,
    len: usize,
}

impl Guarded {
    /// All ones: NaN in every type.
    fn new(len: usize) -> Self {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let room = len.max(1).next_multiple_of(16);
        let whole = room.next_multiple_of(page) + page;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory of its own.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), whole, access, kind, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap of {whole} bytes");
        let base = base.cast::<u8>();
        // SAFETY: the last page of that memory; what is before it may be written.
        unsafe {
            assert_eq!(libc::mprotect(base.add(whole - page).cast(), page, libc::PROT_NONE), 0);
            base.write_bytes(0xff, whole - page);
        }
        Self { base, whole, start: whole - page - room, len }
    }

    fn of(bytes: &[u8]) -> Self {
        let mut new = Self::new(bytes.len());
        new.bytes_mut().copy_from_slice(bytes);
        new
    }

    fn address(&self) -> u64 {
        self.base as u64 + self.start as u64
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` and `len` lie inside the memory, which is initialised.
        unsafe { std::slice::from_raw_parts(self.base.add(self.start), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(self.start), self.len) }
    }

    /// What lies before the values must stay as it was.
    fn check_before(&self, what: &str) {
        // SAFETY: as above.
        let before = unsafe { std::slice::from_raw_parts(self.base, self.start) };
        assert!(before.iter().all(|&byte| byte == 0xff), "{what}: written before its beginning");
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the memory is this one's, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.whole) };
    }
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![];
    tensor.contiguous().unwrap().write_bytes(&mut bytes).unwrap();
    bytes
}

/// Runs a program in emulation, as a device would.
pub fn run(program: &Program, inputs: &[&Tensor]) -> Vec<Tensor> {
    let given: Vec<Vec<u8>> = inputs.iter().map(|tensor| bytes_of(tensor)).collect();
    let inputs: Vec<Guarded> = given.iter().map(|bytes| Guarded::of(bytes)).collect();
    let own: Vec<Option<Guarded>> = program
        .buffers
        .iter()
        .map(|buffer| match buffer {
            Buffer::Input(_) => None,
            Buffer::Output(dtype, shape) => {
                Some(Guarded::new(shape.iter().product::<usize>() * dtype.size_in_bytes()))
            }
            Buffer::Scratch(count) => Some(Guarded::new(count * 4)),
            Buffer::Ints(list) => {
                Some(Guarded::of(&list.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>()))
            }
            Buffer::Longs(list) => {
                Some(Guarded::of(&list.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>()))
            }
            Buffer::Addresses(places) => {
                let addresses = places.iter().map(|&(input, byte)| inputs[input].address() + byte as u64);
                Some(Guarded::of(&addresses.flat_map(u64::to_ne_bytes).collect::<Vec<_>>()))
            }
        })
        .collect();
    let addresses: Vec<u64> = (program.buffers.iter().zip(&own))
        .map(|(buffer, own)| match (buffer, own) {
            (Buffer::Input(at), _) => inputs[*at].address(),
            (_, Some(own)) => own.address(),
            _ => unreachable!("every buffer but an input has memory"),
        })
        .collect();
    for launch in &program.launches {
        emulate(launch, &addresses);
    }
    for (i, (input, given)) in inputs.iter().zip(&given).enumerate() {
        input.check_before(&format!("{}: input {i}", program.op));
        assert_eq!(input.bytes(), given, "{}: input {i} was written", program.op);
    }
    (program.buffers.iter().zip(&own).enumerate())
        .filter_map(|(i, (buffer, own))| {
            let (Buffer::Output(dtype, shape), Some(own)) = (buffer, own) else { return None };
            own.check_before(&format!("{}: buffer {i}", program.op));
            Some(Tensor::from_raw_buffer(own.bytes(), *dtype, shape, &Device::Cpu).unwrap())
        })
        .collect()
}

fn emulate(launch: &Launch, addresses: &[u64]) {
    let name = CString::new(launch.kernel.as_str()).unwrap();
    let (mut threads, mut shared) = (0, 0);
    // SAFETY: a C string and places for two numbers.
    assert!(unsafe { (emulator().known)(name.as_ptr(), &mut threads, &mut shared) }, "no kernel {name:?}");
    assert_eq!(threads, launch.threads, "threads of {name:?}");
    if shared != 0 {
        assert_eq!(shared, launch.shared, "shared memory of {name:?}");
    }
    let mut values: Vec<([u8; 8], usize)> = (launch.arguments.iter())
        .map(|argument| match argument {
            Argument::Null => (0u64.to_ne_bytes(), 8),
            Argument::Buffer(at) => (addresses[*at].to_ne_bytes(), 8),
            Argument::Int(x) => (u64::from(*x as u32).to_ne_bytes(), 4),
            Argument::Float(x) => (u64::from(x.to_bits()).to_ne_bytes(), 4),
        })
        .collect();
    let sizes: Vec<usize> = values.iter().map(|(_, size)| *size).collect();
    let mut pointers: Vec<*mut c_void> =
        values.iter_mut().map(|(bytes, _)| bytes.as_mut_ptr().cast()).collect();
    // SAFETY: as many pointers and sizes as the count says; the arguments' sizes are compared with the kernel's, and what
    // they point to is the memory above.
    let ran = unsafe {
        let pointers = pointers.as_mut_ptr();
        let count = sizes.len();
        (emulator().run)(name.as_ptr(), launch.blocks, launch.shared, pointers, sizes.as_ptr(), count)
    };
    assert!(ran, "the arguments do not fit {name:?}: {:?}", launch.arguments);
}

/// Relative Frobenius error in f64; a truth of zero counts as `least`.
pub fn error(found: &Tensor, truth: &Tensor, least: f64) -> f64 {
    assert_eq!(found.dims(), truth.dims());
    let found = found.to_dtype(DType::F64).unwrap();
    let truth = truth.to_dtype(DType::F64).unwrap();
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm(&(found - &truth).unwrap()) / norm(&truth).max(least)
}
