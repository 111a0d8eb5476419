//! Frame lists made elsewhere, judged without video or model.

use std::path::{Path, PathBuf};

use msjoe::benchmarks::{self, Benchmark, Loaded};
use msjoe::evaluation::{Check, FrameRate, Judged, Selections, judge};
use serde_json::{Value, json};

/// Four questions at 10 frames/s (as given): two with `position`, one without, one of a longer video.
fn annotation() -> (tempfile::TempDir, PathBuf) {
    let row = |id: &str, group: u32, duration: f64, position: Value| {
        json!({
            "id": id, "video_path": format!("{id}.mp4"), "question": "What moves?", "candidates": ["a", "b"],
            "correct_choice": 0, "position": position, "duration_group": group, "question_category": "T3E",
            "duration": duration,
        })
    };
    let rows = json!([
        row("v_0", 15, 20.0, json!([50, 150])),
        row("v_1", 600, 100.0, json!([500])),
        row("v_2", 600, 100.0, json!([])),
        row("v_3", 600, 100.0, json!([90, 61_388_250])),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lvb_val.json");
    std::fs::write(&path, rows.to_string()).unwrap();
    (dir, path)
}

fn load(path: &Path) -> Loaded {
    benchmarks::read(Benchmark::LongVideoBench, path).unwrap()
}

fn read(value: &Value) -> msjoe::Result<Selections> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("frames.json");
    std::fs::write(&path, value.to_string()).unwrap();
    Selections::read(path)
}

fn judged(value: &Value) -> Judged {
    let (_dir, path) = annotation();
    judge(&load(&path), &path, &read(value).unwrap(), FrameRate::Given(10.0)).unwrap()
}

#[test]
fn recall_hits_and_coverage_are_those_worked_out_by_hand() {
    // Moments at 5 and 15 s: 7.0 s is 2 s from the first, 12.9 s is 2.1 s from the second. 50 s is hit exactly.
    let told = judged(&json!({"v_0": [70, 129], "v_1": [10, 20, 500, 990], "v_2": [0], "v_3": [111.0, 500]}));
    assert_eq!((told.questions, told.selected, told.without, told.unknown), (4, 4, 0, 0));
    assert_eq!((told.frames, told.out_of_range, told.without_frame_rate), ([1, 4], 0, 0));
    let all = told.all;
    assert_eq!(
        (all.questions, all.with_evidence),
        (4, 3),
        "v_2 has no evidence; weeks after the end does not count"
    );
    assert_eq!(all.evidence_recall, Some((0.5 + 1.0 + 0.0) / 3.0));
    assert_eq!((all.hit_rate, all.all_hit_rate), (Some(2.0 / 3.0), Some(1.0 / 3.0)));
    // Of 2 stretches of 10 s: 7.0, 12.9 in both. Of 4 of 25 s: 1, 2, 50, 99 in three. One of one. 11.1 and 50 in both.
    assert_eq!(all.coverage, Some((1.0 + 0.75 + 1.0 + 1.0) / 4.0));
    // Even frames: 0 and 19.9 s find neither; 0, 33.3, 66.6 and 99.9 s not 50; 0 and 99.9 s not 9.
    assert_eq!(all.even_recall, Some(0.0));
    assert_eq!((told.full.questions, told.full.evidence_recall), (1, Some(1.0)), "rows of four frames");
    let groups: Vec<_> =
        told.groups["duration_group"].iter().map(|(v, s)| (v.as_str(), s.questions)).collect();
    assert_eq!(groups, [("15", 1), ("600", 3)]);
    assert!(told.messages.is_empty(), "{:?}", told.messages);
    let table = told.markdown("duration_group");
    assert!(table.contains("| all | 4 | 3 | 0.5000 | 0.0000 | 0.6667 | 0.3333 | 0.9375 |"), "{table}");
}

#[test]
fn rows_in_order_and_rows_with_names_are_the_same() {
    let by_id = judged(&json!({"v_0": [70, 129], "v_1": [500], "v_2": [0], "v_3": [111]}));
    let lists = judged(&json!([[70, 129], [500], [0], [111.0]]));
    let rows = judged(&json!([
        {"frame_idx": [70, 129]}, {"id": "else", "frame_idx": [500]}, {"frame_idx": [0]}, {"frame_idx": [111]}
    ]));
    let shuffled = judged(&json!([{"id": "v_3", "frame_idx": [111]}, {"id": "v_1", "frame_idx": [500]},
        {"question_id": "v_0", "frame_idx": [70, 129]}, {"index": "v_2", "frame_idx": [0]}]));
    assert_eq!(lists, by_id);
    assert_eq!(rows, by_id);
    assert_eq!(shuffled, by_id);
}

#[test]
fn what_does_not_fit_is_counted_and_told() {
    // 104.1 s is more than the slack behind the end of v_1 at 100 s.
    let told =
        judged(&json!({"v_0": [-1, 50, 150], "v_1": [1041, 500], "v_3": ["x"], "nobody": [1], "v_2": []}));
    assert_eq!((told.selected, told.unreadable, told.unknown, told.empty), (3, 1, 1, 1));
    assert_eq!((told.out_of_range, told.frames_out_of_range, told.not_ascending), (2, 2, 1));
    assert_eq!(told.all.evidence_recall, Some(1.0), "what is inside counts");
    let said = told.messages.join("\n");
    for part in [
        "nobody: no question of the annotation",
        "v_3: expected whole frame numbers, got [\"x\"]",
        "v_0: frame -1 is at -0.1 s",
        "v_1: frame 1041 is at 104.1 s, but the video lasts 100.0 s; 1 of 2 frames are left out",
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(
        told.counts().contains("3 of 4 questions have a selection of 0 to 3 frames"),
        "{}",
        told.counts()
    );
    assert_eq!(judged(&json!({"v_1": [1040]})).out_of_range, 0, "durations are rounded");
}

#[test]
fn a_question_that_is_selected_twice_is_told_apart_from_an_unknown_one() {
    let once = judged(&json!({"v_0": [70, 129], "v_1": [500]}));
    let row = |id: &str, frame: u32| json!({"id": id, "frame_idx": [frame]});
    let twice = judged(&json!([{"id": "v_0", "frame_idx": [70, 129]}, row("v_1", 500), row("v_0", 0)]));
    assert_eq!((twice.selected, twice.unknown, twice.repeated), (2, 0, 1));
    assert_eq!(twice.all, once.all, "the first selection counts");
    assert_eq!(twice.messages, ["v_0: selected twice; the first selection counts"]);
    let rows = [row("v_1", 1), row("v_0", 2), row("v_1", 3), row("v_1", 4), row("v_0", 5)];
    let twice = judged(&json!(rows));
    assert_eq!((twice.selected, twice.repeated), (2, 2));
    let said = "2 questions are selected twice (first: v_1); the first selection counts";
    assert_eq!(twice.messages, [said]);
}

#[test]
fn frame_rates_come_from_where_they_are_known() {
    let (_dir, path) = annotation();
    let loaded = load(&path);
    let chosen = read(&json!({"v_0": [0, 29, 145], "v_1": [25, 500], "v_2": [7]})).unwrap();
    let known = judge(&loaded, &path, &chosen, FrameRate::Known).unwrap();
    assert_eq!((known.without_frame_rate, known.all.with_evidence), (3, 0), "neither annotation nor video");
    assert!(
        known.messages.iter().any(|m| m.contains("v_0") && m.contains("--video-fps")),
        "{:?}",
        known.messages
    );
    // 29 stands for 29.97: frame 145 is at 4.84 s, and frame 50 at 1.67 s; 25 is 25, frame 500 at 20 s.
    let spaced = judge(&loaded, &path, &chosen, FrameRate::Spacing).unwrap();
    assert_eq!(spaced.without_frame_rate, 1, "one frame that no spacing can be read from");
    assert_eq!(spaced.all.with_evidence, 2);
    assert_eq!(spaced.all.evidence_recall, Some(1.0));
    for (text, rate) in [("29.97", FrameRate::Given(29.97)), ("spacing", FrameRate::Spacing)] {
        assert_eq!(text.parse::<FrameRate>().unwrap(), rate);
    }
    for bad in ["0", "-3", "inf", "fast"] {
        let error = bad.parse::<FrameRate>().unwrap_err().to_string();
        assert!(error.contains("video-fps") && error.contains(bad), "{error}");
    }
}

#[test]
fn files_of_another_shape_are_refused() {
    let (_dir, path) = annotation();
    let loaded = load(&path);
    for (bad, part) in [
        (json!(3), "got a single value"),
        (json!([]), "it is empty"),
        (json!(["a", "b"]), "expected a list of frame numbers, got \"a\""),
        (json!([{"frames": [1]}]), "a row without frame_idx; it has frames"),
        (json!({"v_0": [1.5]}), "expected whole frame numbers, got [1.5]"),
    ] {
        let error = read(&bad).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("{question id: [frame numbers]}"), "{error}");
    }
    let three = read(&json!([[1], [2], [3]])).unwrap();
    let error = judge(&loaded, &path, &three, FrameRate::Known).unwrap_err().to_string();
    assert!(error.contains("a row per question of the annotation (4), got 3"), "{error}");
    let others = read(&json!({"x": [1], "y": [2]})).unwrap();
    let error = judge(&loaded, &path, &others, FrameRate::Known).unwrap_err().to_string();
    assert!(error.contains("\"v_0\"") && error.contains("\"x\""), "{error}");
    assert!(Selections::read("no/such.json").unwrap_err().to_string().contains("no/such.json"));
}

#[test]
fn names_of_the_field_are_known() {
    // LVBench by uid alone, as published; frame rate and evidence from the annotation.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/benchmarks/video_info.meta.jsonl");
    let loaded = benchmarks::read(Benchmark::LvBench, &path).unwrap();
    let entry = loaded.entries.iter().find(|entry| entry.other_ids == ["11"]).unwrap();
    let fps = entry.fps.unwrap();
    let inside = (30.0 * fps).round() as i64;
    let told = judge(&loaded, &path, &read(&json!({"11": [inside]})).unwrap(), FrameRate::Known).unwrap();
    assert_eq!((told.selected, told.all.hit_rate), (1, Some(1.0)));
    let outside =
        judge(&loaded, &path, &read(&json!({"11": [(75.0 * fps) as i64]})).unwrap(), FrameRate::Known);
    assert_eq!(outside.unwrap().all.hit_rate, Some(0.0));
}

#[test]
fn a_check_counts_without_running() {
    let (dir, path) = annotation();
    std::fs::create_dir(dir.path().join("videos")).unwrap();
    std::fs::write(dir.path().join("videos/v_1.mp4"), "").unwrap();
    let loaded = load(&path);
    let check = Check::of(Benchmark::LongVideoBench, &loaded, &path, 0.5);
    assert_eq!((check.questions, check.published, check.with_evidence), (4, 1337, 3));
    assert_eq!((check.videos, check.videos_there, check.subtitles_there), (4, 1, 0));
    assert_eq!(check.groups["duration_group"]["600"], 3);
}
