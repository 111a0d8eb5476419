//! Results against numbers worked out by hand.

use msjoe::benchmarks::{self, Benchmark, found};
use msjoe::data::world::Spec;
use msjoe::evaluation::{
    Column, Item, Journal, Prediction, Results, Seeds, Source, columns, methods, of_world, results, write,
};
use msjoe::pipeline::{Step, StepReport};

use super::settings;

/// Six questions of two kinds; `a` is right about 1, 2, 3, 4 and 6, `b` about 1 and 5.
const A: [bool; 6] = [true, true, true, true, false, true];
const B: [bool; 6] = [true, false, false, false, true, false];

const SEEDS: Seeds = Seeds { draws: 1, samplers: 1, agents: 1 };

fn items() -> Vec<Item> {
    let mut items = of_world(Spec::short(), 3, 6).unwrap().items;
    for (at, item) in items.iter_mut().enumerate() {
        item.id = format!("q{}", at + 1);
        let kind = if at < 4 { "long" } else { "short" };
        item.groups = vec![("duration".into(), kind.into()), ("type".into(), "x|y".into())];
    }
    items
}

fn prediction(item: &Item, column: Column, right: bool, recall: Option<f64>) -> Prediction {
    let step = |step, seconds, prompt_tokens| StepReport {
        step,
        seconds,
        prompt_tokens,
        visual_tokens: None,
        new_tokens: None,
    };
    Prediction {
        id: item.id.clone(),
        method: column.method.choosing.name(),
        queries_from: column.method.source,
        frames: column.frames,
        seed: column.seed,
        choice: right.then_some(item.answer),
        right,
        reply: "B".into(),
        queries: vec![],
        key_frames: vec![0, 4],
        seconds: vec![0.0, 4.0],
        evidence_recall: recall,
        steps: vec![
            step(Step::Watch, 2.0, None),
            step(Step::Answer, if right { 1.0 } else { 3.0 }, Some(10)),
        ],
    }
}

fn hand_made(items: &[Item], folder: &std::path::Path) -> (Vec<Column>, Journal) {
    let names = ["uniform".to_owned(), "bolt".to_owned()];
    let columns = columns(&methods(&names, &[Source::Question]).unwrap(), &[2], SEEDS);
    let mut journal = Journal::open(folder, &settings()).unwrap();
    for (column, right) in columns.iter().zip([B, A]) {
        let recall = |at: usize| [Some(0.5), Some(0.0), Some(1.0), None, None, None][at];
        let all = items.iter().enumerate().map(|(at, item)| prediction(item, *column, right[at], recall(at)));
        assert_eq!(journal.add(all.collect()).unwrap(), 6);
    }
    let again = prediction(&items[0], columns[0], false, None);
    assert_eq!(journal.add(vec![again]).unwrap(), 0, "the first answer counts");
    (columns, journal)
}

fn hand_results(items: &[Item], columns: &[Column], journal: &Journal) -> Results {
    results(&settings(), items, columns, journal, "duration").unwrap()
}

#[test]
fn accuracies_pairs_and_evidence_are_those_worked_out_by_hand() {
    let (items, folder) = (items(), tempfile::tempdir().unwrap());
    let (columns, journal) = hand_made(&items, folder.path());
    let found = hand_results(&items, &columns, &journal);
    let [uniform, bolt] = &found.rows[..] else { panic!("{:?}", found.rows) };
    assert_eq!((uniform.method.as_str(), bolt.method.as_str()), ("uniform", "bolt (question)"));
    assert_eq!((uniform.accuracy.unwrap().mean, bolt.accuracy.unwrap().mean), (2.0 / 6.0, 5.0 / 6.0));
    let groups: Vec<_> =
        bolt.groups.iter().map(|g| (g.value.as_str(), g.questions, g.accuracy.mean)).collect();
    assert_eq!(groups, [("short", 2, 0.5), ("long", 4, 1.0), ("x|y", 6, 5.0 / 6.0)], "short before long");
    let evidence = (bolt.with_evidence, bolt.evidence_recall, bolt.hit_rate, bolt.all_hit_rate);
    assert_eq!(evidence, (3, Some(0.5), Some(2.0 / 3.0), Some(1.0 / 3.0)));
    assert!((bolt.without_choice - 1.0 / 6.0).abs() < 1e-12);
    assert_eq!((bolt.key_frames, bolt.steps[&Step::Watch].seconds), (2.0, 2.0));
    let answer = bolt.steps[&Step::Answer];
    assert!((answer.seconds - 8.0 / 6.0).abs() < 1e-12 && answer.prompt_tokens == 10.0, "{answer:?}");

    // Four against one: twice (1 + 5) of 32.
    let (better, test) = found.compared("bolt (question)", "uniform", 2).unwrap();
    assert_eq!((test.only_first, test.only_second), (4, 1));
    assert!((test.p - 0.375).abs() < 1e-12, "{test:?}");
    assert!((better.mean - 0.5).abs() < 1e-12 && better.low <= 0.5 && better.high >= 0.5, "{better:?}");
    let (worse, mirrored) = found.compared("uniform", "bolt (question)", 2).unwrap();
    assert_eq!((worse.mean, worse.low, worse.high), (-better.mean, -better.high, -better.low));
    assert_eq!((mirrored.only_first, mirrored.only_second), (1, 4));
    assert!(found.compared("uniform", "aks", 2).is_none());

    let table = found.markdown();
    let line = table.lines().find(|line| line.starts_with("| bolt (question) | 83.3 [")).unwrap();
    assert!(
        line.contains("| 50.0 [") && line.contains("| 0.375 | 50 | 100 | 0.50 | 0.67 | 6 | - |"),
        "{line}"
    );
    assert!(
        table.contains("| bolt (question) | 2 | 2.00 | - | - | - | - | 1.33 | 3.33 | 10 | 0 | 0 | 2.0 |"),
        "{table}"
    );
}

#[test]
fn only_what_both_have_answered_is_compared() {
    let (items, folder) = (items(), tempfile::tempdir().unwrap());
    let names = ["uniform".to_owned(), "q-frame".to_owned()];
    let columns = columns(&methods(&names, &[Source::Model]).unwrap(), &[2], Seeds { draws: 2, ..SEEDS });
    let [uniform, first, second] = columns[..] else { panic!("{columns:?}") };
    let mut journal = Journal::open(folder.path(), &settings()).unwrap();
    let answers = |column, range: std::ops::Range<usize>| {
        items[range].iter().map(|item| prediction(item, column, true, None)).collect::<Vec<_>>()
    };
    journal.add(answers(uniform, 1..6)).unwrap();
    journal.add(answers(first, 0..4)).unwrap();
    journal.add(answers(second, 0..3)).unwrap();
    let found = hand_results(&items, &columns, &journal);
    assert_eq!((found.rows[1].answers, found.rows[1].questions, found.rows[1].seeds), (7, 3, 2));
    assert_eq!(found.pairs.len(), 1);
    assert_eq!(found.pairs[0].questions, 2, "questions 2 and 3");
    let none = hand_results(
        &items,
        &columns[..1],
        &Journal::open(tempfile::tempdir().unwrap().path(), &settings()).unwrap(),
    );
    assert_eq!(none.rows[0].accuracy, None);
    assert!(none.markdown().contains("| uniform | - | - | - |"), "{}", none.markdown());
}

#[test]
fn evidence_counts_to_its_borders() {
    let windows = [2.0..4.0, 10.0..10.0];
    assert_eq!(found(&windows, &[4.0]), Some(0.5));
    assert_eq!(found(&windows, &[1.9, 4.1]), Some(0.0));
    assert_eq!(found(&windows, &[2.0, 10.0]), Some(1.0));
    assert_eq!(found(&[], &[2.0]), None);
}

#[test]
fn the_field_s_files_hold_letters_and_the_benchmark_s_fields() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/benchmarks");
    for (benchmark, file, name, metric) in [
        (Benchmark::VideoMme, "videomme.json", "videomme", "videomme_perception_score"),
        (Benchmark::LongVideoBench, "lvb_val.json", "longvideobench_val_v", "lvb_acc"),
        (Benchmark::LvBench, "video_info.meta.jsonl", "lvbench", "lvbench_score"),
        (Benchmark::Mlvu, "mlvu.json", "mlvu_dev", "mlvu_perception_score"),
    ] {
        let loaded = benchmarks::read(benchmark, path.join(file)).unwrap();
        let items: Vec<Item> = loaded.entries.iter().map(|e| Item::of_benchmark(e, "v.mp4".into())).collect();
        let columns = columns(&methods(&["uniform".to_owned()], &[Source::Model]).unwrap(), &[2], SEEDS);
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), &settings()).unwrap();
        let answers = items.iter().enumerate().map(|(at, item)| prediction(item, columns[0], at == 0, None));
        journal.add(answers.collect()).unwrap();
        let found = hand_results(&items, &columns, &journal);
        write(&found, &items, &columns, &journal, Some(benchmark)).unwrap();
        let folder = folder.path().join("lmms-eval/uniform-2");
        let text = std::fs::read_to_string(folder.join(format!("samples_{name}.jsonl"))).unwrap();
        let samples: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(samples.len(), items.len());
        assert!(!samples[0][metric].is_null(), "{}", samples[0]);
        assert_eq!(samples[0]["filtered_resps"], serde_json::json!(["B"]));
        let json = std::fs::read(folder.join("results.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let share = json["results"][name][format!("{metric},none")].as_f64().unwrap();
        assert!((share - 1.0 / items.len() as f64).abs() < 1e-12);
        assert_eq!(json["n-samples"][name]["effective"], items.len());
        if benchmark == Benchmark::LongVideoBench {
            assert_eq!(samples[0]["lvb_acc"]["parsed_pred"], samples[0]["lvb_acc"]["answer"]);
            assert_eq!(samples[0]["lvb_acc"]["duration_group"], "15");
        }
    }
}
