//! The report pages in a headless Chromium: they render, say nothing on the console and ask nobody for anything.
//!
//! `CHROMIUM` names the program where it is not on the path; without one, and without Node for the check of all looks, a line
//! on stderr says what was left out.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::report::{answered, evaluation, hostile, training};

const NAMES: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

/// What came of opening a page.
struct Opened {
    /// The document after its script ran.
    dom: String,
    /// What was said on the console.
    console: Vec<String>,
    /// What was asked for besides the page itself.
    requests: Vec<String>,
}

fn runs(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn chromium() -> Option<String> {
    match std::env::var("CHROMIUM") {
        Ok(named) => {
            assert!(runs(&named), "CHROMIUM={named} does not run");
            Some(named)
        }
        Err(_) => NAMES.into_iter().find(|name| runs(name)).map(str::to_owned),
    }
}

/// Past the test harness, which keeps what tests print.
fn left_out(what: &str) {
    std::io::stderr().write_all(format!("left out: {what}\n").as_bytes()).unwrap();
}

/// As [`Command::output`]; a browser that hangs is ended after five minutes, which a busy machine may need.
fn output(command: &mut Command, folder: &Path) -> Output {
    let file = |name: &str| std::fs::File::create(folder.join(name)).unwrap();
    let mut child =
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr")).spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > Duration::from_secs(300) {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    Output { status, stdout: read("stdout"), stderr: read("stderr") }
}

fn open(program: &str, page: &str) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("page.html"), folder.path().join("net.json"));
    std::fs::write(&file, page).unwrap();
    let with = |flag: &str, path: &Path| {
        let mut flag = OsString::from(flag);
        flag.push(path);
        flag
    };
    let url = with("file://", &file);
    let mut command = Command::new(program);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--disable-component-update", "--no-first-run"])
        .args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", "--timeout=200000"])
        .arg("--window-size=1200,900")
        .arg(with("--user-data-dir=", &folder.path().join("profile")))
        .arg(with("--log-net-log=", &log))
        .arg("--dump-dom")
        .arg(&url);
    let out = output(&mut command, folder.path());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{program} ended with {}: {said}", out.status);
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    let url = url.to_string_lossy().into_owned();
    Opened {
        dom: String::from_utf8_lossy(&out.stdout).into_owned(),
        console,
        requests: requests(&std::fs::read_to_string(&log).unwrap(), &url),
    }
}

/// The addresses that the page asked for, by Chromium's log of the network, without its own and those that hold their content.
/// Each request there is a line that names its initiator; what a browser asks for by itself has none. The log may be cut off,
/// so it is read as text.
fn requests(log: &str, own: &str) -> Vec<String> {
    assert!(log.contains("\"events\""), "no log of the network");
    let value = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
        rest.split('"').next().map(str::to_owned)
    };
    let by_the_page = |line: &str| {
        value(line, "initiator").filter(|who| who != "not an origin").and_then(|_| value(line, "url"))
    };
    let foreign = |url: &String| *url != own && !url.starts_with("data:") && !url.starts_with("chrome");
    log.lines().filter_map(by_the_page).filter(foreign).collect()
}

#[test]
fn every_kind_of_page_renders_in_silence() {
    let Some(program) = chromium() else {
        return left_out(&format!("report pages in a browser: none of {} is there", NAMES.join(", ")));
    };
    let [asked, trained, graded] = hostile();
    let [answer, evolution, methods] = shown_pages().map(|path| std::fs::read_to_string(path).unwrap());
    let pages = [
        ("the README's answer", answer, vec!["Key frames", "what colour is the fruit?"]),
        ("the README's run", evolution, vec!["Reward and its parts"]),
        ("the README's evaluation", methods, vec!["mdp3"]),
        (
            "an answer",
            answered(600, 3, 8).html(),
            vec!["What does she hold up?", "picture number 2", "0:08:45"],
        ),
        ("a run", training(3, 60).html(), vec!["A run", "Reward and its parts", "43.1 [38.9, 47.4]"]),
        ("an evaluation", evaluation().html(), vec!["Methods", "53.6", "[51.5, 57.0]"]),
        ("a hostile answer", asked, vec!["&lt;script&gt;alert"]),
        ("a hostile run", trained, vec!["&lt;script&gt;alert"]),
        ("a hostile evaluation", graded, vec!["&lt;script&gt;alert"]),
    ];
    for (name, page, texts) in pages {
        let opened = open(&program, &page);
        for text in &texts {
            assert!(opened.dom.contains(text), "{name}: {text} is not on the page: {}", opened.dom);
        }
        assert_eq!(opened.console, [""; 0], "{name}");
        assert_eq!(opened.requests, [""; 0], "{name}");
    }
}

#[test]
fn the_check_sees_errors_and_requests() {
    let Some(program) = chromium() else { return };
    let page = |inside: &str| format!("<!DOCTYPE html><title>x</title><body>{inside}</body>");
    let quiet = open(&program, &page("<p id=\"a\"></p><script>a.textContent = 6 * 7</script>"));
    assert!(quiet.dom.contains("42") && quiet.console.is_empty() && quiet.requests.is_empty());
    let thrown = open(&program, &page("<script>throw new Error('broken')</script>"));
    assert!(thrown.console.iter().any(|line| line.contains("broken")), "{:?}", thrown.console);
    let curious = open(&program, &page("<img src=\"http://127.0.0.1:9/x.png\">"));
    assert!(curious.requests.iter().any(|url| url.contains("127.0.0.1:9")), "{:?}", curious.requests);
}

/// Light, dark and narrow, with pictures that can be shown and nothing wider than its window; `REPORT_SHOTS` keeps pictures.
#[test]
fn every_look_fits_its_window() {
    let (Some(program), true) = (chromium(), runs("node")) else {
        return left_out("report pages in all looks: needs Chromium and Node");
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, page: String| {
        let path = folder.path().join(format!("{name}.html"));
        std::fs::write(&path, page).unwrap();
        path
    };
    let mut files = vec![
        write("answer", answered(3600, 4, 64).html()),
        write("training", training(3, 300).html()),
        write("evaluation", evaluation().html()),
    ];
    files.extend(shown_pages());
    let mut command = Command::new("node");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/report/browser.mjs")).env("CHROMIUM", &program);
    if let Some(shots) = std::env::var_os("REPORT_SHOTS") {
        command.arg("--shots").arg(shots);
    }
    let out = output(command.args(&files), folder.path());
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(said.contains(&format!("{} reports in 3 looks: 0 complaints", files.len())), "{said}");
}

/// The pages that the README shows.
fn shown_pages() -> [PathBuf; 3] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/reports");
    let names = ["answer.html", "evolution.html", "methods.html"];
    names.map(|name| folder.join(name))
}
