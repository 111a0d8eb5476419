//! Pass rates: what is counted, what is kept when a run is stopped, and how it comes back to the questions.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use msjoe::data::samples::{read, write_difficulty};
use msjoe::data::world::{Spec, Split, World};
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::rl::difficulty::{Estimation, Filter, Rated, counts, estimate, pass_rates};
use msjoe::rl::gallery::Gallery;
use msjoe::rl::plan::{Choosing, Plan};
use msjoe::rl::rates::Record;
use msjoe::rl::rollout::{Policy, rollout};
use msjoe::rl::tasks::{file_tasks, long_enough, world_tasks};
use msjoe::rl::trajectory::Task;
use msjoe::{Error, rl::footage::Footage};
use serde_json::{Value, json};

use crate::evolve::setting;

fn chat() -> Qwen2_5VlChat {
    Qwen2_5VlChat::load(setting().0.path().join("mllm"), DType::F32, &Device::Cpu).unwrap()
}

fn tasks() -> Vec<Task> {
    let world = World::new(Spec::short(), 5).unwrap();
    let tasks: Vec<Task> = world_tasks(&world, Split::Train, 0..16).into_iter().take(24).collect();
    assert_eq!(tasks.len(), 24);
    tasks
}

fn estimation() -> Estimation {
    let plan = Plan { key_frames: 2, answer_tokens: 6, ..setting().1.plan };
    Estimation { plan, rollouts: 4, blind_rollouts: 2, seed: 3, at_once: 64 }
}

fn rate(tasks: &[Task], record: &mut Record, stop: usize) -> Result<Vec<Rated>, Error> {
    let (chat, mut reports) = (chat(), 0);
    let mut progress = |_, of| {
        assert_eq!(of, tasks.len());
        reports += 1;
        reports <= stop
    };
    let policy = Policy { chat: &chat, clip: None, sampler: None };
    estimate(policy, tasks, &estimation(), record, &mut progress)
}

#[test]
fn rates_are_shares_of_right_answers() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), tasks());
    let mut record = Record::open(folder.path().join("rates"), &json!(1)).unwrap();
    let rated = rate(&tasks, &mut record, 100).unwrap();
    let chat = chat();
    let policy = Policy { chat: &chat, clip: None, sampler: None };
    let mut gallery = Gallery::new(1 << 20);
    let mut share = |task: &Task, choosing, generations| {
        let plan = Plan { choosing, ..estimation().plan };
        let groups =
            rollout(policy, &mut gallery, std::slice::from_ref(task), &plan, generations, 3).unwrap();
        let shown = if choosing == Choosing::Nothing { 0 } else { 2 };
        assert!(groups[0].iter().all(|one| one.selection.frames.len() == shown && one.asked.is_none()));
        groups[0].iter().filter(|one| one.right).count() as f32 / generations as f32
    };
    for (task, rated) in tasks.iter().zip(&rated).step_by(5) {
        assert_eq!(rated.id, *task.id);
        assert_eq!(rated.pass_rate, share(task, Choosing::Uniform, 4));
        assert_eq!(rated.blind, Some(share(task, Choosing::Nothing, 2)));
        assert_eq!(rated.difficulty(), 1.0 - rated.pass_rate);
    }
    assert!(rated.iter().any(|one| one.pass_rate != rated[0].pass_rate), "the test needs different rates");

    // Training fills in the same, where nothing is known.
    let mut filled = tasks.clone();
    filled[1].pass_rate = Some(0.125);
    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::open(folder.path().join("rates"), &json!({})).unwrap();
    let mut progress = (0, 0);
    let mut count = |done, of| {
        progress = (done, of);
        true
    };
    pass_rates(policy, &mut filled, &estimation(), &mut record, &mut count).unwrap();
    assert_eq!(
        (progress.1, record.len()),
        (tasks.len() - 1, tasks.len() - 1),
        "what is given is not asked again"
    );
    for (at, (task, rated)) in filled.iter().zip(&rated).enumerate() {
        assert_eq!(task.pass_rate, Some(if at == 1 { 0.125 } else { rated.pass_rate }));
    }
}

#[test]
fn a_stopped_estimation_ends_as_an_uninterrupted_one() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), tasks());
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let open = |path: &Path| Record::open(path, &json!({"seed": 3})).unwrap();
    let want = rate(&tasks, &mut open(&whole), 100).unwrap();
    let error = rate(&tasks, &mut open(&stopped), 1).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    // Killed while a line was written.
    let kept = std::fs::read_to_string(&stopped).unwrap();
    assert_eq!(kept.lines().count(), 1 + 16);
    std::fs::write(&stopped, kept.trim_end().strip_suffix('}').unwrap()).unwrap();
    let mut record = open(&stopped);
    assert_eq!((record.len(), record.dropped), (15, 1));
    assert_eq!(rate(&tasks, &mut record, 100).unwrap(), want);
    let mut again = open(&stopped);
    assert_eq!((again.len(), again.dropped), (24, 0));
    // Everything is known: nothing is asked, and 0 rollouts do not matter.
    assert_eq!(rate(&tasks, &mut again, 0).unwrap(), want);
    again.remove().unwrap();
    assert!(!stopped.exists() && whole.exists());
}

#[test]
fn a_record_belongs_to_its_settings_and_its_questions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rates");
    let tasks = tasks();
    let rated = |task: &Task| Rated { id: task.id.to_string(), pass_rate: 0.25, blind: None };
    let mut record = Record::open(&path, &json!({"rollouts": 8})).unwrap();
    assert!(record.is_empty());
    record.add(&tasks[0], rated(&tasks[0])).unwrap();
    let error = Record::open(&path, &json!({"rollouts": 4})).unwrap_err().to_string();
    for part in ["rates: not a record of this estimation", "\"rollouts\":4", "\"rollouts\":8", "remove it"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let record = Record::open(&path, &json!({"rollouts": 8})).unwrap();
    assert_eq!(record.get(&tasks[0]), Some(&rated(&tasks[0])));
    // Another answer is another question.
    let changed = Task { answer: (tasks[0].answer + 1) % 2, ..tasks[0].clone() };
    assert_eq!((record.get(&changed), record.get(&tasks[1])), (None, None));
    std::fs::write(&path, "a letter to somebody\n").unwrap();
    let error = Record::open(&path, &json!(1)).unwrap_err().to_string();
    assert!(error.contains("got a letter to somebody"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter to somebody\n", "nothing was written");
}

#[test]
fn filters_count_what_they_concern() {
    let one = |pass_rate, blind| Rated { id: String::new(), pass_rate, blind };
    let rated = [
        one(1.0, Some(1.0)),
        one(1.0, Some(0.5)),
        one(0.5, Some(0.75)),
        one(0.5, Some(0.25)),
        one(0.0, Some(0.0)),
        one(0.0, None),
    ];
    let got = counts(&rated, 0.5);
    assert_eq!(got.filters, BTreeMap::from([("blind", 2), ("always", 2), ("never", 2)]));
    assert_eq!((got.questions, got.unfiltered), (6, 1));
    assert_eq!((got.pass_rate, got.blind_rate), (0.5, Some(0.5)));
    assert_eq!(counts(&rated, 0.2).filters["blind"], 4);
    let nobody = counts(&[one(0.5, None)], 0.5);
    assert_eq!((nobody.blind_rate, nobody.filters["blind"]), (None, 0));
    for filter in Filter::ALL {
        assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
    }
    let error = "hard".parse::<Filter>().unwrap_err().to_string();
    assert_eq!(error, "expected a filter (blind, always, never), got \"hard\"");
}

/// A folder with a video of the world and three questions about it, one without an id and one with fields of its own.
fn files() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let script = World::new(Spec::short(), 5).unwrap().script(Split::Train, 0);
    script.write_video(folder.path().join("a.mp4"), 1).unwrap();
    let base = json!({"video": "a.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "A"});
    let with = |fields: Value| {
        let mut line = base.clone();
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        line.to_string()
    };
    let lines = [
        with(json!({"id": "x", "source": {"page": 7}, "difficulty": 0.1})),
        String::new(),
        with(json!({})),
        with(json!({"id": "z", "answer": 1})),
    ];
    let path = folder.path().join("questions.jsonl");
    std::fs::write(&path, format!("\u{feff}{}", lines.join("\n"))).unwrap();
    (folder, path)
}

#[test]
fn difficulties_are_written_beside_the_questions() {
    let (folder, path) = files();
    let before = read(&path).unwrap().samples;
    let ids: Vec<&str> = before.iter().map(|sample| sample.id.as_str()).collect();
    assert_eq!(ids, ["x", "questions-000003", "z"]);
    let difficulty: BTreeMap<String, f32> =
        ids.iter().zip([0.75, 0.0, 1.0]).map(|(id, value)| (id.to_string(), value)).collect();
    // Into the file itself.
    assert_eq!(write_difficulty(&path, &path, &difficulty).unwrap(), 3);
    let after = read(&path).unwrap().samples;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.difficulty, Some(difficulty[&before.id]));
        assert_eq!(msjoe::data::samples::Sample { difficulty: before.difficulty, ..after.clone() }, *before);
    }
    let first: Value =
        serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!((&first["source"], &first["video"]), (&json!({"page": 7}), &json!("a.mp4")));
    // Into another folder, where the videos are still found, without one of the questions.
    let other = tempfile::tempdir().unwrap();
    let out = other.path().join("rated.jsonl");
    let some = difficulty.iter().filter(|one| one.0 != "x").map(|(id, value)| (id.clone(), *value)).collect();
    assert_eq!(write_difficulty(&path, &out, &some).unwrap(), 2);
    let moved = read(&out).unwrap().samples;
    assert_eq!(moved.iter().map(|sample| sample.id.as_str()).collect::<Vec<_>>(), ["questions-000003", "z"]);
    assert_eq!(moved[0].video.canonicalize().unwrap(), folder.path().join("a.mp4").canonicalize().unwrap());
    // What cannot be written leaves everything as it was.
    let whole = std::fs::read(&path).unwrap();
    let bad = [("x".to_owned(), 1.5)].into();
    let error = write_difficulty(&path, &path, &bad).unwrap_err().to_string();
    assert_eq!(error, "difficulty of x: expected 0 to 1, got 1.5");
    let error = write_difficulty(&path, &path, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("no line is left"), "{error}");
    assert!(write_difficulty(&path, folder.path().join("none/x.jsonl"), &difficulty).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary files stay behind");
}

#[test]
fn questions_about_files_are_rated_without_a_clip() {
    let (folder, path) = files();
    let mut opened = 0;
    let mut open = |video: &Path| {
        opened += 1;
        Footage::open(video, 1.0)
    };
    let tasks = file_tasks(&[&path], 1.0, &mut open, &mut |_, _| true).unwrap().remove(0);
    assert_eq!((tasks.len(), opened), (3, 1), "questions about one video share its footage");
    assert_eq!(tasks[0].pass_rate, Some(1.0 - 0.1));
    let candidates = tasks[0].footage.len();
    assert!(long_enough(&tasks, (candidates, 0)).is_ok());
    let error = long_enough(&tasks, (1, candidates + 1)).unwrap_err().to_string();
    assert!(error.starts_with("question x:") && error.contains(&format!("has {candidates} candidates")));
    let mut record = Record::open(folder.path().join("rates"), &json!(1)).unwrap();
    let rated = rate(&tasks, &mut record, 100).unwrap();
    assert_eq!(rated.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["x", "questions-000003", "z"]);
}
