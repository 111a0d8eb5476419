//! Files in the cache against what is recorded of them.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::cache::RepoCache;
use super::lock::{self, Commit, Entry, Stamp};
use super::monitor::{Monitor, Stage};
use crate::{Error, Result};

/// Bytes hashed between two reports of progress.
const REPORT_EVERY: u64 = 16 << 20;

/// Verifies `folder` if it is a snapshot with a lock file; any other folder is the user's own affair.
pub(super) fn check_folder(folder: &Path, monitor: &Monitor) -> Result<Vec<String>> {
    let Some((cache, id, commit)) = RepoCache::of_snapshot(folder) else { return Ok(Vec::new()) };
    let Some(known) = lock::read(&cache, &commit)? else { return Ok(Vec::new()) };
    let verifier = Verifier::new(cache, &id, monitor);
    let here =
        |(file, entry): &(&String, &Entry)| entry.checksum.is_some() && folder.join(file.as_str()).exists();
    for (file, entry) in known.files.iter().filter(here) {
        verifier.check_cached(&commit, file, entry)?;
    }
    Ok(verifier.into_warnings())
}

/// Compares cached files with what is recorded of them.
pub(super) struct Verifier<'a> {
    cache: RepoCache,
    id: &'a str,
    monitor: &'a Monitor,
    warnings: Mutex<Vec<String>>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(cache: RepoCache, id: &'a str, monitor: &'a Monitor) -> Self {
        Self { cache, id, monitor, warnings: Mutex::default() }
    }

    pub(super) fn cache(&self) -> &RepoCache {
        &self.cache
    }

    pub(super) fn monitor(&self) -> &'a Monitor {
        self.monitor
    }

    /// Compares the file in the snapshot folder of `commit`, and records that it was.
    pub(super) fn check_cached(&self, commit: &str, file: &str, entry: &Entry) -> Result<()> {
        let stamp = self.check(&self.cache.snapshot(commit).join(file), file, entry)?;
        self.record_stamp(commit, file, stamp);
        Ok(())
    }

    /// Size always, content unless size and time are those of the last comparison; the stamp if it was compared.
    pub(super) fn check(&self, path: &Path, file: &str, entry: &Entry) -> Result<Option<Stamp>> {
        let stamp = Stamp::of(path)?;
        let refuse = |cause: String| {
            let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let advice = "it was changed after the download; delete it and run again";
            Error::hub(format!("{}/{file}", self.id), format!("{} has {cause}: {advice}", path.display()))
        };
        if stamp.size != entry.size {
            return Err(refuse(format!("{} bytes, expected {}", stamp.size, entry.size)));
        }
        if entry.verified == Some(stamp) {
            return Ok(None);
        }
        let Some(expected) = &entry.checksum else {
            self.warn(format!(
                "{}: cannot be verified, since the cache does not tell its hash",
                path.display()
            ));
            return Ok(None);
        };
        let mut hasher = expected.hasher(stamp.size);
        let mut content = fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let mut reported = 0;
        self.monitor.report(Stage::Verifying, file, (0, stamp.size))?;
        hasher.read(path, &mut content, &mut |done| {
            if done - reported < REPORT_EVERY && done < stamp.size {
                return self.monitor.check();
            }
            reported = done;
            self.monitor.report(Stage::Verifying, file, (done, stamp.size))
        })?;
        let found = hasher.finish();
        if found != *expected {
            return Err(refuse(format!("{found}, expected {expected}")));
        }
        Ok(Some(stamp))
    }

    pub(super) fn record_stamp(&self, commit: &str, file: &str, stamp: Option<Stamp>) {
        let Some(stamp) = stamp else { return };
        self.record(commit, |commit| {
            if let Some(entry) = commit.files.get_mut(file) {
                entry.verified = Some(stamp);
            }
        });
    }

    /// A cache that cannot be written to can still be used; it is only verified in full each time.
    pub(super) fn record(&self, commit: &str, change: impl FnOnce(&mut Commit)) {
        match lock::update(&self.cache, self.id, commit, self.monitor, change) {
            Ok(()) | Err(Error::Interrupted) => {}
            Err(e) => self.warn(format!("{}: what was verified is not recorded: {e}", self.id)),
        }
    }

    pub(super) fn warn(&self, text: String) {
        tracing::warn!("{text}");
        let mut warnings = self.warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
