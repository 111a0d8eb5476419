//! A Hub on 127.0.0.1 for the tests: the model API, `resolve` with its redirects, and a second port as its CDN.
//! Written on `TcpListener`, because the tests have to break connections in the middle of a body.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use msjoe::hub::{Hub, Mode};
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub const REPO: &str = "org/model";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_secret";

/// What goes wrong with the next body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The connection closes when the body has come to this byte of the file.
    CutAt(usize),
    /// After this many bytes of the body nothing comes any more, and the connection stays open.
    SilentAfter(usize),
    /// The same length with other content.
    Corrupt,
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// More bytes than announced.
    TooLong,
    Status(u16),
}

/// How `resolve` answers for LFS files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// To the other port.
    Absolute,
    /// To another path of the same host.
    Relative,
    /// Not at all.
    None,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub cdn: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

pub struct Shared {
    pub commit: String,
    pub revisions: BTreeMap<String, String>,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Sizes in the listing that are not those of the content.
    pub claimed_sizes: BTreeMap<String, u64>,
    pub faults: VecDeque<Fault>,
    pub always: Fault,
    /// Status of every answer of the API and of `resolve`, with its `X-Error-Code`.
    pub refuse: Option<(u16, &'static str)>,
    pub need_token: bool,
    /// The API takes requests and never answers.
    pub silent_api: bool,
    pub redirect: Redirect,
    /// The `x-linked-etag` header; the real hash if `None`.
    pub linked_etag: Option<String>,
    pub seen: Vec<Seen>,
    cdn: SocketAddr,
}

pub struct FakeHub {
    pub shared: Arc<Mutex<Shared>>,
    pub endpoint: String,
    pub cache: tempfile::TempDir,
}

/// A file is LFS, as on the Hub, if it is of a kind that grows large.
pub fn is_lfs(path: &str) -> bool {
    path.ends_with(".safetensors")
}

pub fn git_sha1(content: &[u8]) -> String {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hasher.update(content);
    hex(&hasher.finalize())
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that never repeat with a short period, so that a shifted or doubled part is noticed.
pub fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

impl FakeHub {
    /// A repository with a config, a tokenizer and 300 kB of weights.
    pub fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let files = [
            ("config.json", br#"{"model_type": "test"}"#.to_vec()),
            ("model.safetensors", content(300_000)),
            ("tokenizer.json", Vec::new()),
            ("README.md", b"not wanted".to_vec()),
        ];
        let shared = Arc::new(Mutex::new(Shared {
            commit: COMMIT.into(),
            revisions: BTreeMap::from([("main".into(), COMMIT.into())]),
            files: files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
            claimed_sizes: BTreeMap::new(),
            faults: VecDeque::new(),
            always: Fault::None,
            refuse: None,
            need_token: false,
            silent_api: false,
            redirect: Redirect::Absolute,
            linked_etag: None,
            seen: Vec::new(),
            cdn: cdn.local_addr().unwrap(),
        }));
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let shared = shared.clone();
                    std::thread::spawn(move || serve(stream, &shared, is_cdn));
                }
            });
        }
        Self { shared, endpoint, cache: tempfile::tempdir().unwrap() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Settings for this server: quick to give up, one file at a time so that the order of requests is known.
    pub fn client(&self) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache: self.cache.path().to_owned(),
            token: None,
            mode: Mode::Online,
            retries: 2,
            backoff: Duration::from_millis(1),
            timeout: Duration::from_secs(20),
            parallel: 1,
        }
    }

    pub fn offline(&self) -> Hub {
        Hub { mode: Mode::Offline, ..self.client() }
    }

    /// `models--org--model` in the cache.
    pub fn folder(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }

    /// The requests so far, which are forgotten.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.lock().seen)
    }

    /// Requests for the content of `file`, which are forgotten with all others.
    pub fn take_bodies(&self, file: &str) -> Vec<Seen> {
        let is_body = |s: &Seen| s.method == "GET" && !s.path.contains("/api/") && s.path.ends_with(file);
        let cdn_only = is_lfs(file) && self.lock().redirect == Redirect::Absolute;
        self.take_seen().into_iter().filter(|s| is_body(s) && (s.cdn || !cdn_only)).collect()
    }
}

/// All files below `folder`, as sorted relative paths.
pub fn tree(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => paths.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    paths.sort();
    paths
}

fn serve(stream: TcpStream, shared: &Mutex<Shared>, cdn: bool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.replace("%20", " ").replace("%23", "#"));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let seen =
        Seen { cdn, method, path, range: headers.remove("range"), token: headers.remove("authorization") };
    shared.lock().unwrap().seen.push(seen.clone());
    let mut out = Out { stream, head: seen.method == "HEAD" };
    if cdn || seen.path.starts_with("/cdn/") {
        body(&mut out, shared, &seen, "/cdn/")
    } else if shared.lock().unwrap().silent_api {
        out.stay_silent()
    } else if seen.path.starts_with("/api/") {
        api(&mut out, shared, &seen)
    } else {
        resolve(&mut out, shared, &seen)
    }
}

struct Out {
    stream: TcpStream,
    head: bool,
}

impl Out {
    fn send(&mut self, status: u16, headers: &[(&str, String)], length: usize, body: &[u8]) -> Option<()> {
        let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
        if !self.head {
            self.stream.write_all(body).ok()?;
        }
        self.stream.flush().ok()
    }

    /// Until the client goes away.
    fn stay_silent(&mut self) -> Option<()> {
        self.stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        self.stream.read(&mut [0]).ok().map(drop)
    }

    fn refuse(&mut self, status: u16, code: &str) -> Option<()> {
        self.send(status, &[("X-Error-Code", code.to_owned())], 0, b"")
    }
}

/// Whether the request was refused.
fn refused(out: &mut Out, shared: &Shared, seen: &Seen) -> bool {
    let has_token = seen.token.as_deref() == Some(&format!("Bearer {TOKEN}"));
    let refusal = match shared.refuse {
        None if shared.need_token && !has_token => Some((401, "GatedRepo")),
        other => other,
    };
    if let Some((status, code)) = refusal {
        out.refuse(status, code);
    }
    refusal.is_some()
}

fn api(out: &mut Out, shared: &Mutex<Shared>, seen: &Seen) -> Option<()> {
    let shared = shared.lock().unwrap();
    if refused(out, &shared, seen) {
        return None;
    }
    let Some(rest) = seen.path.strip_prefix("/api/models/org/model/") else {
        return out.refuse(404, "RepoNotFound");
    };
    if let Some(revision) = rest.strip_prefix("revision/") {
        return match shared.revisions.get(&revision.replace("%2F", "/")) {
            Some(sha) => json(out, &serde_json::json!({ "id": REPO, "sha": sha }), &[]),
            None => out.refuse(404, "RevisionNotFound"),
        };
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let revision = path.strip_prefix("tree/").unwrap_or_default();
    if revision != shared.commit && shared.revisions.get(revision) != Some(&shared.commit) {
        return out.refuse(404, "RevisionNotFound");
    }
    // Two pages, to see that both are read.
    let entries: Vec<_> = shared.files.iter().map(|(path, content)| entry(path, content, &shared)).collect();
    let half = entries.len() / 2;
    if query.contains("cursor=2") {
        return json(out, &serde_json::json!(entries[half..]), &[]);
    }
    let host = out.stream.local_addr().ok()?;
    let next = format!("<http://{host}/api/models/org/model/{path}?recursive=true&cursor=2>; rel=\"next\"");
    json(out, &serde_json::json!(entries[..half]), &[("Link", next)])
}

fn entry(path: &str, content: &[u8], shared: &Shared) -> serde_json::Value {
    let size = shared.claimed_sizes.get(path).copied().unwrap_or(content.len() as u64);
    if !is_lfs(path) {
        return serde_json::json!({ "type": "file", "path": path, "size": size, "oid": git_sha1(content) });
    }
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {size}\n", sha256(content));
    serde_json::json!({
        "type": "file", "path": path, "size": size, "oid": git_sha1(pointer.as_bytes()),
        "lfs": { "oid": sha256(content), "size": size, "pointerSize": pointer.len() }, "xetHash": "0".repeat(64),
    })
}

fn json(out: &mut Out, value: &serde_json::Value, headers: &[(&str, String)]) -> Option<()> {
    let text = value.to_string();
    let mut all = vec![("Content-Type", "application/json".to_owned())];
    all.extend(headers.iter().cloned());
    out.send(200, &all, text.len(), text.as_bytes())
}

fn resolve(out: &mut Out, shared: &Mutex<Shared>, seen: &Seen) -> Option<()> {
    // The Python client asks for a branch here, this crate always for the commit.
    let revision =
        if seen.path.contains("/resolve/main/") { "main" } else { &shared.lock().unwrap().commit.clone() };
    let prefix = format!("/{REPO}/resolve/{revision}/");
    let headers = {
        let shared = shared.lock().unwrap();
        if refused(out, &shared, seen) {
            return None;
        }
        let Some(file) = seen.path.strip_prefix(&prefix).filter(|f| shared.files.contains_key(*f)) else {
            return out.refuse(404, "EntryNotFound");
        };
        redirect(file, &shared)
    };
    match headers {
        Some(headers) => out.send(302, &headers, 0, b""),
        None => body(out, shared, seen, &prefix),
    }
}

/// The headers that send the client elsewhere, if `file` lies elsewhere.
fn redirect(file: &str, shared: &Shared) -> Option<Vec<(&'static str, String)>> {
    let location = match shared.redirect {
        // The Hub sends small files on too, within its own host and without the linked headers.
        Redirect::Relative if !is_lfs(file) => return Some(vec![("Location", format!("/cdn/{file}"))]),
        Redirect::Absolute if !is_lfs(file) => return None,
        Redirect::None => return None,
        Redirect::Absolute => format!("http://{}/cdn/{file}", shared.cdn),
        Redirect::Relative => format!("/cdn/{file}"),
    };
    let content = &shared.files[file];
    let size = shared.claimed_sizes.get(file).copied().unwrap_or(content.len() as u64);
    let mut headers = vec![
        ("ETag", "\"of-the-redirect\"".to_owned()),
        ("X-Repo-Commit", shared.commit.clone()),
        ("X-Linked-Size", size.to_string()),
        ("X-Xet-Hash", "0".repeat(64)),
        ("Location", location),
    ];
    match shared.linked_etag.as_deref() {
        Some("") => {}
        Some(etag) => headers.push(("X-Linked-Etag", etag.to_owned())),
        None => headers.push(("X-Linked-Etag", format!("\"{}\"", sha256(content)))),
    }
    Some(headers)
}

/// Sends the content of a file, or what the next fault makes of it.
fn body(out: &mut Out, shared: &Mutex<Shared>, seen: &Seen, prefix: &str) -> Option<()> {
    let (mut content, fault) = {
        let mut shared = shared.lock().unwrap();
        let content = seen.path.strip_prefix(prefix).and_then(|file| shared.files.get(file)).cloned();
        let always = shared.always;
        let fault = if out.head { Fault::None } else { shared.faults.pop_front().unwrap_or(always) };
        (content, fault)
    };
    let etag = match &content {
        None => return out.refuse(404, "EntryNotFound"),
        Some(content) if is_lfs(&seen.path) => sha256(content),
        Some(content) => git_sha1(content),
    };
    let content = content.as_mut()?;
    let asked = seen.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start: usize = if fault == Fault::IgnoreRange { 0 } else { asked.unwrap_or(0) };
    if start > content.len() {
        return out.refuse(416, "");
    }
    let (mut length, mut end) = (content.len() - start, content.len());
    match fault {
        Fault::Status(status) => return out.refuse(status, ""),
        Fault::Corrupt => content.iter_mut().for_each(|byte| *byte ^= 1),
        Fault::TooLong => {
            content.extend_from_slice(b"more");
            (length, end) = (length + 4, end + 4);
        }
        Fault::CutAt(at) => end = at.clamp(start, end),
        Fault::SilentAfter(bytes) => end = (start + bytes).min(end),
        Fault::None | Fault::IgnoreRange => {}
    }
    let mut headers = vec![("ETag", format!("\"{etag}\"")), ("X-Repo-Commit", COMMIT.to_owned())];
    let partial = asked.is_some() && fault != Fault::IgnoreRange;
    if partial {
        headers.push(("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len())));
    }
    out.send(if partial { 206 } else { 200 }, &headers, length, &content[start..end])?;
    if matches!(fault, Fault::SilentAfter(_)) {
        out.stay_silent()?;
    }
    Some(())
}
