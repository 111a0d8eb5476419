//! Draws whose frames keep apart: beside its weight a frame counts by what those drawn before it do not show.
//!
//! Each frame is taken with probability proportional to `exp(logit) * d^(2 * strength)`, with `d` the distance of its embedding
//! (at length 1) from the span of those taken before. A strength of 0 is [`super::draw`]; at 1, the products of the factors are the
//! determinants that [`super::dpp`] makes large. Ours: the paper's draw (arXiv 2602.22932) knows no such factor.

use candle_core::Tensor;
use rand::Rng;
use rand::distr::Open01;
use rand::rngs::StdRng;

use super::draw::{check, check_picks, log_sum_exp};
use super::features::{Features, dot};
use super::log_prob::{EXCLUDED, checked};
use crate::error::{Error, Result};

// Squared distances below are rounding; a frame that repeats others keeps this much, so that K frames can always be drawn.
const SMALLEST: f64 = 1e-6;

/// What keeps the frames of a draw apart.
#[derive(Debug, Clone, Copy)]
pub struct Apart<'a> {
    /// Embeddings of the candidate frames (T, D).
    pub features: &'a Features,
    /// How much it counts beside the weights; 0 is not at all.
    pub strength: f64,
}

impl Apart<'_> {
    /// What is added to the `T` logits before each step of `picks`, (K, T): `strength * ln d^2`, and 0 in the first row.
    fn offsets(&self, picks: &[usize]) -> Vec<Vec<f64>> {
        let mut rest = Rest::new(self.features);
        let of_step = |&pick: &usize| {
            let offsets = (0..self.features.len()).map(|frame| self.offset(&rest, frame)).collect();
            rest.take(pick);
            offsets
        };
        picks.iter().map(of_step).collect()
    }

    fn offset(&self, rest: &Rest, frame: usize) -> f64 {
        self.strength * rest.squared[frame].max(SMALLEST).ln()
    }

    fn check(&self, logits: usize) -> Result<()> {
        if !(0.0..=MOST).contains(&self.strength) {
            let strength = self.strength;
            return Err(Error::Input(format!("apart: expected a strength from 0 to {MOST}, got {strength}")));
        }
        self.features.check("apart", logits)
    }
}

/// The largest strength: frames of one scene never stand side by side then.
pub const MOST: f64 = 100.0;

/// `k` frames drawn one after another, in draw order. A logit of minus infinity excludes its frame. One number is taken from `rng` per
/// frame left and step, in order.
///
/// O(T k D).
///
/// # Errors
/// As [`super::draw`]; features of another number of frames, a strength out of range.
pub fn draw_apart(logits: &[f32], apart: Apart, k: usize, rng: &mut StdRng) -> Result<Vec<usize>> {
    one_by_one(logits, apart, k, || -(-rng.sample::<f64, _>(Open01).ln()).ln())
}

/// The `k` frames that are each the most probable to be drawn next, in this order; of equals the first.
///
/// # Errors
/// As [`draw_apart`].
pub fn take_apart(logits: &[f32], apart: Apart, k: usize) -> Result<Vec<usize>> {
    one_by_one(logits, apart, k, || 0.0)
}

fn one_by_one(logits: &[f32], apart: Apart, k: usize, mut noise: impl FnMut() -> f64) -> Result<Vec<usize>> {
    check(logits, k)?;
    apart.check(logits.len())?;
    let mut rest = Rest::new(apart.features);
    let mut left: Vec<usize> = (0..logits.len()).filter(|&frame| logits[frame].is_finite()).collect();
    let mut picks = vec![];
    while picks.len() < k {
        let (mut best, mut most) = (0, f64::NEG_INFINITY);
        for (at, &frame) in left.iter().enumerate() {
            let key = f64::from(logits[frame]) + apart.offset(&rest, frame) + noise();
            if key > most {
                (best, most) = (at, key);
            }
        }
        let frame = left.remove(best);
        rest.take(frame);
        picks.push(frame);
    }
    Ok(picks)
}

/// Natural logarithm of the probability that [`draw_apart`] returns exactly `picks`, in f64.
///
/// # Errors
/// As [`log_prob_apart`], and as [`draw_apart`] for `picks.len()` frames.
pub fn draw_apart_log_prob(logits: &[f32], apart: Apart, picks: &[usize]) -> Result<f64> {
    check(logits, picks.len())?;
    check_picks(picks, logits.len())?;
    apart.check(logits.len())?;
    let mut total = 0.0;
    for (step, offsets) in apart.offsets(picks).iter().enumerate() {
        let key = |frame: usize| f64::from(logits[frame]) + offsets[frame];
        let left = (0..logits.len()).filter(|frame| !picks[..step].contains(frame)).map(key);
        total += key(picks[step]) - log_sum_exp(left);
    }
    Ok(if total.is_nan() { f64::NEG_INFINITY } else { total })
}

/// [`draw_apart_log_prob`] with the exact gradient of the logits: `logits` (T,) -> scalar (), f32 (f64 for f64 logits). No picks have
/// log-probability 0. O(T K) memory.
///
/// # Errors
/// Logits that are not of shape (T,), a pick that is out of range or occurs twice, features of another number of frames, a
/// strength out of range.
pub fn log_prob_apart(logits: &Tensor, apart: Apart, picks: &[usize]) -> Result<Tensor> {
    let logits = checked(logits, picks)?;
    let (frames, device) = (logits.dim(0)?, logits.device());
    apart.check(frames)?;
    if picks.is_empty() {
        return Ok((logits.sum_all()? * 0.)?);
    }
    let mut offsets = apart.offsets(picks);
    for (step, offsets) in offsets.iter_mut().enumerate() {
        picks[..step].iter().for_each(|&gone| offsets[gone] = EXCLUDED);
    }
    let of_picks: Vec<f64> = offsets.iter().zip(picks).map(|(offsets, &pick)| offsets[pick]).collect();
    let tensor = |values: Vec<f64>| Tensor::new(values, device)?.to_dtype(logits.dtype());
    let indices: Vec<u32> = picks.iter().map(|&pick| pick as u32).collect();
    let picked = (logits.index_select(&Tensor::new(indices, device)?, 0)? + tensor(of_picks)?)?;
    let offsets = tensor(offsets.concat())?.reshape((picks.len(), frames))?;
    let normalisers = logits.unsqueeze(0)?.broadcast_add(&offsets)?.log_sum_exp(1)?;
    Ok((picked - normalisers)?.sum_all()?)
}

/// What is left of every embedding when those of the frames taken are projected out of it.
struct Rest<'a> {
    features: &'a Features,
    /// Squared lengths, (T,).
    squared: Vec<f64>,
    /// Orthonormal, over the frames taken.
    basis: Vec<Vec<f32>>,
}

impl<'a> Rest<'a> {
    fn new(features: &'a Features) -> Self {
        // An embedding of length 0 shows nothing.
        let squared = features.rows().map(|row| if dot(row, row) > 0.0 { 1.0 } else { 0.0 }).collect();
        Self { features, squared, basis: vec![] }
    }

    fn take(&mut self, frame: usize) {
        let mut direction = self.features.row(frame).to_vec();
        // Twice: once leaves rounding along the others behind.
        for axis in self.basis.iter().chain(&self.basis) {
            let along = dot(axis, &direction);
            direction.iter_mut().zip(axis).for_each(|(x, axis)| *x -= along * axis);
        }
        let length = dot(&direction, &direction).sqrt();
        if f64::from(length).powi(2) <= SMALLEST {
            return;
        }
        direction.iter_mut().for_each(|x| *x /= length);
        for (squared, row) in self.squared.iter_mut().zip(self.features.rows()) {
            *squared -= f64::from(dot(&direction, row)).powi(2);
        }
        self.basis.push(direction);
    }
}
