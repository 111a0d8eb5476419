//! The strategies behind one interface.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::aks::aks;
use super::apart::{Apart, draw_apart, draw_apart_log_prob, take_apart};
use super::bin_max::bin_max;
use super::bolt::{bolt, mass};
use super::curve::{ascending, unit};
use super::dpp::dpp_order;
use super::draw::{check, draw, draw_log_prob, spread, weights};
use super::f2c::{F2c, f2c};
use super::features::Features;
use super::focus::focus;
use super::max_info::max_info;
use super::mdp3::mdp3;
use super::q_frame::{Levels, q_frame, tempered};
use super::qca::qca;
use super::settings::{Resolution, Settings};
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
    /// By the temporal agent of TSPO: its largest logits, or a draw from them (`tspo`); see
    /// [`crate::models::temporal_agent`].
    Tspo,
    /// By the largest similarity to any query (`top-k`).
    TopK,
    /// Evenly over the video, blind to the question (`uniform`).
    Uniform,
    /// At even steps of the mass under the score curve (`bolt`); see [`super::bolt`].
    Bolt,
    /// The best frames of an adaptively halved video (`aks`); see [`super::aks`].
    Aks,
    /// Drawn with Gumbel noise, in up to three sizes (`q-frame`); see [`super::q_frame`].
    QFrame,
    /// The best frame of every even stretch (`bin-max`); see [`super::bin_max`].
    BinMax,
    /// Determinantal point processes in segments, joined by dynamic programming (`mdp3`); see [`super::mdp3`].
    Mdp3,
    /// Greedily by one determinantal point process (`dpp`); see [`super::dpp`].
    Dpp,
    /// Frames that span the video's main directions, blind to the question (`maxinfo`); see [`super::max_info`].
    MaxInfo,
    /// By a bandit that scores only some frames (`focus`); see [`super::focus`].
    Focus,
    /// Segments by variety and fit, spread inside (`qca`); see [`super::qca`].
    Qca,
    /// Clips around the frames that stand out (`f2c`); see [`super::f2c`].
    F2c,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 14] = [
        Self::Msjoe,
        Self::Tspo,
        Self::TopK,
        Self::Uniform,
        Self::Bolt,
        Self::Aks,
        Self::QFrame,
        Self::BinMax,
        Self::Mdp3,
        Self::Dpp,
        Self::MaxInfo,
        Self::Focus,
        Self::Qca,
        Self::F2c,
    ];

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msjoe => "msjoe",
            Self::Tspo => "tspo",
            Self::TopK => "top-k",
            Self::Uniform => "uniform",
            Self::Bolt => "bolt",
            Self::Aks => "aks",
            Self::QFrame => "q-frame",
            Self::BinMax => "bin-max",
            Self::Mdp3 => "mdp3",
            Self::Dpp => "dpp",
            Self::MaxInfo => "maxinfo",
            Self::Focus => "focus",
            Self::Qca => "qca",
            Self::F2c => "f2c",
        }
    }

    /// Whether the choice goes by what the question or the queries look for.
    pub fn reads_queries(self) -> bool {
        !matches!(self, Self::Uniform | Self::MaxInfo)
    }

    /// Whether the choice goes by a trained network, [`Scores::logits`].
    pub fn reads_logits(self) -> bool {
        matches!(self, Self::Msjoe | Self::Tspo)
    }

    /// Whether the choice always goes by how frames resemble each other, [`Scores::features`]; `msjoe` does with
    /// [`Scores::apart`] above 0.
    pub fn reads_features(self) -> bool {
        matches!(self, Self::Mdp3 | Self::Dpp | Self::MaxInfo | Self::Qca | Self::F2c)
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

/// How `msjoe` takes frames from the sampler's distribution, and `tspo`, which takes the largest where it could spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The K frames of largest weight: no randomness.
    TopK,
    /// K frames in proportion to their weights: no randomness; see [`super::spread`], and [`super::take_apart`] where
    /// [`Scores::apart`] is above 0.
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
    /// Cosine similarities, one row of T per query; read by all but `msjoe`, `tspo`, `uniform` and `maxinfo`. Each frame counts with
    /// its best query.
    pub similarity: Option<Vec<Vec<f32>>>,
    /// The sampler's logits (T,), before softmax; read by `msjoe` and `tspo`.
    pub logits: Option<Vec<f32>>,
    /// How strongly frames of `msjoe` keep apart, see [`super::draw_apart`]; reads the features where it is above 0, and leaves
    /// [`Draw::TopK`] alone.
    pub apart: f64,
    /// Embeddings of the frames (T, D); read by `mdp3`, `dpp`, `maxinfo`, `qca`, by `msjoe` with [`Self::apart`], and by `f2c` where they are given.
    pub features: Option<Features>,
    /// Of the methods that are random by nature, `q-frame` and `focus`.
    pub seed: u64,
    /// Settings of the methods; the defaults are the published ones.
    pub settings: Settings,
}

/// The chosen key frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The K frames, ascending. `maxinfo` may give fewer, and with [`Resolution::Adaptive`] `q-frame` and `f2c` give more
    /// and smaller ones.
    pub frames: Vec<usize>,
    /// The distribution over all T candidates that the choice went by, summing to 1. `msjoe` and `tspo`: softmax of the logits
    /// (where frames keep apart, that of the first one taken);
    /// `uniform` and `maxinfo`: 1 / T; `bolt`: its curve; `q-frame`: what it draws from; the others, as `top-k`: softmax
    /// of 100 times (CLIP's scale) each frame's best similarity.
    pub weights: Vec<f32>,
    /// The frames in the order in which they were taken: as drawn, by falling score (`top-k`), by falling gain (`dpp`), or
    /// ascending (also for [`Draw::Spread`], unless frames keep apart).
    pub draw_order: Vec<usize>,
    /// Log-probability of `draw_order`; only for a random draw (`msjoe`, `tspo`, `q-frame`).
    pub log_prob: Option<f64>,
    /// Side length of each of `frames` as a part of the full one, in (0, 1]; empty where all are at full size.
    pub scales: Vec<f32>,
    /// The frames as clips, ranges of candidates that follow each other (`f2c`); empty where frames stand alone.
    pub clips: Vec<Range<usize>>,
}

impl Selection {
    /// Single frames at full size, of which `draw_order` has each once.
    pub(super) fn of(draw_order: Vec<usize>, weights: Vec<f32>) -> Self {
        let frames = ascending(draw_order.clone());
        Self { frames, weights, draw_order, log_prob: None, scales: vec![], clips: vec![] }
    }

    /// Stretches of [`Self::frames`] that are shown together: all of them, or where they have sizes of their own those of one
    /// size, and of one clip where there are clips.
    pub fn runs(&self) -> Vec<Range<usize>> {
        let starts = |frame: usize| self.clips.iter().any(|clip| clip.start == frame);
        let mut runs: Vec<Range<usize>> = vec![];
        for (at, &frame) in self.frames.iter().enumerate() {
            let goes_on = at > 0
                && (self.scales.is_empty() || self.scales[at] == self.scales[at - 1] && !starts(frame));
            match runs.last_mut().filter(|_| goes_on) {
                Some(run) => run.end = at + 1,
                None => runs.push(at..at + 1),
            }
        }
        runs
    }

    /// No frame of `candidates`, which all weigh the same.
    pub(crate) fn nothing(candidates: usize) -> Self {
        Self::of(vec![], vec![1. / candidates.max(1) as f32; candidates])
    }

    /// Visual tokens of the frames, in units of a full one.
    pub fn tokens(&self) -> f64 {
        match self.scales.as_slice() {
            [] => self.frames.len() as f64,
            scales => scales.iter().map(|&scale| f64::from(scale).powi(2)).sum(),
        }
    }
}

/// Chooses `k` key frames. `draw` matters to [`Strategy::Msjoe`] and [`Strategy::Tspo`] only; the others are deterministic, `q-frame` and `focus` for
/// a [`Scores::seed`].
///
/// # Errors
/// No candidates, `k` of 0 or more than there are, scores that the strategy needs and that are missing, of another length
/// or NaN, fewer than `k` frames with a finite logit, settings out of range.
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
        Strategy::Uniform => Ok(Selection::of(uniform(t, k), vec![1. / t as f32; t])),
        Strategy::Msjoe => from_logits(strategy, scores, k, draw),
        // As published.
        Strategy::Tspo if draw == Draw::Spread => from_logits(strategy, scores, k, Draw::TopK),
        Strategy::Tspo => from_logits(strategy, scores, k, draw),
        Strategy::MaxInfo => {
            let frames = max_info(features(strategy, scores)?, k, scores.settings.max_info)?;
            Ok(Selection::of(frames, vec![1. / t as f32; t]))
        }
        _ => from_similarity(strategy, scores, k),
    }
}

fn from_logits(strategy: Strategy, scores: &Scores, k: usize, how: Draw) -> Result<Selection> {
    let Some(logits) = &scores.logits else {
        return Err(Error::Input(format!("{strategy}: needs the sampler's logits, got none")));
    };
    check_length(&format!("{strategy}: logits"), logits.len(), scores.frames)?;
    check(logits, k)?;
    let (draw_order, log_prob) = match how {
        Draw::TopK => (descending(logits, k)?, None),
        _ if strategy == Strategy::Msjoe && scores.apart != 0.0 => {
            let apart = Apart { features: features(strategy, scores)?, strength: scores.apart };
            match how {
                Draw::Gumbel { seed } => {
                    let picks = draw_apart(logits, apart, k, &mut StdRng::seed_from_u64(seed))?;
                    let log_prob = draw_apart_log_prob(logits, apart, &picks)?;
                    (picks, Some(log_prob))
                }
                _ => (take_apart(logits, apart, k)?, None),
            }
        }
        Draw::Spread => (spread(logits, k)?, None),
        Draw::Gumbel { seed } => {
            let picks = draw(logits, k, &mut StdRng::seed_from_u64(seed))?;
            let log_prob = draw_log_prob(logits, &picks)?;
            (picks, Some(log_prob))
        }
    };
    Ok(Selection { log_prob, ..Selection::of(draw_order, weights(logits)?) })
}

/// The methods that go by each frame's best similarity.
fn from_similarity(strategy: Strategy, scores: &Scores, k: usize) -> Result<Selection> {
    let best = best_similarity(strategy, scores)?;
    let logits: Vec<f32> = best.iter().map(|cosine| LOGIT_SCALE * cosine).collect();
    let (settings, best_weights) = (&scores.settings, weights(&logits)?);
    let order = match strategy {
        Strategy::Bolt => {
            let frames = bolt(&best, k, settings.bolt)?;
            return Ok(Selection::of(frames, mass_weights(&best, settings)));
        }
        Strategy::QFrame => return draw_sizes(&logits, scores, k),
        Strategy::F2c => return grow_clips(&best, scores, k, best_weights),
        Strategy::Aks => aks(&best, k, settings.aks)?,
        Strategy::BinMax => bin_max(&best, k)?,
        Strategy::Mdp3 => mdp3(&best, features(strategy, scores)?, k, settings.mdp3)?,
        Strategy::Dpp => dpp_order(&best, features(strategy, scores)?, k, settings.dpp)?,
        Strategy::Focus => {
            let mut look = |frames: &[usize]| Ok(frames.iter().map(|&frame| best[frame]).collect());
            focus(scores.frames, k, &settings.focus, scores.seed, &mut look)?.frames
        }
        Strategy::Qca => {
            // In place of the probabilities of a match: cosines are all alike far from 0.
            let matches = unit(&best).unwrap_or_else(|| vec![1.; best.len()]);
            let matches: Vec<f32> = matches.into_iter().map(|score| score as f32).collect();
            qca(&matches, features(strategy, scores)?, k, settings.qca)?
        }
        _ => descending(&best, k)?,
    };
    Ok(Selection::of(order, best_weights))
}

/// BOLT's curve as a distribution.
fn mass_weights(best: &[f32], settings: &Settings) -> Vec<f32> {
    let mass = mass(best, settings.bolt.power).unwrap_or_else(|| vec![1.; best.len()]);
    let total: f64 = mass.iter().sum();
    mass.into_iter().map(|mass| (mass / total) as f32).collect()
}

fn draw_sizes(logits: &[f32], scores: &Scores, k: usize) -> Result<Selection> {
    let (settings, t) = (&scores.settings, scores.frames);
    let levels = match settings.resolution {
        Resolution::Full => Levels::full(k),
        Resolution::Adaptive => Levels::mixed(k, t),
    };
    let order = q_frame(logits, levels, settings.q_frame, scores.seed)?;
    let tempered = tempered(logits, settings.q_frame)?;
    let log_prob = Some(draw_log_prob(&tempered, &order)?);
    let mut sized: Vec<(usize, f32)> =
        order.iter().enumerate().map(|(at, &frame)| (frame, levels.scale(at))).collect();
    sized.sort_unstable_by_key(|one| one.0);
    let selection = Selection { log_prob, ..Selection::of(order, weights(&tempered)?) };
    Ok(match settings.resolution {
        Resolution::Full => selection,
        Resolution::Adaptive => {
            Selection { scales: sized.into_iter().map(|one| one.1).collect(), ..selection }
        }
    })
}

fn grow_clips(best: &[f32], scores: &Scores, k: usize, weights: Vec<f32>) -> Result<Selection> {
    let settings = match scores.settings.resolution {
        Resolution::Full => F2c { shrink: 1., ..scores.settings.f2c },
        Resolution::Adaptive => scores.settings.f2c,
    };
    let clips = f2c(best, scores.features.as_ref(), k, settings)?;
    let frames = clips.frames();
    let scales = match scores.settings.resolution {
        Resolution::Full => vec![],
        Resolution::Adaptive => vec![clips.scale; frames.len()],
    };
    Ok(Selection { scales, clips: clips.clips, ..Selection::of(frames, weights) })
}

fn features(strategy: Strategy, scores: &Scores) -> Result<&Features> {
    let missing = || Error::Input(format!("{strategy}: needs features of the frames, got none"));
    let features = scores.features.as_ref().ok_or_else(missing)?;
    features.check(strategy.name(), scores.frames)?;
    Ok(features)
}

/// Each frame's largest similarity over the queries.
fn best_similarity(strategy: Strategy, scores: &Scores) -> Result<Vec<f32>> {
    let rows = scores.similarity.as_deref().unwrap_or_default();
    if rows.is_empty() {
        return Err(Error::Input(format!("{strategy}: needs similarities to at least one query, got none")));
    }
    let mut best = vec![f32::NEG_INFINITY; scores.frames];
    for (query, row) in rows.iter().enumerate() {
        check_length(&format!("{strategy}: similarities of query {query}"), row.len(), scores.frames)?;
        for (frame, (best, &cosine)) in best.iter_mut().zip(row).enumerate() {
            if !cosine.is_finite() {
                return Err(Error::Input(format!(
                    "{strategy}: similarity of query {query} and frame {frame} is {cosine}"
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
