//! What can be seen: nouns in categories, colours, sizes, places, and one thing in motion.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it
pub enum Noun {
    Apple,
    Banana,
    Cherry,
    Car,
    Boat,
    Plane,
    Hammer,
    Key,
    Saw,
    Star,
    Ring,
    Cross,
}

/// What several nouns have in common. Its name occurs in questions only, never in a caption or phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Category {
    Fruit,
    Vehicle,
    Tool,
    Shape,
}

/// The colour of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    White,
}

/// The size of a thing; see [`Spec`](super::Spec) for the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Size {
    Small,
    Large,
}

/// Where a scene is: the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Place {
    Grass,
    Sand,
    Water,
    Night,
    Snow,
    Bricks,
}

impl Noun {
    /// Every noun, three of each category in the order of [`Category::ALL`].
    pub const ALL: [Self; 12] = [
        Self::Apple,
        Self::Banana,
        Self::Cherry,
        Self::Car,
        Self::Boat,
        Self::Plane,
        Self::Hammer,
        Self::Key,
        Self::Saw,
        Self::Star,
        Self::Ring,
        Self::Cross,
    ];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apple => "apple",
            Self::Banana => "banana",
            Self::Cherry => "cherry",
            Self::Car => "car",
            Self::Boat => "boat",
            Self::Plane => "plane",
            Self::Hammer => "hammer",
            Self::Key => "key",
            Self::Saw => "saw",
            Self::Star => "star",
            Self::Ring => "ring",
            Self::Cross => "cross",
        }
    }

    /// The category it belongs to.
    pub fn category(self) -> Category {
        Category::ALL[self as usize / 3]
    }
}

impl Category {
    /// Every category.
    pub const ALL: [Self; 4] = [Self::Fruit, Self::Vehicle, Self::Tool, Self::Shape];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fruit => "fruit",
            Self::Vehicle => "vehicle",
            Self::Tool => "tool",
            Self::Shape => "shape",
        }
    }

    /// Its three nouns.
    pub fn nouns(self) -> [Noun; 3] {
        [0, 1, 2].map(|k| Noun::ALL[self as usize * 3 + k])
    }
}

impl Colour {
    /// Every colour.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::White];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::White => "white",
        }
    }

    /// Red, green and blue before the jitter of each thing.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [218, 38, 38],
            Self::Green => [34, 176, 62],
            Self::Blue => [42, 84, 232],
            Self::Yellow => [246, 214, 36],
            Self::Purple => [164, 52, 196],
            Self::White => [248, 248, 248],
        }
    }
}

impl Size {
    /// Both sizes.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

impl Place {
    /// Every place.
    pub const ALL: [Self; 6] = [Self::Grass, Self::Sand, Self::Water, Self::Night, Self::Snow, Self::Bricks];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grass => "grass",
            Self::Sand => "sand",
            Self::Water => "water",
            Self::Night => "night",
            Self::Snow => "snow",
            Self::Bricks => "bricks",
        }
    }

    /// How a caption says where: `on grass`, `at night`.
    pub fn preposition(self) -> &'static str {
        if self == Self::Night { "at" } else { "on" }
    }
}

/// A colour and a noun: what questions name. Displayed as `red boat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Kind {
    pub colour: Colour,
    pub noun: Noun,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.colour.name(), self.noun.name())
    }
}

/// One thing of a scene. Positions are parts of the frame's side, from its left and top edge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Thing {
    /// What it is.
    pub noun: Noun,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Half its extent, as part of the side.
    pub radius: f32,
    /// Centre at the scene's start.
    pub position: [f32; 2],
    /// Movement of the centre per second.
    pub velocity: [f32; 2],
    /// Smallest and largest centre; the thing turns back there, so that it never covers another.
    pub bounds: [[f32; 2]; 2],
    /// Tangent of half the angle it is turned by, clockwise.
    pub tilt: f32,
    /// Added to red, green and blue.
    pub tint: [i16; 3],
}

impl Thing {
    /// Its colour and noun.
    pub fn kind(&self) -> Kind {
        Kind { colour: self.colour, noun: self.noun }
    }

    /// Centre `seconds` after the scene's start.
    pub fn centre(&self, seconds: f32) -> [f32; 2] {
        [0, 1].map(|axis| {
            let [low, high] = self.bounds.map(|corner| corner[axis]);
            let room = high - low;
            if room <= 0. {
                return (low + high) / 2.;
            }
            let along = (self.position[axis] - low + self.velocity[axis] * seconds).rem_euclid(2. * room);
            low + if along > room { 2. * room - along } else { along }
        })
    }
}

/// `a` or `an` before a word.
pub(super) fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// `a red boat`, `an apple`.
pub(super) fn with_article(words: impl fmt::Display) -> String {
    let words = words.to_string();
    format!("{} {words}", article(&words))
}
