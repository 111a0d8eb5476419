//! Runs on disk: nothing that stops a save may cost a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use msjoe::rl::run::{Build, Run, Saved, Snapshot, dated, saved};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    steps: u64,
    name: String,
    rates: Vec<f64>,
}

fn config() -> Config {
    Config { steps: 200, name: "joint".into(), rates: vec![1e-3, 0.5] }
}

/// A snapshot that can be told from those of other steps.
fn snapshot(step: u64) -> Snapshot {
    let tensor = |shape: &[usize], dtype| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|n| (n as f32 + step as f32) / 3.).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let adapter = BTreeMap::from([
        ("layer.0.lora_A.weight".to_owned(), tensor(&[4, 8], DType::F32)),
        ("layer.0.lora_B.weight".to_owned(), tensor(&[8, 4], DType::BF16)),
    ]);
    let optimizer = BTreeMap::from([
        ("layer.0.lora_A.weight.m".to_owned(), tensor(&[4, 8], DType::F32)),
        ("step".to_owned(), tensor(&[], DType::F64)),
    ]);
    let tensors =
        BTreeMap::from([("adapter_model".to_owned(), adapter), ("optimizer".to_owned(), optimizer)]);
    let state = json!({"step": step, "seed": 7, "sampler": {"baseline": 0.25}});
    Snapshot {
        tensors,
        state,
        files: BTreeMap::from([("adapter_config.json".into(), b"{\"r\": 4}".to_vec())]),
    }
}

fn assert_same(found: &Snapshot, step: u64) {
    let want = snapshot(step);
    assert_eq!((&found.state, &found.files), (&want.state, &want.files));
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), want.tensors.keys().collect::<Vec<_>>());
    for (group, tensors) in &want.tensors {
        let found = &found.tensors[group];
        assert_eq!(found.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
        for (name, tensor) in tensors {
            let bits = |tensor: &Tensor| {
                tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>()
            };
            assert_eq!((found[name].dtype(), found[name].dims()), (tensor.dtype(), tensor.dims()));
            assert_eq!(bits(&found[name]).unwrap(), bits(tensor).unwrap(), "{group} {name}");
        }
    }
}

fn new_run(folder: &Path) -> Run {
    Run::create(folder, &config(), &Build::new("cpu")).unwrap()
}

fn steps(run: &Run) -> Vec<u64> {
    run.saved().unwrap().iter().map(|saved| saved.step).collect()
}

fn target(folder: &Path, link: &str) -> String {
    std::fs::read_link(folder.join(link)).unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_run_keeps_its_configuration_and_how_it_was_made() {
    let root = tempfile::tempdir().unwrap();
    let folder = dated(root.path().join("runs"), "joint").unwrap();
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        name.starts_with("20") && name.ends_with("-joint") && name.len() == "2026-01-31-174500-joint".len()
    );
    let build = Build::new("cuda:0");
    assert_eq!((build.version.as_str(), build.device.as_str()), (env!("CARGO_PKG_VERSION"), "cuda:0"));
    drop(Run::create(&folder, &config(), &build).unwrap());
    let run = Run::open(&folder).unwrap();
    assert_eq!(run.config::<Config>().unwrap(), config());
    assert_eq!(run.build().unwrap(), build);
    assert_eq!((run.latest().unwrap(), run.best().unwrap()), (None, None));
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Other {
        steps: u64,
    }
    let error = run.config::<Other>().unwrap_err().to_string();
    assert!(error.contains("config.toml") && error.contains("name"), "{error}");
    for name in ["", "a/b"] {
        assert!(dated("runs", name).unwrap_err().to_string().contains("is no name for a folder"));
    }
}

#[test]
fn snapshots_come_back_as_they_were_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path());
    let saved = run.save(200, &snapshot(200), Some(0.5)).unwrap();
    assert_eq!(saved.folder, folder.path().join("step-000200"));
    let (found, loaded) = Snapshot::load(&saved.folder).unwrap();
    assert_eq!(found, saved);
    assert_same(&loaded, 200);
    // The link is a folder like any other, for programs that take one.
    let (found, loaded) = Snapshot::load(folder.path().join("latest")).unwrap();
    assert_eq!((found.step, found.score), (200, Some(0.5)));
    assert_same(&loaded, 200);
    // What somebody puts beside the files does no harm.
    std::fs::write(saved.folder.join("notes.txt"), "good one").unwrap();
    Snapshot::load(&saved.folder).unwrap();
    // A snapshot without anything.
    run.save(201, &Snapshot::default(), None).unwrap();
    let (_, empty) = Snapshot::load(folder.path().join("latest")).unwrap();
    assert!(empty.tensors.is_empty() && empty.state.is_null() && empty.files.is_empty());
}

#[test]
fn the_best_and_the_newest_stay() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path());
    let mut seen = vec![];
    for (step, score) in [(10, 0.3), (20, 0.7), (30, 0.5), (40, 0.7), (50, 0.6), (60, 0.1)] {
        run.save(step, &snapshot(step), Some(score)).unwrap();
        seen.push(steps(&run));
        assert_eq!(target(folder.path(), "latest"), format!("step-{step:06}"));
    }
    assert_eq!(
        seen,
        [vec![10], vec![10, 20], vec![20, 30], vec![20, 30, 40], vec![20, 40, 50], vec![20, 50, 60]]
    );
    assert_eq!(target(folder.path(), "best"), "step-000020");
    assert_eq!((run.best().unwrap().unwrap().step, run.latest().unwrap().unwrap().step), (20, 60));
    run.save(70, &snapshot(70), Some(0.8)).unwrap();
    assert_eq!(steps(&run), [60, 70]);
    assert_eq!(target(folder.path(), "best"), "step-000070");
    assert_eq!(saved(folder.path()).unwrap(), run.saved().unwrap());
    for step in steps(&run) {
        assert_same(&Snapshot::load(folder.path().join(format!("step-{step:06}"))).unwrap().1, step);
    }

    let other = tempfile::tempdir().unwrap();
    let run = new_run(other.path()).keeping(0);
    for step in 1..4 {
        run.save(step, &snapshot(step), None).unwrap();
    }
    assert_eq!(steps(&run), [3], "one always stays");
    assert_eq!(target(other.path(), "best"), "step-000003", "without scores the newest is the best");
}

#[test]
fn a_rewound_run_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path()).keeping(9);
    for (step, score) in [(10, 0.3), (20, 0.4), (30, 0.9), (40, 0.2)] {
        run.save(step, &snapshot(step), Some(score)).unwrap();
    }
    let error = run.rewind(25).unwrap_err().to_string();
    assert!(error.ends_with("no checkpoint of step 25; there are [10, 20, 30, 40]"), "{error}");
    run.rewind(20).unwrap();
    assert_eq!(steps(&run), [10, 20]);
    assert_eq!(
        [target(folder.path(), "latest"), target(folder.path(), "best")],
        ["step-000020", "step-000020"]
    );
    run.save(30, &snapshot(31), Some(0.5)).unwrap();
    assert_same(&Snapshot::load(folder.path().join("latest")).unwrap().1, 31);
}

#[test]
fn what_contradicts_the_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Run::open(folder.path()).unwrap_err().to_string();
    assert!(missing.ends_with("no run: expected a folder with config.toml"), "{missing}");
    let run = new_run(folder.path());
    for error in [
        Run::open(folder.path()).unwrap_err(),
        Run::create(folder.path(), &config(), &Build::new("cpu")).unwrap_err(),
    ] {
        assert!(error.to_string().ends_with("another program is writing to this run"), "{error}");
    }
    run.save(5, &snapshot(5), None).unwrap();
    let refused = |step, snapshot: &Snapshot, score| run.save(step, snapshot, score).unwrap_err().to_string();
    assert!(refused(5, &snapshot(5), None).contains("step 5 is not behind"));
    assert!(refused(4, &snapshot(4), None).contains("rewind the run first"));
    assert!(refused(6, &snapshot(6), Some(f64::NAN)).contains("the score of step 6 is NaN"));
    for name in ["checkpoint.json", "state.json", "a/b", "..", "", ".hidden", "optimizer.safetensors"] {
        let mut bad = snapshot(6);
        bad.files.insert(name.into(), vec![]);
        assert!(refused(6, &bad, None).starts_with(&format!("checkpoint: {name:?}")), "{name}");
    }
    let mut bad = snapshot(6);
    bad.tensors.insert("../up".into(), BTreeMap::new());
    assert!(refused(6, &bad, None).contains("\"../up.safetensors\""));
    assert_eq!(steps(&run), [5]);
    drop(run);
    let again = Run::create(folder.path(), &config(), &Build::new("cpu")).unwrap_err().to_string();
    assert!(again.ends_with("holds a run already; resume it, or choose another folder"), "{again}");
    // No TOML: a value that is not a table.
    let error = Run::create(folder.path().join("x"), &7, &Build::new("cpu")).unwrap_err().to_string();
    assert!(error.contains("cannot be TOML") && !folder.path().join("x").exists(), "{error}");
}

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = new_run(folder.path());
    let path = run.save(1, &snapshot(1), None).unwrap().folder;
    let refused = |file: &str, change: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>, cause: &str| {
        let file = path.join(file);
        let before = std::fs::read(&file).unwrap();
        match change(before.clone()) {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let message = Snapshot::load(&path).unwrap_err().to_string();
        assert!(message.contains(&*file.to_string_lossy()) && message.contains(cause), "{message}");
        std::fs::write(&file, before).unwrap();
    };
    let flip = |mut bytes: Vec<u8>| {
        *bytes.last_mut().unwrap() ^= 1;
        Some(bytes)
    };
    let cut = |bytes: Vec<u8>| Some(bytes[..bytes.len() - 3].to_vec());
    for file in ["adapter_model.safetensors", "optimizer.safetensors", "state.json", "adapter_config.json"] {
        refused(file, &flip, "its content is not what was written; load an earlier checkpoint");
        refused(file, &cut, "bytes, got");
        refused(file, &|_| None, "No such file");
    }
    refused("checkpoint.json", &cut, "EOF");
    let newer = |bytes: Vec<u8>| {
        Some(String::from_utf8(bytes).unwrap().replace("\"version\": 1", "\"version\": 9").into_bytes())
    };
    let file = path.join("checkpoint.json");
    let before = std::fs::read(&file).unwrap();
    std::fs::write(&file, newer(before.clone()).unwrap()).unwrap();
    let message = Snapshot::load(&path).unwrap_err().to_string();
    assert!(message.contains("version 9 of the format, expected 1"), "{message}");
    std::fs::remove_file(&file).unwrap();
    assert!(Snapshot::load(&path).is_err());
    assert_eq!(steps(&run), Vec::<u64>::new(), "without its list a folder is no checkpoint");
    std::fs::write(&file, before).unwrap();
    Snapshot::load(&path).unwrap();
}

/// Whatever can be loaded must be whole, and no older than `least`.
fn check_run(folder: &Path, least: u64) -> Saved {
    let run = Run::open(folder).unwrap();
    let all = run.saved().unwrap();
    for saved in &all {
        assert_same(&Snapshot::load(&saved.folder).unwrap().1, saved.step);
    }
    let latest = run.latest().unwrap().unwrap();
    assert!(latest.step >= least, "step {} is gone, {} is the newest", least, latest.step);
    for link in ["latest", "best"] {
        assert!(all.iter().any(|saved| *saved.folder == folder.join(target(folder, link))), "{link}");
    }
    let stale = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let stale: Vec<_> = stale.filter(|name| name.to_string_lossy().starts_with("step-")).collect();
    assert_eq!(stale.len(), all.len(), "unfinished folders were removed: {stale:?}");
    latest
}

/// A save that is stopped between any two operations leaves the checkpoint before it, or the new one; the best stays as
/// well, and the next save works as if nothing had happened.
#[test]
fn a_crash_between_any_two_operations_costs_nothing() {
    let operations = {
        let folder = tempfile::tempdir().unwrap();
        let run = new_run(folder.path());
        (1..4).for_each(|step| drop(run.save(step, &snapshot(step), Some(1. / step as f64)).unwrap()));
        run.plan_save(4, &snapshot(4), Some(0.2)).unwrap().len()
    };
    assert!(operations > 14);
    let mut newest = vec![];
    for stop in 0..=operations {
        let folder = tempfile::tempdir().unwrap();
        let run = new_run(folder.path());
        (1..4).for_each(|step| drop(run.save(step, &snapshot(step), Some(1. / step as f64)).unwrap()));
        assert_eq!(steps(&run), [1, 2, 3], "the best and two");
        let fourth = snapshot(4);
        let plan = run.plan_save(4, &fourth, Some(0.2)).unwrap();
        assert_eq!(plan.len(), operations);
        plan[..stop].iter().for_each(|operation| operation.apply().unwrap());
        drop(run);
        let latest = check_run(folder.path(), 3);
        newest.push(latest.step);
        let run = Run::open(folder.path()).unwrap();
        assert_eq!(run.best().unwrap().unwrap().step, 1);
        run.save(latest.step + 1, &snapshot(latest.step + 1), Some(0.9)).unwrap();
        drop(run);
        assert_eq!(check_run(folder.path(), latest.step + 1).step, latest.step + 1);
    }
    assert!(newest.is_sorted() && newest[0] == 3 && newest[operations] == 4, "{newest:?}");
}

const FOLDER: &str = "MSJOE_TEST_RUN";

/// Started by the test below in a process of its own; alone it saves a few steps and checks them.
#[test]
fn saving_on_and_on() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        let folder = tempfile::tempdir().unwrap();
        let run = new_run(folder.path());
        (1..6).for_each(|step| drop(run.save(step, &snapshot(step), Some(step as f64)).unwrap()));
        drop(run);
        assert_eq!(check_run(folder.path(), 5).step, 5);
        return;
    };
    let run = Run::open(Path::new(&folder)).unwrap();
    let first = run.latest().unwrap().map_or(1, |saved| saved.step + 1);
    for step in first..first + 100_000 {
        run.save(step, &snapshot(step), Some((step % 7) as f64)).unwrap();
    }
}

#[test]
fn a_killed_program_leaves_a_run_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    drop(new_run(folder.path()));
    let mut last = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run::saving_on_and_on", "--test-threads", "1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while saved(folder.path()).map_or(0, |saved| saved.last().map_or(0, |saved| saved.step)) <= last {
            assert!(begun.elapsed() < Duration::from_secs(60), "the child saves nothing");
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(3_700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        last = check_run(folder.path(), last + 1).step;
    }
    assert!(last >= 6);
}
