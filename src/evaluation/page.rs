//! The results as a page to look at.

use std::collections::BTreeMap;

use super::results::{Results, Row};
use crate::report::{Evaluation, Method};

/// The page of results: the table with the most key frames, and accuracy over K.
pub fn page(results: &Results) -> String {
    let frames = results.frames().into_iter().max().unwrap_or_default();
    let of = |name: &str, k: usize| results.rows.iter().find(|row| row.method == name && row.frames == k);
    let mut methods = vec![];
    for name in results.method_names() {
        let Some(row) = of(name, frames) else { continue };
        let Some(accuracy) = row.accuracy else { continue };
        let by_frames: BTreeMap<_, _> =
            results.frames().into_iter().filter_map(|k| Some((k, of(name, k)?.accuracy?))).collect();
        methods.push(Method {
            name: name.to_owned(),
            accuracy,
            families: families(row, &results.main_group),
            evidence_recall: row.evidence_recall,
            seeds: row.seeds,
            // One point is in the table.
            by_frames: if by_frames.len() > 1 { by_frames } else { BTreeMap::new() },
        });
    }
    let page = Evaluation {
        title: format!("{}: methods side by side", results.settings.benchmark),
        facts: facts(results),
        questions: results.questions,
        key_frames: frames,
        methods,
        rewards: vec![],
        warnings: warnings(results),
    };
    page.html()
}

fn families(row: &Row, name: &str) -> BTreeMap<String, crate::statistics::Estimate> {
    let groups = row.groups.iter().filter(|group| group.name == name);
    groups.map(|group| (group.value.clone(), group.accuracy)).collect()
}

fn facts(results: &Results) -> Vec<(String, String)> {
    let settings = &results.settings;
    let yes = |yes: bool| if yes { "shown" } else { "not shown" };
    vec![
        ("Candidates".to_owned(), format!("{} per second", settings.fps)),
        ("Previews".to_owned(), settings.previews.to_string()),
        ("Subtitles".to_owned(), yes(settings.subtitles).to_owned()),
        ("Language model".to_owned(), settings.mllm.clone()),
    ]
}

fn warnings(results: &Results) -> Vec<String> {
    let mut warnings = vec![];
    let (counts, skipped) = (&results.counts, results.missing.values().sum::<usize>());
    if skipped > 0 {
        warnings
            .push(format!("{skipped} questions were skipped: {} videos are missing", results.missing.len()));
    }
    if counts.left() > 0 {
        let left = counts.left();
        warnings.push(format!(
            "{left} of {} answers are not there yet ({} failed)",
            counts.wanted, counts.failed
        ));
    }
    warnings
}
