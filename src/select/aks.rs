//! AKS (arXiv 2502.21271): the video is halved where its best frames do not stand out, and every part gives its share.
//!
//! Differs from the published code: a part is not halved when its share would be less than one frame (which gives no frames at
//! all there, for K below 2^depth), shares that do not add up to K are completed by the best frames left, and constant scores
//! give evenly spaced frames instead of NaN. The second threshold, on the standard deviation, is left out: its published value
//! of -100 makes it always true.

use std::ops::Range;

use super::curve::{ascending, falling, finite, unit};
use super::fill::fill;
use super::uniform::uniform;
use crate::error::Result;

/// Settings of [`aks`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aks {
    /// A part stays whole when the mean of its best frames exceeds its mean by more than this (`t1`), on scores in [0, 1].
    /// Published: 0.8 for Video-MME, 0.2 for LongVideoBench.
    pub threshold: f64,
    /// How often a part may be halved (`all_depth`). Published: 5 for Video-MME, 3 for LongVideoBench.
    pub depth: u32,
}

impl Default for Aks {
    fn default() -> Self {
        Self { threshold: 0.8, depth: 5 }
    }
}

/// `k` frames, the best `k / 2^depth` of each part of an adaptively halved video, ascending; all frames when `k` is not below
/// their number, evenly spaced ones for constant scores. Of equal scores the lower index wins.
///
/// `scores` (T,) in any affine scale. A part has "best frames" enough to compare: the `k` best, whatever its share.
///
/// # Errors
/// A score that is not finite.
///
/// ```
/// use msjoe::select::{Aks, aks};
/// let scores = [0.9, 0.8, 0.7, 0.1, 0., 0.2, 0.1, 0.3];
/// assert_eq!(aks(&scores, 2, Aks { threshold: 0.8, depth: 1 })?, [0, 7]);
/// # Ok::<(), msjoe::Error>(())
/// ```
pub fn aks(scores: &[f32], k: usize, settings: Aks) -> Result<Vec<usize>> {
    finite("aks", scores)?;
    let Some(unit) = unit(scores).filter(|_| k > 0 && k < scores.len()) else {
        return Ok(uniform(scores.len(), k));
    };
    let mut chosen = vec![];
    split(&unit, 0..unit.len(), 0, (k, settings), &mut chosen);
    let preference: Vec<f64> = unit.iter().map(|score| score + 1.).collect();
    Ok(ascending(fill(&chosen, &preference, k)))
}

fn split(unit: &[f64], part: Range<usize>, depth: u32, how: (usize, Aks), chosen: &mut Vec<usize>) {
    let (k, settings) = how;
    let here = &unit[part.clone()];
    let order = falling(here);
    let mean = |of: &mut dyn Iterator<Item = f64>, count: usize| of.sum::<f64>() / count as f64;
    let best = k.min(here.len());
    let margin = mean(&mut order[..best].iter().map(|&at| here[at]), best)
        - mean(&mut here.iter().copied(), here.len());
    // `k < 2^depth` without overflow: the next share would be empty, or the part is.
    let divisible = k.checked_shr(depth + 1).unwrap_or(0) > 0;
    if margin > settings.threshold || depth >= settings.depth || !divisible {
        chosen.extend(order.iter().take(k >> depth).map(|&at| part.start + at));
        return;
    }
    let middle = part.start + here.len() / 2;
    split(unit, part.start..middle, depth + 1, how, chosen);
    split(unit, middle..part.end, depth + 1, how, chosen);
}
