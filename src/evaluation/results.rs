//! What the answers add up to: accuracy with intervals, paired tests, evidence, time and tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::Serialize;

use super::item::{Item, group_names};
use super::journal::{Journal, Prediction};
use super::method::{Column, Method};
use super::run::Counts;
use super::settings::Settings;
use crate::benchmarks::scoring::{by_value, place};
use crate::error::Result;
use crate::pipeline::Step;
use crate::statistics::{Estimate, McNemar, accuracy, difference, mcnemar};

/// Seed of every bootstrap.
const SEED: u64 = 0;

/// Means over the answers that have the step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// Answers with this step.
    pub answers: usize,
    /// Wall-clock time.
    pub seconds: f64,
    /// Tokens of the prompt; 0 for steps without one.
    pub prompt_tokens: f64,
    /// Visual tokens among them.
    pub visual_tokens: f64,
    /// Generated tokens.
    pub new_tokens: f64,
}

/// The questions that share a value of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// `duration`, `task_type`, `family`, ...
    pub name: String,
    /// `short`, `plotQA`, ...
    pub value: String,
    /// Questions.
    pub questions: usize,
    /// Share of right answers.
    pub accuracy: Estimate,
}

/// What a method reached with K frames.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The method with its source of queries: `bolt (model)`.
    pub method: String,
    /// K.
    pub frames: usize,
    /// Runs with different seeds.
    pub seeds: usize,
    /// Answers of all seeds.
    pub answers: usize,
    /// Questions that every seed has answered: those behind the accuracies.
    pub questions: usize,
    /// Share of right answers, with a 95 % interval by bootstrap over questions and seeds; `None` without an answer.
    pub accuracy: Option<Estimate>,
    /// The same by group.
    pub groups: Vec<Group>,
    /// Answers to questions whose evidence is known.
    pub with_evidence: usize,
    /// Mean share of their evidence that a frame lies in.
    pub evidence_recall: Option<f64>,
    /// Share of them with a frame in some of the evidence.
    pub hit_rate: Option<f64>,
    /// Share of them with a frame in every part of the evidence.
    pub all_hit_rate: Option<f64>,
    /// Share of replies that name no option.
    pub without_choice: f64,
    /// Mean number of frames shown.
    pub key_frames: f64,
    /// Time and tokens of a question (the paper's Table 4).
    pub steps: BTreeMap<Step, Mean>,
}

/// Two methods with the same K on the questions that both have answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// One method.
    pub first: String,
    /// The other one.
    pub second: String,
    /// K.
    pub frames: usize,
    /// Questions.
    pub questions: usize,
    /// How much larger the first one's share of right answers is, with a 95 % interval by paired bootstrap.
    pub difference: Estimate,
    /// The exact test on the first seed of each.
    pub mcnemar: McNemar,
}

/// Everything that an evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// What the answers depend on.
    pub settings: Settings,
    /// Questions asked.
    pub questions: usize,
    /// What was done in the last run.
    pub counts: Counts,
    /// Broken lines of the journal that were dropped.
    pub dropped: usize,
    /// Videos that are missing, each with its questions, which were skipped.
    pub missing: BTreeMap<String, usize>,
    /// The group that tables report.
    pub main_group: String,
    /// By K, methods in their order.
    pub rows: Vec<Row>,
    /// Every two methods of the same K.
    pub pairs: Vec<Pair>,
}

/// The runs of a method with K frames, one per seed.
struct Runs<'a> {
    method: Method,
    frames: usize,
    seeds: Vec<HashMap<&'a str, &'a Prediction>>,
}

impl<'a> Runs<'a> {
    /// Questions that every seed has answered.
    fn complete(&self, items: &'a [Item]) -> Vec<&'a Item> {
        let everywhere = |item: &&Item| self.seeds.iter().all(|seed| seed.contains_key(item.id.as_str()));
        items.iter().filter(everywhere).collect()
    }

    fn right(&self, items: &[&Item]) -> Vec<Vec<bool>> {
        let right = |seed: &HashMap<&str, &Prediction>| {
            items.iter().map(|item| seed.get(item.id.as_str()).is_some_and(|one| one.right)).collect()
        };
        self.seeds.iter().map(right).collect()
    }
}

/// Sums up the answers of `columns` to `items`. What else is in the journal does not count.
///
/// # Errors
/// As [`accuracy`]; none for a journal that has only some of the answers.
pub fn results(
    settings: &Settings,
    items: &[Item],
    columns: &[Column],
    journal: &Journal,
    main_group: &str,
) -> Result<Results> {
    let mut all: Vec<Runs> = vec![];
    for &column in columns {
        let of_column = journal.of(column);
        let same = |runs: &&mut Runs| (runs.method, runs.frames) == (column.method, column.frames);
        match all.iter_mut().find(same) {
            Some(runs) => runs.seeds.push(of_column),
            None => all.push(Runs { method: column.method, frames: column.frames, seeds: vec![of_column] }),
        }
    }
    let names = group_names(items);
    let rows = all.par_iter().map(|runs| row(runs, items, &names)).collect::<Result<Vec<_>>>()?;
    let two: Vec<(&Runs, &Runs)> = (0..all.len())
        .flat_map(|a| (a + 1..all.len()).map(move |b| (a, b)))
        .map(|(a, b)| (&all[a], &all[b]))
        .filter(|(a, b)| a.frames == b.frames)
        .collect();
    let pairs = two.par_iter().map(|(a, b)| pair(a, b, items)).collect::<Result<Vec<_>>>()?;
    Ok(Results {
        settings: settings.clone(),
        questions: items.len(),
        counts: Counts::default(),
        dropped: journal.dropped,
        missing: BTreeMap::new(),
        main_group: main_group.to_owned(),
        rows,
        pairs: pairs.into_iter().flatten().collect(),
    })
}

fn row(runs: &Runs, items: &[Item], names: &[String]) -> Result<Row> {
    let complete = runs.complete(items);
    let ids: BTreeSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
    let of_items = runs.seeds.iter().flat_map(HashMap::values).filter(|one| ids.contains(one.id.as_str()));
    let predictions: Vec<&Prediction> = of_items.copied().collect();
    let recalls: Vec<f64> = predictions.iter().filter_map(|one| one.evidence_recall).collect();
    let share = |of: &dyn Fn(f64) -> f64| {
        (!recalls.is_empty())
            .then(|| recalls.iter().map(|&recall| of(recall)).sum::<f64>() / recalls.len() as f64)
    };
    let mean = |of: &dyn Fn(&Prediction) -> f64| {
        predictions.iter().map(|one| of(one)).sum::<f64>() / predictions.len().max(1) as f64
    };
    Ok(Row {
        method: runs.method.title(),
        frames: runs.frames,
        seeds: runs.seeds.len(),
        answers: predictions.len(),
        questions: complete.len(),
        accuracy: match complete.is_empty() {
            true => None,
            false => Some(accuracy(&runs.right(&complete), SEED)?),
        },
        groups: groups(runs, &complete, names)?,
        with_evidence: recalls.len(),
        evidence_recall: share(&|recall| recall),
        hit_rate: share(&|recall| f64::from(recall > 0.)),
        all_hit_rate: share(&|recall| f64::from(recall >= 1.)),
        without_choice: mean(&|one| f64::from(one.choice.is_none())),
        key_frames: mean(&|one| one.key_frames.len() as f64),
        steps: steps(&predictions),
    })
}

fn groups(runs: &Runs, items: &[&Item], names: &[String]) -> Result<Vec<Group>> {
    let mut values: BTreeMap<(&str, &str), Vec<&Item>> = BTreeMap::new();
    for &item in items {
        for (name, value) in item.groups.iter().filter(|(name, _)| names.contains(name)) {
            values.entry((name, value)).or_default().push(item);
        }
    }
    let mut groups = vec![];
    for ((name, value), items) in values {
        groups.push(Group {
            name: name.to_owned(),
            value: value.to_owned(),
            questions: items.len(),
            accuracy: accuracy(&runs.right(&items), SEED)?,
        });
    }
    groups.sort_by(|a, b| place(&a.name).cmp(&place(&b.name)).then_with(|| by_value(&a.value, &b.value)));
    Ok(groups)
}

fn steps(predictions: &[&Prediction]) -> BTreeMap<Step, Mean> {
    let mut sums: BTreeMap<Step, Mean> = BTreeMap::new();
    let none = Mean { answers: 0, seconds: 0., prompt_tokens: 0., visual_tokens: 0., new_tokens: 0. };
    for report in predictions.iter().flat_map(|one| &one.steps) {
        let sum = sums.entry(report.step).or_insert(none);
        let count = |tokens: Option<usize>| tokens.unwrap_or_default() as f64;
        sum.answers += 1;
        sum.seconds += report.seconds;
        sum.prompt_tokens += count(report.prompt_tokens);
        sum.visual_tokens += count(report.visual_tokens);
        sum.new_tokens += count(report.new_tokens);
    }
    for mean in sums.values_mut() {
        let answers = mean.answers as f64;
        mean.seconds /= answers;
        mean.prompt_tokens /= answers;
        mean.visual_tokens /= answers;
        mean.new_tokens /= answers;
    }
    sums
}

fn pair(a: &Runs, b: &Runs, items: &[Item]) -> Result<Option<Pair>> {
    let of_b: BTreeSet<&str> = b.complete(items).into_iter().map(|item| item.id.as_str()).collect();
    let both: Vec<&Item> =
        a.complete(items).into_iter().filter(|item| of_b.contains(item.id.as_str())).collect();
    if both.is_empty() {
        return Ok(None);
    }
    let (first, second) = (a.right(&both), b.right(&both));
    Ok(Some(Pair {
        first: a.method.title(),
        second: b.method.title(),
        frames: a.frames,
        questions: both.len(),
        difference: difference(&first, &second, SEED)?,
        mcnemar: mcnemar(&first[0], &second[0])?,
    }))
}

impl Results {
    /// The numbers of key frames, in their order.
    pub fn frames(&self) -> Vec<usize> {
        let mut frames = vec![];
        for row in &self.rows {
            if !frames.contains(&row.frames) {
                frames.push(row.frames);
            }
        }
        frames
    }

    /// How `method` compares with `other` at K = `frames`: the difference and the test, seen from `method`.
    pub fn compared(&self, method: &str, other: &str, frames: usize) -> Option<(Estimate, McNemar)> {
        self.pairs.iter().filter(|pair| pair.frames == frames).find_map(|pair| {
            if (pair.first.as_str(), pair.second.as_str()) == (method, other) {
                return Some((pair.difference, pair.mcnemar));
            }
            let Estimate { mean, low, high } = pair.difference;
            let McNemar { only_first, only_second, p } = pair.mcnemar;
            ((pair.second.as_str(), pair.first.as_str()) == (method, other)).then_some((
                Estimate { mean: -mean, low: -high, high: -low },
                McNemar { only_first: only_second, only_second: only_first, p },
            ))
        })
    }
}
