//! Small things to ask of any frames. Questions name one or two things of a video; drills name whatever is shown, so that a
//! model learns to find any of it.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::lessons::DESCRIBE;
use super::reasoning::{BOTH, counted, found, next, nouns};
use crate::data::world::{
    Colour, Kind, NUMBERS, Noun, Script, Thing, first_options, how_often, next_to, which_first,
};
use crate::text::{Dialogue, Question, answer};

/// Share of the nouns and colours to find that are those of what is shown.
const SHOWN: f64 = 0.85;
/// Share of the things to be told apart that are looked for in each other's colour.
const SWAPPED: f64 = 0.4;

/// What is to be found in a clip.
#[derive(Clone, Copy)]
pub(super) struct Drills {
    /// As [`SHOWN`], of colours.
    pub shown: f64,
    /// Share of them that ask for what is next to a thing, or which of two comes first; the rest are mixed.
    pub told_apart: f64,
}

impl Drills {
    pub const PLAIN: Self = Self { shown: SHOWN, told_apart: 0. };
}

/// Something to find in the frames: where it is, how often it is shown, which of two comes first, or what is next to it. Now
/// and then something that is not there. Questions name one or two things of a video: this is what makes a model find any of
/// them.
pub(super) fn drill(script: &Script, frames: &[usize], drills: Drills, rng: &mut StdRng) -> (String, String) {
    let any = |rng: &mut StdRng| something(script, frames, drills.shown, rng);
    let kind = any(rng);
    let drill = match rng.random_range(0..8) {
        _ if drills.told_apart > 0. && rng.random_bool(drills.told_apart) => match rng.random_bool(0.5) {
            true => next_drill(script, frames, kind, rng),
            false => {
                let two = [kind, any(rng)];
                let two = if rng.random_bool(SWAPPED) { swapped(two) } else { two };
                which_first_drill(script, frames, two, rng)
            }
        },
        0..3 => how_often_drill(script, frames, kind, rng),
        3..5 => which_first_drill(script, frames, [kind, any(rng)], rng),
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

/// Each in the colour of the other: what a model names that sees a colour and a noun of the question, and not that they belong
/// together.
fn swapped([a, b]: [Kind; 2]) -> [Kind; 2] {
    [Kind { colour: b.colour, ..a }, Kind { colour: a.colour, ..b }]
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

/// What is shown right before or after it. `None` for a thing that is not shown, and for one with nothing on that side.
fn next_drill(script: &Script, frames: &[usize], kind: Kind, rng: &mut StdRng) -> Option<(String, String)> {
    let after = rng.random_bool(0.5);
    let (said, beside, other) = next(script, frames, |thing| is(kind, thing), after)?;
    let kinds = |at: usize| script.scenes[at].things.iter().map(|t| Kind { colour: t.colour, noun: t.noun });
    let beside: Vec<Kind> = kinds(beside).collect();
    let mut options = vec![*beside.choose(rng).filter(|_| !beside.contains(&kind))?];
    // The other neighbour is among them, so that the direction matters.
    options.extend(other.into_iter().flat_map(kinds).find(|other| !beside.contains(other)));
    while options.len() < 4 {
        let colour = *Colour::ALL.choose(rng)?;
        let other = Kind { colour, noun: *Noun::ALL.choose(rng)? };
        if !beside.contains(&other) && !options.contains(&other) {
            options.push(other);
        }
    }
    let mut options = options.iter().map(Kind::to_string).collect::<Vec<_>>();
    let reply = answer::reasoned(&said, &options[0]);
    options.shuffle(rng);
    let question = Question::new(next_to(kind, if after { "after" } else { "before" }), options).ok()?;
    Some((Dialogue::Brief.answer(&question), reply))
}

/// Mostly a thing of the frames; in the share `shown` of its colour.
fn something(script: &Script, frames: &[usize], shown: f64, rng: &mut StdRng) -> Kind {
    let second = frames.choose(rng).copied().unwrap_or_default();
    let thing = script.scene_at(second).things.choose(rng);
    let noun = match thing {
        Some(thing) if rng.random_bool(SHOWN) => thing.noun,
        _ => Noun::ALL.choose(rng).copied().unwrap_or(Noun::ALL[0]),
    };
    let colour = match thing {
        Some(thing) if rng.random_bool(shown) => thing.colour,
        _ => Colour::ALL.choose(rng).copied().unwrap_or(Colour::ALL[0]),
    };
    Kind { noun, colour }
}
