//! The strategies behind one interface.

use std::fmt;
use std::str::FromStr;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::draw::{check, draw, draw_log_prob, spread, weights};
use super::top_k::descending;
use super::uniform::uniform;
use crate::error::{Error, Result};

// CLIP's trained logit scale: turns cosines into the distribution it was trained to give.
const LOGIT_SCALE: f32 = 100.;

/// How key frames are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// By the trained sampler's distribution over the frames (`msjoe`).
    Msjoe,
    /// By the largest similarity to any query (`top-k`).
    TopK,
    /// Evenly over the video, blind to the question (`uniform`).
    Uniform,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 3] = [Self::Msjoe, Self::TopK, Self::Uniform];

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msjoe => "msjoe",
            Self::TopK => "top-k",
            Self::Uniform => "uniform",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|strategy| strategy.name() == name);
        found.ok_or_else(|| Error::Input(format!("expected a strategy ({names}), got {name:?}")))
    }
}

/// How the `msjoe` strategy takes frames from the sampler's distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The K frames of largest weight: no randomness.
    TopK,
    /// K frames in proportion to their weights: no randomness; see [`super::spread`].
    Spread,
    /// K frames drawn without replacement.
    Gumbel {
        /// Seed of the generator: the same seed, the same frames.
        seed: u64,
    },
}

/// What a selection may go by. Each strategy reads its own part and fails when that is missing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// T, the number of candidate frames.
    pub frames: usize,
    /// Cosine similarities, one row of T per query; read by `top-k`.
    pub similarity: Option<Vec<Vec<f32>>>,
    /// The sampler's logits (T,), before softmax; read by `msjoe`.
    pub logits: Option<Vec<f32>>,
}

/// The chosen key frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The K frames, ascending.
    pub frames: Vec<usize>,
    /// The distribution over all T candidates that the choice went by, summing to 1. `msjoe`: softmax of the logits;
    /// `top-k`: softmax of 100 times (CLIP's scale) each frame's best similarity; `uniform`: 1 / T.
    pub weights: Vec<f32>,
    /// The K frames in the order in which they were taken: as drawn, by falling score, or ascending for `uniform`
    /// and [`Draw::Spread`].
    pub draw_order: Vec<usize>,
    /// Log-probability of `draw_order`; only for a random draw.
    pub log_prob: Option<f64>,
}

/// Chooses `k` key frames. `draw` matters to [`Strategy::Msjoe`] only; the others are deterministic.
///
/// # Errors
/// No candidates, `k` of 0 or more than there are, scores that the strategy needs and that are missing, of another length
/// or NaN, fewer than `k` frames with a finite logit.
pub fn select(strategy: Strategy, scores: &Scores, k: usize, draw: Draw) -> Result<Selection> {
    let t = scores.frames;
    if t == 0 {
        return Err(Error::Input(format!("{strategy}: there are no candidate frames to select from")));
    }
    if k == 0 || k > t {
        return Err(Error::Input(format!(
            "{strategy}: the number of key frames must be from 1 to the {t} candidate frames, got {k}"
        )));
    }
    match strategy {
        Strategy::Uniform => {
            let frames = uniform(t, k);
            Ok(Selection {
                draw_order: frames.clone(),
                frames,
                weights: vec![1. / t as f32; t],
                log_prob: None,
            })
        }
        Strategy::TopK => {
            let best = best_similarity(scores)?;
            let draw_order = descending(&best, k)?;
            let logits: Vec<f32> = best.iter().map(|cosine| LOGIT_SCALE * cosine).collect();
            Ok(Selection {
                frames: ascending(&draw_order),
                weights: weights(&logits)?,
                draw_order,
                log_prob: None,
            })
        }
        Strategy::Msjoe => from_logits(scores, k, draw),
    }
}

fn from_logits(scores: &Scores, k: usize, how: Draw) -> Result<Selection> {
    let Some(logits) = &scores.logits else {
        return Err(Error::Input("msjoe: needs the sampler's logits, got none".to_owned()));
    };
    check_length("msjoe: logits", logits.len(), scores.frames)?;
    check(logits, k)?;
    let (draw_order, log_prob) = match how {
        Draw::TopK => (descending(logits, k)?, None),
        Draw::Spread => (spread(logits, k)?, None),
        Draw::Gumbel { seed } => {
            let picks = draw(logits, k, &mut StdRng::seed_from_u64(seed))?;
            let log_prob = draw_log_prob(logits, &picks)?;
            (picks, Some(log_prob))
        }
    };
    Ok(Selection { frames: ascending(&draw_order), weights: weights(logits)?, draw_order, log_prob })
}

/// Each frame's largest similarity over the queries.
fn best_similarity(scores: &Scores) -> Result<Vec<f32>> {
    let rows = scores.similarity.as_deref().unwrap_or_default();
    if rows.is_empty() {
        return Err(Error::Input("top-k: needs similarities to at least one query, got none".to_owned()));
    }
    let mut best = vec![f32::NEG_INFINITY; scores.frames];
    for (query, row) in rows.iter().enumerate() {
        check_length(&format!("top-k: similarities of query {query}"), row.len(), scores.frames)?;
        for (frame, (best, &cosine)) in best.iter_mut().zip(row).enumerate() {
            if !cosine.is_finite() {
                return Err(Error::Input(format!(
                    "top-k: similarity of query {query} and frame {frame} is {cosine}"
                )));
            }
            *best = best.max(cosine);
        }
    }
    Ok(best)
}

fn check_length(what: &str, got: usize, frames: usize) -> Result<()> {
    if got != frames {
        return Err(Error::Input(format!("{what}: expected one per candidate frame ({frames}), got {got}")));
    }
    Ok(())
}

fn ascending(order: &[usize]) -> Vec<usize> {
    let mut frames = order.to_vec();
    frames.sort_unstable();
    frames
}
