//! The answers in the files of the field's harness, lmms-eval: `results.json` with the main number of a task, and
//! `samples_<task>.jsonl` with one line per question. Names of tasks, metrics and fields are the harness's (0.3 to 0.6);
//! accuracies are shares, 0 to 1.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::item::Item;
use super::journal::{Journal, Prediction};
use super::method::Column;
use super::settings::{Settings, hash_of_texts};
use crate::benchmarks::Benchmark;
use crate::checkpoint::{write_file, write_json};
use crate::error::{Error, Result};
use crate::text::labels::letter;

/// Task and metric of a benchmark.
fn task(benchmark: Option<Benchmark>) -> (&'static str, &'static str) {
    match benchmark {
        Some(Benchmark::VideoMme) => ("videomme", "videomme_perception_score"),
        Some(Benchmark::LongVideoBench) => ("longvideobench_val_v", "lvb_acc"),
        Some(Benchmark::LvBench) => ("lvbench", "lvbench_score"),
        Some(Benchmark::Mlvu) => ("mlvu_dev", "mlvu_perception_score"),
        None => ("toy", "acc"),
    }
}

/// Writes a folder per column with answers, `<folder>/lmms-eval/<method>-<K>[-<seed>]`. Gives the folders.
///
/// # Errors
/// [`Error::Io`] for files that cannot be written.
pub fn write(
    settings: &Settings,
    items: &[Item],
    columns: &[Column],
    journal: &Journal,
    benchmark: Option<Benchmark>,
) -> Result<Vec<PathBuf>> {
    let mut folders = vec![];
    for &column in columns {
        let of_column = journal.of(column);
        let answered: Vec<(usize, &Item, &Prediction)> = (items.iter().enumerate())
            .filter_map(|(at, item)| Some((at, item, *of_column.get(item.id.as_str())?)))
            .collect();
        if answered.is_empty() {
            continue;
        }
        let source = column.method.source.map_or(String::new(), |source| format!("-{source}"));
        let seed = if column.seed > 0 { format!("-seed{}", column.seed) } else { String::new() };
        let name = format!("{}{source}-{}{seed}", column.method.choosing.name(), column.frames);
        let folder = journal.folder().join("lmms-eval").join(&name);
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let (task, metric) = task(benchmark);
        let mut lines = String::new();
        for (at, item, prediction) in &answered {
            lines += &sample(*at, item, prediction, metric).to_string();
            lines.push('\n');
        }
        write_file(&folder.join(format!("samples_{task}.jsonl")), lines.as_bytes())?;
        write_json(
            &folder.join("results.json"),
            &summary(settings, &name, items.len(), &answered, (task, metric)),
        )?;
        folders.push(folder);
    }
    Ok(folders)
}

/// The number and its standard error.
fn summary(
    settings: &Settings,
    name: &str,
    questions: usize,
    answered: &[(usize, &Item, &Prediction)],
    (task, metric): (&str, &str),
) -> Value {
    let n = answered.len() as f64;
    let share = answered.iter().filter(|(_, _, one)| one.right).count() as f64 / n;
    // The harness divides by n - 1.
    let error = if n > 1. { (share * (1. - share) / (n - 1.)).sqrt() } else { 0. };
    json!({
        "results": {task: {
            "alias": task,
            format!("{metric},none"): share,
            format!("{metric}_stderr,none"): error,
        }},
        "configs": {task: {"task": task, "metric_list": [{"metric": metric, "higher_is_better": true}]}},
        "versions": {task: "Yaml"},
        "n-shot": {task: 0},
        "higher_is_better": {task: {metric: true}},
        "n-samples": {task: {"original": questions, "effective": answered.len()}},
        "config": {"model": "msjoe", "model_args": name, "msjoe": settings},
        "model_source": "msjoe",
        "model_name": name,
    })
}

fn sample(at: usize, item: &Item, prediction: &Prediction, metric: &str) -> Value {
    let answer = letter(item.answer).to_string();
    // The harness compares letters; of two equal options either is right.
    let said = if prediction.right { Some(item.answer) } else { prediction.choice };
    let said = said.map_or(String::new(), |place| letter(place).to_string());
    let group = |name: &str| {
        let values = item.groups.iter().filter(|(group, _)| group == name).map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>().join(", ")
    };
    let scored = match item.entry().map(|entry| entry.benchmark) {
        Some(Benchmark::VideoMme) => json!({
            "question_id": item.id, "duration": group("duration"), "category": group("domain"),
            "sub_category": group("sub_category"), "task_category": group("task_type"), "pred_answer": said,
            "answer": answer,
        }),
        Some(Benchmark::LongVideoBench) => json!({
            "id": item.id, "duration_group": group("duration_group"), "question_category": group("question_category"),
            "answer": answer, "parsed_pred": said,
        }),
        Some(Benchmark::Mlvu) => json!({
            "question_id": item.question.text(), "task_type": group("task_type"), "pred_answer": said,
            "answer": answer,
        }),
        Some(Benchmark::LvBench) => json!(prediction.right),
        None => json!(f64::from(prediction.right)),
    };
    let options: Vec<&str> = item.question.options().iter().map(String::as_str).collect();
    let texts = [item.id.as_str(), item.question.text()].into_iter().chain(options);
    let mut fields = Map::new();
    fields.insert("doc_id".to_owned(), json!(item.entry().map_or(at, |entry| entry.row)));
    fields.insert("doc_hash".to_owned(), json!(hash_of_texts(texts)));
    fields.insert("target".to_owned(), json!(answer));
    fields.insert("input".to_owned(), json!(item.question.to_string()));
    fields.insert("resps".to_owned(), json!([[prediction.reply]]));
    fields.insert("filtered_resps".to_owned(), json!([prediction.reply]));
    fields.insert(metric.to_owned(), scored);
    Value::Object(fields)
}
