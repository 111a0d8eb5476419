//! A short name for "these weights with this configuration", under which features are cached.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::checkpoint::files;
use crate::error::{Error, Result};

/// Weights are hashed in blocks of this many bytes, on all cores.
const BLOCK: u64 = 16 << 20;

/// SHA-256, shortened to 32 hexadecimal digits, over every byte of the weights, `config.json` and `extra`.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn revision(dir: &Path, extra: &str) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut add = |name: &str, digest: &[u8]| {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(digest);
    };
    for path in weights(dir)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        add(&name, &file_digest(&path)?);
    }
    add("extra", &Sha256::digest(extra));
    Ok(hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// `config.json` and the weights: `model.safetensors`, or else every safetensors file of the folder, by name.
fn weights(dir: &Path) -> Result<Vec<PathBuf>> {
    let [config, whole] = ["config.json", "model.safetensors"].map(|name| dir.join(name));
    if whole.is_file() {
        return Ok(vec![config, whole]);
    }
    let mut files = files(dir)?;
    files.retain(|path| path.extension().is_some_and(|end| end == "safetensors"));
    files.push(config);
    files.sort();
    Ok(files)
}

fn file_digest(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let size = std::fs::metadata(path).map_err(io)?.len();
    let block_digest = |block: u64| -> Result<_> {
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(block * BLOCK)).map_err(io)?;
        let mut bytes = vec![];
        file.take(BLOCK).read_to_end(&mut bytes).map_err(io)?;
        Ok(Sha256::digest(bytes))
    };
    let digests: Vec<_> =
        (0..size.div_ceil(BLOCK)).into_par_iter().map(block_digest).collect::<Result<_>>()?;
    let mut hasher = Sha256::new();
    hasher.update(size.to_le_bytes());
    digests.iter().for_each(|digest| hasher.update(digest));
    Ok(hasher.finalize().to_vec())
}
