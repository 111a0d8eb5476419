//! What the base model says before it answers: what the shown frames hold of what is asked about.

use crate::data::world::{Family, Sample, Scene, Script, Thing};

/// What is written where nothing of it is seen.
const NOTHING: &str = "neither";

/// What `frames` (seconds, ascending) show of what `sample` asks about, in the order of time and scene by scene: the thing
/// and where it is, for a neighbour also what is next to it, and for the most shown place that of every frame. Only what is
/// shown is said, so that the words can be learned from the frames.
pub fn reasoning(script: &Script, sample: &Sample, frames: &[usize]) -> String {
    match sample.family {
        Family::Global => {
            let places: Vec<&str> =
                frames.iter().map(|&second| script.scene_at(second).place.name()).collect();
            places.join(" ")
        }
        Family::Neighbour => listed(&neighbour(script, sample, &scenes(script, frames))),
        _ => found(script, frames, |thing| asked(sample, thing)),
    }
}

/// The things that `is_asked` picks in `frames` (seconds, ascending), scene by scene: `red car on sand, red car at night`.
pub fn found(script: &Script, frames: &[usize], is_asked: impl Fn(&Thing) -> bool) -> String {
    let with = |at: &usize| {
        let scene = &script.scenes[*at];
        let things: Vec<String> = scene.things.iter().filter(|thing| is_asked(thing)).map(named).collect();
        (!things.is_empty()).then(|| placed(&things.join(" and "), scene))
    };
    listed(&scenes(script, frames).iter().filter_map(with).collect::<Vec<_>>())
}

/// Indices of the scenes that the frames are of.
fn scenes(script: &Script, frames: &[usize]) -> Vec<usize> {
    let mut scenes: Vec<usize> = frames.iter().map(|&second| script.scene_index(second)).collect();
    scenes.dedup();
    scenes
}

fn listed(said: &[String]) -> String {
    if said.is_empty() { NOTHING.to_owned() } else { said.join(", ") }
}

/// The named thing, and what the scene right before or after it shows.
fn neighbour(script: &Script, sample: &Sample, shown: &[usize]) -> Vec<String> {
    let scene = |at: usize| {
        let things: Vec<String> = script.scenes[at].things.iter().map(named).collect();
        placed(&things.join(" and "), &script.scenes[at])
    };
    let Some(at) = shown.iter().position(|&at| script.scenes[at].things.iter().any(|t| asked(sample, t)))
    else {
        return vec![];
    };
    let after = sample.question.text().contains("after");
    let of_named = script.scenes[shown[at]].things.iter().find(|thing| asked(sample, thing)).map(named);
    let of_named = of_named.map(|name| placed(&name, &script.scenes[shown[at]]));
    let beside = if after { shown[at] + 1 } else { shown[at].wrapping_sub(1) };
    let beside = shown.contains(&beside).then(|| scene(beside));
    let both = if after { [of_named, beside] } else { [beside, of_named] };
    both.into_iter().flatten().collect()
}

/// Whether the question is about this thing: its subjects are `a hammer`, any of that noun, or `a red hammer`.
fn asked(sample: &Sample, thing: &Thing) -> bool {
    let subject = |subject: &String| {
        let words = subject.split_once(' ').map_or(subject.as_str(), |(_, words)| words);
        words == thing.noun.name() || words == named(thing)
    };
    sample.subjects.iter().any(subject)
}

/// `red hammer`.
pub fn named(thing: &Thing) -> String {
    format!("{} {}", thing.colour.name(), thing.noun.name())
}

fn placed(what: &str, scene: &Scene) -> String {
    format!("{what} {} {}", scene.place.preposition(), scene.place.name())
}
