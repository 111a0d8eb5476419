//! Questions to train on or to be graded by, from the toy world or from a file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::footage::Footage;
use super::trajectory::Task;
use crate::data::world::{Split, World};

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
