//! A run on disk.
//!
//! ```text
//! runs/<date>-<name>/  config.toml (resolved, complete)  build.json  metrics.jsonl  events.out.tfevents.*
//!                      step-000200/  (see [`Snapshot`])   latest -> step-000400   best -> step-000200
//! ```
//!
//! A checkpoint is written as `step-000200.tmp`, flushed, and renamed: a folder named `step-*` is always whole, and at
//! whatever moment the program or the machine stops, the last one before can be loaded. `latest` and `best` are links for
//! people and other programs; this module goes by the checkpoints themselves. One program at a time writes to a run.

mod build;
mod operation;
mod snapshot;

pub use build::Build;
pub use operation::Operation;
pub use snapshot::{Saved, Snapshot};

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::{read_json, write_file, write_json};
use crate::text::strftime;
use crate::{Error, Result};
use snapshot::{MANIFEST, Manifest, STATE};

const CONFIG: &str = "config.toml";
const BUILD: &str = "build.json";
const LOCK: &str = "run.lock";

/// A run that this program writes to.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    /// Newest checkpoints that stay, beside the best.
    keep: usize,
    /// Released by the system when the program ends, however it ends.
    _lock: File,
}

impl Run {
    /// A new run in `folder`, which is created; `config` is written as it is, so give it with every default filled in.
    ///
    /// # Errors
    /// [`Error::Input`] when there is a run already, another program writes there, or `config` cannot be TOML;
    /// [`Error::Io`] when the folder cannot be written.
    pub fn create(folder: impl AsRef<Path>, config: &impl Serialize, build: &Build) -> Result<Self> {
        let folder = folder.as_ref();
        let text = toml::to_string(config).map_err(|error| {
            Error::Input(format!("{}: the configuration cannot be TOML: {error}", folder.display()))
        })?;
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let lock = lock(folder)?;
        if folder.join(CONFIG).exists() || !saved(folder)?.is_empty() {
            return Err(Error::Input(format!(
                "{}: holds a run already; resume it, or choose another folder",
                folder.display()
            )));
        }
        write_json(&folder.join(BUILD), build)?;
        // Last: a folder without it is no run yet.
        write_file(&folder.join(CONFIG), text.as_bytes())?;
        Ok(Self { folder: folder.to_owned(), keep: 2, _lock: lock })
    }

    /// Whether `folder` holds a run.
    pub fn exists(folder: impl AsRef<Path>) -> bool {
        folder.as_ref().join(CONFIG).is_file()
    }

    /// An existing run, to go on with. What unfinished saves left is removed, and the links are set right.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder without a run, or one that another program writes to.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.join(CONFIG).is_file() {
            return Err(Error::Input(format!(
                "{}: no run: expected a folder with {CONFIG}",
                folder.display()
            )));
        }
        let lock = lock(folder)?;
        for (name, path) in entries(folder)? {
            if name.starts_with("step-") && name.ends_with(".tmp") {
                Operation::RemoveFolder(path).apply()?;
            }
        }
        let run = Self { folder: folder.to_owned(), keep: 2, _lock: lock };
        // A save that was stopped may have left the links behind.
        run.point(&run.saved()?).iter().try_for_each(Operation::apply)?;
        Ok(run)
    }

    /// The same run, of which the `keep` newest checkpoints stay (and the best); at least one does. The default is 2.
    pub fn keeping(self, keep: usize) -> Self {
        Self { keep: keep.max(1), ..self }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads `config.toml`.
    ///
    /// # Errors
    /// Names the file and the field.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C> {
        let path = self.folder.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
        toml::from_str(&text).map_err(|error| Error::Input(format!("{}: {error}", path.display())))
    }

    /// Reads `build.json`: what the run was begun with.
    ///
    /// # Errors
    /// Names the file and the field.
    pub fn build(&self) -> Result<Build> {
        read_json(&self.folder.join(BUILD))
    }

    /// The whole checkpoints, by step.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn saved(&self) -> Result<Vec<Saved>> {
        saved(&self.folder)
    }

    /// The newest checkpoint.
    ///
    /// # Errors
    /// As [`Self::saved`].
    pub fn latest(&self) -> Result<Option<Saved>> {
        Ok(self.saved()?.pop())
    }

    /// The checkpoint with the highest score, the earliest of equals; the newest when none has a score.
    ///
    /// # Errors
    /// As [`Self::saved`].
    pub fn best(&self) -> Result<Option<Saved>> {
        Ok(best(&self.saved()?).cloned())
    }

    /// Saves a checkpoint after `step` steps and removes those that no longer need to stay: all but the newest and the
    /// best. A higher `score` is better.
    ///
    /// # Errors
    /// [`Error::Input`] for a step that is not behind the last saved one, a score that is not finite, or a name that is no
    /// file's; [`Error::Io`] when the disk is full or the folder cannot be written: the checkpoints before are unharmed.
    pub fn save(&self, step: u64, snapshot: &Snapshot, score: Option<f64>) -> Result<Saved> {
        self.plan_save(step, snapshot, score)?.iter().try_for_each(Operation::apply)?;
        Ok(Saved { step, score, folder: self.path(step) })
    }

    /// What [`Self::save`] does, in its order. Stopped between any two operations, it leaves every checkpoint before, or
    /// the new one, whole.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn plan_save<'a>(
        &self,
        step: u64,
        snapshot: &'a Snapshot,
        score: Option<f64>,
    ) -> Result<Vec<Operation<'a>>> {
        snapshot.check_names()?;
        let mut saved = self.saved()?;
        if let Some(last) = saved.last().filter(|last| last.step >= step) {
            return Err(Error::Input(format!(
                "checkpoint: step {step} is not behind {}; rewind the run first",
                last.folder.display()
            )));
        }
        if let Some(score) = score.filter(|score| !score.is_finite()) {
            return Err(Error::Input(format!("checkpoint: the score of step {step} is {score}")));
        }
        let (path, temporary) = (self.path(step), temporary(&self.path(step)));
        let json = |error| Error::checkpoint(&path, error);
        let state = serde_json::to_vec_pretty(&snapshot.state).map_err(json)?;
        let mut plan =
            vec![Operation::RemoveFolder(temporary.clone()), Operation::CreateFolder(temporary.clone())];
        for (stem, tensors) in &snapshot.tensors {
            plan.push(Operation::WriteTensors(temporary.join(format!("{stem}.safetensors")), tensors));
        }
        for (name, bytes) in &snapshot.files {
            plan.push(Operation::WriteFile(temporary.join(name), bytes.clone()));
        }
        plan.push(Operation::WriteFile(temporary.join(STATE), state));
        plan.push(Operation::WriteManifest(temporary.clone(), step, score));
        plan.push(Operation::SyncFolder(temporary.clone()));
        plan.push(Operation::Rename(temporary, path.clone()));
        plan.push(Operation::SyncFolder(self.folder.clone()));
        saved.push(Saved { step, score, folder: path });
        plan.extend(self.point(&saved));
        let best = best(&saved).map(|best| best.step);
        let old = saved.len().saturating_sub(self.keep);
        for outdated in saved[..old].iter().filter(|saved| Some(saved.step) != best) {
            plan.extend(remove(&outdated.folder));
        }
        Ok(plan)
    }

    /// Removes the checkpoints behind `step`, to go on from there.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no checkpoint of `step`; [`Error::Io`] when one cannot be removed.
    pub fn rewind(&self, step: u64) -> Result<()> {
        let saved = self.saved()?;
        if !saved.iter().any(|saved| saved.step == step) {
            let steps: Vec<String> = saved.iter().map(|saved| saved.step.to_string()).collect();
            return Err(Error::Input(format!(
                "{}: no checkpoint of step {step}; there are [{}]",
                self.folder.display(),
                steps.join(", ")
            )));
        }
        let (kept, later): (Vec<Saved>, Vec<Saved>) = saved.into_iter().partition(|saved| saved.step <= step);
        // The newest first, so that what is left is a run's beginning at every moment.
        let removed = later.iter().rev().flat_map(|saved| remove(&saved.folder));
        self.point(&kept).into_iter().chain(removed).try_for_each(|operation| operation.apply())
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:06}"))
    }

    /// Lets `latest` and `best` point to the newest and the best of `saved`.
    fn point(&self, saved: &[Saved]) -> Vec<Operation<'static>> {
        let targets = [("latest", saved.last()), ("best", best(saved))];
        let point = |(name, target): (&str, Option<&Saved>)| {
            let (link, temporary) = (self.folder.join(name), self.folder.join(format!("{name}.tmp")));
            let target = target?.folder.file_name()?.to_string_lossy().into_owned();
            Some([
                Operation::RemoveLink(temporary.clone()),
                Operation::Link(temporary.clone(), target),
                Operation::Rename(temporary, link),
            ])
        };
        targets.into_iter().filter_map(point).flatten().collect()
    }
}

/// `root/2026-01-31-174500-name`: a folder for a new run, by the time in UTC.
///
/// # Errors
/// [`Error::Input`] for a name that is empty or holds a separator.
pub fn dated(root: impl AsRef<Path>, name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.contains(['/', '\\']) {
        return Err(Error::Input(format!("run: {name:?} is no name for a folder")));
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let date = strftime(seconds as i64, "%Y-%m-%d-%H%M%S").map_err(Error::Input)?;
    Ok(root.as_ref().join(format!("{date}-{name}")))
}

/// First to a name that is no checkpoint's: removing a folder takes time, and a part of it must not look like a whole.
fn remove(folder: &Path) -> [Operation<'static>; 2] {
    let temporary = temporary(folder);
    [Operation::Rename(folder.to_owned(), temporary.clone()), Operation::RemoveFolder(temporary)]
}

fn temporary(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}.tmp"))
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|error| Error::io(&path, error))?;
    if held(&file).map_err(|error| Error::io(&path, error))? {
        return Ok(file);
    }
    Err(Error::Input(format!("{}: another program is writing to this run", folder.display())))
}

/// Locks a file for this program as long as it is open; `false` where another one has it.
///
/// # Errors
/// The operating system's.
pub(crate) fn held(file: &File) -> std::io::Result<bool> {
    for attempt in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            // A program that this one starts just now has its files for a moment, those of a closed run too.
            Err(TryLockError::WouldBlock) if attempt < 19 => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => break,
        }
    }
    Ok(false)
}

/// Names and paths of what is in a folder, sorted.
fn entries(folder: &Path) -> Result<BTreeSet<(String, PathBuf)>> {
    let failed = |error| Error::io(folder, error);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let named = entries.map(|entry| {
        let entry = entry.map_err(failed)?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
    });
    named.collect()
}

/// The checkpoints in a run's folder, by step; what is not whole is not among them. For programs that only read.
///
/// # Errors
/// A folder that cannot be read, or a checkpoint of another format.
pub fn saved(folder: impl AsRef<Path>) -> Result<Vec<Saved>> {
    let folder = folder.as_ref();
    let mut saved = vec![];
    for (name, path) in entries(folder)? {
        let step = name.strip_prefix("step-").and_then(|digits| digits.parse::<u64>().ok());
        if step.is_none() || !path.join(MANIFEST).is_file() {
            continue;
        }
        let Manifest { step, score, .. } = Manifest::read(&path)?;
        saved.push(Saved { step, score, folder: path });
    }
    saved.sort_by_key(|saved| saved.step);
    Ok(saved)
}

fn best(saved: &[Saved]) -> Option<&Saved> {
    let scored = saved.iter().filter_map(|saved| Some((saved.score?, saved)));
    let best = scored.reduce(|best, other| if other.0 > best.0 { other } else { best });
    best.map(|(_, saved)| saved).or(saved.last())
}
