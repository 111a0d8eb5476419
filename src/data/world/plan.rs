//! What a video is built around: which families it serves, and the things that their questions name.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::sample::Family;
use super::spec::{Length, Spec};
use super::thing::{Category, Colour, Kind, Noun};

/// Which neighbour is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    After,
    Before,
}

/// What is true of the two things of an order question, named in the order of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    First,
    Second,
    Both,
    Neither,
}

impl Case {
    pub const ALL: [Self; 4] = [Self::First, Self::Second, Self::Both, Self::Neither];
}

/// The planned questions. What they need to be unique is reserved: [`Plan::filler`] never gives it.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub needle: Option<Kind>,
    pub category: Option<Kind>,
    pub neighbour: Option<(Kind, Side)>,
    pub order: Option<(Kind, Kind, Case)>,
    pub count: Option<(Kind, usize)>,
}

/// Most occurrences of a counted thing.
pub(super) const MOST: usize = 4;

impl Plan {
    /// A plan for a video of `length` (seconds or scenes, as `spec.length` counts).
    pub fn draw(spec: &Spec, length: usize, rng: &mut StdRng) -> Self {
        let families = affordable(spec, length, rng);
        let planned = |family| families.contains(&family);
        // Everything is drawn, planned or not, so that what is planned tells nothing about what it is.
        let category = *Category::ALL.choose(rng).unwrap_or(&Category::Fruit);
        let shown = Kind { colour: colour(rng), noun: category.nouns()[rng.random_range(0..3)] };
        let mut nouns: Vec<Noun> = Noun::ALL.into_iter().filter(|noun| noun.category() != category).collect();
        nouns.shuffle(rng);
        let needle = Kind { colour: colour(rng), noun: nouns[0] };
        let mut named: Vec<Kind> = vec![];
        while named.len() < 4 {
            let kind = Kind { colour: colour(rng), noun: nouns[rng.random_range(1..nouns.len())] };
            let same_noun_in_order = named.len() == 1 && named[0].noun == kind.noun;
            if !named.contains(&kind) && !same_noun_in_order {
                named.push(kind);
            }
        }
        let side = if rng.random_bool(0.5) { Side::After } else { Side::Before };
        let case = Case::ALL[rng.random_range(0..4)];
        let times = rng.random_range(1..=MOST);
        Self {
            needle: planned(Family::Needle).then_some(needle),
            category: planned(Family::Category).then_some(shown),
            order: planned(Family::Order).then_some((named[0], named[1], case)),
            neighbour: planned(Family::Neighbour).then_some((named[2], side)),
            count: planned(Family::Count).then_some((named[3], times)),
        }
    }

    /// A thing that no question is about and that breaks no uniqueness, of another noun than `avoid`.
    pub fn filler(&self, spec: &Spec, avoid: &[Noun], rng: &mut StdRng) -> Kind {
        let named = self.named();
        loop {
            let mut kind = Kind { colour: colour(rng), noun: Noun::ALL[rng.random_range(0..12)] };
            let alike = rng.random_bool(spec.distractors);
            if let (true, Some(subject)) = (alike, named.choose(rng)) {
                if rng.random_bool(0.5) {
                    kind.noun = subject.noun;
                } else {
                    kind.colour = subject.colour;
                }
            }
            if self.is_free(kind) && !avoid.contains(&kind.noun) {
                return kind;
            }
        }
    }

    /// Whether `kind` can be shown anywhere without a question losing its one answer.
    pub fn is_free(&self, kind: Kind) -> bool {
        let alone = self.needle.is_some_and(|needle| needle.noun == kind.noun)
            || self.category.is_some_and(|shown| shown.noun.category() == kind.noun.category());
        !alone && !self.named().contains(&kind)
    }

    /// The things that questions name with their colour.
    fn named(&self) -> Vec<Kind> {
        let order = self.order.map(|(a, b, _)| [a, b]);
        let others = [self.neighbour.map(|(kind, _)| kind), self.count.map(|(kind, _)| kind)];
        order.into_iter().flatten().chain(others.into_iter().flatten()).collect()
    }
}

fn colour(rng: &mut StdRng) -> Colour {
    Colour::ALL[rng.random_range(0..6)]
}

/// Families, in random order, as many as surely fit: judged by the largest need of each, so that an answer never
/// decides whether its question is asked.
fn affordable(spec: &Spec, length: usize, rng: &mut StdRng) -> Vec<Family> {
    let mut families =
        vec![Family::Needle, Family::Category, Family::Neighbour, Family::Order, Family::Count];
    families.shuffle(rng);
    let (short, long, least) = (spec.evidence_seconds.max, spec.scene_seconds.max, spec.scene_seconds.min);
    let mut used = 0;
    let mut scenes_between = 0;
    families.retain(|family| {
        let (scenes, between) = match family {
            Family::Needle | Family::Category => (1, 1),
            Family::Neighbour => (3, 1),
            Family::Order => (2, 0),
            _ => (MOST, 0),
        };
        let count = *family == Family::Count;
        let (cost, budget) = match spec.length {
            // Occurrences are never adjacent: what is missing between them has to be filled.
            Length::Scenes(_) => {
                let missing = if count { (MOST - 1usize).saturating_sub(scenes_between) } else { 0 };
                (scenes + missing, length)
            }
            Length::Seconds(_) if count => {
                ((MOST - 1) * (short + least) + long, seconds_to_plan(length, least))
            }
            Length::Seconds(_) => (scenes * short, seconds_to_plan(length, least)),
        };
        let fits = used + cost <= budget;
        if fits {
            used += cost;
            scenes_between += between;
        }
        fits
    });
    families
}

/// Something is left to be filled.
fn seconds_to_plan(seconds: usize, least: usize) -> usize {
    (seconds * 9 / 10).min(seconds.saturating_sub(least))
}
