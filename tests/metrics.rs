//! The record of a run: JSON lines and TensorBoard events.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use msjoe::metrics::{FILE, Line, Metrics, events, read};

fn values(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
}

fn event_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    files.sort();
    files
}

/// The events that a folder should have, from its lines.
fn expected_events(lines: &[Line], begun: f64) -> Vec<u8> {
    let records = lines.iter().flat_map(|line| events::scalars(line.time, line.step, &line.values));
    events::header(begun).into_iter().chain(records).collect()
}

#[test]
fn records_are_those_of_tensorboard() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/events.json")).unwrap();
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(events::header(golden["header"]["time"].as_f64().unwrap())), golden["header"]["hex"]);
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let number = |value: &serde_json::Value| match value.as_str() {
            Some(word) => word.parse().unwrap(),
            None => value.as_f64().unwrap(),
        };
        let values = case["values"].as_object().unwrap();
        let values = values.iter().map(|(name, value)| (name.clone(), number(value))).collect();
        let record = events::scalars(case["time"].as_f64().unwrap(), case["step"].as_u64().unwrap(), &values);
        assert_eq!(hex(record), case["hex"], "step {}", case["step"]);
    }
}

#[test]
fn lines_say_what_was_logged() {
    let folder = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::create(folder.path()).unwrap();
    let first = values(&[("reward", 0.4375), ("rewards/accuracy", 1. / 3.)]);
    let second =
        values(&[("kl", f64::NAN), ("loss", f64::INFINITY), ("floor", f64::NEG_INFINITY), ("tiny", 1e-300)]);
    metrics.log(0, &first).unwrap();
    metrics.log(7, &second).unwrap();
    metrics.log(7, &first).unwrap();
    let lines = read(folder.path().join(FILE)).unwrap();
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [0, 7, 7]);
    assert_eq!((&lines[0].values, &lines[2].values), (&first, &first));
    assert!(lines[1].values["kl"].is_nan());
    assert_eq!(lines[1].values["loss"], f64::INFINITY);
    assert_eq!(lines[1].values["floor"], f64::NEG_INFINITY);
    assert_eq!(lines[1].values["tiny"], 1e-300);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(lines.is_sorted_by(|a, b| a.time <= b.time) && (now - lines[0].time).abs() < 60.);

    let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("{\"step\":0,\"time\":")
            && first.contains("\"reward\":0.4375,\"rewards/accuracy\":")
    );
    let files = event_files(folder.path());
    let bytes = std::fs::read(&files[0]).unwrap();
    assert_eq!(files.len(), 1);
    let header = events::header(0.).len();
    assert_eq!(bytes[header..], expected_events(&lines, 0.)[header..]);
}

#[test]
fn resuming_drops_what_came_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let log = |metrics: &mut Metrics, steps: std::ops::Range<u64>| {
        for step in steps {
            metrics.log(step, &values(&[("reward", step as f64 / 7.)])).unwrap();
        }
    };
    log(&mut Metrics::create(folder.path()).unwrap(), 0..10);
    let before = std::fs::read_to_string(&path).unwrap();
    let old = event_files(folder.path());
    // The last line was being written when the power went.
    std::fs::write(&path, format!("{before}{{\"step\":10,\"ti")).unwrap();
    let mut metrics = Metrics::resume(folder.path(), 4).unwrap();
    let kept: Vec<&str> = before.split_inclusive('\n').take(5).collect();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        kept.concat(),
        "lines stay as they were, byte for byte"
    );
    let lines = read(&path).unwrap();
    let new = event_files(folder.path());
    assert!(new.len() == 1 && new[0] > old[0], "{old:?} {new:?}");
    assert_eq!(std::fs::read(&new[0]).unwrap(), expected_events(&lines, lines[0].time));
    assert!(metrics.log(3, &values(&[("x", 1.)])).unwrap_err().to_string().contains("step 3 after step 4"));
    log(&mut metrics, 5..8);
    drop(metrics);
    let steps: Vec<u64> = read(&path).unwrap().iter().map(|line| line.step).collect();
    assert_eq!(steps, (0..8).collect::<Vec<_>>());
    // Behind the end: nothing is dropped, nothing is rewritten.
    let whole = std::fs::read(&path).unwrap();
    drop(Metrics::resume(folder.path(), 100).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    let events = std::fs::read(&event_files(folder.path())[0]).unwrap();
    assert_eq!(events, expected_events(&read(&path).unwrap(), lines[0].time));
    // Before the beginning: an empty record.
    let other = tempfile::tempdir().unwrap();
    Metrics::create(other.path()).unwrap().log(3, &values(&[("x", 1.)])).unwrap();
    drop(Metrics::resume(other.path(), 2).unwrap());
    assert!(read(other.path().join(FILE)).unwrap().is_empty());
}

#[test]
fn a_line_that_was_cut_off_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    std::fs::write(&path, "{\"step\":1,\"time\":5.0,\"a\":2}\n{\"step\":2,\"time\":6.0,\"a\":3}").unwrap();
    let lines = read(&path).unwrap();
    assert_eq!(lines, [Line { step: 1, time: 5., values: values(&[("a", 2.)]) }]);
}

#[test]
fn damaged_lines_are_refused_with_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    for (line, cause) in [
        ("nonsense", "expected ident"),
        ("{\"step\":-1,\"time\":5.0}", "expected a step and a time"),
        ("{\"step\":1}", "expected a step and a time"),
        ("{\"step\":1,\"time\":5.0,\"a\":\"high\"}", "a: expected a number, got \"high\""),
        ("{\"step\":1,\"time\":5.0,\"a\":null}", "a: expected a number, got null"),
    ] {
        std::fs::write(&path, format!("{{\"step\":0,\"time\":4.0,\"a\":1}}\n{line}\n")).unwrap();
        for error in
            [read(&path).map(|_| ()).unwrap_err(), Metrics::resume(folder.path(), 9).map(|_| ()).unwrap_err()]
        {
            let message = error.to_string();
            assert!(
                message.starts_with(&format!("{}:2: ", path.display())) && message.contains(cause),
                "{message}"
            );
        }
    }
}

#[test]
fn what_cannot_be_a_record_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Metrics::resume(folder.path(), 0), Err(msjoe::Error::Io { .. })));
    assert!(Metrics::create(folder.path().join("none")).is_err());
    let mut metrics = Metrics::create(folder.path()).unwrap();
    let again = Metrics::create(folder.path()).unwrap_err().to_string();
    assert!(
        again.ends_with("the record of another run; resume that one, or choose another folder"),
        "{again}"
    );
    for (bad, names) in [(values(&[]), "got []"), (values(&[("time", 1.), ("a", 2.)]), "got [a, time]")] {
        let message = metrics.log(1, &bad).unwrap_err().to_string();
        assert!(message.ends_with(names), "{message}");
    }
    assert!(read(folder.path().join(FILE)).unwrap().is_empty());
}
