//! Questions to train on or to be graded by, from the toy world or from a file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::config::EvolveConfig;
use super::footage::Footage;
use super::gallery::Gallery;
use super::plan::{Choosing, Plan};
use super::rollout::{Policy, rollout};
use super::trajectory::Task;
use crate::data::world::{Split, World};
use crate::error::{Error, Result};

/// The questions of the toy world's videos `videos` of a split; questions about one video share its footage.
pub fn world_tasks(world: &World, split: Split, videos: Range<u64>) -> Vec<Task> {
    let tasks = videos.flat_map(|index| {
        let footage = Arc::new(Footage::of_world(world.script(split, index)));
        world.samples(split, index).into_iter().map(move |sample| Task {
            id: sample.id.into(),
            question: sample.question,
            answer: sample.answer,
            pass_rate: None,
            family: sample.family.name().into(),
            evidence: sample.evidence,
            footage: footage.clone(),
        })
    });
    tasks.collect()
}

/// The first `count` of `tasks` that keep every family equally often, in their order.
pub fn balanced(tasks: Vec<Task>, count: usize) -> Vec<Task> {
    let families: std::collections::BTreeSet<Arc<str>> =
        tasks.iter().map(|task| task.family.clone()).collect();
    let most = count.div_ceil(families.len().max(1));
    let mut taken: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    let kept = tasks.into_iter().filter(|task| {
        let taken = taken.entry(task.family.clone()).or_default();
        *taken += 1;
        *taken <= most
    });
    kept.take(count).collect()
}

/// Fills in the pass rates that are missing: the share of right answers over `rollouts` trajectories with uniform frames
/// at the run's temperature (MSJoE, arXiv 2602.22932, section 3, leaves the estimate open).
///
/// # Errors
/// As [`rollout`]; [`Error::Interrupted`] when `progress` (done, of) says so.
pub fn pass_rates(
    policy: Policy,
    tasks: &mut [Task],
    config: &EvolveConfig,
    rollouts: u64,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<()> {
    if rollouts == 0 {
        return Err(Error::Input("pass rates: expected at least 1 rollout, got 0".to_owned()));
    }
    let plan = Plan { choosing: Choosing::Uniform, ..config.plan.clone() };
    let mut gallery = Gallery::new(1 << 28);
    let total = tasks.len();
    for (i, chunk) in tasks.chunks_mut(16).enumerate() {
        let groups = rollout(policy, &mut gallery, chunk, &plan, rollouts, config.seed)?;
        for (task, group) in chunk.iter_mut().zip(groups) {
            if task.pass_rate.is_none() {
                let right = group.iter().filter(|trajectory| trajectory.right).count();
                task.pass_rate = Some(right as f32 / rollouts as f32);
            }
        }
        if !progress((16 * (i + 1)).min(total), total) {
            return Err(Error::Interrupted);
        }
    }
    Ok(())
}
