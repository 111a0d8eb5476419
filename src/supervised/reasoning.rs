//! What the base model says before it answers: what the shown frames hold of what is asked about.

use crate::data::world::{Family, Kind, NUMBERS, Phrase, Sample, Scene, Script, Thing, Wording};

/// What is written where nothing of it is seen.
const NOTHING: &str = "neither";
/// What stands for a frame that shows nothing of it.
const NO_WORD: &str = ".";
/// What stands for a frame that shows the same occurrence as the frame before it.
const AGAIN: &str = "-";
/// What is said of a frame that shows both things.
pub const BOTH: &str = "both";

/// What `frames` (seconds, ascending) show of what `sample` asks about. Only what is shown is said, so that the words can be
/// learned from the frames:
/// - the thing and where it is, scene by scene, and for a neighbour also what is next to it;
/// - for what is put in order, counted or weighed, a word for every frame;
/// - what is counted is named once an occurrence, and then by number: `..water-.sand, one water two sand`. With a name for
///   every frame of it, what follows a name would be ambiguous to a model that copies, and it counts one twice.
pub fn reasoning(script: &Script, sample: &Sample, frames: &[usize]) -> String {
    match sample.family {
        Family::Global => joined(&each(script, frames, |scene| Some(scene.place.name()))),
        Family::Neighbour => listed(&neighbour(script, sample, &scenes(script, frames))),
        Family::Order => nouns(script, frames, |thing| asked(sample, thing)),
        Family::Count => counted(script, frames, |thing| asked(sample, thing)).0,
        Family::Needle | Family::Category => found(script, frames, |thing| asked(sample, thing)),
    }
}

/// What `is_asked` picks, frame by frame: its noun, and `both` where it picks two things.
pub fn nouns(script: &Script, frames: &[usize], is_asked: impl Fn(&Thing) -> bool) -> String {
    joined(&each(script, frames, |scene| {
        let mut shown = scene.things.iter().filter(|thing| is_asked(thing));
        let first = shown.next()?;
        Some(if shown.next().is_some() { BOTH } else { first.noun.name() })
    }))
}

/// The places of what `is_asked` picks, once a scene, a dash for each further frame of it, and then by number; and their
/// number.
pub fn counted(script: &Script, frames: &[usize], is_asked: impl Fn(&Thing) -> bool) -> (String, usize) {
    let place = |scene: &Scene| scene.things.iter().any(&is_asked).then(|| scene.place.name());
    let again = |i: usize| i > 0 && script.scene_index(frames[i]) == script.scene_index(frames[i - 1]);
    let words = each(script, frames, place).into_iter().enumerate();
    let words: Vec<_> = words.map(|(i, word)| word.map(|word| if again(i) { AGAIN } else { word })).collect();
    let places = words.iter().flatten().filter(|word| **word != AGAIN);
    let numbered: Vec<_> =
        NUMBERS.iter().zip(places.clone()).map(|(number, place)| format!("{number} {place}")).collect();
    let numbered = numbered.join(" ");
    let times = places.count();
    let words = joined(&words);
    (if times == 0 { words } else { format!("{words}, {numbered}") }, times)
}

/// A word for each of `frames` (seconds, ascending), where there is one.
fn each<'a>(
    script: &'a Script,
    frames: &[usize],
    word: impl Fn(&'a Scene) -> Option<&'a str>,
) -> Vec<Option<&'a str>> {
    frames.iter().map(|&second| word(script.scene_at(second))).collect()
}

/// A token a frame, a point where there is no word, a dash where it is that of before: `..water water.sand`, `..water-.sand`.
fn joined(words: &[Option<&str>]) -> String {
    let mut said = String::new();
    for word in words {
        match *word {
            Some(AGAIN) => said.push_str(AGAIN),
            Some(word) if said.is_empty() || said.ends_with(NO_WORD) => said.push_str(word),
            Some(word) => said.extend([" ", word]),
            None => said.push_str(NO_WORD),
        }
    }
    said
}

/// The things that `is_asked` picks in `frames` (seconds, ascending), scene by scene: `red car on sand, red car at night`.
pub fn found(script: &Script, frames: &[usize], is_asked: impl Fn(&Thing) -> bool) -> String {
    let said = scenes(script, frames).into_iter().filter_map(|at| said(&script.scenes[at], &is_asked));
    listed(&said.collect::<Vec<_>>())
}

/// The things of a scene that are asked for, and where they are: `red car and blue boat on sand`.
fn said(scene: &Scene, is_asked: impl Fn(&Thing) -> bool) -> Option<String> {
    let things = scene.things.iter().filter(|thing| is_asked(thing));
    let things: Vec<_> = things.map(|thing| (Some(thing.colour), thing.noun, None)).collect();
    let phrase = Phrase { things, place: Some(scene.place), wording: Wording::Bare };
    (!phrase.things.is_empty()).then(|| phrase.to_string())
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
    let after = sample.question.text().contains("after");
    let named = |thing: &Thing| asked(sample, thing);
    let at = shown.iter().copied().find(|&at| script.scenes[at].things.iter().any(named));
    let Some(at) = at else { return vec![] };
    let beside = if after { at + 1 } else { at.wrapping_sub(1) };
    side_by_side(script, named, at, Some(beside).filter(|at| shown.contains(at)), after)
}

/// The things of scene `at` that `is_asked` picks, and all of the one beside it, in the order of time.
fn side_by_side(
    script: &Script,
    is_asked: impl Fn(&Thing) -> bool,
    at: usize,
    beside: Option<usize>,
    after: bool,
) -> Vec<String> {
    let named = said(&script.scenes[at], is_asked);
    let beside = beside.and_then(|at| said(&script.scenes[at], |_| true));
    let both = if after { [named, beside] } else { [beside, named] };
    both.into_iter().flatten().collect()
}

/// What `is_asked` picks where it is shown first, and the scene that is shown right before it or after it, as [`reasoning`] says
/// it; with that scene's index and that of the one on the other side. `None` where there is none.
pub fn next(
    script: &Script,
    frames: &[usize],
    is_asked: impl Fn(&Thing) -> bool,
    after: bool,
) -> Option<(String, usize, Option<usize>)> {
    let shown = scenes(script, frames);
    let place = shown.iter().position(|&at| script.scenes[at].things.iter().any(&is_asked))?;
    let before = place.checked_sub(1).map(|place| shown[place]);
    let behind = shown.get(place + 1).copied();
    let (beside, other) = if after { (behind?, before) } else { (before?, behind) };
    let words = side_by_side(script, is_asked, shown[place], Some(beside), after);
    Some((listed(&words), beside, other))
}

/// Whether this is not what the question is about, but the same in another colour.
pub fn is_alike(sample: &Sample, thing: &Thing) -> bool {
    let noun = |subject: &String| subject.ends_with(&format!(" {}", thing.noun.name()));
    !asked(sample, thing) && sample.subjects.iter().any(noun)
}

/// Whether the question is about this thing: its subjects are `a hammer`, any of that noun, or `a red hammer`.
fn asked(sample: &Sample, thing: &Thing) -> bool {
    let kind = Kind { colour: thing.colour, noun: thing.noun }.to_string();
    let subject = |subject: &String| {
        let words = subject.split_once(' ').map_or(subject.as_str(), |(_, words)| words);
        words == thing.noun.name() || words == kind
    };
    sample.subjects.iter().any(subject)
}
