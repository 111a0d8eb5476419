//! `msjoe.lock.json` in a repository's cache folder: what the Hub announced, and what was found to be so.
//!
//! ```json
//! { "version": 1, "repo": "org/name",
//!   "commits": { "<commit>": { "listed": true, "files": { "model.safetensors": {
//!       "size": 123, "lfs": true, "checksum": { "sha256": "…" },
//!       "verified": { "size": 123, "modified": 1731234567000000000 } } } } } }
//! ```
//!
//! A commit never changes, so neither does its entry, except that hashes are filled in when they are first needed.
//! `verified` is the state of the file (bytes, nanoseconds since 1970) in which its content had the announced hash.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::cache::{RepoCache, write_atomic};
use super::hash::Checksum;
use super::monitor::Monitor;
use crate::{Error, Result};

/// Name of the lock file in the repository's cache folder.
pub const LOCK_FILE: &str = "msjoe.lock.json";
const VERSION: u32 = 1;

/// The record of one repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lock {
    version: u32,
    repo: String,
    commits: BTreeMap<String, Commit>,
}

/// The files of one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Commit {
    /// Whether the Hub listed these files. Otherwise they are what another client had left in the cache.
    pub listed: bool,
    pub files: BTreeMap<String, Entry>,
}

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub size: u64,
    pub lfs: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Stamp>,
}

/// The state of a file on disk at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub size: u64,
    pub modified: u64,
}

impl Stamp {
    /// The state of the file that `path` is or links to.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let modified = meta.modified().map_err(|e| Error::io(path, e))?;
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        Ok(Self { size: meta.len(), modified })
    }
}

/// What is known of `commit`; nothing when there is no lock file yet.
pub(super) fn read(cache: &RepoCache, commit: &str) -> Result<Option<Commit>> {
    Ok(load(cache)?.and_then(|mut lock| lock.commits.remove(commit)))
}

/// Changes what is recorded of `commit`, one process at a time, and replaces the lock file in one step.
pub(super) fn update(
    cache: &RepoCache,
    repo: &str,
    commit: &str,
    monitor: &Monitor,
    change: impl FnOnce(&mut Commit),
) -> Result<()> {
    let _held = cache.acquire("msjoe", monitor)?;
    let mut lock = load(cache)?.unwrap_or_else(|| Lock {
        version: VERSION,
        repo: repo.to_owned(),
        commits: BTreeMap::new(),
    });
    let entry = lock.commits.entry(commit.to_owned()).or_default();
    let before = entry.clone();
    change(entry);
    if *entry == before {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&lock).map_err(|e| Error::hub(repo, e))?;
    write_atomic(&path(cache), &text)
}

fn path(cache: &RepoCache) -> PathBuf {
    cache.dir().join(LOCK_FILE)
}

fn load(cache: &RepoCache) -> Result<Option<Lock>> {
    let path = path(cache);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let refuse = |cause: String| {
        let advice = "delete it, and the next load hashes the files anew";
        Error::hub(path.display().to_string(), format!("{cause}; {advice}"))
    };
    let lock: Lock = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("not a lock file: {e}")))?;
    if lock.version != VERSION {
        return Err(refuse(format!("lock file of version {}, expected {VERSION}", lock.version)));
    }
    Ok(Some(lock))
}
