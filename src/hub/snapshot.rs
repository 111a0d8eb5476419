//! The files of one commit: what is missing is fetched, what is there is verified.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::cache::{RepoCache, is_commit};
use super::hash::Checksum;
use super::listing::{Listing, Refusal};
use super::lock::{self, Commit, Entry, Stamp};
use super::monitor::{Monitor, Stage};
use super::source::{Repo, matches};
use super::transfer::{Transfer, Wish};
use super::verifier::Verifier;
use super::{Hub, Mode, Resolved};
use crate::{Error, Result};

/// Downloads and verifies the files of `repo`; what [`super::resolve`] does for a repository.
pub(super) fn obtain(hub: &Hub, repo: &Repo, monitor: &Monitor) -> Result<Resolved> {
    let cache = RepoCache::new(&hub.cache, &repo.id);
    let verifier = Verifier::new(cache, &repo.id, monitor);
    let mut snapshot =
        Snapshot { hub, repo, verifier, commit: String::new(), cut_off: None, idle: Mutex::default() };
    if hub.mode == Mode::Offline {
        snapshot.cut_off = Some("HF_HUB_OFFLINE is set; unset it to download".into());
    }
    snapshot.commit = snapshot.find_commit()?;
    let listing = snapshot.list()?;
    let mut files = snapshot.select(&listing)?;
    snapshot.refuse_if_missing(&files, listing.listed)?;
    snapshot.announce(&mut files)?;
    snapshot.check_space(&files)?;
    monitor.in_parallel(&files, hub.parallel, |(file, entry)| snapshot.ensure(file, entry))?;
    snapshot.finish(files)
}

/// One commit of one repository.
struct Snapshot<'a> {
    hub: &'a Hub,
    repo: &'a Repo,
    verifier: Verifier<'a>,
    commit: String,
    /// Why the Hub cannot be asked, and what to do about it.
    cut_off: Option<String>,
    /// HTTP clients waiting for work.
    idle: Mutex<Vec<Transfer<'a>>>,
}

impl<'a> Snapshot<'a> {
    fn cache(&self) -> &RepoCache {
        self.verifier.cache()
    }

    /// The commit of the wanted revision; the one last seen if the Hub cannot be asked.
    fn find_commit(&mut self) -> Result<String> {
        let revision = self.repo.revision.as_str();
        if is_commit(revision) {
            return Ok(revision.to_ascii_lowercase());
        }
        let cached = self.cache().read_ref(revision)?;
        if self.cut_off.is_none() {
            self.verifier.monitor().report(Stage::Listing, "", (0, 0))?;
            match Listing::new(self.hub, &self.repo.id, self.verifier.monitor())?.commit(revision) {
                Ok(commit) => return Ok(commit),
                Err(refusal) => self.cut_off(refusal, cached.is_some())?,
            }
        }
        cached.ok_or_else(|| self.not_cached(format!("revision {revision:?} is not in the cache")))
    }

    /// Goes on without the Hub if it is out of reach and something `is_cached`.
    fn cut_off(&mut self, refusal: Refusal, is_cached: bool) -> Result<()> {
        match refusal {
            Refusal::Unreachable(Error::Hub { cause, .. }) if is_cached => {
                self.verifier.warn(format!("{}: {cause}; using what is in the cache", self.repo.id));
                self.cut_off = Some(cause);
                Ok(())
            }
            refusal => Err(refusal.into()),
        }
    }

    fn not_cached(&self, what: String) -> Error {
        let reason = self.cut_off.as_deref().unwrap_or("the Hub did not list it");
        Error::hub(&self.repo.id, format!("{what} ({}), and {reason}", self.hub.cache.display()))
    }

    /// The files of the commit: from the lock file, else from the Hub, else what another client left in the cache.
    fn list(&mut self) -> Result<Commit> {
        let known = lock::read(self.cache(), &self.commit)?.unwrap_or_default();
        if known.listed {
            return Ok(known);
        }
        let mut found = self.scan()?;
        for (file, entry) in known.files {
            found.files.insert(file, entry);
        }
        if self.cut_off.is_none() {
            self.verifier.monitor().report(Stage::Listing, "", (0, 0))?;
            match Listing::new(self.hub, &self.repo.id, self.verifier.monitor())?.files(&self.commit) {
                Ok(listed) => found = listed,
                Err(refusal) => self.cut_off(refusal, !found.files.is_empty())?,
            }
        }
        if found.files.is_empty() && !found.listed {
            return Err(self.not_cached(format!("commit {} is not in the cache", self.commit)));
        }
        self.verifier.record(&self.commit, |commit| *commit = found.clone());
        Ok(found)
    }

    /// What lies in the snapshot folder; the hashes are the names that the Hub gave the blobs.
    fn scan(&self) -> Result<Commit> {
        let top = self.cache().snapshot(&self.commit);
        let mut found = Commit::default();
        let mut folders = vec![top.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let path = entry.map_err(|e| Error::io(&folder, e))?.path();
                let name =
                    path.strip_prefix(&top).ok().and_then(Path::to_str).map(|name| name.replace('\\', "/"));
                match (fs::metadata(&path), name) {
                    (Ok(meta), _) if meta.is_dir() => folders.push(path),
                    (Ok(meta), Some(name)) => {
                        let checksum = blob_name(&path);
                        let lfs = matches!(checksum, Some(Checksum::Sha256(_)));
                        found.files.insert(name, Entry { size: meta.len(), lfs, checksum, verified: None });
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// The wanted files, in order of their paths.
    fn select(&self, listing: &Commit) -> Result<Vec<(String, Entry)>> {
        for pattern in &self.repo.files {
            if !listing.files.keys().any(|file| matches(pattern, file)) {
                let short = &self.commit[..12];
                return Err(if listing.listed {
                    Error::hub(&self.repo.id, format!("commit {short} has no file {pattern}"))
                } else {
                    self.not_cached(format!("{pattern} of commit {short} is not in the cache"))
                });
            }
        }
        let patterns = || self.repo.files.iter().chain(&self.repo.optional);
        let wanted =
            listing.files.iter().filter(|(file, _)| patterns().any(|pattern| matches(pattern, file)));
        Ok(wanted.map(|(file, entry)| (file.clone(), entry.clone())).collect())
    }

    /// Without the Hub everything has to be there already.
    fn refuse_if_missing(&self, files: &[(String, Entry)], listed: bool) -> Result<()> {
        if self.cut_off.is_none() {
            return Ok(());
        }
        let folder = self.cache().snapshot(&self.commit);
        let mut missing: Vec<String> =
            files.iter().map(|(file, _)| file.clone()).filter(|file| !folder.join(file).exists()).collect();
        if !listed {
            missing.extend(shards(&folder)?.into_iter().filter(|shard| !folder.join(shard).exists()));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let (count, names) = (missing.len(), missing.join(", "));
        Err(self.not_cached(format!(
            "{count} files of commit {} are not in the cache: {names}",
            &self.commit[..12]
        )))
    }

    /// Fills in the hashes that are not known yet.
    fn announce(&self, files: &mut [(String, Entry)]) -> Result<()> {
        let folder = self.cache().snapshot(&self.commit);
        let open: Vec<usize> = (0..files.len()).filter(|&i| files[i].1.checksum.is_none()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let found = self.verifier.monitor().in_parallel(&open, self.hub.parallel, |&i| {
            let (file, entry) = &files[i];
            if self.cut_off.is_some() {
                return Ok(blob_name(&folder.join(file)));
            }
            self.verifier.monitor().report(Stage::Listing, file, (0, entry.size))?;
            self.with_transfer(|transfer| transfer.announced(file, entry.size)).map(Some)
        })?;
        for (i, checksum) in open.into_iter().zip(found) {
            files[i].1.checksum = checksum;
        }
        self.verifier.record(&self.commit, |commit| {
            for (file, entry) in files.iter() {
                if let Some(recorded) = commit.files.get_mut(file) {
                    recorded.checksum.clone_from(&entry.checksum);
                }
            }
        });
        Ok(())
    }

    /// Compares what is still to come with the space on the disk.
    fn check_space(&self, files: &[(String, Entry)]) -> Result<()> {
        let folder = self.cache().snapshot(&self.commit);
        let to_come = |(file, entry): &(String, Entry)| {
            let hash = entry.checksum.as_ref().map(Checksum::hex).unwrap_or_default();
            if folder.join(file).exists() || self.cache().blob(hash).is_file() {
                return 0;
            }
            let partial = fs::metadata(self.cache().incomplete(hash)).map_or(0, |meta| meta.len());
            entry.size.saturating_sub(partial)
        };
        let needed = files.iter().map(to_come).fold(0, u64::saturating_add);
        match self.cache().free_bytes() {
            Some(free) if free < needed => Err(Error::hub(
                &self.repo.id,
                format!(
                    "{} more are needed in {}, where {} are free; make room, or set HF_HOME to a folder on a larger disk",
                    gigabytes(needed),
                    self.hub.cache.display(),
                    gigabytes(free)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Makes sure that `file` is in the snapshot folder and is what the Hub announced.
    fn ensure(&self, file: &str, entry: &Entry) -> Result<()> {
        if self.cache().snapshot(&self.commit).join(file).exists() {
            return self.verifier.check_cached(&self.commit, file, entry);
        }
        let Some(checksum) = &entry.checksum else {
            return Err(self.not_cached(format!("the hash of {file} is not known")));
        };
        let hash = checksum.hex();
        let blob = self.cache().blob(hash);
        let _held = self.cache().acquire(hash, self.verifier.monitor())?;
        let stamp = if blob.is_file() {
            self.verifier.check(&blob, file, entry)?
        } else {
            let partial = self.cache().incomplete(hash);
            fs::create_dir_all(self.cache().dir().join("blobs")).map_err(|e| Error::io(&blob, e))?;
            let wish = Wish { file, size: entry.size, checksum };
            self.with_transfer(|transfer| transfer.fetch(&wish, &partial))?;
            fs::rename(&partial, &blob).map_err(|e| Error::io(&blob, e))?;
            Some(Stamp::of(&blob)?)
        };
        self.cache().link(&self.commit, file, hash)?;
        self.verifier.record_stamp(&self.commit, file, stamp);
        Ok(())
    }

    /// Lends an HTTP client to `work`.
    fn with_transfer<R>(&self, work: impl FnOnce(&Transfer<'a>) -> Result<R>) -> Result<R> {
        let idle = || self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let lent = idle().pop();
        let transfer = match lent {
            Some(transfer) => transfer,
            None => Transfer::new(self.hub, &self.repo.id, &self.commit, self.verifier.monitor())?,
        };
        let result = work(&transfer);
        idle().push(transfer);
        result
    }

    fn finish(self, files: Vec<(String, Entry)>) -> Result<Resolved> {
        if self.cut_off.is_none() && !is_commit(&self.repo.revision) {
            self.cache().write_ref(&self.repo.revision, &self.commit)?;
        }
        Ok(Resolved {
            folder: self.cache().snapshot(&self.commit),
            repo: Some(self.repo.id.clone()),
            files: files.into_iter().map(|(file, _)| file).collect(),
            warnings: self.verifier.into_warnings(),
            commit: Some(self.commit),
        })
    }
}

/// The hash in the name of the blob that `pointer` links to.
fn blob_name(pointer: &Path) -> Option<Checksum> {
    let target: PathBuf = fs::read_link(pointer).ok()?;
    Checksum::parse(target.file_name()?.to_str()?)
}

/// The files that `model.safetensors.index.json` in `folder` speaks of.
fn shards(folder: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let path = folder.join("model.safetensors.index.json");
    let Ok(text) = fs::read(&path) else { return Ok(Vec::new()) };
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, format!("not an index: {e}")))?;
    let mut shards: Vec<_> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
