//! The contents of a checkpoint, and reading them back.
//!
//! ```text
//! step-000200/  <group>.safetensors ...  state.json  <other files>  checkpoint.json
//! ```
//! `checkpoint.json` lists every other file with size and SHA-256. It is written last, and a folder without it, or with
//! a file that is not as listed, is no checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// Name of the list of files.
pub(super) const MANIFEST: &str = "checkpoint.json";
/// Name of the state's file.
pub(super) const STATE: &str = "state.json";
const VERSION: u32 = 1;

/// Everything a run needs to go on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Named tensors per file stem: `adapter_model`, `sampler`, `optimizer`.
    pub tensors: BTreeMap<String, BTreeMap<String, Tensor>>,
    /// Whatever else the trainer keeps: counters, seeds, the schedule's position.
    pub state: serde_json::Value,
    /// Other files as they are: `adapter_config.json`. A safetensors file with metadata of its own may be given here too; it
    /// is read back among the tensors.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Steps that were done.
    pub step: u64,
    /// What decides which one is the best; more is better.
    pub score: Option<f64>,
    /// Its folder.
    pub folder: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    pub step: u64,
    pub score: Option<f64>,
    files: BTreeMap<String, Listed>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    size: u64,
    sha256: String,
}

impl Manifest {
    /// Lists what is in `folder`.
    pub fn of(folder: &Path, step: u64, score: Option<f64>) -> Result<Self> {
        let failed = |error| Error::io(folder, error);
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != MANIFEST {
                files.insert(name, list(&entry.path())?);
            }
        }
        Ok(Self { version: VERSION, step, score, files })
    }

    /// Reads the list of `folder` without looking at the files.
    pub fn read(folder: &Path) -> Result<Self> {
        let manifest: Self = read_json(&folder.join(MANIFEST))?;
        if manifest.version != VERSION {
            let cause = format!("version {} of the format, expected {VERSION}", manifest.version);
            return Err(Error::checkpoint(folder, cause));
        }
        Ok(manifest)
    }
}

impl Snapshot {
    /// Reads a checkpoint's folder. Every file must be there as it was written; files that were put beside them are left
    /// alone.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Checkpoint`] name the file that is missing, has another size or another content.
    pub fn load(folder: impl AsRef<Path>) -> Result<(Saved, Self)> {
        let folder = folder.as_ref();
        let manifest = Manifest::read(folder)?;
        let mut snapshot = Self::default();
        let mut state = None;
        for (name, listed) in &manifest.files {
            let path = folder.join(name);
            let found = list(&path)?;
            if found != *listed {
                let cause = if found.size == listed.size {
                    "its content is not what was written".to_owned()
                } else {
                    format!("expected {} bytes, got {}", listed.size, found.size)
                };
                return Err(Error::checkpoint(path, format!("{cause}; load an earlier checkpoint")));
            }
            if let Some(stem) = name.strip_suffix(".safetensors") {
                let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
                    .map_err(|error| Error::checkpoint(&path, error))?;
                snapshot.tensors.insert(stem.to_owned(), tensors.into_iter().collect());
            } else if name == STATE {
                state = Some(read_json(&path)?);
            } else {
                let bytes = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
                snapshot.files.insert(name.clone(), bytes);
            }
        }
        snapshot.state =
            state.ok_or_else(|| Error::checkpoint(folder, "the list of files lacks state.json"))?;
        let Manifest { step, score, .. } = manifest;
        Ok((Saved { step, score, folder: folder.to_owned() }, snapshot))
    }

    /// Names that can be files of a folder.
    pub(super) fn check_names(&self) -> Result<()> {
        let stems = self.tensors.keys().map(|stem| format!("{stem}.safetensors"));
        let mut seen = std::collections::BTreeSet::from([MANIFEST.to_owned(), STATE.to_owned()]);
        for name in stems.chain(self.files.keys().cloned()) {
            let plain = Path::new(&name).file_name().is_some_and(|part| part == name.as_str());
            if !plain || name.starts_with('.') || !seen.insert(name.clone()) {
                return Err(Error::Input(format!(
                    "checkpoint: {name:?} cannot be a file's name here: expected one without folders, used once, and \
                     neither {MANIFEST} nor {STATE}"
                )));
            }
        }
        Ok(())
    }
}

fn list(path: &Path) -> Result<Listed> {
    let failed = |error| Error::io(path, error);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let size = std::io::copy(&mut file, &mut hasher).map_err(failed)?;
    let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Listed { size, sha256 })
}
