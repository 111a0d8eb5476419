//! Questions from JSONL files: what is read, and what is refused with its line.

use std::path::{Path, PathBuf};

use msjoe::Error;
use msjoe::data::samples::{Sample, read};
use msjoe::data::world::{Spec, Split, World};
use serde_json::json;

/// A folder with two videos (empty files: only their presence is asked for) and `text` as questions.jsonl.
fn folder(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("clips")).unwrap();
    for video in ["a.mp4", "clips/b.mp4"] {
        std::fs::write(folder.path().join(video), b"").unwrap();
    }
    let path = folder.path().join("questions.jsonl");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

const GOOD: &str = r#"{"video": "a.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "A"}"#;

/// The message for a second line after a good first one, without the path.
fn refused(line: &str) -> String {
    let (_folder, path) = folder(format!("{GOOD}\n{line}\n{GOOD}\n"));
    let message = read(&path).unwrap_err().to_string();
    let start = format!("{}:2: ", path.display());
    message
        .strip_prefix(&start)
        .unwrap_or_else(|| panic!("{message:?} does not begin with {start:?}"))
        .to_owned()
}

fn with(field: &str, value: serde_json::Value) -> String {
    let mut object =
        json!({"video": "a.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "A"});
    object[field] = value;
    object.to_string()
}

#[test]
fn samples_are_read_with_everything_they_say() {
    let full = json!({
        "id": "x", "video": "clips/b.mp4", "question": "What comes first?", "options": ["A. sea", "B. hills", "C. both"],
        "answer": 2, "difficulty": 0.75, "family": "order", "evidence": [{"start": 3, "end": 9}],
    });
    let (folder, path) = folder(format!("\u{feff}{GOOD}\r\n\n  \n{full}"));
    let read = read(&path).unwrap();
    assert!(read.warnings.is_empty());
    let [first, second] = &read.samples[..] else { panic!("{read:?}") };
    assert_eq!((first.id.as_str(), first.answer, first.difficulty), ("questions-000001", 0, None));
    assert_eq!(first.video, folder.path().join("a.mp4"));
    assert_eq!(
        (first.question.text(), first.question.options()),
        ("Which?", &["red".into(), "blue".into()][..])
    );
    assert!(first.family.is_none() && first.evidence.is_empty());
    assert_eq!((second.id.as_str(), second.answer, second.difficulty), ("x", 2, Some(0.75)));
    assert_eq!(second.question.options()[1], "hills");
    assert_eq!((second.family.as_deref(), second.evidence.len()), (Some("order"), 1));
    assert_eq!(second.evidence[0], 3..9);
    assert_eq!(second.video, folder.path().join("clips/b.mp4"));
}

#[test]
fn a_video_may_be_absolute_or_a_folder_of_images() {
    let (folder, path) = folder("");
    let lines = [folder.path().join("clips"), folder.path().join("a.mp4"), "clips".into()];
    let text: Vec<String> = lines.iter().map(|video| with("video", json!(video))).collect();
    std::fs::write(&path, text.join("\n")).unwrap();
    let videos: Vec<PathBuf> = read(&path).unwrap().samples.into_iter().map(|sample| sample.video).collect();
    assert_eq!(
        videos,
        [folder.path().join("clips"), folder.path().join("a.mp4"), folder.path().join("clips")]
    );
}

#[test]
fn an_answer_is_a_letter_a_text_or_an_index() {
    let options = json!(["red", "Dark  Blue", "a car", "d"]);
    let cases = [
        (json!("A"), Ok(0)),
        (json!(" b "), Ok(1)),
        (json!("B."), Ok(1)),
        (json!("(c)"), Ok(2)),
        (json!("C. a car"), Ok(2)),
        (json!("(B) dark blue"), Ok(1)),
        (json!("dark blue"), Ok(1)),
        (json!("A Car"), Ok(2)),
        (json!("d"), Ok(3)),
        (json!(0), Ok(0)),
        (json!(3), Ok(3)),
        (json!("E"), Err("answer: \"E\" is none of the options A. red, B. Dark Blue, C. a car, D. d")),
        (json!("B. red"), Err("is none of the options")),
        (json!("green"), Err("is none of the options")),
        (json!(""), Err("is none of the options")),
        (json!(4), Err("answer: expected an index from 0 to 3, got 4")),
        (json!(-1), Err("answer: expected an index from 0 to 3, got -1")),
        (json!(1.5), Err("answer: expected an index from 0 to 3, got 1.5")),
        (json!(null), Err("answer: expected a letter, a text or an index, got null")),
        (json!(["A"]), Err("answer: expected a letter, a text or an index, got [\"A\"]")),
    ];
    for (answer, want) in cases {
        let line =
            json!({"video": "a.mp4", "question": "Which?", "options": options, "answer": answer}).to_string();
        match want {
            Ok(want) => {
                let (_folder, path) = folder(line);
                assert_eq!(read(&path).unwrap().samples[0].answer, want, "{answer}");
            }
            Err(want) => assert!(refused(&line).contains(want), "{answer}: {}", refused(&line)),
        }
    }
}

#[test]
fn an_answer_that_could_be_two_options_is_refused() {
    let line = json!({"video": "a.mp4", "question": "Which blood type?", "options": ["B", "AB", "A"], "answer": "A"});
    let want = "answer: \"A\" could be several of the options A. B, B. AB, C. A; give an index";
    assert_eq!(refused(&line.to_string()), want);
    let line =
        json!({"video": "a.mp4", "question": "Which blood type?", "options": ["A", "B"], "answer": "A"});
    let (_folder, path) = folder(line.to_string());
    assert_eq!(read(&path).unwrap().samples[0].answer, 0);
}

#[test]
fn malformed_lines_are_refused_with_their_number() {
    let expected = "expected a JSON object with video, question, options and answer: ";
    for (line, cause) in [
        ("{\"video\": ", "EOF while parsing a value (column"),
        ("[1, 2]", "invalid type: sequence"),
        ("nonsense", "expected ident (column"),
        (r#"{"video": "a.mp4", "options": ["x", "y"], "answer": 0}"#, "missing field `question`"),
        (r#"{"question": "q", "options": ["x", "y"], "answer": 0}"#, "missing field `video`"),
        (r#"{"video": "a.mp4", "question": "q", "answer": 0}"#, "missing field `options`"),
        (r#"{"video": "a.mp4", "question": "q", "options": ["x", "y"]}"#, "missing field `answer`"),
        (&with("question", json!(7)), "invalid type: integer `7`, expected a string"),
        (&with("options", json!("red")), "expected a sequence"),
        (&with("difficulty", json!("hard")), "expected f32"),
        (&with("evidence", json!([[1, 2], [3]])), "expected struct Range"),
    ] {
        let message = refused(line);
        let rest = message.strip_prefix(expected).unwrap_or_else(|| panic!("{line}: {message}"));
        assert!(rest.contains(cause) && !rest.contains("line 1"), "{line}: {message}");
    }
    let (_folder, path) = folder([GOOD.as_bytes(), b"\n{\"video\": \"\xff\"}"].concat());
    assert!(read(&path).unwrap_err().to_string().contains(":2: "));
}

#[test]
fn contents_that_cannot_be_trained_on_are_refused() {
    for (field, value, cause) in [
        ("video", json!("none.mp4"), "none.mp4 does not exist"),
        ("video", json!(""), "video is empty"),
        ("id", json!(""), "id is empty"),
        ("question", json!("  "), "question: expected a text, got an empty one"),
        ("options", json!([]), "options: expected at least 2, got none; a reward needs options"),
        ("options", json!(["red"]), "options: expected none (open question) or at least 2"),
        ("options", json!(["red", "Red"]), "\"Red\", is given twice"),
        ("difficulty", json!(1.2), "difficulty: expected 0 to 1, got 1.2"),
        ("difficulty", json!(-0.5), "difficulty: expected 0 to 1, got -0.5"),
        (
            "evidence",
            json!([{"start": 5, "end": 5}]),
            "evidence: expected an end after the start, got 5 to 5",
        ),
    ] {
        let message = refused(&with(field, value.clone()));
        assert!(message.contains(cause), "{field} {value}: {message}");
    }
    for difficulty in [0., 1.] {
        let (_folder, path) = folder(with("difficulty", json!(difficulty)));
        assert_eq!(read(&path).unwrap().samples[0].difficulty, Some(difficulty));
    }
}

#[test]
fn an_id_that_is_there_twice_is_refused_with_both_lines() {
    let line = with("id", json!("x"));
    let (_folder, path) = folder(format!("{line}\n{GOOD}\n{line}"));
    let message = read(&path).unwrap_err().to_string();
    assert_eq!(message, format!("{}:3: the id \"x\" is that of line 1 as well", path.display()));
}

#[test]
fn an_empty_or_missing_file_is_refused() {
    for text in ["", "\n \n"] {
        let (_folder, path) = folder(text);
        let message = read(&path).unwrap_err().to_string();
        assert!(message.ends_with("expected a JSON object per line, got a file without any"), "{message}");
    }
    let missing = Path::new("/nonexistent/questions.jsonl");
    assert!(matches!(read(missing).unwrap_err(), Error::Io { path, .. } if path == missing));
}

#[test]
fn unknown_fields_are_reported_once_by_name() {
    let (_folder, path) =
        folder(format!("{}\n{}", with("subjects", json!([])), with("dificulty", json!(0.3))));
    let read = read(&path).unwrap();
    assert_eq!(read.samples.len(), 2);
    assert_eq!(
        read.warnings,
        [format!("{}: fields without a meaning here: dificulty, subjects", path.display())]
    );
}

#[test]
fn a_world_written_to_files_is_read_back() {
    let (folder, path) = folder("");
    let world = World::new(Spec::default(), 3).unwrap();
    let samples = world.dataset(Split::Validation, 24);
    let line = |sample: &msjoe::data::world::Sample| {
        let options = sample.question.options();
        json!({"id": sample.id, "video": "a.mp4", "question": sample.question.text(), "options": options,
            "answer": options[sample.answer], "family": sample.family, "evidence": sample.evidence})
        .to_string()
    };
    std::fs::write(&path, samples.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let want: Vec<Sample> = (samples.into_iter())
        .map(|sample| Sample {
            id: sample.id,
            video: folder.path().join("a.mp4"),
            question: sample.question,
            answer: sample.answer,
            difficulty: None,
            family: Some(sample.family.name().into()),
            evidence: sample.evidence,
        })
        .collect();
    assert_eq!(read(&path).unwrap().samples, want);
}
