//! From logits to the next token, tensor-free: penalty, temperature, top-k, top-p, draw.
//!
//! The order and the rules of transformers 4.51.3 `generation/logits_process.py`.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;

use crate::error::{Error, Result};

/// How a token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise logits are divided by it before the draw.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Logits of tokens that already occurred are divided (positive) or multiplied (negative) by this; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of the draws; generation `i` of a call uses a generator derived from (seed, i).
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, no penalty.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting and its range.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &str, range: &str, got: f32| {
            Err(Error::Input(format!("{what} must be {range}, got {got}")))
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", "0 or more", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", "in (0, 1]", self.top_p);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong("repetition_penalty", "more than 0", self.repetition_penalty);
        }
        Ok(())
    }
}

/// Tokens a sequence has seen, for the repetition penalty.
pub type Seen = BTreeSet<u32>;

/// Natural logarithm of the sum of `exp(logit / temperature)`.
pub fn log_sum_exp(logits: &[f32], temperature: f32) -> f32 {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, x| top.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(((x - top) / temperature).exp())).sum();
    top / temperature + sum.ln() as f32
}

/// The next token for `logits` (V,), and its logit as the model gave it.
///
/// # Errors
/// Logits that are not finite: the weights are damaged or the activations overflowed.
pub fn next_token(
    logits: Vec<f32>,
    sampling: &Sampling,
    seen: &Seen,
    rng: &mut StdRng,
) -> Result<(u32, f32)> {
    if let Some(at) = logits.iter().position(|x| !x.is_finite()) {
        return Err(Error::Input(format!(
            "the logit of token {at} is {}; the weights are damaged or the dtype overflows",
            logits[at]
        )));
    }
    let mut shaped = logits.clone();
    penalise(&mut shaped, sampling.repetition_penalty, seen);
    let token = if sampling.temperature == 0.0 { argmax(&shaped) } else { drawn(shaped, sampling, rng) };
    Ok((token, logits[token as usize]))
}

/// A draw from the softmax of `logits` at the temperature, cut to top-k and top-p.
fn drawn(mut logits: Vec<f32>, sampling: &Sampling, rng: &mut StdRng) -> u32 {
    logits.iter_mut().for_each(|x| *x /= sampling.temperature);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    if sampling.top_k > 0 && sampling.top_k < order.len() {
        let least = logits[order[sampling.top_k - 1] as usize];
        order.retain(|id| logits[*id as usize] >= least);
    }
    let top = f64::from(logits[order[0] as usize]);
    let weights: Vec<f64> = order.iter().map(|id| (f64::from(logits[*id as usize]) - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let kept = nucleus(&weights, total * f64::from(sampling.top_p));
    let mass: f64 = weights[..kept].iter().sum();
    let mut left = rng.random::<f64>() * mass;
    for (id, weight) in order.iter().zip(&weights[..kept]) {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    order[kept - 1]
}

/// How many of the descending `weights` are needed to reach `mass`; at least one.
fn nucleus(weights: &[f64], mass: f64) -> usize {
    let mut sum = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        sum += weight;
        if sum >= mass {
            return i + 1;
        }
    }
    weights.len()
}

fn penalise(logits: &mut [f32], penalty: f32, seen: &Seen) {
    if penalty == 1.0 {
        return;
    }
    for id in seen {
        if let Some(x) = logits.get_mut(*id as usize) {
            *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
        }
    }
}

/// Index of the largest value, the lowest on ties.
pub fn argmax(xs: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in xs.iter().enumerate() {
        if *x > xs[best] {
            best = i;
        }
    }
    best as u32
}
