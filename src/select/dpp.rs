//! Greedy selection by a determinantal point process: frames that fit the question and differ from each other. The fast greedy
//! algorithm of Chen et al. (arXiv 1709.05135).
//!
//! Differs from the published code: where no further frame adds volume (repeated frames), the choice is completed with the best
//! frames left instead of staying short.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::curve::{ascending, finite, unit};
use super::features::Features;
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
/// `scores` (T,) in any affine scale, `features` (T, D). O(T k (k + D)) at most.
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
    let chosen = greedy(&quality, k, SMALLEST_F32, |a, b| features.cosine(a, b))?;
    Ok(fill(&chosen, &unit, k))
}

/// Up to `k` items that make the determinant of `L_ij = quality_i quality_j kernel(i, j)` large, in the order in which they are
/// taken: each adds the most to it, of equal ones the first. Ends early when no item left adds more than rounding.
///
/// `quality` (N,), not negative; `kernel` is symmetric and positive semi-definite, with 0 for an item with itself that is never
/// to be taken. What an item would add only falls as others are taken, so that it is computed anew only where it could be the
/// largest: mostly far from the N k kernel values of the plain algorithm, which chooses the same.
///
/// # Errors
/// A quality that is negative or not finite, a kernel value that is not finite.
pub fn greedy_map(quality: &[f64], k: usize, kernel: impl Fn(usize, usize) -> f64) -> Result<Vec<usize>> {
    greedy(quality, k, SMALLEST, kernel)
}

fn greedy(
    quality: &[f64],
    k: usize,
    smallest: f64,
    kernel: impl Fn(usize, usize) -> f64,
) -> Result<Vec<usize>> {
    if let Some(at) = quality.iter().position(|q| !(*q >= 0. && q.is_finite())) {
        let q = quality[at];
        return Err(Error::Input(format!("dpp: quality {at} is {q}, expected a finite number from 0")));
    }
    // The choice does not depend on the scale, and squares of these stay in range.
    let most = quality.iter().copied().fold(0., f64::max).max(f64::MIN_POSITIVE);
    let entry = |i: usize, j: usize| match kernel(i, j) * (quality[i] / most) * (quality[j] / most) {
        value if value.is_finite() => Ok(value),
        value => Err(Error::Input(format!("dpp: kernel value ({i}, {j}) is {value}"))),
    };
    let mut heap = BinaryHeap::new();
    for item in 0..quality.len() {
        let length = entry(item, item)?;
        heap.push(Item { gain: length, item, floor: smallest * length, factor: vec![] });
    }
    // Those taken, each with the components of its direction along those before it and its own length.
    let mut taken: Vec<(usize, Vec<f64>, f64)> = vec![];
    while let Some(mut best) = heap.pop().filter(|_| taken.len() < k) {
        if best.gain <= best.floor {
            continue;
        }
        if best.factor.len() == taken.len() {
            taken.push((best.item, best.factor, best.gain.sqrt()));
            continue;
        }
        for (other, factor, length) in &taken[best.factor.len()..] {
            let known: f64 = factor.iter().zip(&best.factor).map(|(a, b)| a * b).sum();
            let along = (entry(*other, best.item)? - known) / length;
            best.gain -= along * along;
            best.factor.push(along);
        }
        heap.push(best);
    }
    Ok(taken.into_iter().map(|one| one.0).collect())
}

/// An item that may be taken.
struct Item {
    /// By how much it would multiply the determinant, when it was last computed: now that or less.
    gain: f64,
    item: usize,
    /// A gain up to this is rounding.
    floor: f64,
    /// Its components along the directions of the items taken by then.
    factor: Vec<f64>,
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        // Of equals the lower index comes first.
        self.gain.total_cmp(&other.gain).then(other.item.cmp(&self.item))
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Item {}
