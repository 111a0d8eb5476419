//! QCA: every segment of the video gets frames by its variety and its fit to the question, and spreads them over what it shows.
//! ECCV 2026, read from its published code.
//!
//! Differs from the published code: a segment of one frame has no variance instead of NaN, and the threshold of the pool is given
//! up where no frame of a segment scores above 0, instead of being halved for ever.

use std::ops::Range;

use super::curve::{ascending, falling, finite, largest, softmax};
use super::features::Features;
use super::uniform::uniform;
use crate::error::{Error, Result};

// Published: of the differences between segments, and of their sum.
const TEMPERATURE: f64 = 0.5;
// Published: the part of the best score that a frame of the pool must have, and the share of variety in a segment's weight.
const POOL: f64 = 0.5;
const VARIETY: f64 = 0.5;

/// Settings of [`qca`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qca {
    /// Segments of the video, as even as they can be. Published: 16.
    pub segments: usize,
}

impl Default for Qca {
    fn default() -> Self {
        Self { segments: 16 }
    }
}

/// `k` frames, ascending; all frames when `k` is not below their number. Of equals the earlier frame or segment wins.
///
/// `scores` (T,): probabilities that frame and question match, from 0; `features` (T, D). O(T D) and the farthest-point
/// sampling, O(k D T / segments) at most.
///
/// # Errors
/// A score that is not finite, features of another length, no segments.
pub fn qca(scores: &[f32], features: &Features, k: usize, settings: Qca) -> Result<Vec<usize>> {
    finite("qca", scores)?;
    features.check("qca", scores.len())?;
    let (n, segments) = (scores.len(), settings.segments.min(scores.len()));
    if settings.segments == 0 {
        return Err(Error::Input("qca: expected at least 1 segment, got 0".to_owned()));
    }
    if k == 0 || k >= n {
        return Ok(uniform(n, k));
    }
    let scores: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
    // The first segments take what does not divide.
    let start = |s: usize| s * (n / segments) + s.min(n % segments);
    let parts: Vec<Range<usize>> = (0..segments).map(|s| start(s)..start(s + 1)).collect();
    let quotas = quotas(&weights(&scores, features, &parts), &parts, k);
    let chosen =
        parts.into_iter().zip(quotas).flat_map(|(part, quota)| spread(&scores, features, part, quota));
    Ok(ascending(chosen.collect()))
}

/// Of each segment: half its variety (distance of its mean from the video's, and variance), half its mean score.
fn weights(scores: &[f64], features: &Features, parts: &[Range<usize>]) -> Vec<f64> {
    let means: Vec<Vec<f64>> = parts.iter().map(|part| mean(features, part.clone())).collect();
    let mut whole = vec![0.; features.width()];
    for (part, mean) in parts.iter().zip(&means) {
        let share = part.len() as f64 / scores.len() as f64;
        whole.iter_mut().zip(mean).for_each(|(sum, x)| *sum += share * x);
    }
    let apart: Vec<f64> = means.iter().map(|mean| squared(mean.iter().zip(&whole))).collect();
    let spreads = parts.iter().zip(&means).map(|(part, mean)| {
        // Rows of length 1: the mean of their squared distances from the mean is what it lacks to length 1.
        let lengths: f64 = part.clone().map(|frame| features.cosine(frame, frame)).sum();
        let total = lengths - part.len() as f64 * squared(mean.iter().map(|x| (x, &0.)));
        if part.len() > 1 { total.max(0.) / (part.len() - 1) as f64 } else { 0. }
    });
    let spreads: Vec<f64> = spreads.collect();
    let apart = softmax(&apart, TEMPERATURE);
    let sums: Vec<f64> = apart.iter().zip(softmax(&spreads, TEMPERATURE)).map(|(a, b)| a + b).collect();
    let fits: Vec<f64> =
        parts.iter().map(|part| scores[part.clone()].iter().sum::<f64>() / part.len() as f64).collect();
    let variety = softmax(&sums, TEMPERATURE);
    variety.iter().zip(softmax(&fits, 1.)).map(|(v, fit)| VARIETY * v + (1. - VARIETY) * fit).collect()
}

fn mean(features: &Features, part: Range<usize>) -> Vec<f64> {
    let mut sum = vec![0.; features.width()];
    let count = part.len() as f64;
    for frame in part {
        sum.iter_mut().zip(features.row(frame)).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sum.iter_mut().for_each(|x| *x /= count);
    sum
}

fn squared<'a>(pairs: impl Iterator<Item = (&'a f64, &'a f64)>) -> f64 {
    pairs.map(|(x, y)| (x - y).powi(2)).sum()
}

/// `k` shared in proportion to the weights by largest remainders, none above its segment's frames; what does not fit goes to the
/// segments of largest weight that have room.
fn quotas(weights: &[f64], parts: &[Range<usize>], k: usize) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|weight| k as f64 * weight / total).collect();
    let mut quotas: Vec<usize> = shares.iter().map(|share| share.floor() as usize).collect();
    let remainders: Vec<f64> = shares.iter().map(|share| share.fract()).collect();
    let left = k.saturating_sub(quotas.iter().sum());
    falling(&remainders).into_iter().take(left).for_each(|s| quotas[s] += 1);
    quotas.iter_mut().zip(parts).for_each(|(quota, part)| *quota = (*quota).min(part.len()));
    for s in falling(weights) {
        let missing = k.saturating_sub(quotas.iter().sum());
        quotas[s] += missing.min(parts[s].len() - quotas[s]);
    }
    quotas
}

/// The best frame of a segment, and then from its good ones always the one farthest from those taken.
fn spread(scores: &[f64], features: &Features, part: Range<usize>, quota: usize) -> Vec<usize> {
    let Some(anchor) = largest(scores, part.clone()).filter(|_| quota > 0) else { return vec![] };
    let mut threshold = POOL * scores[anchor];
    let good = |threshold: f64| part.clone().filter(move |&frame| scores[frame] >= threshold);
    if part.clone().filter(|&frame| scores[frame] > 0.).count() < quota {
        threshold = f64::NEG_INFINITY;
    }
    while good(threshold).count() < quota {
        threshold /= 2.;
    }
    let pool: Vec<usize> = good(threshold).collect();
    let mut distances = vec![f64::INFINITY; pool.len()];
    let (mut chosen, mut last) = (vec![anchor], anchor);
    while chosen.len() < quota {
        for (distance, &frame) in distances.iter_mut().zip(&pool) {
            // Taken ones must not come again, however near the others are.
            let from_last = if frame == last { f64::NEG_INFINITY } else { features.distance(frame, last) };
            *distance = distance.min(from_last);
        }
        let Some(next) = largest(&distances, 0..pool.len()) else { break };
        last = pool[next];
        chosen.push(last);
    }
    chosen
}
