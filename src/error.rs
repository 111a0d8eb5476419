//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// What went wrong, where, and what was expected. Messages are complete sentences for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A video or image that cannot be read.
    #[error("{}: {cause}", path.display())]
    Video {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A checkpoint (config, tokenizer or weights) that cannot be used.
    #[error("checkpoint {}: {cause}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it: names, expected and found shapes.
        cause: String,
    },
    /// A download, or a look-up on the Hub, that failed.
    #[error("hub {repo}: {cause}")]
    Hub {
        /// Repository id, with the file where one is concerned.
        repo: String,
        /// What is wrong and what to do.
        cause: String,
    },
    /// An argument outside what is allowed: what was expected and what came.
    #[error("{0}")]
    Input(String),
    /// Text that cannot be tokenised or a template that cannot be rendered.
    #[error("{0}")]
    Text(String),
    /// A file that cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        cause: std::io::Error,
    },
    /// An error of the tensor library: operation, shapes, dtypes.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// `Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A video error naming `path`.
    pub fn video(path: impl AsRef<Path>, cause: impl std::fmt::Display) -> Self {
        Self::Video { path: path.as_ref().to_owned(), cause: cause.to_string() }
    }

    /// A checkpoint error naming `path`.
    pub fn checkpoint(path: impl AsRef<Path>, cause: impl std::fmt::Display) -> Self {
        Self::Checkpoint { path: path.as_ref().to_owned(), cause: cause.to_string() }
    }

    /// A Hub error naming the repository (and file).
    pub fn hub(repo: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Hub { repo: repo.into(), cause: cause.to_string() }
    }

    /// An I/O error naming `path`.
    pub fn io(path: impl AsRef<Path>, cause: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), cause }
    }
}
