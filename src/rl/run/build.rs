//! What a run was made with.

use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Program and machine of a run: `build.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Version of the crate.
    pub version: String,
    /// Git commit of the sources in the working directory, with `-dirty` when files differ from it; `None` outside of a
    /// checkout of this crate.
    pub commit: Option<String>,
    /// Where tensors are: `cpu`, `cuda:0`.
    pub device: String,
    /// Cargo features.
    pub features: Vec<String>,
}

impl Build {
    /// This program, with tensors on `device`.
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit(),
            device: device.into(),
            features: if cfg!(feature = "cuda") { vec!["cuda".to_owned()] } else { vec![] },
        }
    }
}

/// The commit of the checkout that the program is started in. Asked for at run time: a build script that watches the
/// repository would compile the crate anew at every commit.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let manifest = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?).join("Cargo.toml");
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(manifest).ok()?).ok()?;
    if manifest.get("package")?.get("name")?.as_str()? != env!("CARGO_PKG_NAME") {
        return None;
    }
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}
