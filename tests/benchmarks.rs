//! Question files of the benchmarks: small made-up ones of the published shapes, with every trap of the real ones.

use std::path::{Path, PathBuf};

use msjoe::Error;
use msjoe::benchmarks::scoring::{self, letter};
use msjoe::benchmarks::{Benchmark, Entry, Evidence, Loaded, Place, Remark, read};
use msjoe::text::answer;

mod files;
mod subtitles;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/benchmarks").join(name)
}

fn load(benchmark: Benchmark, name: &str) -> Loaded {
    read(benchmark, fixture(name)).unwrap()
}

fn find<'a>(loaded: &'a Loaded, id: &str) -> &'a Entry {
    let ids: Vec<&str> = loaded.entries.iter().map(|entry| entry.id.as_str()).collect();
    loaded.entries.iter().find(|entry| entry.id == id).unwrap_or_else(|| panic!("{id} is not among {ids:?}"))
}

fn said(remarks: &[Remark]) -> Vec<(Place, &str)> {
    remarks.iter().map(|remark| (remark.place, remark.cause.as_str())).collect()
}

/// Checks place and beginning of each remark.
fn assert_said(remarks: &[Remark], want: &[(Place, &str)]) {
    let got = said(remarks);
    assert_eq!(got.len(), want.len(), "{got:#?}");
    for ((place, cause), (want_place, start)) in got.into_iter().zip(want) {
        assert!(
            place == *want_place && cause.starts_with(start),
            "{place:?} {cause:?} is not {want_place:?} {start:?}"
        );
    }
}

fn options(entry: &Entry) -> Vec<&str> {
    entry.question.options().iter().map(String::as_str).collect()
}

/// A folder with one file.
fn folder(name: &str, text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

const HEADER: &str = "index\ttask_name\tvideo_name\tquestion_id\tquestion\tanswer_number\tcandidates\tanswer";

/// What a table of one row says: its entry, or why it is refused.
fn row(candidates: &str, number: &str, answer: &str) -> Result<Entry, String> {
    let good = "g\tt\tg.mp4\tg\tGood?\t0\t['x', 'y']\tx";
    let text = format!("{HEADER}\n{good}\ni\tt\tv.mp4\ti\tWhich?\t{number}\t{candidates}\t{answer}\n");
    let (_folder, path) = folder("some.tsv", text);
    let loaded = read(Benchmark::Mlvu, path).unwrap();
    match loaded.refused.first() {
        Some(refused) => Err(refused.cause.clone()),
        None => Ok(loaded.entries[1].clone()),
    }
}

#[test]
fn names_are_read_and_unknown_ones_list_the_known() {
    for benchmark in Benchmark::ALL {
        assert_eq!(benchmark.name().parse::<Benchmark>().unwrap(), benchmark);
    }
    for (name, want) in
        [("VideoMME", Benchmark::VideoMme), ("LV-Bench", Benchmark::LvBench), ("MLVU", Benchmark::Mlvu)]
    {
        assert_eq!(name.parse::<Benchmark>().unwrap(), want);
    }
    let message = "egoschema".parse::<Benchmark>().unwrap_err().to_string();
    assert_eq!(
        message,
        "benchmark: expected one of video-mme, longvideobench, lvbench, mlvu, got \"egoschema\""
    );
    assert_eq!(Benchmark::ALL.map(Benchmark::published).iter().sum::<usize>(), 7760);
}

#[test]
fn video_mme_json() {
    let loaded = load(Benchmark::VideoMme, "videomme.json");
    assert_eq!(loaded.entries.len(), 4);
    let first = &loaded.entries[0];
    assert_eq!((first.id.as_str(), first.video.as_str(), first.answer), ("001-1", "kite_-1", 0));
    assert_eq!(options(first), ["a red kite.", "a \"blue\" boat.", "the dog's bowl.", "none of these."]);
    assert_eq!(first.group("duration").collect::<Vec<_>>(), ["short"]);
    assert_eq!(first.group("sub_category").collect::<Vec<_>>(), ["Beaches"]);
    assert_eq!((first.duration, &first.evidence), (None, &Evidence::Unknown));
    assert_eq!(first.subtitles.as_ref().unwrap().name, "kite_-1.srt");
    let second = find(&loaded, "001-2");
    assert_eq!(options(second), ["The captainé.", "A. Lincoln.", "B.", "Nobody."]);
    assert_eq!((second.answer, second.question.text()), (3, "Who says “ahoy”?"));
    // `boat.v2` ends like no video
    assert!(find(&loaded, "002-1").video_paths().contains(&"data/boat.v2.mp4".into()));
    let rows: Vec<usize> = loaded.entries.iter().map(|entry| entry.row).collect();
    assert_eq!(rows, [0, 1, 2, 4], "refused rows keep their place");
    assert_said(
        &loaded.refused,
        &[
            (Place::Row(4), "answer: \"E\" is none of the options A. Sand., B. Sea., C. Sky., D. Sun."),
            (Place::Row(6), "the id \"003-2\" is there twice ("),
            (Place::Row(7), "expected an object with a question's fields, got \"not a question\""),
            (Place::Row(8), "video: expected a name inside the benchmark's folder, got \"../dune\""),
        ],
    );
    let line = loaded.refused[0].to_string();
    assert!(line.starts_with(&format!("{}, row 4: ", fixture("videomme.json").display())), "{line}");
    assert!(loaded.refused[1].cause.contains("videomme.json, row 5: there first"), "{:?}", loaded.refused[1]);
}

#[test]
fn a_json_file_cut_short_keeps_what_stands_before_the_cut() {
    let loaded = load(Benchmark::VideoMme, "videomme_cut_short.json");
    assert_eq!(loaded.entries.len(), 2);
    let [refused] = &loaded.refused[..] else { panic!("{:?}", loaded.refused) };
    assert!(matches!(refused.place, Place::Line(line) if line > 40), "{refused}");
    assert!(
        refused.cause.starts_with("not JSON from here on, so only the 2 rows before it are read"),
        "{refused}"
    );
}

#[test]
fn tables_with_python_lists_and_stray_quotes() {
    let loaded = load(Benchmark::VideoMme, "VideoMME.tsv");
    let ids: Vec<&str> = loaded.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(ids, ["001-1", "001-2", "002-1"]);
    assert_eq!(
        options(&loaded.entries[0]),
        ["a red kite.", "a \"blue\" boat.", "the dog's bowl.", "none of these."]
    );
    assert_eq!(loaded.entries[0].answer, 2);
    assert_eq!(loaded.entries[1].question.text(), "\"Where does it begin?");
    assert_eq!(options(&loaded.entries[1]), ["C:\\temp", "it's", "café", "two lines"]);
    assert_eq!(options(&loaded.entries[2]), ["x.", "y.", "z."], "numpy's lists have no commas");
    assert_eq!(loaded.entries[2].subtitles.as_ref().unwrap().name, "boat.srt");
    assert_said(
        &loaded.refused,
        &[
            (
                Place::Line(5),
                "options: expected a comma or ']', got the end at character 18, in \"['A. x.', 'B. y.'\"",
            ),
            (Place::Line(6), "answer: the row's index says B, \"y.\", and its answer \"A\""),
            (Place::Line(7), "expected 8 cells, got 10"),
            (Place::Line(8), "question is empty; the row has index, task_name"),
        ],
    );
    assert!(loaded.refused[0].to_string().contains("VideoMME.tsv:5: options"), "{}", loaded.refused[0]);
}

#[test]
fn options_as_python_literals_in_all_their_forms() {
    let cases = [
        (r#"['a', "b"]"#, vec!["a", "b"]),
        (r#"["a", "b\u00e9"]"#, vec!["a", "bé"]),
        (r#"['it\'s', "say \"go\""]"#, vec!["it's", "say \"go\""]),
        (r"['\x41\u00e9\U0001F600', '\d \101']", vec!["Aé😀", "\\d A"]),
        ("[u'a', None, 3, 2.5, True]", vec!["a", "", "3", "2.5", "True"]),
        ("('a', 'b',)", vec!["a", "b"]),
        ("['' '' \"x\"]", vec!["", "", "x"]),
        ("['A. Lincoln', 'Washington']", vec!["A. Lincoln", "Washington"]),
        ("['(A) x', '(B) y']", vec!["x", "y"]),
        ("['A.x', 'B.y', 'C.']", vec!["x", "y", ""]),
        ("['B. x', 'A. y']", vec!["B. x", "A. y"]),
    ];
    for (candidates, want) in cases {
        assert_eq!(options(&row(candidates, "0", "").unwrap()), want, "{candidates}");
    }
    let nested = format!("{}'a'", "[".repeat(100_000));
    for (candidates, cause) in [
        ("['a'", "expected a comma or ']', got the end"),
        ("['a', 'b", "expected a closing quote, got the end"),
        ("a, b", "got \"a\" at character 1"),
        ("['a', 'b'] x", "expected the end of the list, got 'x' at character 12"),
        ("[['a'], ['b']]", "expected a list of texts"),
        ("'ab'", "expected a list"),
        (r"['\x4', 'b']", "expected 2 hexadecimal digits"),
        ("['a']", "options: expected 2 to 26, got 1"),
        ("", "options: expected a list"),
        (nested.as_str(), "expected a list, a text in quotes or a number, got '['"),
    ] {
        let message = row(candidates, "0", "").unwrap_err();
        assert!(message.contains(cause), "{message}");
    }
}

#[test]
fn answers_by_index_letter_and_text_must_agree() {
    let list = "['B', 'AB', 'A', 'B']";
    for (number, said, want) in
        [("2", "A", 2), ("0", "B", 0), ("3", "B", 3), ("1.0", "", 1), ("0", "A", 0), ("", "AB", 1)]
    {
        assert_eq!(row(list, number, said).unwrap().answer, want, "{number} {said}");
    }
    // MLVU's tables give texts: `A` is the option, not the first letter.
    assert_eq!(row(list, "", "A").unwrap().answer, 2);
    assert_eq!(row("['red', 'blue']", "", "b").unwrap().answer, 1);
    assert_eq!(row("['red', 'blue']", "", "B. blue").unwrap().answer, 1);
    for (number, said, cause) in [
        ("4", "", "answer: expected an index from 0 to 3, got \"4\""),
        ("-1", "", "answer: expected an index from 0 to 3, got \"-1\""),
        ("1", "O", "answer: the row's index says B, \"AB\", and its answer \"O\""),
        ("", "O", "answer: \"O\" is none of the options A. B, B. AB, C. A, D. B"),
    ] {
        assert_eq!(row(list, number, said).unwrap_err(), cause);
    }
}

#[test]
fn repeated_and_empty_options_stay_and_equal_texts_are_equally_right() {
    let loaded = load(Benchmark::Mlvu, "MLVU.tsv");
    assert!(loaded.refused.is_empty() && loaded.notes.is_empty(), "{loaded:?}");
    let plot = find(&loaded, "1_mlvu_1");
    assert_eq!(options(plot), ["a hat", "a pen", "a hat", "tea"]);
    // The table says the first hat, the JSON the second.
    assert_eq!((plot.answer, load(Benchmark::Mlvu, "mlvu.json").entries[0].answer), (0, 2));
    for entry in [plot, &load(Benchmark::Mlvu, "mlvu.json").entries[0]] {
        let right: Vec<bool> = (0..5).map(|choice| entry.is_right(Some(choice))).collect();
        assert_eq!(right, [true, false, true, false, false]);
        assert!(!entry.is_right(None));
    }
    let needle = find(&loaded, "2_mlvu_2");
    assert_eq!((options(needle), needle.answer), (vec!["", "", "a rope", "a net"], 1));
    assert_eq!(needle.group("task_type").collect::<Vec<_>>(), ["needle"], "findNeedle is the same task");
    assert_eq!(needle.other_ids, ["needle_2_1"]);
    assert_eq!(find(&loaded, "3_mlvu_3").answer, 2, "the text 2, not the index");
    // The crate's own parser copes with such options, too.
    assert_eq!(answer::parse("<answer>B</answer>", &needle.question).choice, Some(1));
    assert_eq!(answer::parse("It is a net.", &needle.question).choice, Some(3));
    assert_eq!(answer::parse("a hat", &plot.question).choice, None);
    assert_eq!(plot.question.to_string(), "What does he buy?\nA. a hat\nB. a pen\nC. a hat\nD. tea");
}

#[test]
fn mlvu_in_one_file_and_per_task() {
    let loaded = load(Benchmark::Mlvu, "mlvu.json");
    let ids: Vec<&str> = loaded.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!((ids, loaded.entries[0].question.text()), (vec!["Q0", "Q1", "Q2"], "What does he buy?"));
    assert_eq!(loaded.entries[0].duration, Some(480.5));
    assert_eq!(loaded.entries[2].answer, 2, "a letter, since the options are in the question");
    let loaded = load(Benchmark::Mlvu, "mlvu");
    assert_eq!(loaded.files, [fixture("mlvu/json/1_plotQA.json"), fixture("mlvu/json/2_needle.json")]);
    let [plot, needle] = &loaded.entries[..] else { panic!("{loaded:?}") };
    assert_eq!((plot.id.as_str(), plot.answer, plot.row), ("1_plotQA-000001", 1, 0));
    assert_eq!((needle.id.as_str(), needle.answer, needle.row), ("2_needle-000001", 2, 1));
    assert_eq!(needle.video_paths()[0], Path::new("video/2_needle/needle_2.mp4"));
    let open = read(Benchmark::Mlvu, fixture("mlvu/json/9_summary.json")).unwrap_err().to_string();
    assert!(
        open.contains("none of 1 rows can be used") && open.contains("options are missing (an open question"),
        "{open}"
    );
}

#[test]
fn long_video_bench_json() {
    let loaded = load(Benchmark::LongVideoBench, "lvb_val.json");
    let first = &loaded.entries[0];
    assert_eq!((first.id.as_str(), first.video.as_str(), first.answer), ("harbour01_0", "harbour01.mp4", 1));
    assert_eq!((options(first).len(), first.duration), (5, Some(12.)));
    let groups =
        [("duration_group", "15"), ("question_category", "T3E"), ("topic_category", "NP-News-Programs")];
    assert_eq!(first.groups[..3], groups.map(|(name, value)| (name, value.to_owned())));
    let subtitles = first.subtitles.as_ref().unwrap();
    assert_eq!((subtitles.name.as_str(), subtitles.offset), ("harbour01_en.json", 100.));
    assert_eq!(first.evidence, Evidence::Frames(vec![30, 90]));
    let cook = find(&loaded, "@cook.x-7_0");
    assert_eq!((options(cook), cook.answer), (vec!["salt", "oil", "rice"], 0));
    assert_eq!(cook.video_paths()[0], Path::new("videos/@cook.x-7.mp4"));
    assert_eq!(find(&loaded, "harbour01_3").answer, 4);
    let unnamed = find(&loaded, "lvb_val-000006");
    assert_eq!(unnamed.question.text(), "What is last?");
    assert_said(
        &loaded.refused,
        &[
            (Place::Row(3), "answer is missing; a question without it cannot be scored"),
            (Place::Row(4), "answer: expected an index from 0 to 4, got 5"),
        ],
    );
    assert_said(
        &loaded.notes,
        &[
            (Place::Row(5), "position: expected a list of frame numbers, got \"soon\""),
            (Place::Row(6), "the row has no id; it is called lvb_val-000006"),
        ],
    );
}

#[test]
fn csv_quotes_hold_commas_and_line_ends_and_unused_option_columns_are_dropped() {
    let loaded = load(Benchmark::LongVideoBench, "longvideobench.csv");
    let [first, second] = &loaded.entries[..] else { panic!("{loaded:?}") };
    assert_eq!(first.question.text(), "Which, of \"these\", is\nred?");
    assert_eq!((options(first), first.answer), (vec!["N/A", "the car", "the bus, late"], 1));
    assert_eq!(first.evidence, Evidence::Frames(vec![10, 20]));
    assert_eq!((second.question.text(), options(second).len(), second.answer), ("Which is 5\" long?", 5, 4));
    assert_said(
        &loaded.refused,
        &[
            (Place::Line(5), "expected 12 cells, got 5"),
            (Place::Line(6), "a quote is opened here and never closed"),
        ],
    );
}

#[test]
fn lv_bench_lines_hold_a_video_each() {
    let loaded = load(Benchmark::LvBench, "video_info.meta.jsonl");
    let ids: Vec<&str> = loaded.entries.iter().map(|entry| entry.id.as_str()).collect();
    let unnamed = "video_info.meta-000011";
    assert_eq!(ids, ["Fa-1_x11", "Fa-1_x12", "Fa-1_x13", "Fa-1_x14", "Fa-1_x15", "Fa-1_x17", unnamed]);
    let first = &loaded.entries[0];
    assert_eq!(
        (first.question.text(), first.answer, first.video.as_str()),
        ("Where does it start?", 2, "Fa-1_x")
    );
    assert_eq!(options(first), ["in a barn", "on a \"roof\"", "at sea, far out", "(A) again"]);
    assert_eq!((first.duration, first.fps, first.other_ids[0].as_str()), (Some(1830.), Some(29.97), "11"));
    let second = &loaded.entries[1];
    assert_eq!(second.group("question_type").collect::<Vec<_>>(), ["summarization", "reasoning"]);
    assert_eq!(second.evidence, Evidence::Seconds(vec![6720.0..6750.0]));
    assert_eq!(find(&loaded, "Fa-1_x15").answer, 1);
    assert_eq!(find(&loaded, "Fa-1_x17").evidence, Evidence::Seconds(vec![420.0..420.0]));
    assert_eq!(
        (find(&loaded, unnamed).fps, find(&loaded, "Fa-1_x13").evidence.clone()),
        (None, Evidence::Unknown)
    );
    assert_said(
        &loaded.refused,
        &[
            (Place::Line(1), "question 6: options are missing"),
            (Place::Line(1), "question 8: expected an object, got 3"),
            (Place::Line(3), "expected one JSON object per line: EOF while parsing"),
            (Place::Line(4), "qa: expected a list of questions, got \"later\""),
        ],
    );
    assert_said(
        &loaded.notes,
        &[
            (Place::Line(1), "question 3: time_reference \"03:10-02:50\": it ends before it starts"),
            (Place::Line(1), "question 4: time_reference \"None-None\": expected two times"),
            (Place::Line(1), "question 5: time_reference \"05:00-None\": expected two times"),
            (Place::Line(5), "question 1: the row has no id"),
        ],
    );
}

#[test]
fn lv_bench_table() {
    let loaded = load(Benchmark::LvBench, "LVBench.tsv");
    let [first, second] = &loaded.entries[..] else { panic!("{loaded:?}") };
    assert_eq!((first.id.as_str(), first.other_ids[0].as_str(), first.answer), ("Fa-1_x11", "11", 0));
    assert_eq!(options(first), ["\"Open", "Shut\"", "it's", "A"]);
    assert_eq!(first.group("type").collect::<Vec<_>>(), ["cartoon"]);
    assert_eq!(first.group("question_type").collect::<Vec<_>>(), ["key information retrieval"]);
    assert_eq!(second.answer, 2);
}

#[test]
fn parquet_tables_of_the_hub() {
    let loaded = load(Benchmark::VideoMme, "test-00000-of-00001.parquet");
    let [first, second] = &loaded.entries[..] else { panic!("{loaded:?}") };
    assert_eq!((first.id.as_str(), first.answer, options(first)[1]), ("001-1", 0, "a \"blue\" boat."));
    assert_eq!((second.video.as_str(), second.answer), ("boat.v2", 2));
    assert_said(&loaded.refused, &[(Place::Row(3), "question is empty; the row has video_id")]);
    let loaded = load(Benchmark::LongVideoBench, "validation-00000-of-00001.parquet");
    let [first, second] = &loaded.entries[..] else { panic!("{loaded:?}") };
    assert_eq!((options(first), first.answer), (vec!["the crane", "the ferry", "a van"], 1));
    assert_eq!((first.evidence.clone(), first.duration), (Evidence::Frames(vec![30, 90]), Some(12.)));
    assert_eq!((options(second).len(), second.answer), (5, 4));
    let (_folder, path) =
        folder("cut.parquet", &std::fs::read(fixture("test-00000-of-00001.parquet")).unwrap()[..500]);
    let message = read(Benchmark::VideoMme, &path).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("{}: expected a parquet file (plain or Snappy): ", path.display())),
        "{message}"
    );
}

#[test]
fn folders_are_searched_for_the_authors_names() {
    let text = std::fs::read(fixture("lvb_val.json")).unwrap();
    let (folder, path) = folder("lvb_val.json", text);
    let loaded = read(Benchmark::LongVideoBench, folder.path()).unwrap();
    assert_eq!(loaded.files, [path]);
    assert_eq!(
        read(Benchmark::VideoMme, fixture("")).unwrap().entries.len(),
        2,
        "parquet before JSON before TSV"
    );
    let message = read(Benchmark::LvBench, folder.path()).unwrap_err().to_string();
    let want = format!(
        "{}: expected the question file of lvbench, one of video_info.meta.jsonl, data/video_info.meta.jsonl, ",
        folder.path().display()
    );
    assert!(message.starts_with(&want), "{message}");
    assert!(
        message.ends_with("the folder holds lvb_val.json. Give that folder, or the file itself"),
        "{message}"
    );
    let missing = folder.path().join("no");
    assert!(
        matches!(read(Benchmark::Mlvu, &missing).unwrap_err(), Error::Io { path, .. } if path == missing)
    );
}

#[test]
fn files_that_are_no_question_files_say_so() {
    for (name, text, cause) in [
        ("a.json", "", "expected a JSON array of objects: EOF"),
        ("a.json", "[]", "expected questions of mlvu; the file has no rows"),
        ("a.json", "{\n\"a\": 1\n}", "expected questions of mlvu; none of 3 rows can be used. The first: "),
        ("a.tsv", "", "expected a tab-separated table whose first line names the columns, got an empty file"),
        ("a.tsv", "a,b\n1,2\n", "whose first line names the columns, got \"a,b\""),
        ("a.csv", "a,b\n1,2\n", "question is missing; the row has a, b"),
        ("a.txt", "a", "expected a name that ends in .json, .jsonl, .tsv, .csv or .parquet"),
        ("a.jsonl", "[1]", "expected an object with a question's fields, got [1]"),
    ] {
        let (_folder, path) = folder(name, text);
        let message = read(Benchmark::Mlvu, &path).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("{}: ", path.display())) && message.contains(cause),
            "{message}"
        );
    }
    let (_folder, path) =
        folder("a.tsv", [HEADER.as_bytes(), b"\ni\tt\tv\ti\t\xff?\t0\t['x', 'y']\tx\n"].concat());
    let message = read(Benchmark::Mlvu, &path).unwrap_err().to_string();
    assert!(message.ends_with("a.tsv:2: question is not UTF-8"), "{message}");
}

#[test]
fn the_files_of_another_benchmark_are_refused() {
    for (name, benchmark, cause) in [
        ("VideoMME.tsv", Benchmark::LongVideoBench, "got one of video-mme; name that benchmark"),
        ("VideoMME.tsv", Benchmark::Mlvu, "got one of video-mme; name that benchmark"),
        ("videomme.json", Benchmark::LongVideoBench, "video_path or video_name or video is missing"),
        ("videomme.json", Benchmark::Mlvu, "video_name or video or video_path is missing"),
    ] {
        let message = read(benchmark, fixture(name)).unwrap_err().to_string();
        assert!(message.contains(cause), "{message}");
    }
}

#[test]
fn videos_and_subtitles_are_found_where_the_benchmarks_keep_them() {
    let loaded = load(Benchmark::VideoMme, "videomme.json");
    let entry = &loaded.entries[0];
    let (folder, video) = folder("data/kite_-1.mkv", "");
    assert_eq!(entry.find_video(folder.path()), Some(video));
    let capitals = folder.path().join("data/dune.MP4");
    std::fs::write(&capitals, "").unwrap();
    assert_eq!(find(&loaded, "003-2").find_video(folder.path()), Some(capitals));
    assert_eq!(
        (find(&loaded, "002-1").find_video(folder.path()), entry.find_subtitles(folder.path())),
        (None, None)
    );
    std::fs::create_dir(folder.path().join("subtitle")).unwrap();
    let subtitles = folder.path().join("subtitle/kite_-1.srt");
    std::fs::copy(fixture("kite_-1.srt"), &subtitles).unwrap();
    assert_eq!(entry.find_subtitles(folder.path()), Some(subtitles));
    assert!(load(Benchmark::Mlvu, "mlvu.json").entries[0].subtitle_paths().is_empty());
}

#[test]
fn evidence_is_seen_within_two_seconds_of_a_moment_and_one_of_an_interval() {
    let frames = Evidence::Frames(vec![61_388_250, 300, 30]);
    assert_eq!(frames.windows(30., Some(60.)), [8.0..12.0, -1.0..3.0], "a moment after the end is left out");
    assert_eq!(frames.recall(&[12., 40.], 30., Some(60.)), Some(0.5));
    assert_eq!(frames.recall(&[12.01, 40.], 30., Some(60.)), Some(0.));
    assert_eq!(frames.recall(&[0., 10.], 30., None), Some(2. / 3.));
    // 60 frames are 2 s, whatever rounding makes of them
    let seconds: Vec<f64> = (0..2000).map(|frame| f64::from(frame) / 29.97).collect();
    for at in [100_u64, 777, 1234] {
        let caught = |frame: u64| Evidence::Frames(vec![at]).recall(&[seconds[frame as usize]], 29.97, None);
        assert_eq!((caught(at + 59), caught(at - 59), caught(at + 60)), (Some(1.), Some(1.), Some(0.)));
    }
    let range = Evidence::Seconds(vec![65.0..70.0]);
    assert_eq!((range.recall(&[64.], 0., None), range.recall(&[71.1], 0., None)), (Some(1.), Some(0.)));
    assert_eq!(Evidence::Unknown.recall(&[1.], 30., None), None);
    assert_eq!(Evidence::Frames(vec![61_388_250]).recall(&[1.], 30., Some(60.)), None);
}

#[test]
fn the_letter_of_a_reply_is_read_by_the_fields_rule() {
    let mme = &load(Benchmark::VideoMme, "videomme.json").entries[0];
    let lvb = load(Benchmark::LongVideoBench, "lvb_val.json");
    let cook = find(&lvb, "@cook.x-7_0");
    for (reply, want) in [
        ("B", Some(1)),
        ("(C) the dog's bowl.", Some(2)),
        ("The best answer is D.", Some(3)),
        ("Answer: B", Some(0)),
        ("Best answer: C", Some(2)),
        ("Best option: (C", Some(2)),
        ("The answer is\nC", Some(2)),
        ("Both of them", Some(1)),
        ("E", None),
        ("c", None),
        ("", None),
        ("i cannot tell from these frames which of the four it might be", None),
    ] {
        assert_eq!(letter(mme, reply), want, "{reply:?}");
    }
    // LongVideoBench knows E; where a question has fewer options it is wrong, and no letter is drawn at random.
    assert_eq!((letter(cook, "E"), cook.is_right(letter(cook, "E"))), (Some(4), false));
    assert_eq!(letter(cook, "no idea"), None);
}

#[test]
fn scores_are_counted_by_group_in_a_fixed_order() {
    let mme = load(Benchmark::VideoMme, "videomme.json");
    let replies = ["A", "D", "A", "B"];
    let answers = || mme.entries.iter().zip(replies).map(|(entry, reply)| (entry, letter(entry, reply)));
    let scores = scoring::score(answers());
    assert_eq!((scores.overall.asked, scores.overall.right, scores.overall.accuracy()), (4, 3, Some(0.75)));
    let by_duration: Vec<(&str, usize, usize)> = (scores.groups.iter())
        .filter(|group| group.name == "duration")
        .map(|group| (group.value.as_str(), group.tally.right, group.tally.asked))
        .collect();
    assert_eq!(by_duration, [("short", 2, 2), ("medium", 0, 1), ("long", 1, 1)]);
    assert_eq!(scores.macro_average("duration"), Some(2. / 3.));
    assert_eq!((scores.macro_average("level"), scoring::score([]).overall.accuracy()), (None, None));
    assert_eq!(scoring::score(answers().collect::<Vec<_>>().into_iter().rev()), scores);
    let lvb = load(Benchmark::LongVideoBench, "lvb_val.json");
    let scores = scoring::score(lvb.entries.iter().map(|entry| (entry, Some(entry.answer))));
    let groups: Vec<&str> = (scores.groups.iter())
        .filter(|group| group.name == "duration_group")
        .map(|group| group.value.as_str())
        .collect();
    assert_eq!((groups, scores.overall.accuracy()), (vec!["15", "600"], Some(1.)));
}
