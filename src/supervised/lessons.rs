//! What the base models of the toy world learn from: captions for CLIP, and for the language model to describe frames,
//! to answer from frames, and to write queries. Frames are always sampled evenly, as those of the paper's base; but some clips
//! are cut together, as edited videos are, from scenes that answer a question and others ([`Lesson::Follow`], [`Lesson::Sift`]).
//!
//! Every lesson follows from (world, number), so that a resumed training goes on with the same ones.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::contrastive::Batch;
use super::drills::{Drills, drill};
use super::patches::PatchBatch;
use super::reasoning::{is_alike, reasoning};
use super::turns::Conversation;
use crate::data::world::{Colour, Family, Noun, Phrase, Place, Sample, Script, Split, World};
use crate::select::uniform;
use crate::text::{Dialogue, answer, query};

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
    /// A clip cut together from a few scenes of a video, as [`Self::Follow`] does it, but to be read with doubt: scenes last
    /// longer, more of them are others, half of those show what resembles the thing that is asked about, one that
    /// answers may be missing, and questions are asked that nothing answers.
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
            let frames = uniform(script.seconds, count.min(script.seconds));
            watch(&script, samples, &frames, Drills::PLAIN, &mut rng)
        }
        Lesson::Follow => follow(&script, world.samples(Split::Train, number), &mut rng),
        Lesson::Sift => sift(&script, world.samples(Split::Train, number), &mut rng),
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

/// What clips are cut together from, beside the scenes that answer a question. A share of 0 draws no random number, so that
/// lessons that have none of it stay as they are.
struct Cut {
    /// Other scenes: one of these numbers.
    others: &'static [usize],
    /// The most seconds of a scene: one of these.
    longest: &'static [usize],
    /// Share of the scenes that answer that are missing.
    missing: f64,
    /// Whether half of the others show what resembles the thing that is asked about, where there are such.
    alike: bool,
    /// Share of the questions whose answer is not seen that are asked all the same.
    guess: f64,
    drills: Drills,
}

impl Cut {
    const PLAIN: Self = Self {
        others: &[0, 0, 1, 2, 4],
        longest: &[1, 1, 2, 3, 4],
        missing: 0.,
        alike: false,
        guess: 0.,
        drills: Drills::PLAIN,
    };
    const DOUBTFUL: Self = Self {
        others: &[0, 1, 2, 3, 4],
        longest: &[1, 2, 4, 8, 16],
        missing: 0.2,
        alike: true,
        guess: 0.4,
        drills: Drills { shown: 0.75, told_apart: 0.5 },
    };

    /// Leaves the questions that are asked of `frames`.
    fn retain(&self, samples: &mut Vec<Sample>, frames: &[usize], rng: &mut StdRng) {
        samples.retain(|sample| {
            let shown = !sample.evidence.is_empty() && is_seen(sample, frames);
            // What is counted or weighed would be taught wrong by frames that miss some of it.
            let guessed = self.guess > 0. && !matches!(sample.family, Family::Count | Family::Global);
            shown || guessed && rng.random_bool(self.guess)
        });
    }
}

fn follow(script: &Script, mut samples: Vec<Sample>, rng: &mut StdRng) -> Conversation {
    if rng.random_bool(UNSEEN) {
        return watch(script, samples, &[], Drills::PLAIN, rng);
    }
    let counted = samples.iter().find(|sample| sample.family == Family::Count);
    let asked = if rng.random_bool(0.5) { counted } else { samples.choose(rng) };
    let asked = asked.filter(|sample| !sample.evidence.is_empty() && rng.random_bool(CUT));
    let frames = match asked {
        Some(sample) => {
            let frames = cut(script, sample, &Cut::PLAIN, rng);
            Cut::PLAIN.retain(&mut samples, &frames, rng);
            frames
        }
        // Once to three times as many as it takes, so that one scene is seen in one frame or in several.
        None => {
            let count = dense(script) * rng.random_range(1..=3);
            uniform(script.seconds, count.min(script.seconds))
        }
    };
    watch(script, samples, &frames, Drills::PLAIN, rng)
}

fn sift(script: &Script, mut samples: Vec<Sample>, rng: &mut StdRng) -> Conversation {
    let of = Cut::DOUBTFUL;
    let asked = samples.choose(rng).filter(|_| !rng.random_bool(UNSEEN));
    let frames = asked.map_or_else(Vec::new, |sample| cut(script, sample, &of, rng));
    of.retain(&mut samples, &frames, rng);
    watch(script, samples, &frames, of.drills, rng)
}

/// The seconds of a clip cut together from the scenes that answer the question and a few others, each shortened, in their
/// order: at one frame a second, all of its frames.
fn cut(script: &Script, sample: &Sample, of: &Cut, rng: &mut StdRng) -> Vec<usize> {
    let mut scenes: Vec<usize> =
        sample.evidence.iter().map(|range| script.scene_index(range.start)).collect();
    if of.missing > 0. {
        scenes.retain(|_| !rng.random_bool(of.missing));
    }
    let others = of.others.choose(rng).copied().unwrap_or(0);
    let all = 0..script.scenes.len();
    let resembles = |at: &usize| script.scenes[*at].things.iter().any(|thing| is_alike(sample, thing));
    let alike: Vec<usize> = if of.alike { all.clone().filter(resembles).collect() } else { vec![] };
    scenes.extend((0..others).map(|_| match alike.choose(rng) {
        Some(&at) if rng.random_bool(0.5) => at,
        _ => rng.random_range(all.clone()),
    }));
    scenes.sort_unstable();
    scenes.dedup();
    let longest = of.longest.choose(rng).copied().unwrap_or(2);
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

fn watch(
    script: &Script,
    mut samples: Vec<Sample>,
    frames: &[usize],
    drills: Drills,
    rng: &mut StdRng,
) -> Conversation {
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
    turns.extend((0..DRILLS).map(|_| drill(script, frames, drills, rng)));
    Conversation { images: frames.iter().map(|&second| script.frame(second)).collect(), turns }
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
