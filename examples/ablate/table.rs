//! The table, in Markdown and JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result};
use msjoe::report::{Evaluation, Method};
use msjoe::rl::trajectory::Task;
use msjoe::statistics::{Estimate, accuracy, difference};
use serde::Serialize;

use crate::rows::{JOINT, Row, Training};
use crate::work::{Graded, Point};

/// Key frames of the table.
pub const K: usize = 8;

/// One line.
#[derive(Serialize)]
pub struct Line {
    name: &'static str,
    title: &'static str,
    seeds: usize,
    accuracy: Estimate,
    /// Joint evolution's accuracy less this row's, on the same questions.
    joint_is_better_by: Option<Estimate>,
    families: BTreeMap<String, f64>,
    /// The same with intervals, for the page.
    #[serde(skip)]
    by_family: BTreeMap<String, Estimate>,
    evidence_recall: f64,
    /// Accuracy by number of key frames, where more than one was graded.
    by_frames: BTreeMap<usize, Estimate>,
    /// Mean over the seeds, one point per step of the last stage.
    curve: Vec<Point>,
    /// Of all seeds, without first stages that another row left behind.
    training_seconds: f64,
}

/// Everything that was measured.
#[derive(Serialize)]
pub struct Table {
    pub questions: usize,
    pub world_seed: u64,
    pub rows: Vec<Line>,
}

/// Sums up the rows that are done.
pub fn table(done: &[(&'static Row, Vec<Graded>)], tasks: &[Task], world_seed: u64) -> Result<Table> {
    let runs = |graded: &[Graded], k: usize| -> Vec<Vec<bool>> {
        graded.iter().filter_map(|g| Some(g.by_frames.get(&k)?.right())).collect()
    };
    let joint = done.iter().find(|(row, _)| row.name == JOINT).map(|(_, graded)| runs(graded, K));
    let mut rows = vec![];
    for (row, graded) in done {
        let of_row = runs(graded, K);
        let better = joint.as_ref().filter(|_| row.name != JOINT);
        let by_family = families(&of_row, tasks).with_context(|| row.name)?;
        let counts = graded.first().map(|g| g.by_frames.keys().copied().collect::<Vec<_>>());
        let by_frames =
            counts.unwrap_or_default().into_iter().map(|k| Ok((k, accuracy(&runs(graded, k), 0)?)));
        let recalls = graded.iter().filter_map(|g| Some(g.by_frames.get(&K)?.evidence_recall));
        rows.push(Line {
            name: row.name,
            title: row.title,
            seeds: graded.len(),
            accuracy: accuracy(&of_row, 0).with_context(|| row.name)?,
            joint_is_better_by: better.map(|joint| difference(joint, &of_row, 0)).transpose()?,
            families: by_family.iter().map(|(name, share)| (name.clone(), share.mean)).collect(),
            by_family,
            evidence_recall: recalls.sum::<f64>() / graded.len() as f64,
            by_frames: by_frames.collect::<Result<_>>()?,
            curve: curve(graded),
            training_seconds: match row.training {
                Training::None => 0.0,
                _ => graded.iter().map(|g| g.seconds).sum(),
            },
        });
    }
    Ok(Table { questions: tasks.len(), world_seed, rows })
}

fn families(runs: &[Vec<bool>], tasks: &[Task]) -> Result<BTreeMap<String, Estimate>> {
    let names: BTreeSet<&str> = tasks.iter().map(|task| &*task.family).collect();
    let of_family = |name: &str| {
        let of_run = |run: &Vec<bool>| -> Vec<bool> {
            let pairs = tasks.iter().zip(run).filter(|(task, _)| &*task.family == name);
            pairs.map(|(_, right)| *right).collect()
        };
        let runs: Vec<Vec<bool>> = runs.iter().map(of_run).collect();
        Ok((name.to_owned(), accuracy(&runs, 0)?))
    };
    names.into_iter().map(of_family).collect()
}

fn curve(graded: &[Graded]) -> Vec<Point> {
    let steps = graded.iter().map(|g| g.curve.len()).min().unwrap_or(0);
    let mean = |step: usize, of: fn(&Point) -> f64| {
        graded.iter().map(|g| of(&g.curve[step])).sum::<f64>() / graded.len() as f64
    };
    let point = |step| Point {
        reward: mean(step, |p| p.reward),
        accuracy: mean(step, |p| p.accuracy),
        evidence_recall: mean(step, |p| p.evidence_recall),
        sampler_entropy: mean(step, |p| p.sampler_entropy),
    };
    (0..steps).map(point).collect()
}

impl Table {
    /// The table as a page.
    pub fn page(&self) -> Evaluation {
        let method = |row: &Line| Method {
            name: row.title.replace("**", ""),
            accuracy: row.accuracy,
            families: row.by_family.clone(),
            evidence_recall: Some(row.evidence_recall),
            seeds: row.seeds,
            by_frames: if row.by_frames.len() > 1 { row.by_frames.clone() } else { BTreeMap::new() },
        };
        let rewards =
            |row: &Line| (row.title.replace("**", ""), row.curve.iter().map(|point| point.reward).collect());
        Evaluation {
            title: "Joint evolution and what it is made of".to_owned(),
            facts: vec![("World".to_owned(), format!("seed {}, test split", self.world_seed))],
            questions: self.questions,
            key_frames: K,
            methods: self.rows.iter().map(method).collect(),
            rewards: self.rows.iter().filter(|row| !row.curve.is_empty()).map(rewards).collect(),
            warnings: vec![],
        }
    }

    /// Percentages; the interval in brackets.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let names: Vec<&String> =
            self.rows.first().map(|row| row.families.keys().collect()).unwrap_or_default();
        let heads: String = names.iter().map(|name| format!(" {name} |")).collect();
        let _ = writeln!(
            text,
            "| K = {K} | accuracy (95 %) | joint is better by |{heads} evidence recall | seeds |"
        );
        let _ = writeln!(text, "|---|---|---|{}---|---|", "---|".repeat(names.len()));
        for row in &self.rows {
            let better = row.joint_is_better_by.as_ref().map_or("-".to_owned(), Estimate::percent);
            let shares: String =
                row.families.values().map(|share| format!(" {:.0} |", 100.0 * share)).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {better} |{shares} {:.2} | {} |",
                row.title,
                row.accuracy.percent(),
                row.evidence_recall,
                row.seeds
            );
        }
        let curves = self.rows.iter().filter(|row| row.by_frames.len() > 1);
        let curves: Vec<&Line> = curves.collect();
        if let Some(first) = curves.first() {
            let counts: String = first.by_frames.keys().map(|k| format!(" K = {k} |")).collect();
            let _ = writeln!(text, "\n| accuracy |{counts}\n|---|{}", "---|".repeat(first.by_frames.len()));
            for row in curves {
                let shares: String = row.by_frames.values().map(|e| format!(" {} |", e.percent())).collect();
                let _ = writeln!(text, "| {} |{shares}", row.title);
            }
        }
        self.rewards(&mut text);
        text
    }

    /// The reward of the last stage of training, at its start and at its end.
    fn rewards(&self, text: &mut String) {
        let learned: Vec<&Line> = self.rows.iter().filter(|row| !row.curve.is_empty()).collect();
        if learned.is_empty() {
            return;
        }
        let shortest = learned.iter().map(|row| row.curve.len()).min().unwrap_or_default();
        let few = FEW.min(shortest.div_ceil(3));
        let _ =
            writeln!(text, "\n| reward | first {few} steps | middle | last {few} steps |\n|---|---|---|---|");
        for row in learned {
            let mean = |points: &[Point]| points.iter().map(|p| p.reward).sum::<f64>() / points.len() as f64;
            let curve = &row.curve;
            let middle = (curve.len() - few) / 2;
            let parts = [&curve[..few], &curve[middle..middle + few], &curve[curve.len() - few..]];
            let [first, middle, last] = parts.map(mean);
            let _ = writeln!(text, "| {} | {first:.3} | {middle:.3} | {last:.3} |", row.title);
        }
    }
}

/// Steps whose mean reward stands for a part of the curve.
const FEW: usize = 10;
