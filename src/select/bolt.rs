//! BOLT (arXiv 2503.21483): inverse transform sampling of the score curve.
//!
//! Differs from the published code: no frame comes twice (marks on the same frame are replaced by the best frames left), one or
//! two frames are taken at 1/2 or at 1/4 and 3/4 of the mass instead of at its end or twice in its middle, and constant scores
//! give evenly spaced frames instead of NaN.

use super::curve::{ascending, finite, unit};
use super::fill::fill;
use super::uniform::uniform;
use crate::error::{Error, Result};

/// Settings of [`bolt`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bolt {
    /// Exponent of the curve in [0, 1]; 1 for none. Published: 3 for Video-MME and MLVU, 2.5 for LongVideoBench.
    pub power: f64,
}

impl Default for Bolt {
    fn default() -> Self {
        Self { power: 3. }
    }
}

/// `k` frames at even steps of the mass under the curve `((s - min) / (max - min))^power`, ascending and without repetition;
/// all frames when `k` is not below their number, evenly spaced ones for constant scores.
///
/// `scores` (T,) in any affine scale. Where several of the `k` steps fall on one frame, the frames of largest score not yet
/// taken stand in.
///
/// # Errors
/// A score that is not finite, a power that is not a positive number.
///
/// ```
/// use msjoe::select::{Bolt, bolt};
/// assert_eq!(bolt(&[0., 0., 1., 0., 0., 1., 0.], 2, Bolt::default())?, [2, 5]);
/// # Ok::<(), msjoe::Error>(())
/// ```
pub fn bolt(scores: &[f32], k: usize, settings: Bolt) -> Result<Vec<usize>> {
    let frames = inverse_transform(scores, k, settings)?;
    let mass = mass(scores, settings.power).unwrap_or_else(|| vec![0.; scores.len()]);
    Ok(ascending(fill(&frames, &mass, k)))
}

/// The frames at the `k` marks `1/k, ..., 1 - 1/k` of the cumulated curve, as published: ascending, and a frame with much of
/// the mass comes several times. Otherwise as [`bolt`].
///
/// # Errors
/// As [`bolt`].
pub fn inverse_transform(scores: &[f32], k: usize, settings: Bolt) -> Result<Vec<usize>> {
    finite("bolt", scores)?;
    if !(settings.power > 0. && settings.power.is_finite()) {
        let power = settings.power;
        return Err(Error::Input(format!("bolt: expected a power above 0, got {power}")));
    }
    let Some(mass) = mass(scores, settings.power).filter(|_| k < scores.len()) else {
        return Ok(uniform(scores.len(), k));
    };
    let total: f64 = mass.iter().sum();
    let (mut frame, mut below) = (0, mass[0] / total);
    let mut frames = vec![];
    for j in 0..k {
        let mark = mark(j, k);
        while below < mark && frame + 1 < mass.len() {
            frame += 1;
            below += mass[frame] / total;
        }
        frames.push(frame);
    }
    Ok(frames)
}

fn mark(j: usize, k: usize) -> f64 {
    let (j, n) = (j as f64, k as f64);
    if k < 3 { (j + 0.5) / n } else { 1. / n + j * (1. - 2. / n) / (n - 1.) }
}

/// Unnormalised; `None` for constant scores. The largest is 1, so the sum is at least that.
pub(super) fn mass(scores: &[f32], power: f64) -> Option<Vec<f64>> {
    Some(unit(scores)?.into_iter().map(|x| x.powf(power)).collect())
}
