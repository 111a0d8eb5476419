//! Greedy selection by a determinantal point process: frames that fit the question and differ from each other. The fast greedy
//! algorithm of Chen et al. (arXiv 1709.05135).
//!
//! Differs from the published code: where no further frame adds volume (repeated frames), the choice is completed with the best
//! frames left instead of staying short.

use super::curve::{ascending, finite, unit};
use super::features::{Features, dot};
use super::fill::fill;
use super::uniform::uniform;
use crate::error::{Error, Result};

// Squared volumes below these parts of an item's own are rounding: it repeats what is chosen. For kernels in f64 and in f32.
const SMALLEST: f64 = 1e-10;
const SMALLEST_F32: f64 = 1e-6;

/// Settings of [`dpp`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpp {
    /// How much the question counts against the differences between frames: a frame's quality is `exp(relevance * s)` with its
    /// score `s` brought to [0, 1]. 0 looks at the differences alone. Ours.
    pub relevance: f64,
}

impl Default for Dpp {
    fn default() -> Self {
        Self { relevance: 3. }
    }
}

/// `k` frames of large quality and volume, ascending: greedily the largest determinant of `L_ij = q_i q_j cos(i, j)` with
/// `q = exp(relevance * s)`; all frames when `k` is not below their number. Of equal gains the lower index wins.
///
/// `scores` (T,) in any affine scale, `features` (T, D). O(T k (k + D)).
///
/// # Errors
/// A score that is not finite, features of another length, a relevance that is negative, not finite or above 100.
pub fn dpp(scores: &[f32], features: &Features, k: usize, settings: Dpp) -> Result<Vec<usize>> {
    Ok(ascending(dpp_order(scores, features, k, settings)?))
}

/// As [`dpp`], in the order in which the frames were taken.
pub(super) fn dpp_order(scores: &[f32], features: &Features, k: usize, settings: Dpp) -> Result<Vec<usize>> {
    finite("dpp", scores)?;
    features.check("dpp", scores.len())?;
    let relevance = settings.relevance;
    if !(0. ..=100.).contains(&relevance) {
        return Err(Error::Input(format!("dpp: expected a relevance from 0 to 100, got {relevance}")));
    }
    if k >= scores.len() {
        return Ok(uniform(scores.len(), k));
    }
    let unit = unit(scores).unwrap_or_else(|| vec![0.; scores.len()]);
    let quality: Vec<f64> = unit.iter().map(|score| (relevance * score).exp()).collect();
    let chosen = greedy(&quality, k, SMALLEST_F32, |frame, row| {
        let picked = features.row(frame);
        row.iter_mut().zip(features.rows()).for_each(|(out, other)| *out = f64::from(dot(picked, other)));
        row[frame] = f64::from(features.row(frame).iter().any(|x| *x != 0.));
    })?;
    Ok(fill(&chosen, &unit, k))
}

/// Up to `k` items that make the determinant of `L_ij = quality_i quality_j S_ij` large, in the order in which they are taken:
/// each adds the most to it, of equal ones the first. Ends early when no item left adds more than rounding.
///
/// `quality` (N,), not negative. `row(j, out)` writes row `j` (N,) of the kernel `S`, which is symmetric, positive semi-definite
/// and 1 on the diagonal (0 for an item that is never to be taken); it is called once per item taken.
///
/// # Errors
/// A quality that is negative or not finite, a kernel value that is not finite.
pub fn greedy_map(quality: &[f64], k: usize, row: impl FnMut(usize, &mut [f64])) -> Result<Vec<usize>> {
    greedy(quality, k, SMALLEST, row)
}

fn greedy(
    quality: &[f64],
    k: usize,
    smallest: f64,
    mut row: impl FnMut(usize, &mut [f64]),
) -> Result<Vec<usize>> {
    if let Some(at) = quality.iter().position(|q| !(*q >= 0. && q.is_finite())) {
        let q = quality[at];
        return Err(Error::Input(format!("dpp: quality {at} is {q}, expected a finite number from 0")));
    }
    // The choice does not depend on the scale, and squares of these stay in range.
    let most = quality.iter().copied().fold(0., f64::max).max(f64::MIN_POSITIVE);
    let quality: Vec<f64> = quality.iter().map(|q| q / most).collect();
    let mut volume = Volume::new(quality.iter().map(|q| q * q).collect(), smallest);
    let (mut chosen, mut kernel) = (vec![], vec![0.; quality.len()]);
    while chosen.len() < k {
        let Some(next) = volume.widest() else { break };
        if volume.is_flat(next) {
            volume.close(next);
            continue;
        }
        row(next, &mut kernel);
        if let Some(at) = kernel.iter().position(|value| !value.is_finite()) {
            let value = kernel[at];
            return Err(Error::Input(format!("dpp: kernel value ({next}, {at}) is {value}")));
        }
        if kernel[next] <= 0. {
            volume.close(next);
            continue;
        }
        kernel.iter_mut().zip(&quality).for_each(|(value, q)| *value *= q * quality[next]);
        volume.take(next, &kernel);
        chosen.push(next);
    }
    Ok(chosen)
}

/// The determinant of a growing set of items, by an incremental Cholesky factorisation.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    /// By how much each item would multiply the determinant; minus infinity for those that are in or closed.
    residual: Vec<f64>,
    /// Gains below these are rounding.
    floor: Vec<f64>,
    factors: Vec<Vec<f64>>,
}

impl Volume {
    /// Of the empty set, with the diagonal of the kernel; gains below `smallest` times an item's own length are rounding.
    pub fn new(diagonal: Vec<f64>, smallest: f64) -> Self {
        let floor = diagonal.iter().map(|length| smallest * length).collect();
        Self { residual: diagonal, floor, factors: vec![] }
    }

    /// By how much the determinant would grow, at least the item's floor.
    pub fn gain(&self, item: usize) -> f64 {
        self.residual[item].max(self.floor[item])
    }

    /// Whether what the item would add is rounding.
    pub fn is_flat(&self, item: usize) -> bool {
        self.residual[item] <= self.floor[item]
    }

    /// The item with the largest gain, the first of equals; `None` when all are in or closed.
    pub fn widest(&self) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (item, &residual) in self.residual.iter().enumerate() {
            let gain = residual.max(self.floor[item]);
            if residual > f64::NEG_INFINITY && best.is_none_or(|(_, most)| gain > most) {
                best = Some((item, gain));
            }
        }
        best.map(|(item, _)| item)
    }

    /// Takes an item out of consideration.
    pub fn close(&mut self, item: usize) {
        self.residual[item] = f64::NEG_INFINITY;
    }

    /// Adds something outside the items that each of them has the component `factor` (N,) along.
    pub fn project(&mut self, factor: Vec<f64>) {
        for (residual, value) in self.residual.iter_mut().zip(&factor) {
            *residual -= value * value;
        }
        self.factors.push(factor);
    }

    /// Adds an item, with its row of the kernel.
    pub fn take(&mut self, item: usize, row: &[f64]) {
        let length = self.gain(item).max(f64::MIN_POSITIVE).sqrt();
        let mut factor = row.to_vec();
        for earlier in &self.factors {
            let weight = earlier[item];
            factor.iter_mut().zip(earlier).for_each(|(out, value)| *out -= weight * value);
        }
        factor.iter_mut().for_each(|value| *value /= length);
        self.project(factor);
        self.close(item);
    }
}
