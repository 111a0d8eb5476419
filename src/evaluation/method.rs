//! What is compared: a way to choose frames, by some queries, with K frames, from a seed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::select::Strategy;

/// How frames are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choosing {
    /// By a strategy, every frame at full size.
    By(Strategy),
    /// By a strategy that spends the tokens of K full frames on frames of other sizes (`q-frame-adaptive`, `f2c-adaptive`).
    Adaptive(Strategy),
    /// From where the evidence is known to be, evenly where it is not: an upper bound, not a method (`evidence`).
    Evidence,
}

impl Choosing {
    /// Every way, in the order of tables.
    pub fn all() -> Vec<Self> {
        let adaptive = [Strategy::QFrame, Strategy::F2c].map(Self::Adaptive);
        let plain = std::iter::once(Strategy::Uniform)
            .chain(Strategy::ALL.into_iter().filter(|one| *one != Strategy::Uniform));
        plain.map(Self::By).chain(adaptive).chain([Self::Evidence]).collect()
    }

    /// The name on the command line and in results.
    pub fn name(self) -> String {
        match self {
            Self::By(strategy) => strategy.name().to_owned(),
            Self::Adaptive(strategy) => format!("{strategy}-adaptive"),
            Self::Evidence => "evidence".to_owned(),
        }
    }

    /// The strategy behind it.
    pub fn strategy(self) -> Option<Strategy> {
        match self {
            Self::By(strategy) | Self::Adaptive(strategy) => Some(strategy),
            Self::Evidence => None,
        }
    }

    /// Whether it needs CLIP's features of the frames.
    pub fn looks(self) -> bool {
        self.strategy().is_some_and(|strategy| strategy != Strategy::Uniform)
    }

    /// Whether another seed gives other frames.
    pub fn is_random(self) -> bool {
        matches!(self.strategy(), Some(Strategy::QFrame | Strategy::Focus))
    }
}

impl FromStr for Choosing {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::all().into_iter().find(|one| one.name() == name).ok_or_else(|| {
            let known: Vec<String> = Self::all().into_iter().map(Self::name).collect();
            Error::Input(format!("method: expected all, or any of {}, got {name:?}", known.join(", ")))
        })
    }
}

/// Where the queries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The question is the query.
    Question,
    /// The language model writes them.
    Model,
    /// The question beside those that the language model writes.
    Both,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 3] = [Self::Question, Self::Model, Self::Both];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Model => "model",
            Self::Both => "both",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|source| source.name() == name)
            .ok_or_else(|| Error::Input(format!("queries: expected any of {known}, got {name:?}")))
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method {
    /// How frames are chosen.
    pub choosing: Choosing,
    /// By which queries; `None` for what reads none (`uniform`, `maxinfo`, `evidence`).
    pub source: Option<Source>,
}

impl Method {
    /// The name in tables: `bolt (model)`, `uniform`.
    pub fn title(self) -> String {
        match self.source {
            Some(source) => format!("{} ({source})", self.choosing.name()),
            None => self.choosing.name(),
        }
    }
}

/// The methods of a list of names, each with every source if it reads queries. `all` stands for every strategy at full size.
///
/// # Errors
/// No name, or an unknown one: the error lists the known ones.
pub fn methods(names: &[String], sources: &[Source]) -> Result<Vec<Method>> {
    let mut chosen: Vec<Choosing> = vec![];
    for name in names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
        let of_name = match name {
            "all" => Choosing::all().into_iter().filter(|one| matches!(one, Choosing::By(_))).collect(),
            name => vec![name.parse()?],
        };
        for choosing in of_name {
            if !chosen.contains(&choosing) {
                chosen.push(choosing);
            }
        }
    }
    let with_sources = |choosing: Choosing| -> Vec<Method> {
        match choosing.strategy().is_some_and(Strategy::reads_queries) {
            true => sources.iter().map(|&source| Method { choosing, source: Some(source) }).collect(),
            false => vec![Method { choosing, source: None }],
        }
    };
    let methods: Vec<Method> = chosen.into_iter().flat_map(with_sources).collect();
    if methods.is_empty() {
        let known: Vec<String> = Choosing::all().into_iter().map(Choosing::name).collect();
        let text = format!(
            "methods: expected all, or any of {}, and a source of queries; got none",
            known.join(", ")
        );
        return Err(Error::Input(text));
    }
    Ok(methods)
}

/// One answer per question: a method with a number of frames and a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Column {
    /// The method.
    pub method: Method,
    /// K.
    pub frames: usize,
    /// From 0: of the draw for methods that are random, the number of the sampler for `msjoe` and of the agent for `tspo`.
    pub seed: u64,
}

/// How many seeds the methods have that have several; none stands for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    /// Draws of methods that are random.
    pub draws: u64,
    /// Samplers of `msjoe`.
    pub samplers: usize,
    /// Temporal agents of `tspo`.
    pub agents: usize,
}

/// Every method with every number of frames and each of its seeds, once.
pub fn columns(methods: &[Method], frames: &[usize], seeds: Seeds) -> Vec<Column> {
    let mut columns: Vec<Column> = vec![];
    for &frames in frames {
        for &method in methods {
            let count = match method.choosing {
                Choosing::By(Strategy::Msjoe) => seeds.samplers as u64,
                Choosing::By(Strategy::Tspo) => seeds.agents as u64,
                choosing if choosing.is_random() => seeds.draws,
                _ => 1,
            };
            for seed in 0..count.max(1) {
                let column = Column { method, frames, seed };
                if !columns.contains(&column) {
                    columns.push(column);
                }
            }
        }
    }
    columns
}
