//! How hard questions are for a model: how often it is right from even frames, and without any.
//!
//! MSJoE (arXiv 2602.22932, section 3) weighs draws by a base model's pass rate and trains on questions that are neither
//! solvable without the video nor always or never answered right; how either is estimated is not printed, so it is decided
//! here: the share of right answers over a number of rollouts, from evenly spaced frames and from the question alone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gallery::Gallery;
use super::plan::{Choosing, Plan};
use super::rates::Record;
use super::rollout::{Policy, rollout};
use super::trajectory::Task;
use crate::error::{Error, Result};

/// Bytes of frame features kept between questions.
const GALLERY: usize = 1 << 28;

/// How pass rates are estimated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Estimation {
    /// Frames, turns and temperature; frames are spread evenly whatever it says.
    pub plan: Plan,
    /// Rollouts per question with frames.
    pub rollouts: u64,
    /// Rollouts per question without; 0 leaves that open.
    pub blind_rollouts: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Rollouts that are in memory together, at least those of one question. No result depends on it.
    #[serde(skip)]
    pub at_once: usize,
}

impl Default for Estimation {
    fn default() -> Self {
        Self { plan: Plan::default(), rollouts: 8, blind_rollouts: 8, seed: 0, at_once: 128 }
    }
}

/// How often a model was right about a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rated {
    /// The question's id.
    pub id: String,
    /// Share of right answers from even frames.
    pub pass_rate: f32,
    /// Share of right answers without any frame; `None` where that was not asked.
    pub blind: Option<f32>,
}

impl Rated {
    /// As samples hold it: one minus the pass rate.
    pub fn difficulty(&self) -> f32 {
        1.0 - self.pass_rate
    }
}

/// A reason to leave a question out of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// Solvable without the video (`blind`).
    Blind,
    /// Every answer was right (`always`).
    AlwaysRight,
    /// No answer was right (`never`).
    NeverRight,
}

impl Filter {
    /// Every filter.
    pub const ALL: [Self; 3] = [Self::Blind, Self::AlwaysRight, Self::NeverRight];

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blind => "blind",
            Self::AlwaysRight => "always",
            Self::NeverRight => "never",
        }
    }

    /// Whether it concerns a question. Solvable without the video is one that was right in more than the share `blind_above`
    /// of the rollouts without frames.
    pub fn concerns(self, rated: &Rated, blind_above: f32) -> bool {
        match self {
            Self::Blind => rated.blind.is_some_and(|share| share > blind_above),
            Self::AlwaysRight => rated.pass_rate >= 1.0,
            Self::NeverRight => rated.pass_rate <= 0.0,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|filter| filter.name() == name);
        found.ok_or_else(|| Error::Input(format!("expected a filter ({names}), got {name:?}")))
    }
}

/// What the filters find, each for itself, and together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counts {
    /// Questions.
    pub questions: usize,
    /// Mean pass rate.
    pub pass_rate: f64,
    /// Mean share of right answers without frames, where that was asked.
    pub blind_rate: Option<f64>,
    /// Questions that a filter concerns, by its name; one question may be in several.
    pub filters: BTreeMap<&'static str, usize>,
    /// Questions that none concerns.
    pub unfiltered: usize,
}

/// Counts what each filter concerns.
pub fn counts(rated: &[Rated], blind_above: f32) -> Counts {
    let count = |test: &dyn Fn(&Rated) -> bool| rated.iter().filter(|one| test(one)).count();
    let mean = |values: Vec<f32>| {
        let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
        (!values.is_empty()).then(|| sum / values.len() as f64)
    };
    let concerned = |one: &Rated| Filter::ALL.iter().any(|filter| filter.concerns(one, blind_above));
    let of = |filter: Filter| (filter.name(), count(&|one| filter.concerns(one, blind_above)));
    Counts {
        questions: rated.len(),
        pass_rate: mean(rated.iter().map(|one| one.pass_rate).collect()).unwrap_or_default(),
        blind_rate: mean(rated.iter().filter_map(|one| one.blind).collect()),
        filters: Filter::ALL.map(of).into(),
        unfiltered: count(&|one| !concerned(one)),
    }
}

/// Rates every task that `record` does not know yet, keeps each there as it is done, and gives all in the order of `tasks`.
/// What is rated before does not depend on what comes with it, so that an interrupted run ends as an uninterrupted one.
///
/// # Errors
/// No rollouts, as [`rollout`], a record that cannot be written; [`Error::Interrupted`] when `progress` (done, of) says so.
pub fn estimate(
    policy: Policy,
    tasks: &[Task],
    estimation: &Estimation,
    record: &mut Record,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Rated>> {
    let Estimation { plan, rollouts, blind_rollouts, seed, at_once } = estimation;
    let together = at_once / (*rollouts.max(blind_rollouts)).max(1) as usize;
    let even = Plan { choosing: Choosing::Uniform, ..plan.clone() };
    let nothing = Plan { choosing: Choosing::Nothing, ..plan.clone() };
    let mut gallery = Gallery::new(GALLERY);
    let open: Vec<Task> = tasks.iter().filter(|task| record.get(task).is_none()).cloned().collect();
    let mut done = tasks.len() - open.len();
    for chunk in open.chunks(together.max(1)) {
        if !progress(done, tasks.len()) {
            return Err(Error::Interrupted);
        }
        let seen = shares(policy, &mut gallery, chunk, &even, (*rollouts, *seed))?;
        let blind = match blind_rollouts {
            0 => vec![None; chunk.len()],
            _ => {
                let shares = shares(policy, &mut gallery, chunk, &nothing, (*blind_rollouts, *seed))?;
                shares.into_iter().map(Some).collect()
            }
        };
        for ((task, pass_rate), blind) in chunk.iter().zip(seen).zip(blind) {
            record.add(task, Rated { id: task.id.to_string(), pass_rate, blind })?;
        }
        done += chunk.len();
    }
    progress(done, tasks.len());
    let missing = |task: &Task| Error::Input(format!("question {}: two questions have this id", task.id));
    tasks.iter().map(|task| record.get(task).cloned().ok_or_else(|| missing(task))).collect()
}

/// Share of right answers of each task over a number of rollouts.
fn shares(
    policy: Policy,
    gallery: &mut Gallery,
    tasks: &[Task],
    plan: &Plan,
    (rollouts, seed): (u64, u64),
) -> Result<Vec<f32>> {
    if rollouts == 0 {
        return Err(Error::Input("pass rates: expected at least 1 rollout, got 0".to_owned()));
    }
    let groups = rollout(policy, gallery, tasks, plan, rollouts, seed)?;
    let right =
        |group: &Vec<_>| group.iter().filter(|one: &&super::trajectory::Trajectory| one.right).count();
    Ok(groups.iter().map(|group| right(group) as f32 / rollouts as f32).collect())
}

/// Fills in the pass rates that are missing; what is given is not estimated.
///
/// # Errors
/// As [`estimate`].
pub fn pass_rates(
    policy: Policy,
    tasks: &mut [Task],
    estimation: &Estimation,
    record: &mut Record,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<()> {
    let open: Vec<Task> = tasks.iter().filter(|task| task.pass_rate.is_none()).cloned().collect();
    let rated = estimate(policy, &open, estimation, record, progress)?;
    let missing = tasks.iter_mut().filter(|task| task.pass_rate.is_none());
    missing.zip(rated).for_each(|(task, rated)| task.pass_rate = Some(rated.pass_rate));
    Ok(())
}
