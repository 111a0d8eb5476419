//! Greedy evaluation: one trajectory per question, graded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gallery::Gallery;
use super::plan::Plan;
use super::rollout::{Policy, rollout};
use super::trajectory::Task;
use crate::error::{Error, Result};

/// Most questions that go through the models together.
pub const TOGETHER: usize = 48;

/// What became of one question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Graded {
    /// The question's id.
    pub id: String,
    /// Its family.
    pub family: String,
    /// Whether the answer is right.
    pub right: bool,
    /// Whether every turn kept to the asked form.
    pub well_formed: bool,
    /// Whether the question had to stand in for unreadable queries.
    pub fallback: bool,
    /// Share of the evidence ranges that hold a key frame.
    pub evidence_recall: Option<f64>,
}

/// Grades every task, `together` of them at once; no result depends on that. `progress` is called with the number of tasks done;
/// `false` stops with [`Error::Interrupted`].
///
/// # Errors
/// As [`rollout`].
pub fn evaluate(
    policy: Policy,
    gallery: &mut Gallery,
    tasks: &[Task],
    plan: &Plan,
    (seed, together): (u64, usize),
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Graded>> {
    let mut graded = Vec::with_capacity(tasks.len());
    for tasks in tasks.chunks(together.max(1)) {
        let groups = rollout(policy, gallery, tasks, plan, 1, seed)?;
        for (task, trajectory) in tasks.iter().zip(groups.iter().flatten()) {
            graded.push(Graded {
                id: task.id.to_string(),
                family: task.family.to_string(),
                right: trajectory.right,
                well_formed: trajectory.well_formed(),
                fallback: trajectory.fell_back(),
                evidence_recall: trajectory.evidence_recall(&task.evidence),
            });
        }
        if !progress(graded.len()) {
            return Err(Error::Interrupted);
        }
    }
    Ok(graded)
}

/// Shares over many graded questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Questions.
    pub questions: usize,
    /// Share of right answers.
    pub accuracy: f64,
    /// Half the width of the 95 % interval of `accuracy` (normal approximation).
    pub interval: f64,
    /// Share of right answers by family.
    pub families: BTreeMap<String, f64>,
    /// Mean evidence recall over the questions that have evidence.
    pub evidence_recall: f64,
    /// Share of replies in the asked form.
    pub well_formed: f64,
    /// Share of questions for which no query could be read.
    pub fallbacks: f64,
}

/// Sums up.
pub fn summary(graded: &[Graded]) -> Summary {
    let share = |count: usize, of: usize| if of == 0 { 0.0 } else { count as f64 / of as f64 };
    let mut families: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for one in graded {
        let entry = families.entry(one.family.clone()).or_default();
        entry.0 += usize::from(one.right);
        entry.1 += 1;
    }
    let n = graded.len();
    let accuracy = share(graded.iter().filter(|g| g.right).count(), n);
    let recalls: Vec<f64> = graded.iter().filter_map(|g| g.evidence_recall).collect();
    Summary {
        questions: n,
        accuracy,
        interval: 1.96 * (accuracy * (1.0 - accuracy) / n.max(1) as f64).sqrt(),
        families: families.into_iter().map(|(name, (right, of))| (name, share(right, of))).collect(),
        evidence_recall: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
        well_formed: share(graded.iter().filter(|g| g.well_formed).count(), n),
        fallbacks: share(graded.iter().filter(|g| g.fallback).count(), n),
    }
}
