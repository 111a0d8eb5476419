//! Drawing frames without replacement from the sampler's logits.

use rand::Rng;
use rand::distr::Open01;
use rand::rngs::StdRng;

use crate::error::{Error, Result};

/// `k` frames drawn one after another without replacement, each with probability proportional to `exp(logit)` among those
/// left (Plackett-Luce); in draw order. A logit of minus infinity excludes its frame.
///
/// Perturbs each logit with Gumbel noise and takes the `k` largest (Gumbel top-k, arXiv 1903.06059), which is exact. One
/// number is taken from `rng` per logit, in order.
///
/// # Errors
/// A logit that is NaN or plus infinity, or fewer than `k` frames that are not excluded.
pub fn draw(logits: &[f32], k: usize, rng: &mut StdRng) -> Result<Vec<usize>> {
    check(logits, k)?;
    // In f64: the noise of f32 numbers would tie, and cut the tail of frames with small probability.
    let key = |&logit: &f32| f64::from(logit) - (-rng.sample::<f64, _>(Open01).ln()).ln();
    let keys: Vec<f64> = logits.iter().map(key).collect();
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
    order.truncate(k);
    Ok(order)
}

/// Natural logarithm of the probability that [`draw`] returns exactly `picks`, in f64; [`super::log_prob`] is the same
/// with a gradient.
///
/// # Errors
/// As [`super::log_prob`], and as [`draw`] for `picks.len()` frames.
pub fn draw_log_prob(logits: &[f32], picks: &[usize]) -> Result<f64> {
    check(logits, picks.len())?;
    check_picks(picks, logits.len())?;
    let mut left: Vec<bool> = vec![true; logits.len()];
    for &pick in picks {
        left[pick] = false;
    }
    let rest = logits.iter().zip(&left).filter(|(_, left)| **left).map(|(&logit, _)| f64::from(logit));
    let mut normaliser = log_sum_exp(rest);
    let mut total = 0.;
    for &pick in picks.iter().rev() {
        let logit = f64::from(logits[pick]);
        normaliser = log_sum_exp([normaliser, logit].into_iter());
        total += logit - normaliser;
    }
    // A frame of probability zero, after another one: the difference of two infinities.
    Ok(if total.is_nan() { f64::NEG_INFINITY } else { total })
}

/// Softmax of the logits: the probability of each frame to be drawn first. Sums to 1.
///
/// # Errors
/// A logit that is NaN or plus infinity, or none that is finite.
pub fn weights(logits: &[f32]) -> Result<Vec<f32>> {
    check(logits, 1)?;
    let normaliser = log_sum_exp(logits.iter().map(|&logit| f64::from(logit)));
    Ok(logits.iter().map(|&logit| (f64::from(logit) - normaliser).exp() as f32).collect())
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + values.map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// Logits that define a distribution with at least `k` possible frames.
pub(super) fn check(logits: &[f32], k: usize) -> Result<()> {
    if let Some(at) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        let (logit, count) = (logits[at], logits.len());
        return Err(Error::Input(format!(
            "draw: logit {at} of {count} is {logit}, expected a number or -inf"
        )));
    }
    let possible = logits.iter().filter(|logit| logit.is_finite()).count();
    if possible < k {
        let count = logits.len();
        return Err(Error::Input(format!(
            "draw: {k} frames asked for, but only {possible} of {count} logits are finite"
        )));
    }
    Ok(())
}

/// Picks that a draw from `count` frames can have: in range, none twice.
pub(super) fn check_picks(picks: &[usize], count: usize) -> Result<()> {
    let mut seen = vec![false; count];
    for &pick in picks {
        match seen.get_mut(pick) {
            None => return Err(Error::Input(format!("log_prob: pick {pick} is outside the {count} frames"))),
            Some(true) => return Err(Error::Input(format!("log_prob: frame {pick} is picked twice"))),
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}
