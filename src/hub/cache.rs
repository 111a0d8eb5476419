//! The cache on disk, in the layout that `huggingface_hub` shares between its clients:
//!
//! ```text
//! {cache}/models--{org}--{name}/refs/{revision}              the commit a branch or tag pointed to
//!                               blobs/{hash}                 contents, named by the hash the Hub announced
//!                               blobs/{hash}.incomplete      a download that was cut short
//!                               snapshots/{commit}/{path}    links to the blobs
//!                               msjoe.lock.json              this crate's record, see `lock`
//! {cache}/.locks/models--{org}--{name}/{hash}.lock           held (flock) by whoever fetches that blob
//! ```

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::monitor::Monitor;
use crate::{Error, Result, checkpoint};

const PREFIX: &str = "models--";
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The folder of one repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    folder: String,
}

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &str) -> Self {
        Self { root: root.to_owned(), folder: format!("{PREFIX}{}", repo.replace('/', "--")) }
    }

    /// The repository and commit to which `snapshot` belongs, if it is a snapshot folder of a cache.
    pub(super) fn of_snapshot(snapshot: &Path) -> Option<(Self, String, String)> {
        let snapshot = snapshot.canonicalize().ok()?;
        let commit = snapshot.file_name()?.to_str()?.to_owned();
        let snapshots = snapshot.parent()?;
        let dir = snapshots.parent()?;
        let folder = dir.file_name()?.to_str()?.to_owned();
        let repo = folder.strip_prefix(PREFIX)?.replacen("--", "/", 1);
        let is_snapshot = snapshots.file_name()? == "snapshots" && is_commit(&commit);
        is_snapshot.then_some((Self { root: dir.parent()?.to_owned(), folder }, repo, commit))
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.dir().join("blobs").join(hash)
    }

    pub(super) fn incomplete(&self, hash: &str) -> PathBuf {
        self.dir().join("blobs").join(format!("{hash}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir().join("snapshots").join(commit)
    }

    pub(super) fn read_ref(&self, revision: &str) -> Result<Option<String>> {
        let path = self.dir().join("refs").join(revision);
        match fs::read_to_string(&path) {
            Ok(text) if is_commit(text.trim()) => Ok(Some(text.trim().to_owned())),
            Ok(text) => Err(Error::hub(
                self.folder.as_str(),
                format!(
                    "{} should hold a commit (40 hexadecimal digits), not {text:?}; delete it",
                    path.display()
                ),
            )),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if self.read_ref(revision).ok().flatten().as_deref() == Some(commit) {
            return Ok(());
        }
        write_atomic(&self.dir().join("refs").join(revision), commit.as_bytes())
    }

    /// Makes `snapshots/{commit}/{file}` a relative link to the blob, as the Python client does.
    pub(super) fn link(&self, commit: &str, file: &str, hash: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        let parent = pointer.parent().unwrap_or(&pointer);
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        let up = "../".repeat(file.split('/').count() + 1);
        let made = make_link(Path::new(&format!("{up}blobs/{hash}")), &self.blob(hash), &pointer);
        match made {
            // Another process was faster, or an old link points to nothing: replace it.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(&pointer).map_err(|e| Error::io(&pointer, e))?;
                make_link(Path::new(&format!("{up}blobs/{hash}")), &self.blob(hash), &pointer)
                    .map_err(|e| Error::io(&pointer, e))
            }
            other => other.map_err(|e| Error::io(&pointer, e)),
        }
    }

    /// Waits for the lock named `name` that all clients of this cache respect; dropping the file releases it.
    pub(super) fn acquire(&self, name: &str, monitor: &Monitor) -> Result<File> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{name}.lock"));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        }
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => monitor.pause(LOCK_POLL)?,
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
        }
    }

    /// Bytes that may still be written where the repository lies, if the system tells.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let dir = self.dir();
        dir.ancestors().find(|d| d.is_dir()).and_then(free_bytes)
    }
}

/// Whether `text` is a full commit id.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether `path` stays inside the folder that it is joined to.
pub(super) fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// [`checkpoint::write_file`] in a folder that is made if need be.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = checkpoint::parent(path);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    checkpoint::write_file(path, bytes)
}

#[cfg(unix)]
fn make_link(relative: &Path, _blob: &Path, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

#[cfg(not(unix))]
fn make_link(_relative: &Path, blob: &Path, pointer: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, pointer)
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `name` is a NUL-terminated string and `stat` has room for the structure that the call fills.
    let code = unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid `statvfs`, whether the call filled it or not.
    let stat = unsafe { stat.assume_init() };
    // The fields are narrower on some systems.
    #[allow(clippy::unnecessary_cast)]
    (code == 0).then(|| stat.f_bavail as u64 * stat.f_frsize as u64)
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}
