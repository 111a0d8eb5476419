//! Short descriptions that are true of a scene, kept as structure so that their truth elsewhere can be told.

use std::fmt;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::scene::Scene;
use super::thing::{Colour, Noun, Place, Size, Thing, with_article};

/// Things with what is said of them, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    /// Said things; colour and size only where given.
    pub things: Vec<(Option<Colour>, Noun, Option<Size>)>,
    /// The place, where given.
    pub place: Option<Place>,
    /// How it is put into words.
    pub wording: Wording,
}

/// Word order of a [`Phrase`]; never changes what is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wording {
    /// `a small red hammer and a blue car on sand`
    Plain,
    /// `small red hammer and blue car on sand`
    Bare,
    /// `sand with a small red hammer and a blue car`
    PlaceFirst,
}

impl Phrase {
    /// A random phrase that is true of `scene`: some of its things in any order, each attribute said or not.
    pub fn draw(scene: &Scene, rng: &mut StdRng) -> Self {
        let mut things: Vec<&Thing> = scene.things.iter().collect();
        things.shuffle(rng);
        let only_place = rng.random_bool(0.1);
        things.truncate(if only_place { 0 } else { rng.random_range(1..=things.len().max(1)) });
        let things: Vec<_> = (things.into_iter())
            .map(|thing| {
                let colour = rng.random_bool(0.75).then_some(thing.colour);
                (colour, thing.noun, rng.random_bool(0.3).then_some(thing.size))
            })
            .collect();
        let place = (things.is_empty() || rng.random_bool(0.4)).then_some(scene.place);
        let wording =
            [Wording::Plain, Wording::Plain, Wording::Bare, Wording::PlaceFirst][rng.random_range(0..4)];
        Self { things, place, wording }
    }

    /// Everything there is to see in `scene`; the usual size, large, is not said.
    pub fn full(scene: &Scene) -> Self {
        let said = |thing: &Thing| {
            (Some(thing.colour), thing.noun, (thing.size == Size::Small).then_some(Size::Small))
        };
        Self {
            things: scene.things.iter().map(said).collect(),
            place: Some(scene.place),
            wording: Wording::Plain,
        }
    }

    /// Whether everything said holds in `scene`, each said thing being another one of the scene's.
    pub fn is_true(&self, scene: &Scene) -> bool {
        let mut taken = vec![false; scene.things.len()];
        self.place.is_none_or(|place| place == scene.place) && self.matches(0, scene, &mut taken)
    }

    fn matches(&self, from: usize, scene: &Scene, taken: &mut [bool]) -> bool {
        let Some(&(colour, noun, size)) = self.things.get(from) else { return true };
        for (at, thing) in scene.things.iter().enumerate() {
            let fits = thing.noun == noun
                && colour.is_none_or(|colour| colour == thing.colour)
                && size.is_none_or(|size| size == thing.size);
            if fits && !taken[at] {
                taken[at] = true;
                if self.matches(from + 1, scene, taken) {
                    return true;
                }
                taken[at] = false;
            }
        }
        false
    }
}

impl fmt::Display for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let things: Vec<String> = (self.things.iter())
            .map(|&(colour, noun, size)| {
                let words = [size.map(Size::name), colour.map(Colour::name), Some(noun.name())];
                let words = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
                if self.wording == Wording::Bare { words } else { with_article(words) }
            })
            .collect();
        let things = things.join(" and ");
        match (self.place, things.is_empty(), self.wording) {
            (None, ..) => f.write_str(&things),
            (Some(place), true, _) => f.write_str(place.name()),
            (Some(place), false, Wording::PlaceFirst) => write!(f, "{} with {things}", place.name()),
            (Some(place), false, _) => write!(f, "{things} {} {}", place.preposition(), place.name()),
        }
    }
}
