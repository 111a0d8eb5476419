//! Weights by name, against a Hub-like server on 127.0.0.1.

#[path = "hub_server.rs"]
mod server;
#[path = "hub_settings.rs"]
mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use msjoe::hub::{Hub, LOCK_FILE, Progress, Repo, Resolved, Stage, resolve, resolve_repo};
use msjoe::{Error, Result};
use proptest::prelude::*;
use server::{COMMIT, FakeHub, Fault, REPO, Redirect, TOKEN, content, git_sha1, sha256, tree};

const WEIGHTS: &str = "model.safetensors";
const FILES: [&str; 3] = ["config.json", WEIGHTS, "tokenizer.json"];

fn get(hub: &Hub) -> Result<Resolved> {
    get_spec(hub, REPO)
}

fn get_spec(hub: &Hub, spec: &str) -> Result<Resolved> {
    resolve(hub, spec, &mut |_| ControlFlow::Continue(()))
}

fn refusal(hub: &Hub) -> String {
    get(hub).unwrap_err().to_string()
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

/// Gives a file other content and leaves its modification time as it was or moves it by a second.
fn tamper(path: &Path, content: &[u8], move_time: bool) {
    let path = path.canonicalize().unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, content).unwrap();
    let time = before + Duration::from_secs(move_time.into());
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
}

#[test]
fn downloads_into_the_layout_of_the_python_client() {
    let server = FakeHub::start();
    let weights = get(&server.client()).unwrap();
    assert_eq!(weights.folder, server.folder().join("snapshots").join(COMMIT));
    assert_eq!((weights.repo.as_deref(), weights.commit.as_deref()), (Some(REPO), Some(COMMIT)));
    assert_eq!(weights.files, FILES);
    assert_eq!(weights.warnings, [""; 0]);
    let hash = |file: &str| {
        let content = &server.lock().files[file];
        if server::is_lfs(file) { sha256(content) } else { git_sha1(content) }
    };
    let mut expected = vec![LOCK_FILE.to_owned(), "refs/main".to_owned()];
    for file in FILES {
        expected.push(format!("blobs/{}", hash(file)));
        expected.push(format!("snapshots/{COMMIT}/{file}"));
        let link = fs::read_link(weights.folder.join(file)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(hash(file)));
        assert_eq!(fs::read(weights.folder.join(file)).unwrap(), server.lock().files[file]);
    }
    expected.sort();
    assert_eq!(tree(&server.folder()), expected);
    assert_eq!(fs::read_to_string(server.folder().join("refs/main")).unwrap(), COMMIT);
    // What git itself calls an empty file.
    assert_eq!(hash("tokenizer.json"), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
}

#[test]
fn lock_file_records_commit_sizes_and_announced_hashes() {
    let server = FakeHub::start();
    get(&server.client()).unwrap();
    let text = fs::read_to_string(server.folder().join(LOCK_FILE)).unwrap();
    let lock: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(lock["repo"], REPO);
    let files = &lock["commits"][COMMIT]["files"];
    assert_eq!(files[WEIGHTS]["checksum"]["sha256"], sha256(&content(300_000)));
    assert_eq!(files[WEIGHTS]["size"], 300_000);
    assert_eq!(files[WEIGHTS]["verified"]["size"], 300_000);
    assert_eq!(files["config.json"]["checksum"]["git_sha1"], git_sha1(&server.lock().files["config.json"]));
    // Listed, but neither wanted nor fetched.
    assert_eq!(files["README.md"]["verified"], serde_json::Value::Null);
}

#[test]
fn a_repository_of_chosen_files_keeps_their_folders() {
    let server = FakeHub::start();
    server.lock().files.insert("a/b c#/config.json".into(), b"{}".to_vec());
    // `*` does not cross a slash: the standard patterns do not reach into folders.
    assert_eq!(get(&server.client()).unwrap().files, FILES);
    let repo = Repo {
        id: REPO.into(),
        revision: "main".into(),
        files: vec!["a/*/*.json".into()],
        optional: vec!["no*where".into()],
    };
    let weights = resolve_repo(&server.client(), &repo, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(weights.files, ["a/b c#/config.json"]);
    let path = weights.folder.join(&weights.files[0]);
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../../../blobs").join(git_sha1(b"{}")));
    assert_eq!(fs::read(path).unwrap(), b"{}");
}

#[test]
fn a_second_load_asks_for_the_revision_only() {
    let server = FakeHub::start();
    get(&server.client()).unwrap();
    server.take_seen();
    assert_eq!(get(&server.client()).unwrap().files, FILES);
    let seen = server.take_seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].path, "/api/models/org/model/revision/main");
    // A commit never changes: with its files here there is nothing to ask.
    get_spec(&server.client(), &format!("{REPO}@{COMMIT}")).unwrap();
    get(&server.offline()).unwrap();
    assert_eq!(server.take_seen().len(), 0);
}

#[test]
fn revisions_with_slashes_and_commits() {
    let server = FakeHub::start();
    server.lock().revisions.insert("refs/pr/15".into(), COMMIT.into());
    let weights = get_spec(&server.client(), &format!("{REPO}@refs/pr/15")).unwrap();
    assert_eq!(weights.commit.as_deref(), Some(COMMIT));
    assert_eq!(server.take_seen()[0].path, "/api/models/org/model/revision/refs%2Fpr%2F15");
    assert_eq!(fs::read_to_string(server.folder().join("refs/refs/pr/15")).unwrap(), COMMIT);
    assert!(get_spec(&server.offline(), &format!("{REPO}@refs/pr/15")).is_ok());
    assert!(get_spec(&server.offline(), REPO).is_err(), "main was never asked for");
}

#[test]
fn redirects_are_followed_and_the_token_stays_home() {
    for redirect in [Redirect::Absolute, Redirect::Relative, Redirect::None] {
        let server = FakeHub::start();
        server.lock().redirect = redirect;
        server.lock().need_token = true;
        let hub = Hub { token: Some(TOKEN.into()), ..server.client() };
        assert_eq!(
            fs::read(get(&hub).unwrap().folder.join(WEIGHTS)).unwrap(),
            content(300_000),
            "{redirect:?}"
        );
        let seen = server.take_seen();
        let token = format!("Bearer {TOKEN}");
        let (away, home): (Vec<_>, Vec<_>) = seen.iter().partition(|s| s.cdn);
        assert_eq!(away.len(), (redirect == Redirect::Absolute) as usize, "{away:?}");
        assert!(away.iter().all(|s| s.token.is_none()), "{away:?}");
        assert!(home.iter().all(|s| s.token.as_deref() == Some(&token)), "{home:?}");
    }
}

#[test]
fn without_a_token_none_is_sent() {
    let server = FakeHub::start();
    get(&server.client()).unwrap();
    assert!(server.take_seen().iter().all(|s| s.token.is_none()));
    let debug = format!("{:?}", Hub { token: Some(TOKEN.into()), ..server.client() });
    assert!(!debug.contains(TOKEN), "{debug}");
}

#[test]
fn a_cut_body_is_resumed_where_it_ended() {
    let server = FakeHub::start();
    // The config comes first and is sent whole.
    server.lock().faults.extend([Fault::None, Fault::CutAt(100_000), Fault::CutAt(250_001)]);
    let weights = get(&server.client()).unwrap();
    assert_eq!(fs::read(weights.folder.join(WEIGHTS)).unwrap(), content(300_000));
    let ranges: Vec<_> = server.take_bodies(WEIGHTS).into_iter().map(|s| s.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned()), Some("bytes=250001-".to_owned())]);
}

#[test]
fn progress_made_resets_the_count_of_failures() {
    let server = FakeHub::start();
    server.lock().faults.push_back(Fault::None);
    server.lock().faults.extend((1..30).map(|i| Fault::CutAt(i * 10_000)));
    assert_eq!(server.client().retries, 2);
    get(&server.client()).unwrap();
    assert_eq!(server.take_bodies(WEIGHTS).len(), 30);
}

#[test]
fn a_body_that_stays_short_is_kept_for_the_next_run() {
    let server = FakeHub::start();
    server.lock().always = Fault::CutAt(120_000);
    let text = refusal(&server.client());
    says(&text, &["org/model/model.safetensors", "got 120000 of 300000 bytes", "3 times", "resume"]);
    let partial = server.folder().join("blobs").join(format!("{}.incomplete", sha256(&content(300_000))));
    assert_eq!(fs::read(&partial).unwrap(), content(300_000)[..120_000]);
    assert!(!server.folder().join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    assert!(
        !server.folder().join("refs").exists(),
        "an incomplete commit is not what offline loads should find"
    );
    server.lock().always = Fault::None;
    server.take_seen();
    get(&server.client()).unwrap();
    let ranges: Vec<_> = server.take_bodies(WEIGHTS).into_iter().map(|s| s.range).collect();
    assert_eq!(ranges, [Some("bytes=120000-".to_owned())]);
    assert!(!partial.exists());
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let server = FakeHub::start();
    server.lock().faults.extend([Fault::None, Fault::CutAt(70_000), Fault::IgnoreRange]);
    let weights = get(&server.client()).unwrap();
    assert_eq!(fs::read(weights.folder.join(WEIGHTS)).unwrap(), content(300_000));
}

#[test]
fn a_partial_file_that_is_too_long_or_wrong_is_noticed() {
    let server = FakeHub::start();
    let partial = server.folder().join("blobs").join(format!("{}.incomplete", sha256(&content(300_000))));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, content(300_001)).unwrap();
    get(&server.client()).unwrap();
    let server = FakeHub::start();
    let partial = server.folder().join("blobs").join(format!("{}.incomplete", sha256(&content(300_000))));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, b"from somewhere else").unwrap();
    says(&refusal(&server.client()), &["announced", "removed"]);
    get(&server.client()).unwrap();
}

#[test]
fn transient_failures_are_tried_again() {
    let server = FakeHub::start();
    server.lock().faults.extend([Fault::Status(503), Fault::Status(500), Fault::None, Fault::Status(429)]);
    get(&server.client()).unwrap();
    server.lock().always = Fault::Status(503);
    let text = refusal(&Hub { cache: server.cache.path().join("other"), ..server.client() });
    says(&text, &["503", "config.json", "3 times"]);
}

#[test]
fn a_silent_server_is_given_up_and_resumed() {
    let server = FakeHub::start();
    server.lock().faults.extend([Fault::None, Fault::SilentAfter(50_000)]);
    let hub = Hub { timeout: Duration::from_millis(300), ..server.client() };
    get(&hub).unwrap();
    let ranges: Vec<_> = server.take_bodies(WEIGHTS).into_iter().map(|s| s.range).collect();
    assert_eq!(ranges, [None, Some("bytes=50000-".to_owned())]);
}

#[test]
fn wrong_content_is_removed_and_both_hashes_are_named() {
    for (file, faults) in
        [(WEIGHTS, vec![Fault::None, Fault::Corrupt]), ("config.json", vec![Fault::Corrupt])]
    {
        let server = FakeHub::start();
        server.lock().faults.extend(faults);
        let good = server.lock().files[file].clone();
        let bad: Vec<u8> = good.iter().map(|byte| byte ^ 1).collect();
        let text = refusal(&server.client());
        let (expected, found) = match file {
            WEIGHTS => (sha256(&good), sha256(&bad)),
            _ => (git_sha1(&good), git_sha1(&bad)),
        };
        says(&text, &[file, &expected, &found, "removed"]);
        let left = tree(&server.folder());
        assert!(!left.iter().any(|path| path.contains(&expected) || path.ends_with(file)), "{left:?}");
        get(&server.client()).unwrap();
    }
}

#[test]
fn a_body_longer_than_announced_is_refused() {
    let server = FakeHub::start();
    server.lock().faults.extend([Fault::None, Fault::TooLong]);
    says(&refusal(&server.client()), &[WEIGHTS, "more than the announced 300000 bytes"]);
    get(&server.client()).unwrap();
}

#[test]
fn a_hub_that_announces_no_hash_is_refused() {
    let server = FakeHub::start();
    server.lock().linked_etag = Some(String::new());
    says(&refusal(&server.client()), &[WEIGHTS, "announces no sha256"]);
    server.lock().linked_etag = Some("\"multipart-2\"".into());
    says(&refusal(&server.client()), &["multipart-2"]);
    assert_eq!(server.take_bodies(WEIGHTS).len(), 0);
}

#[test]
fn refusals_say_what_to_do() {
    let server = FakeHub::start();
    server.lock().need_token = true;
    says(&refusal(&server.client()), &["401", "private or gated", "no token is set", "HF_TOKEN"]);
    let wrong = Hub { token: Some("hf_other".into()), ..server.client() };
    let text = refusal(&wrong);
    says(&text, &["401", "the token in use"]);
    assert!(!text.contains("hf_other"), "{text}");
    server.lock().refuse = Some((403, "GatedRepo"));
    says(&refusal(&wrong), &["403", "accept the licence"]);
    server.lock().refuse = None;
    server.lock().need_token = false;
    let text = |spec: &str| get_spec(&server.client(), spec).unwrap_err().to_string();
    says(&text("org/other"), &["org/other", "no such repository"]);
    says(&text("org/model@v9"), &["org/model", "no revision \"v9\""]);
    says(&text(&format!("org/model@{}", "f".repeat(40))), &["org/model", "revision"]);
}

#[test]
fn refusals_of_a_file_name_it() {
    let server = FakeHub::start();
    server.lock().files.remove("config.json");
    says(&refusal(&server.client()), &[REPO, "has no file config.json"]);
    let server = FakeHub::start();
    server.lock().faults.push_back(Fault::Status(404));
    says(&refusal(&server.client()), &["org/model/config.json", "404"]);
    let server = FakeHub::start();
    server.lock().refuse = Some((500, ""));
    says(&refusal(&server.client()), &["HTTP status 500"]);
}

#[test]
fn offline_without_a_cache_says_so() {
    let server = FakeHub::start();
    let text = refusal(&server.offline());
    says(
        &text,
        &[REPO, "\"main\" is not in the cache", server.cache.path().to_str().unwrap(), "HF_HUB_OFFLINE"],
    );
    get(&server.client()).unwrap();
    fs::remove_file(server.folder().join("snapshots").join(COMMIT).join(WEIGHTS)).unwrap();
    says(&refusal(&server.offline()), &["1 files", WEIGHTS, "HF_HUB_OFFLINE"]);
    assert!(server.take_bodies(WEIGHTS).len() == 1);
    // Its content is still in the cache: only the link comes back.
    get(&server.client()).unwrap();
    assert_eq!(server.take_bodies(WEIGHTS).len(), 0);
}

#[test]
fn an_unreachable_endpoint_falls_back_to_the_cache_with_a_warning() {
    let server = FakeHub::start();
    // A port on which nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Hub { endpoint: format!("http://{nobody}"), ..server.client() };
    says(&refusal(&away), &["cannot reach", &nobody.to_string(), "HF_ENDPOINT"]);
    get(&server.client()).unwrap();
    let weights = get(&away).unwrap();
    assert_eq!(weights.files, FILES);
    assert_eq!(weights.warnings.len(), 1);
    says(&weights.warnings[0], &["cannot reach", "using what is in the cache"]);
}

#[test]
fn later_loads_notice_changed_files() {
    let server = FakeHub::start();
    let path = get(&server.client()).unwrap().folder.join(WEIGHTS);
    let (good, mut bad) = (content(300_000), content(300_000));
    bad[299_999] ^= 1;
    tamper(&path, &bad, true);
    for hub in [server.client(), server.offline()] {
        let blob = path.canonicalize().unwrap();
        let text = refusal(&hub);
        says(
            &text,
            &[WEIGHTS, blob.to_str().unwrap(), &sha256(&good), &sha256(&bad), "changed after the download"],
        );
    }
    // Shorter, with the old time.
    tamper(&path, &good[..299_999], false);
    says(&refusal(&server.offline()), &["299999 bytes, expected 300000"]);
    tamper(&path, &good, true);
    get(&server.offline()).unwrap();
    // Through the snapshot folder itself too.
    tamper(&path, &bad, true);
    let folder = path.parent().unwrap().to_str().unwrap().to_owned();
    says(&get_spec(&server.client(), &folder).unwrap_err().to_string(), &[WEIGHTS, &sha256(&bad)]);
}

#[test]
fn files_are_hashed_again_only_when_size_or_time_changed() {
    let server = FakeHub::start();
    let folder = get(&server.client()).unwrap().folder;
    let verified = || {
        let mut files = Vec::new();
        let mut listen = |p: &Progress| {
            if p.stage == Stage::Verifying && !files.contains(&p.file) {
                files.push(p.file.clone());
            }
            ControlFlow::Continue(())
        };
        resolve(&server.offline(), REPO, &mut listen).unwrap();
        files
    };
    assert_eq!(verified(), [""; 0]);
    let touched = fs::File::options().write(true).open(folder.join(WEIGHTS)).unwrap();
    touched.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    assert_eq!(verified(), [WEIGHTS]);
    assert_eq!(verified(), [""; 0], "the new time is recorded");
    fs::remove_file(server.folder().join(LOCK_FILE)).unwrap();
    assert_eq!(verified(), ["config.json", WEIGHTS, "tokenizer.json"]);
}

#[test]
fn interruption_keeps_what_came_and_resumes() {
    let server = FakeHub::start();
    server.lock().faults.extend([Fault::None, Fault::SilentAfter(80_000)]);
    let mut stop_at_first =
        |p: &Progress| match p.file == WEIGHTS && p.stage == Stage::Downloading && p.done > 0 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
    let start = Instant::now();
    let error = resolve(&server.client(), REPO, &mut stop_at_first).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let partial = server.folder().join("blobs").join(format!("{}.incomplete", sha256(&content(300_000))));
    let kept = fs::metadata(&partial).unwrap().len();
    assert!((1..=80_000).contains(&kept), "{kept}");
    server.take_seen();
    get(&server.client()).unwrap();
    let ranges: Vec<_> = server.take_bodies(WEIGHTS).into_iter().map(|s| s.range).collect();
    assert_eq!(ranges, [Some(format!("bytes={kept}-"))]);
}

#[test]
fn interruption_does_not_wait_for_a_silent_server() {
    for silent_api in [true, false] {
        let server = FakeHub::start();
        server.lock().silent_api = silent_api;
        server.lock().always = Fault::SilentAfter(0);
        let start = Instant::now();
        let mut soon = |_: &Progress| match start.elapsed() > Duration::from_millis(300) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let error = resolve(&server.client(), REPO, &mut soon).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[test]
fn progress_is_monotone_and_complete() {
    let server = FakeHub::start();
    server.lock().files.insert(WEIGHTS.into(), content(5_000_000));
    let mut last = BTreeMap::new();
    let mut listen = |p: &Progress| {
        if p.stage == Stage::Downloading {
            assert!(p.done <= p.total && last.get(&p.file).is_none_or(|&(done, _)| done <= p.done), "{p:?}");
            last.insert(p.file.clone(), (p.done, p.total));
        }
        ControlFlow::Continue(())
    };
    resolve(&Hub { parallel: 4, ..server.client() }, REPO, &mut listen).unwrap();
    assert_eq!(last[WEIGHTS], (5_000_000, 5_000_000));
    assert_eq!(last["config.json"].0, last["config.json"].1);
}

/// What `huggingface_hub` leaves behind: blobs, links, a ref, and no lock file of ours.
fn leave_like_python(server: &FakeHub) {
    let (snapshot, blobs) = (server.folder().join("snapshots").join(COMMIT), server.folder().join("blobs"));
    for folder in [&snapshot, &blobs, &server.folder().join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(server.folder().join("refs/main"), COMMIT).unwrap();
    for (file, content) in &server.lock().files {
        let hash = if server::is_lfs(file) { sha256(content) } else { git_sha1(content) };
        fs::write(blobs.join(&hash), content).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{hash}"), snapshot.join(file)).unwrap();
    }
}

#[test]
fn files_of_another_client_are_found_and_verified() {
    for hub in [FakeHub::offline, FakeHub::client] {
        let server = FakeHub::start();
        leave_like_python(&server);
        let weights = get(&hub(&server)).unwrap();
        assert_eq!((weights.files, weights.warnings), (FILES.map(str::to_owned).to_vec(), vec![]));
        let bodies =
            server.take_seen().into_iter().filter(|s| s.method == "GET" && !s.path.contains("/api/"));
        assert_eq!(bodies.count(), 0);
        assert!(server.folder().join(LOCK_FILE).exists());
        // A wrong one is known by the name that the Hub gave it, on the very first load.
        let server = FakeHub::start();
        leave_like_python(&server);
        let snapshot = server.folder().join("snapshots").join(COMMIT);
        tamper(&snapshot.join("config.json"), br#"{"model_type": "evil"}"#, false);
        says(&refusal(&hub(&server)), &["config.json", "git sha1", "changed after the download"]);
    }
}

#[test]
fn a_shard_that_is_missing_from_another_clients_cache_is_named() {
    let server = FakeHub::start();
    let index = br#"{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}"#;
    server.lock().files.insert("model.safetensors.index.json".into(), index.to_vec());
    leave_like_python(&server);
    says(&refusal(&server.offline()), &["1 files", "model-2.safetensors"]);
}

#[test]
fn a_file_that_two_commits_share_is_fetched_once() {
    let server = FakeHub::start();
    get(&server.client()).unwrap();
    server.take_seen();
    let next = "f".repeat(40);
    server.lock().commit.clone_from(&next);
    server.lock().revisions.insert("main".into(), next.clone());
    server.lock().files.insert("config.json".into(), br#"{"model_type": "newer"}"#.to_vec());
    let weights = get(&server.client()).unwrap();
    assert_eq!(weights.commit.as_deref(), Some(&*next));
    assert_eq!(fs::read(weights.folder.join(WEIGHTS)).unwrap(), content(300_000));
    assert_eq!(server.take_bodies(WEIGHTS).len(), 0);
    assert_eq!(
        get_spec(&server.offline(), &format!("{REPO}@{COMMIT}")).unwrap().commit.as_deref(),
        Some(COMMIT)
    );
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let server = FakeHub::start();
    server.lock().files.insert(WEIGHTS.into(), content(3_000_000));
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..4).map(|_| scope.spawn(|| get(&server.client()).unwrap())).collect();
        loads.into_iter().for_each(|load| assert_eq!(load.join().unwrap().files, FILES));
    });
    assert_eq!(server.take_bodies(WEIGHTS).len(), 1);
    get(&server.offline()).unwrap();
}

#[test]
fn works_inside_an_async_runtime() {
    let server = FakeHub::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { get(&server.client()) }).unwrap();
}

#[test]
fn a_full_disk_is_noticed_before_the_download() {
    let server = FakeHub::start();
    server.lock().claimed_sizes.insert(WEIGHTS.into(), 1 << 60);
    says(&refusal(&server.client()), &["1152921504.6", "GB", "free", "HF_HOME"]);
    assert_eq!(server.take_bodies("config.json").len(), 0);
}

#[test]
fn paths_that_leave_the_cache_are_refused() {
    let server = FakeHub::start();
    server.lock().files.insert("../../evil.safetensors".into(), b"x".to_vec());
    says(&refusal(&server.client()), &["outside the repository", "evil"]);
    server.lock().revisions.insert("main".into(), "../../..".into());
    says(&refusal(&server.client()), &["named no commit"]);
}

#[test]
fn a_damaged_lock_file_is_refused() {
    let server = FakeHub::start();
    get(&server.client()).unwrap();
    let path = server.folder().join(LOCK_FILE);
    for (text, says_what) in
        [("{\"version\"", "not a lock file"), ("{\"version\":9,\"repo\":\"\",\"commits\":{}}", "version 9")]
    {
        fs::write(&path, text).unwrap();
        says(&refusal(&server.offline()), &[LOCK_FILE, says_what, "delete it"]);
    }
    fs::remove_file(&path).unwrap();
    get(&server.offline()).unwrap();
}

#[test]
fn a_token_that_is_no_header_value_is_refused() {
    let server = FakeHub::start();
    let hub = Hub { token: Some("hf_\u{7}".into()), ..server.client() };
    let text = refusal(&hub);
    says(&text, &["HF_TOKEN", "characters"]);
    assert_eq!(server.take_seen().len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// A body cut at any three places is put together exactly.
    #[test]
    fn any_cuts_give_the_same_file(cuts in prop::collection::vec(0usize..300_000, 3)) {
        let server = FakeHub::start();
        server.lock().faults.push_back(Fault::None);
        server.lock().faults.extend(cuts.iter().map(|&at| Fault::CutAt(at)));
        let hub = Hub { retries: 4, ..server.client() };
        prop_assert_eq!(fs::read(get(&hub).unwrap().folder.join(WEIGHTS)).unwrap(), content(300_000));
    }
}
