//! Files as this crate writes them: whole or not at all, and readable for whom the umask lets read.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Parses a JSON file into `T`.
///
/// # Errors
/// Names the file and the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::checkpoint(path, e))
}

/// Writes a value as indented JSON with a line feed at its end, as [`write_file`].
///
/// # Errors
/// A value that JSON has no form for; as [`write_file`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::checkpoint(path, e))?;
    write_file(path, (text + "\n").as_bytes())
}

/// Writes a whole file: to a temporary name in the same folder, flushed to disk, then renamed over `path`.
///
/// # Errors
/// The folder does not exist or cannot be written; nothing is left behind then.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let folder = parent(path);
    let mut file = temporary(0o666).tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// Makes a whole folder: `fill` gets it under a temporary name beside `path`, which it is then renamed to.
///
/// # Errors
/// Those of `fill`, and a folder that cannot be made or renamed; nothing is left behind then.
pub fn write_folder<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let beside = parent(path);
    let folder = temporary(0o777).tempdir_in(beside).map_err(|e| Error::io(beside, e))?;
    fill(folder.path())?;
    std::fs::rename(folder.path(), path).map_err(|e| Error::io(path, e))?;
    // It goes by its new name now: there is nothing to remove.
    let _ = folder.keep();
    Ok(())
}

/// Makes temporary files and folders. Their default mode lets nobody else read; the umask still applies to `mode`.
pub(crate) fn temporary(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// The folder that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The files of a folder, by name; folders in it are left out.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io(folder, error);
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
