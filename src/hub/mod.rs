//! Weights by name: a known model, a repository of the Hugging Face Hub or a local folder becomes a local folder
//! whose files are what the Hub announced.
//!
//! ```no_run
//! # fn main() -> msjoe::Result<()> {
//! use std::ops::ControlFlow;
//! let hub = msjoe::hub::Hub::from_env()?;
//! let weights = msjoe::hub::resolve(&hub, "clip-vit-large-patch14", &mut |_| ControlFlow::Continue(()))?;
//! let checkpoint = weights.folder; // config.json, model.safetensors, tokenizer.json, …
//! # Ok(()) }
//! ```
//!
//! Files lie in the cache that `huggingface_hub` uses too, so each finds what the other downloaded. On download the
//! content of every file is compared with the hash that the Hub announces (sha256 of LFS files, git blob hash of the
//! others). Commit, sizes and hashes are kept in [`LOCK_FILE`]; each later load, offline too, compares sizes with it,
//! and hashes again every file whose size or modification time is not that of the last comparison.

mod cache;
mod hash;
mod listing;
mod lock;
mod monitor;
mod snapshot;
mod source;
mod transfer;
mod verifier;

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::HeaderValue;

pub use hash::Checksum;
pub use lock::LOCK_FILE;
pub use monitor::{Progress, Stage};
pub use source::{Kind, Model, Repo, Source, known_models};

use crate::{Error, Result};

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ask the Hub what a revision points to, and download what is missing.
    Online,
    /// Only what is in the cache.
    Offline,
}

/// Where the Hub is, where its files are kept, and how patient to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    /// Base address, `https://huggingface.co` by default.
    pub endpoint: String,
    /// Folder of the `models--…` folders.
    pub cache: PathBuf,
    /// Access token; sent to the endpoint only, never to where it redirects.
    pub token: Option<String>,
    /// Whether the network may be used.
    pub mode: Mode,
    /// Tries after a failed one; bytes that arrived in between reset the count.
    pub retries: usize,
    /// Pause after the first failure; it doubles with each further one, up to a minute.
    pub backoff: Duration,
    /// Longest silence of a server, and longest wait for a connection.
    pub timeout: Duration,
    /// Files at a time.
    pub parallel: usize,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, token, mode, retries, backoff, timeout, parallel } = self;
        f.debug_struct("Hub")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token.as_ref().map(|_| "…"))
            .field("mode", mode)
            .field("retries", retries)
            .field("backoff", backoff)
            .field("timeout", timeout)
            .field("parallel", parallel)
            .finish()
    }
}

/// A local folder of weights and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// The folder, ready for [`crate::checkpoint`].
    pub folder: PathBuf,
    /// Repository id; none for a local folder.
    pub repo: Option<String>,
    /// The commit that the revision resolved to; none for a local folder.
    pub commit: Option<String>,
    /// Paths in the folder that were looked after, sorted; empty for a local folder.
    pub files: Vec<String>,
    /// What the user should know although it was no error.
    pub warnings: Vec<String>,
}

/// Turns `spec` into a local folder with verified files, downloading what is missing.
///
/// `spec` is an existing folder, a known name ([`known_models`]) or a repository id `org/name`; the latter two may end
/// in `@revision`. `on_progress` runs on the calling thread, at least ten times a second; after a
/// [`ControlFlow::Break`] the download stops and a later call resumes it.
///
/// # Errors
/// [`Error::Input`] for an unknown name, [`Error::Interrupted`] after a break, [`Error::Io`] for the cache, and
/// [`Error::Hub`] for everything else: no access, nothing there, no network and not cached, no space on the disk, a
/// body that stays short, a hash that differs.
pub fn resolve(
    hub: &Hub,
    spec: &str,
    on_progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Resolved> {
    match Source::parse(spec)? {
        Source::Folder(folder) => {
            let warnings = monitor::watch(on_progress, |monitor| verifier::check_folder(&folder, monitor))?;
            Ok(Resolved { folder, repo: None, commit: None, files: Vec::new(), warnings })
        }
        Source::Repo(repo) => resolve_repo(hub, &repo, on_progress),
    }
}

/// [`resolve`] for a repository of which the caller chooses the files.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_repo(
    hub: &Hub,
    repo: &Repo,
    on_progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Resolved> {
    monitor::watch(on_progress, |monitor| snapshot::obtain(hub, repo, monitor))
}

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` (default
    /// `$HF_HOME/token`), `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds).
    ///
    /// # Errors
    /// [`Error::Input`] if there is no home folder to put the cache in, or the timeout is no number.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// [`Hub::from_env`] with the variables answered by `lookup`.
    ///
    /// # Errors
    /// As [`Hub::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| get(name).map(|value| expand_home(&value, get("HOME")));
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface")))
            .or_else(|| get("HOME").map(|p| PathBuf::from(p).join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = cache.or_else(|| home.as_ref().map(|home| home.join("hub"))) else {
            return Err(Error::Input("no folder for downloads: set HF_HOME (or HOME)".into()));
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let token = get("HF_TOKEN").or_else(|| {
            let text = std::fs::read_to_string(token_file?).ok()?;
            Some(text.trim().to_owned()).filter(|t| !t.is_empty())
        });
        let implicit = !get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v));
        let offline = get("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v));
        let timeout = match get("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => Duration::from_secs(10),
            Some(text) => match text.parse() {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
                _ => {
                    return Err(Error::Input(format!(
                        "HF_HUB_DOWNLOAD_TIMEOUT: expected seconds, got {text:?}"
                    )));
                }
            },
        };
        Ok(Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            cache,
            token: token.filter(|_| implicit),
            mode: if offline { Mode::Offline } else { Mode::Online },
            retries: 5,
            backoff: Duration::from_millis(500),
            timeout,
            parallel: 4,
        })
    }

    /// Options that all requests share.
    fn http_builder(&self) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("msjoe/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeout)
            .read_timeout(self.timeout)
            .referer(false);
        // A Hub on this very machine is never behind a proxy.
        let url = reqwest::Url::parse(&self.endpoint).ok();
        match url.as_ref().and_then(|url| url.host_str()) {
            Some("localhost" | "127.0.0.1" | "[::1]") => builder.no_proxy(),
            _ => builder,
        }
    }

    fn http_client(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::Client> {
        let refuse = |e: reqwest::Error| {
            Error::hub(&self.endpoint, format!("no HTTP client: {}", listing::root_cause(&e)))
        };
        builder.build().map_err(refuse)
    }

    fn bearer(&self, token: &str) -> Result<HeaderValue> {
        let refuse = |_| {
            Error::hub(
                &self.endpoint,
                "the token (HF_TOKEN or the token file) has characters that no token has",
            )
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(refuse)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

fn expand_home(path: &str, home: Option<String>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}
