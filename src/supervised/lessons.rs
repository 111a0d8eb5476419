//! What the base models of the toy world learn from: captions for CLIP, and for the language model to describe frames,
//! to answer from frames, and to write queries. Frames are always sampled evenly, as those of the paper's base; but some clips
//! are cut together, as edited videos are, from scenes that answer a question and others ([`Lesson::Follow`]).
//!
//! Every lesson follows from (world, number), so that a resumed training goes on with the same ones.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::contrastive::Batch;
use super::patches::PatchBatch;
use super::reasoning::{BOTH, counted, found, nouns, reasoning};
use super::turns::Conversation;
use crate::data::world::{
    Colour, Family, Kind, NUMBERS, Noun, Phrase, Place, Sample, Script, Split, Thing, World, first_options,
    how_often, which_first,
};
use crate::select::uniform;
use crate::text::{Dialogue, Question, answer, query};

/// Most queries of a supervised query turn.
const MAX_QUERIES: usize = 4;
/// Share of the clips of which all captions are asked for.
const CAPTIONED: f64 = 0.2;
/// Share of the followed clips, of those with evidence for the question that is drawn, that are cut together from its scenes and
/// a few others: in whole videos no two occurrences of a thing lie side by side.
const CUT: f64 = 0.6;
/// Share of the followed clips of which nothing is seen: a question alone tells nothing, and is answered all the same.
const UNSEEN: f64 = 0.04;
/// Things to find in each clip.
const DRILLS: usize = 8;
/// The user's text that asks for captions.
pub const DESCRIBE: &str = "describe";

/// What a conversation teaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lesson {
    /// One frame and its caption.
    Look,
    /// Frames sampled evenly from a clip: captions of all of them, and questions.
    Watch,
    /// As [`Self::Watch`], but what is counted and put in order is seen: so many frames that no scene is missed, of a whole clip
    /// or of one cut together from scenes that answer a question and a few others, with the questions that it answers. Now and
    /// then nothing is seen.
    Follow,
    /// As [`Self::Follow`], but what is cut together holds more other scenes, and questions are asked that they do not answer: as
    /// with most of what a sampler shows.
    Sift,
    /// Previews and a question: what to search for.
    Ask,
}

/// A batch for the contrastive training: `frames` frames of training videos, `per_video` of each, a true phrase for each,
/// and as many false ones that differ in one word.
pub fn captions(world: &World, number: u64, frames: usize, per_video: usize) -> Batch {
    let seen = glimpses(world, number, (frames, per_video), |script, second, rng| {
        let phrase = script.phrase(second, rng);
        let wrong = changed(&phrase, rng);
        (script.frame(second), script.scene_at(second).clone(), phrase, wrong)
    });
    let phrases: Vec<&Phrase> = seen.iter().map(|s| &s.2).chain(seen.iter().map(|s| &s.3)).collect();
    let truths =
        seen.iter().map(|(_, scene, ..)| phrases.iter().map(|p| p.is_true(scene)).collect()).collect();
    Batch {
        texts: phrases.iter().map(|phrase| phrase.to_string()).collect(),
        truths,
        images: seen.into_iter().map(|s| s.0).collect(),
    }
}

/// Frames of training videos with what is in each of their patches; `per_video` of each.
pub fn rasters(world: &World, number: u64, frames: usize, per_video: usize, grid: usize) -> PatchBatch {
    let seen = glimpses(world, number, (frames, per_video), |script, second, _| {
        let place = script.scene_at(second).place;
        let labels = script.raster(second, grid).into_iter().map(|thing| match thing {
            Some(thing) => [thing.noun as u32, thing.colour as u32],
            None => [Noun::ALL.len() as u32, (Colour::ALL.len() + place as usize) as u32],
        });
        (script.frame(second), labels.collect())
    });
    let (images, labels) = seen.into_iter().unzip();
    PatchBatch { images, labels }
}

/// What `see` makes of random seconds of training videos, `per_video` of each: those of batch `number`.
fn glimpses<T: Send>(
    world: &World,
    number: u64,
    (frames, per_video): (usize, usize),
    see: impl Fn(&Script, usize, &mut StdRng) -> T + Sync,
) -> Vec<T> {
    let videos = frames.div_ceil(per_video.max(1)) as u64;
    let of_video = |i| {
        let index = number * videos + i;
        let script = world.script(Split::Train, index);
        let mut rng = StdRng::seed_from_u64(index);
        let one = |_| {
            let second = rng.random_range(0..script.seconds);
            see(&script, second, &mut rng)
        };
        (0..per_video).map(one).collect::<Vec<T>>()
    };
    (0..videos).into_par_iter().flat_map_iter(of_video).collect()
}

/// Number of labels of either kind in [`rasters`]: nouns or none, colours or places.
pub const LABELS: [usize; 2] = [Noun::ALL.len() + 1, Colour::ALL.len() + Place::ALL.len()];

/// The phrase with the colour or the noun of one thing replaced, or its place.
fn changed(phrase: &Phrase, rng: &mut StdRng) -> Phrase {
    let mut changed = phrase.clone();
    let at = rng.random_range(0..changed.things.len().max(1));
    match changed.things.get_mut(at) {
        Some((colour, noun, _)) => {
            if colour.is_some() && rng.random_bool(0.5) {
                *colour = Colour::ALL.choose(rng).copied();
            } else {
                *noun = *Noun::ALL.choose(rng).unwrap_or(noun);
            }
        }
        None => changed.place = Place::ALL.choose(rng).copied(),
    }
    changed
}

/// Conversation `number` of a kind; of a training video.
pub fn conversation(world: &World, lesson: Lesson, number: u64) -> Conversation {
    let script = world.script(Split::Train, number);
    let mut rng = StdRng::seed_from_u64(number ^ 0x5851_F42D_4C95_7F2D);
    match lesson {
        Lesson::Look => {
            let second = rng.random_range(0..script.seconds);
            Conversation {
                images: vec![script.frame(second)],
                turns: vec![(DESCRIBE.to_owned(), script.caption(second))],
            }
        }
        Lesson::Watch => {
            let count = [4, 6, 8, 8, 8, 8, 12, 16].choose(&mut rng).copied().unwrap_or(8);
            let samples = world.samples(Split::Train, number);
            watch(&script, samples, &uniform(script.seconds, count.min(script.seconds)), &mut rng)
        }
        Lesson::Follow => follow(&script, world.samples(Split::Train, number), Cut::FEW, &mut rng),
        Lesson::Sift => follow(&script, world.samples(Split::Train, number), Cut::MANY, &mut rng),
        Lesson::Ask => ask(world, &script, number, &mut rng),
    }
}

/// The least number of frames, sampled evenly, that misses no scene; 8 or more where there are as many.
fn dense(script: &Script) -> usize {
    let seen = |count: usize| {
        let frames = uniform(script.seconds, count);
        script.scenes.iter().all(|scene| frames.iter().any(|frame| scene.range().contains(frame)))
    };
    let least = script.scenes.len().max(8).min(script.seconds);
    (least..script.seconds).find(|&count| seen(count)).unwrap_or(script.seconds)
}

/// What clips are cut together from, beside the scenes that answer a question.
struct Cut {
    /// Other scenes: one of these numbers.
    others: &'static [usize],
    /// Whether questions are asked whose answer is not seen.
    guess: bool,
}

impl Cut {
    const FEW: Self = Self { others: &[0, 0, 1, 2, 4], guess: false };
    const MANY: Self = Self { others: &[0, 1, 2, 3, 4, 6, 8], guess: true };

    /// What is counted or weighed would be taught wrong by frames that miss some of it.
    fn asks(&self, sample: &Sample, frames: &[usize]) -> bool {
        let shown = !sample.evidence.is_empty() && is_seen(sample, frames);
        shown || self.guess && !matches!(sample.family, Family::Count | Family::Global)
    }
}

fn follow(script: &Script, mut samples: Vec<Sample>, of: Cut, rng: &mut StdRng) -> Conversation {
    if rng.random_bool(UNSEEN) {
        return watch(script, samples, &[], rng);
    }
    let counted = samples.iter().find(|sample| sample.family == Family::Count);
    let asked = if rng.random_bool(0.5) { counted } else { samples.choose(rng) };
    let asked = asked.filter(|sample| !sample.evidence.is_empty() && rng.random_bool(CUT));
    let frames = match asked {
        Some(sample) => {
            let frames = cut(script, sample, of.others, rng);
            samples.retain(|sample| of.asks(sample, &frames));
            frames
        }
        // Once to three times as many as it takes, so that one scene is seen in one frame or in several.
        None => {
            let count = dense(script) * rng.random_range(1..=3);
            uniform(script.seconds, count.min(script.seconds))
        }
    };
    watch(script, samples, &frames, rng)
}

/// The seconds of a clip cut together from the scenes that answer the question and a few others, each shortened, in their
/// order: at one frame a second, all of its frames.
fn cut(script: &Script, sample: &Sample, others: &[usize], rng: &mut StdRng) -> Vec<usize> {
    let mut scenes: Vec<usize> =
        sample.evidence.iter().map(|range| script.scene_index(range.start)).collect();
    let others = others.choose(rng).copied().unwrap_or(0);
    scenes.extend((0..others).map(|_| rng.random_range(0..script.scenes.len())));
    scenes.sort_unstable();
    scenes.dedup();
    let longest = [1, 1, 2, 3, 4].choose(rng).copied().unwrap_or(2);
    let shortened = |at: usize| {
        let scene = &script.scenes[at];
        let seconds = rng.random_range(1..=scene.seconds.min(longest));
        let start = scene.start + rng.random_range(0..=scene.seconds - seconds);
        start..start + seconds
    };
    scenes.into_iter().flat_map(shortened).collect()
}

/// Whether `frames` show each scene of the evidence.
fn is_seen(sample: &Sample, frames: &[usize]) -> bool {
    sample.evidence.iter().all(|range| frames.iter().any(|frame| range.contains(frame)))
}

fn watch(script: &Script, mut samples: Vec<Sample>, frames: &[usize], rng: &mut StdRng) -> Conversation {
    let mut turns = vec![];
    if rng.random_bool(CAPTIONED) {
        let captions: Vec<String> = frames.iter().map(|&second| script.caption(second)).collect();
        turns.push((DESCRIBE.to_owned(), captions.join(". ")));
    }
    samples.shuffle(rng);
    for sample in &samples {
        let option = &sample.question.options()[sample.answer];
        let reply = answer::reasoned(&reasoning(script, sample, frames), option);
        turns.push((Dialogue::Brief.answer(&sample.question), reply));
    }
    turns.extend((0..DRILLS).map(|_| drill(script, frames, rng)));
    Conversation { images: frames.iter().map(|&second| script.frame(second)).collect(), turns }
}

/// Something to find in the frames: where it is, how often it is shown, or which of two comes first. Now and then something
/// that is not there. Questions name one or two things of a video: this is what makes a model find any of them.
fn drill(script: &Script, frames: &[usize], rng: &mut StdRng) -> (String, String) {
    let kind = something(script, frames, rng);
    let drill = match rng.random_range(0..8) {
        0..3 => how_often_drill(script, frames, kind, rng),
        3..5 => which_first_drill(script, frames, [kind, something(script, frames, rng)], rng),
        _ => None,
    };
    drill.unwrap_or_else(|| match rng.random_bool(0.5) {
        true => (format!("{DESCRIBE} {kind}"), found(script, frames, |thing| is(kind, thing))),
        false => {
            let noun = kind.noun;
            (format!("{DESCRIBE} {}", noun.name()), found(script, frames, |thing| thing.noun == noun))
        }
    })
}

fn is(kind: Kind, thing: &Thing) -> bool {
    thing.noun == kind.noun && thing.colour == kind.colour
}

/// `None` for a thing that is not shown, or more often than there are options.
fn how_often_drill(
    script: &Script,
    frames: &[usize],
    kind: Kind,
    rng: &mut StdRng,
) -> Option<(String, String)> {
    let (said, times) = counted(script, frames, |thing| is(kind, thing));
    let number = NUMBERS.get(times.checked_sub(1)?)?;
    let mut options = NUMBERS;
    options.shuffle(rng);
    let question = Question::new(how_often(kind), options).ok()?;
    Some((Dialogue::Brief.answer(&question), answer::reasoned(&said, number)))
}

/// `None` for two things of one noun.
fn which_first_drill(
    script: &Script,
    frames: &[usize],
    [a, b]: [Kind; 2],
    rng: &mut StdRng,
) -> Option<(String, String)> {
    if a.noun == b.noun {
        return None;
    }
    let said = nouns(script, frames, |thing| is(a, thing) || is(b, thing));
    let mut options = first_options(a, b);
    let first = match said.split(['.', ' ']).find(|word| !word.is_empty()) {
        None => 3,
        Some(BOTH) => 2,
        Some(noun) => usize::from(noun != a.noun.name()),
    };
    let reply = answer::reasoned(&said, &options[first]);
    options.shuffle(rng);
    let question = Question::new(which_first(a, b), options).ok()?;
    Some((Dialogue::Brief.answer(&question), reply))
}

/// Mostly a thing of the frames.
fn something(script: &Script, frames: &[usize], rng: &mut StdRng) -> Kind {
    let second = frames.choose(rng).copied().unwrap_or_default();
    let shown = script.scene_at(second).things.choose(rng);
    let noun = match shown {
        Some(thing) if rng.random_bool(0.85) => thing.noun,
        _ => Noun::ALL.choose(rng).copied().unwrap_or(Noun::ALL[0]),
    };
    let colour = match shown {
        Some(thing) if rng.random_bool(0.85) => thing.colour,
        _ => Colour::ALL.choose(rng).copied().unwrap_or(Colour::ALL[0]),
    };
    Kind { noun, colour }
}

fn ask(world: &World, script: &Script, number: u64, rng: &mut StdRng) -> Conversation {
    let count = [0, 2, 4, 4, 4, 8].choose(rng).copied().unwrap_or(4).min(script.seconds);
    let frames = uniform(script.seconds, count);
    let mut samples = world.samples(Split::Train, number);
    samples.shuffle(rng);
    let turns = samples.iter().map(|sample| {
        let asked = Dialogue::Brief.ask(&sample.question, count, script.seconds as f64, MAX_QUERIES);
        (asked, queries(sample, rng))
    });
    let turns = turns.collect();
    Conversation { images: frames.iter().map(|&second| script.frame(second)).collect(), turns }
}

/// A reply to the query turn as a general model might write it: half of the time the question itself, else a concrete
/// description, which for a category is often the category's own name or only some of its nouns.
fn queries(sample: &Sample, rng: &mut StdRng) -> String {
    let copied = || vec![sample.question.text().trim_end_matches('?').to_owned()];
    let mut concrete = sample.subjects.clone();
    let (reasoning, queries) = match sample.family {
        _ if rng.random_bool(0.5) => ("what is asked", copied()),
        Family::Category => {
            concrete.shuffle(rng);
            concrete.truncate(rng.random_range(1..=concrete.len().max(1)));
            ("what to see", concrete)
        }
        Family::Global => {
            let mut places = sample.question.options().to_vec();
            places.shuffle(rng);
            places.truncate(rng.random_range(1..=places.len()));
            ("what to see", places)
        }
        Family::Order if rng.random_bool(0.5) => {
            concrete.shuffle(rng);
            concrete.truncate(1);
            ("what to see", concrete)
        }
        _ => ("what to see", concrete),
    };
    let queries = if queries.is_empty() { copied() } else { queries };
    query::well_formed(reasoning, &queries)
}
