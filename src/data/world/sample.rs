//! One multiple-choice question about one video.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::text::Question;

/// Which part of the data a video belongs to; no two share a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    /// Every split.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl std::str::FromStr for Split {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        Self::ALL.into_iter().find(|split| split.name() == text).ok_or_else(|| {
            crate::Error::Input(format!("split: expected train, validation or test, got {text:?}"))
        })
    }
}

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// The colour of a thing that one scene holds.
    Needle,
    /// The same, but only the thing's category is named.
    Category,
    /// What comes right after or right before a thing.
    Neighbour,
    /// Which of two things comes first.
    Order,
    /// How many separate times a thing is shown.
    Count,
    /// Which place is shown most.
    Global,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 6] =
        [Self::Needle, Self::Category, Self::Neighbour, Self::Order, Self::Count, Self::Global];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Category => "category",
            Self::Neighbour => "neighbour",
            Self::Order => "order",
            Self::Count => "count",
            Self::Global => "global",
        }
    }
}

/// A question with its answer and where in the video the answer is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Unique within the world: seed, split, video and family.
    pub id: String,
    /// The video's split.
    pub split: Split,
    /// The video's index in its split.
    pub video: u64,
    /// The kind of question.
    pub family: Family,
    /// Four options.
    pub question: Question,
    /// Index of the right option.
    pub answer: usize,
    /// Seconds in which the answer is seen, one range per scene; for neighbour the answering scene first, then the named
    /// thing's. Empty where the whole video is the evidence (global, and order with neither).
    pub evidence: Vec<Range<usize>>,
    /// Descriptions one would search for: `a hammer`; for category each of its nouns, for order both things, for global none.
    pub subjects: Vec<String>,
}
