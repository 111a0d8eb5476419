//! The questions of a built video.

use std::ops::Range;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::plan::{Case, Plan, Side};
use super::sample::Family;
use super::scene::Scene;
use super::spec::Spec;
use super::thing::{Colour, Kind, Place, with_article};
use super::timeline::{Draft, Role, most_shown};

/// What a question says, before it becomes a sample; the right option comes first.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub family: Family,
    pub text: String,
    pub options: Vec<String>,
    pub evidence: Vec<Range<usize>>,
    pub subjects: Vec<String>,
}

/// The numbers of the count family.
pub const NUMBERS: [&str; 4] = ["one", "two", "three", "four"];

/// The question of the order family.
pub fn which_first(a: Kind, b: Kind) -> String {
    format!("which comes first, the {a} or the {b}?")
}

/// Its options: one, the other, both, none.
pub fn first_options(a: Kind, b: Kind) -> [String; 4] {
    [a.to_string(), b.to_string(), "both at once".into(), "neither".into()]
}

/// The question of the count family.
pub fn how_often(kind: Kind) -> String {
    format!("how many separate times is the {kind} shown?")
}

/// The question of the neighbour family; `side` is `before` or `after`.
pub fn next_to(kind: Kind, side: &str) -> String {
    format!("what comes right {side} the {kind}?")
}

/// What questions are drawn from.
pub(super) struct Source<'a> {
    pub spec: &'a Spec,
    pub plan: &'a Plan,
    pub drafts: &'a [Draft],
    pub scenes: &'a [Scene],
}

impl Source<'_> {
    /// The question of every planned family, in the order of [`Family::ALL`].
    pub fn ask(&self, rng: &mut StdRng) -> Vec<Asked> {
        let Plan { needle, category, neighbour, order, count } = *self.plan;
        let mut asked = vec![];
        if let Some(kind) = needle {
            let noun = kind.noun.name();
            let subjects = vec![with_article(noun)];
            asked.push(self.colour(Family::Needle, (Role::Needle, kind), noun, subjects, rng));
        }
        if let Some(kind) = category {
            let category = kind.noun.category();
            let subjects = category.nouns().map(|noun| with_article(noun.name())).into();
            asked.push(self.colour(Family::Category, (Role::Category, kind), category.name(), subjects, rng));
        }
        asked.extend(neighbour.and_then(|(kind, side)| self.neighbour(kind, side, rng)));
        asked.extend(order.map(|(a, b, case)| self.order(a, b, case)));
        asked.extend(count.map(|(kind, times)| self.count(kind, times)));
        asked.extend(most_shown(self.drafts).map(|place| self.global(place, rng)));
        asked
    }

    fn colour(
        &self,
        family: Family,
        (role, kind): (Role, Kind),
        name: &str,
        subjects: Vec<String>,
        rng: &mut StdRng,
    ) -> Asked {
        let shown = |colour: &Colour| {
            self.drafts.iter().flat_map(|draft| &draft.kinds).any(|kind| kind.colour == *colour)
        };
        let options = with_others(kind.colour, &Colour::ALL, shown, rng);
        Asked {
            family,
            text: format!("what colour is the {name}?"),
            options: options.into_iter().map(|colour| colour.name().to_owned()).collect(),
            evidence: self.ranges(role),
            subjects,
        }
    }

    /// The other neighbour is always among the options, so that the direction matters.
    fn neighbour(&self, kind: Kind, side: Side, rng: &mut StdRng) -> Option<Asked> {
        let thing = |role| self.drafts.iter().find(|draft| draft.role == role)?.kinds.first().copied();
        let (role, other, word) = match side {
            Side::After => (Role::After, Role::Before, "after"),
            Side::Before => (Role::Before, Role::After, "before"),
        };
        let mut options = vec![thing(role)?, thing(other)?];
        // One entry per scene that shows it, as the neighbours themselves were drawn.
        let mut others: Vec<Kind> = (self.drafts.iter())
            .filter(|draft| draft.role == Role::Filler)
            .flat_map(|draft| draft.kinds.iter().copied())
            .filter(|other| other.noun != kind.noun)
            .collect();
        others.shuffle(rng);
        while options.len() < 4 {
            let next = others.pop().unwrap_or_else(|| self.plan.filler(self.spec, &[kind.noun], rng));
            if !options.contains(&next) {
                options.push(next);
            }
        }
        Some(Asked {
            family: Family::Neighbour,
            text: next_to(kind, word),
            options: options.iter().map(Kind::to_string).collect(),
            evidence: [self.ranges(role), self.ranges(Role::Named)].concat(),
            subjects: vec![with_article(kind)],
        })
    }

    fn order(&self, a: Kind, b: Kind, case: Case) -> Asked {
        let mut options = first_options(a, b).to_vec();
        options.swap(0, case as usize);
        let roles = [Role::Earlier, Role::Later, Role::Together];
        Asked {
            family: Family::Order,
            text: which_first(a, b),
            options,
            evidence: roles.into_iter().flat_map(|role| self.ranges(role)).collect(),
            subjects: vec![with_article(a), with_article(b)],
        }
    }

    fn count(&self, kind: Kind, times: usize) -> Asked {
        let mut options = NUMBERS.map(str::to_owned);
        options.swap(0, times - 1);
        Asked {
            family: Family::Count,
            text: how_often(kind),
            options: options.into(),
            evidence: self.ranges(Role::Occurrence),
            subjects: vec![with_article(kind)],
        }
    }

    fn global(&self, place: Place, rng: &mut StdRng) -> Asked {
        let shown = |place: &Place| self.drafts.iter().any(|draft| draft.place == *place);
        let options = with_others(place, &Place::ALL, shown, rng);
        Asked {
            family: Family::Global,
            text: "which place is shown most?".into(),
            options: options.into_iter().map(|place| place.name().to_owned()).collect(),
            evidence: vec![],
            subjects: vec![],
        }
    }

    fn ranges(&self, role: Role) -> Vec<Range<usize>> {
        let pairs = self.drafts.iter().zip(self.scenes);
        pairs.filter(|(draft, _)| draft.role == role).map(|(_, scene)| scene.range()).collect()
    }
}

/// `right` and three others, those that are `shown` first.
fn with_others<T: Copy + PartialEq>(
    right: T,
    all: &[T],
    shown: impl Fn(&T) -> bool,
    rng: &mut StdRng,
) -> Vec<T> {
    let mut others: Vec<T> = all.iter().copied().filter(|other| *other != right).collect();
    others.shuffle(rng);
    others.sort_by_key(|other| !shown(other));
    [right].into_iter().chain(others).take(4).collect()
}

/// Options in random order, and where the first one went.
pub(super) fn shuffled(options: Vec<String>, rng: &mut StdRng) -> (Vec<String>, usize) {
    let mut order: Vec<usize> = (0..options.len()).collect();
    order.shuffle(rng);
    // The right one's position is drawn by itself: uniform whatever the shuffle does.
    let (from, to) =
        (order.iter().position(|&at| at == 0).unwrap_or_default(), rng.random_range(0..order.len()));
    order.swap(from, to);
    (order.iter().map(|&at| options[at].clone()).collect(), to)
}
