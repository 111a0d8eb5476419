//! The probability of a draw, with its gradient.

use candle_core::{DType, Tensor};

use super::draw::check_picks;
use crate::error::{Error, Result};

// Stands for minus infinity: its exponential is 0 beside any logit, and differences of two stay finite.
pub(super) const EXCLUDED: f64 = -1e30;

/// Natural logarithm of the probability that [`super::draw`] returns exactly `picks`, in this order: the Plackett-Luce
/// `sum_j [ z_(x_j) - logsumexp of z over the frames not drawn before step j ]`.
///
/// `logits` (T,) -> scalar (), f32 (f64 for f64 logits), with the exact gradient. No picks have log-probability 0. The paper
/// (arXiv 2602.22932) sums independent log-probabilities instead, whose gradient is biased for draws without replacement.
///
/// Every normaliser is taken about its own maximum, so that a frame with nearly all the mass does not hide the others once it
/// is drawn; memory is O(T + K^2).
///
/// # Errors
/// Logits that are not of shape (T,), a pick that is out of range or occurs twice.
pub fn log_prob(logits: &Tensor, picks: &[usize]) -> Result<Tensor> {
    let logits = checked(logits, picks)?;
    let (frames, dtype) = (logits.dim(0)?, logits.dtype());
    let (k, device) = (picks.len(), logits.device());
    if k == 0 {
        return Ok((logits.sum_all()? * 0.)?);
    }
    let mut drawn = vec![false; frames];
    for &pick in picks {
        drawn[pick] = true;
    }
    let indices = |of: Vec<u32>| Tensor::new(of, device);
    let picked = logits.index_select(&indices(picks.iter().map(|&pick| pick as u32).collect())?, 0)?;
    let rest: Vec<u32> = (0..frames as u32).filter(|&frame| !drawn[frame as usize]).collect();
    // What is left before step j: the picks from j on, and, as one term, all frames that are never drawn.
    let mut terms = vec![picked.clone()];
    if !rest.is_empty() {
        terms.push(logits.index_select(&indices(rest)?, 0)?.log_sum_exp(0)?.unsqueeze(0)?);
    }
    let terms = Tensor::cat(&terms, 0)?;
    let width = terms.dim(0)?;
    let gone = (0..k).flat_map(|step| (0..width).map(move |at| if at < step { EXCLUDED as f32 } else { 0. }));
    let gone = Tensor::from_vec(gone.collect::<Vec<_>>(), (k, width), device)?.to_dtype(dtype)?;
    let normalisers = terms.unsqueeze(0)?.broadcast_add(&gone)?.log_sum_exp(1)?;
    Ok((picked - normalisers)?.sum_all()?)
}

/// The paper's printed form: `sum_j log p(x_j)` with `p` the softmax over all frames, as if each frame were drawn anew.
///
/// `logits` (T,) -> scalar (), f32 (f64 for f64 logits). For draws without replacement it is no log-probability, and its gradient
/// points beside the true one where the weights are peaked (cosine 0.87 to 0.99); it is here to be compared with [`log_prob`].
///
/// # Errors
/// As [`log_prob`].
pub fn independent_log_prob(logits: &Tensor, picks: &[usize]) -> Result<Tensor> {
    let logits = checked(logits, picks)?;
    if picks.is_empty() {
        return Ok((logits.sum_all()? * 0.)?);
    }
    let indices: Vec<u32> = picks.iter().map(|&pick| pick as u32).collect();
    let picked = logits.index_select(&Tensor::new(indices, logits.device())?, 0)?;
    Ok((picked.sum_all()? - (logits.log_sum_exp(0)? * picks.len() as f64)?)?)
}

/// Logits (T,) in f32 or f64, those of minus infinity replaced by a number that stands for it.
pub(super) fn checked(logits: &Tensor, picks: &[usize]) -> Result<Tensor> {
    let &[frames] = logits.dims() else {
        return Err(Error::Input(format!("log_prob: expected logits (T,), got {:?}", logits.dims())));
    };
    check_picks(picks, frames)?;
    let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Ok(logits.to_dtype(dtype)?.maximum(EXCLUDED)?)
}
