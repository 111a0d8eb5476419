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

/// `k` frames spread over the distribution without randomness, ascending: systematic sampling (Madow 1949) begun halfway,
/// with inclusion probabilities proportional to `exp(logit)`. A frame whose share of the `k` is one or more is surely taken,
/// and the others share what is left; so equal logits give evenly spaced frames, and two equal peaks get half of them each.
/// A logit of minus infinity excludes its frame.
///
/// # Errors
/// As [`draw`].
pub fn spread(logits: &[f32], k: usize) -> Result<Vec<usize>> {
    check(logits, k)?;
    let mut left: Vec<(usize, f64)> =
        logits.iter().enumerate().filter(|l| l.1.is_finite()).map(|(at, &l)| (at, f64::from(l))).collect();
    let mut taken = vec![];
    let shares = loop {
        let largest = left.iter().map(|one| one.1).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = left.iter().map(|one| (one.1 - largest).exp()).sum();
        let wanted = (k - taken.len()) as f64 / total;
        let shares: Vec<f64> = left.iter().map(|one| wanted * (one.1 - largest).exp()).collect();
        let sure = |share: &f64| *share >= 1.0;
        if !shares.iter().any(sure) {
            break shares;
        }
        let surely = left.iter().zip(&shares).filter(|(_, share)| sure(share)).map(|(one, _)| one.0);
        taken.extend(surely);
        let mut shares = shares.iter();
        left.retain(|_| shares.next().is_some_and(|share| !sure(share)));
    };
    // Each frame spans less than one, so that no two of the marks 0.5, 1.5, ... lie in the same.
    let (mut below, mut mark) = (0.0, 0.5);
    for (&(at, _), share) in left.iter().zip(shares) {
        below += share;
        if below > mark && taken.len() < k {
            taken.push(at);
            mark += 1.0;
        }
    }
    taken.sort_unstable();
    Ok(taken)
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

pub(super) fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
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
