//! What the Hub says about a file's content: sha256 for LFS files, git's blob hash for the small ones.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

const BLOCK: usize = 1 << 20;

/// A hash announced by the Hub, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksum {
    /// SHA-256 of the content (LFS files: `x-linked-etag`).
    Sha256(String),
    /// SHA-1 of the git blob, `"blob {size}\0"` before the content (files kept in git itself).
    GitSha1(String),
}

impl Checksum {
    /// Reads a hash from its spelling: 64 hexadecimal digits are a sha256, 40 a git blob hash.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = text.to_ascii_lowercase();
        match hex.len() {
            _ if !hex.bytes().all(|b| b.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(hex)),
            40 => Some(Self::GitSha1(hex)),
            _ => None,
        }
    }

    /// The hexadecimal digits; also the name of the blob in the cache.
    pub fn hex(&self) -> &str {
        let (Self::Sha256(hex) | Self::GitSha1(hex)) = self;
        hex
    }

    /// An empty hasher of the same kind, for a file of `size` bytes.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitSha1(_) => Hasher::GitSha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::GitSha1(hex) => write!(f, "git sha1 {hex}"),
        }
    }
}

/// A [`Checksum`] in the making.
#[derive(Clone)]
pub(super) enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitSha1(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum::Sha256(hex(&hasher.finalize())),
            Self::GitSha1(hasher) => Checksum::GitSha1(hex(&hasher.finalize())),
        }
    }

    /// Takes in the rest of `file`; `report` hears the bytes read so far and may stop the work.
    pub(super) fn read(
        &mut self,
        path: &Path,
        file: &mut File,
        report: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut block = vec![0; BLOCK];
        let mut done = 0;
        loop {
            let n = file.read(&mut block).map_err(|e| Error::io(path, e))?;
            if n == 0 {
                return Ok(());
            }
            self.update(&block[..n]);
            done += n as u64;
            report(done)?;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
