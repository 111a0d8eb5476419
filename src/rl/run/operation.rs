//! What a save does on the disk, step by step. A plan first, so that a test can stop it anywhere.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::snapshot::{MANIFEST, Manifest};
use crate::checkpoint::{write_file, write_json, write_safetensors};
use crate::{Error, Result};

/// One change of the disk. [`Operation::WriteTensors`] and [`Operation::WriteFile`] put a whole file in place or none.
#[derive(Debug, Clone)]
pub enum Operation<'a> {
    /// A new folder.
    CreateFolder(PathBuf),
    /// A safetensors file.
    WriteTensors(PathBuf, &'a BTreeMap<String, Tensor>),
    /// A file.
    WriteFile(PathBuf, Vec<u8>),
    /// The list of the folder's files, with the step and the score.
    WriteManifest(PathBuf, u64, Option<f64>),
    /// A folder's entries reach the disk.
    SyncFolder(PathBuf),
    /// Another name, in one stroke.
    Rename(PathBuf, PathBuf),
    /// A link (first) to a name beside it (second).
    Link(PathBuf, String),
    /// A link goes, if it is there.
    RemoveLink(PathBuf),
    /// A folder goes with all that is in it, if it is there.
    RemoveFolder(PathBuf),
}

impl Operation<'_> {
    /// Does it.
    ///
    /// # Errors
    /// [`Error::Io`] names the file or folder; as [`write_safetensors`] for tensors.
    pub fn apply(&self) -> Result<()> {
        let io = |path: &Path, result: std::io::Result<()>| result.map_err(|error| Error::io(path, error));
        match self {
            Self::CreateFolder(path) => io(path, std::fs::create_dir(path)),
            Self::WriteTensors(path, tensors) => write_safetensors(path, tensors, None),
            Self::WriteFile(path, bytes) => write_file(path, bytes),
            Self::WriteManifest(folder, step, score) => {
                write_json(&folder.join(MANIFEST), &Manifest::of(folder, *step, *score)?)
            }
            Self::SyncFolder(path) => io(path, sync(path)),
            Self::Rename(from, to) => io(to, std::fs::rename(from, to)),
            Self::Link(path, name) => io(path, link(path, name)),
            Self::RemoveLink(path) => io(path, if_there(std::fs::remove_file(path))),
            Self::RemoveFolder(path) => io(path, if_there(std::fs::remove_dir_all(path))),
        }
    }
}

fn if_there(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(unix)]
fn sync(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Elsewhere folders cannot be opened; the file system orders renames itself.
#[cfg(not(unix))]
fn sync(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn link(path: &Path, name: &str) -> std::io::Result<()> {
    std::os::unix::fs::symlink(name, path)
}

/// Elsewhere links need privileges: a file with the name instead.
#[cfg(not(unix))]
fn link(path: &Path, name: &str) -> std::io::Result<()> {
    std::fs::write(path, name)
}
