//! Bytes of one file over HTTP: the announced hash, and a download that resumes, retries and can be stopped.
//!
//! `hf-hub` 1.0 starts a cut download from zero, checks no hash and cannot be interrupted, so this part is our own.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::Hub;
use super::hash::{Checksum, Hasher};
use super::listing::{Wanted, root_cause};
use super::monitor::{Monitor, Stage, TICK};
use crate::{Error, Result};

const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;
/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 1 << 20;

/// A failed try.
enum Failure {
    /// May work the next time; not before the pause that the server asks for.
    Transient(String, Option<Duration>),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// A client for the files of one commit; one per thread, since its connections live on its own event loop.
pub(super) struct Transfer<'a> {
    hub: &'a Hub,
    repo: &'a str,
    commit: String,
    monitor: &'a Monitor,
    runtime: tokio::runtime::Runtime,
    client: Client,
    no_redirect: Client,
}

/// What is to be downloaded.
pub(super) struct Wish<'a> {
    pub file: &'a str,
    pub size: u64,
    pub checksum: &'a Checksum,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(hub: &'a Hub, repo: &'a str, commit: &str, monitor: &'a Monitor) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Error::hub(repo, format!("cannot start the event loop: {e}")))?;
        let client = hub.http_client(hub.http_builder())?;
        let no_redirect = hub.http_client(hub.http_builder().redirect(reqwest::redirect::Policy::none()))?;
        Ok(Self { hub, repo, commit: commit.to_owned(), monitor, runtime, client, no_redirect })
    }

    /// The sha256 that the Hub announces for an LFS file of `size` bytes.
    pub(super) fn announced(&self, file: &str, size: u64) -> Result<Checksum> {
        let mut failures = 0;
        let headers = loop {
            match self.head(file) {
                Ok(headers) => break headers,
                Err(failure) => self.after(failure, &mut failures, |cause| {
                    Error::hub(self.name(file), format!("{cause} (tried {} times)", self.hub.retries + 1))
                })?,
            }
        };
        let linked_size = text(&headers, "x-linked-size").and_then(|s| s.parse::<u64>().ok());
        if let Some(linked) = linked_size.filter(|&linked| linked != size) {
            let cause = format!("the Hub lists {size} bytes and announces {linked}; try again later");
            return Err(Error::hub(self.name(file), cause));
        }
        let etag = text(&headers, "x-linked-etag").or_else(|| text(&headers, ETAG.as_str()));
        let hash = etag.map(|e| e.trim_start_matches("W/").trim_matches('"'));
        hash.and_then(Checksum::parse).filter(|c| matches!(c, Checksum::Sha256(_))).ok_or_else(|| {
            let cause = format!("{} announces no sha256 for it (x-linked-etag: {etag:?})", self.hub.endpoint);
            Error::hub(self.name(file), cause)
        })
    }

    /// Headers of the Hub's own answer: redirects are followed within the endpoint, not to where the bytes lie.
    fn head(&self, file: &str) -> std::result::Result<HeaderMap, Failure> {
        let mut url = self.url(file)?;
        for _ in 0..=REDIRECTS {
            let response = self.send(self.no_redirect.head(url.clone()))?;
            let status = response.status();
            if !status.is_redirection() {
                return self.accept(response, file).map(|r| r.headers().clone());
            }
            let next = text(response.headers(), LOCATION.as_str()).and_then(|to| url.join(to).ok());
            match next.filter(|next| next.origin() == url.origin()) {
                Some(next) if !response.headers().contains_key("x-linked-etag") => url = next,
                _ => return Ok(response.headers().clone()),
            }
        }
        Err(Error::hub(self.name(file), format!("{url}: more than {REDIRECTS} redirects")).into())
    }

    /// Brings `partial` to its full length, starting from what is there, and compares the hash of the whole.
    pub(super) fn fetch(&self, wish: &Wish<'_>, partial: &Path) -> Result<()> {
        let mut part = Part::open(partial, wish, self.monitor)?;
        let mut failures = 0;
        while part.done < wish.size {
            let before = part.done;
            match self.append(wish, &mut part) {
                Ok(()) if part.done >= wish.size => break,
                outcome => {
                    if part.done > before {
                        failures = 0;
                    }
                    let ended = || Failure::Transient("the body ended early".into(), None);
                    self.after(outcome.err().unwrap_or_else(ended), &mut failures, |cause| {
                        let (done, size, tries) = (part.done, wish.size, self.hub.retries + 1);
                        let cause = format!("got {done} of {size} bytes, then {tries} times: {cause}");
                        Error::hub(self.name(wish.file), format!("{cause}; run again to resume"))
                    })?;
                }
            }
        }
        part.close(wish, |found| {
            let expected = wish.checksum;
            let cause = format!("the downloaded file has {found}, the Hub announced {expected}");
            Error::hub(
                self.name(wish.file),
                format!("{cause}; the file was removed, run again to fetch it anew"),
            )
        })
    }

    /// One request for the missing bytes; returns when the body ends.
    fn append(&self, wish: &Wish<'_>, part: &mut Part) -> std::result::Result<(), Failure> {
        let mut request = self.client.get(self.url(wish.file)?);
        if part.done > 0 {
            request = request.header(RANGE, format!("bytes={}-", part.done));
        }
        let response = self.send(request)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            part.restart(wish)?;
            return Err(Failure::Transient("the server cannot resume".into(), None));
        }
        let mut response = self.accept(response, wish.file)?;
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT
            && text(response.headers(), CONTENT_RANGE.as_str()).and_then(range_start) == Some(part.done);
        if part.done > 0 && !resumed {
            tracing::warn!("{}: the server does not resume, starting anew", self.name(wish.file));
            part.restart(wish)?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Err(Failure::Transient("the server sent another range than asked for".into(), None));
            }
        }
        let mut reported = None;
        loop {
            let chunk = match self.wait(response.chunk())? {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(()),
                Err(e) => {
                    return Err(Failure::Transient(
                        format!("the body ended early ({})", root_cause(&e)),
                        None,
                    ));
                }
            };
            if part.done + chunk.len() as u64 > wish.size {
                part.restart(wish)?;
                let cause = format!("the server sends more than the announced {} bytes", wish.size);
                return Err(Error::hub(self.name(wish.file), cause).into());
            }
            part.write(&chunk)?;
            let due = reported.is_none_or(|at| part.done - at >= REPORT_EVERY) || part.done == wish.size;
            if due {
                reported = Some(part.done);
                self.monitor.report(Stage::Downloading, wish.file, (part.done, wish.size))?;
            }
        }
    }

    fn name(&self, file: &str) -> String {
        format!("{}/{file}", self.repo)
    }

    /// `{endpoint}/{repo}/resolve/{commit}/{file}`, each segment percent-encoded.
    fn url(&self, file: &str) -> Result<Url> {
        let endpoint = self.hub.endpoint.as_str();
        let refuse = |cause: String| Error::hub(self.repo, format!("endpoint {endpoint}: {cause}"));
        let mut url = Url::parse(endpoint).map_err(|e| refuse(e.to_string()))?;
        let mut segments = url.path_segments_mut().map_err(|()| refuse("no web address".into()))?;
        segments
            .pop_if_empty()
            .extend(self.repo.split('/'))
            .extend(["resolve", self.commit.as_str()])
            .extend(file.split('/'));
        drop(segments);
        Ok(url)
    }

    /// Sends with the token (which reqwest drops when a redirect leaves the host) and without compression.
    fn send(&self, request: RequestBuilder) -> std::result::Result<Response, Failure> {
        let mut request = request.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = &self.hub.token {
            request = request.header(AUTHORIZATION, self.hub.bearer(token)?);
        }
        // `send` starts its timer at once, so it has to be called inside the runtime.
        match self.wait(async { request.send().await })? {
            Ok(response) => Ok(response),
            Err(e) if e.is_connect() || e.is_timeout() => {
                Err(Failure::Transient(self.hub.unreachable(&e), None))
            }
            Err(e) if e.is_builder() || e.is_redirect() => {
                Err(Error::hub(self.repo, format!("{}: {}", self.hub.endpoint, root_cause(&e))).into())
            }
            Err(e) => Err(Failure::Transient(format!("the connection broke ({})", root_cause(&e)), None)),
        }
    }

    /// Passes a success on and says what any other status means.
    fn accept(&self, response: Response, file: &str) -> std::result::Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let code = text(response.headers(), "x-error-code");
        let cause = self.hub.refused(status.as_u16(), code, Wanted::File(file));
        let pause = text(response.headers(), RETRY_AFTER.as_str()).and_then(|s| s.parse().ok());
        if matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) {
            return Err(Failure::Transient(cause, pause.map(Duration::from_secs)));
        }
        Err(Error::hub(self.name(file), cause).into())
    }

    /// Waits for `work` on this thread's event loop, looking up now and then whether to stop.
    fn wait<F: Future>(&self, work: F) -> Result<F::Output> {
        let mut work = pin!(work);
        self.runtime.block_on(async {
            loop {
                self.monitor.check()?;
                if let Ok(output) = tokio::time::timeout(TICK, work.as_mut()).await {
                    return Ok(output);
                }
            }
        })
    }

    /// Counts a failure and sleeps before the next try, or gives up.
    fn after(&self, failure: Failure, failures: &mut usize, give_up: impl Fn(String) -> Error) -> Result<()> {
        let (cause, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient(cause, asked) => (cause, asked),
        };
        *failures += 1;
        if *failures > self.hub.retries {
            return Err(give_up(cause));
        }
        let backoff = self.hub.backoff * 2u32.saturating_pow((*failures - 1).min(16) as u32);
        let pause = backoff.max(asked.unwrap_or_default()).min(LONGEST_PAUSE);
        tracing::warn!("{cause}; trying again in {:.1} s", pause.as_secs_f64());
        self.monitor.pause(pause)
    }
}

/// A file that is being filled, with the hash of what it holds.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    done: u64,
}

impl Part {
    fn open(path: &Path, wish: &Wish<'_>, monitor: &Monitor) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let found = file.metadata().map_err(io)?.len();
        let mut hasher = wish.checksum.hasher(wish.size);
        if found > wish.size {
            file.set_len(0).map_err(io)?;
        } else {
            let mut last = Instant::now();
            hasher.read(path, &mut file, &mut |done| {
                if last.elapsed() < TICK {
                    return monitor.check();
                }
                last = Instant::now();
                monitor.report(Stage::Verifying, wish.file, (done, wish.size))
            })?;
        }
        let done = file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, hasher, done })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, wish: &Wish<'_>) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        self.file.set_len(0).map_err(io)?;
        self.file.rewind().map_err(io)?;
        self.hasher = wish.checksum.hasher(wish.size);
        self.done = 0;
        Ok(())
    }

    /// Keeps the file if it is what was announced, removes it if not.
    fn close(self, wish: &Wish<'_>, refuse: impl Fn(Checksum) -> Error) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let found = self.hasher.finish();
        if found != *wish.checksum {
            std::fs::remove_file(&self.path).map_err(io)?;
            return Err(refuse(found));
        }
        self.file.sync_all().map_err(io)
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Start of `bytes 5-9/10`.
fn range_start(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
