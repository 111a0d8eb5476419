//! The loss of the sampler: REINFORCE on draws of frames (arXiv 2602.22932, section 3).
//!
//! `-sum over draws of advantage * log pi(picks)`, with `pi` the exact probability of the ordered draw without replacement; the
//! paper's sum of independent log-probabilities is offered for comparison. Advantages come from [`super::advantage`].

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use super::objective::check_settings;
use super::tally::Tally;
use crate::error::{Error, Result};
use crate::select::{Apart, independent_log_prob, log_prob, log_prob_apart};

/// How probable a draw is taken to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probability {
    /// Plackett-Luce, which is what the draw does.
    #[default]
    PlackettLuce,
    /// The printed form: each pick for itself.
    Independent,
}

/// Settings of the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReinforceConfig {
    /// Probability of a draw.
    pub probability: Probability,
    /// Weight of the mean entropy of the sampling weights, in nats, that is taken off the loss.
    pub entropy_bonus: f64,
}

impl ReinforceConfig {
    /// Whether the settings are numbers.
    ///
    /// # Errors
    /// An entropy bonus that is not finite.
    pub fn check(&self) -> Result<()> {
        check_settings(&[("reinforce: entropy_bonus", self.entropy_bonus, f64::MIN..=f64::MAX)])
    }
}

/// A draw of key frames from the sampler's logits, and what came of it.
#[derive(Debug, Clone, Copy)]
pub struct Drawn<'a> {
    /// (T,) before the softmax, tracked; several draws may share one tensor.
    pub logits: &'a Tensor,
    /// The frames in the order in which they were drawn.
    pub picks: &'a [usize],
    /// What the draw was worth.
    pub advantage: f64,
    /// What kept the frames apart, if anything did.
    pub apart: Option<Apart<'a>>,
}

/// The loss of a micro-batch of draws.
#[derive(Debug)]
pub struct ReinforceLoss {
    /// Scalar, tracked through the logits.
    pub loss: Tensor,
    /// `sampler/entropy`, the mean entropy of the weights; `sampler/log_prob`, that of a draw; `sampler/policy_loss`, which adds up.
    pub metrics: Tally,
}

/// The loss of `draws` as their share of an optimizer step with `total` draws: `-1 / total * sum of advantage * log pi`, less the
/// entropy bonus. The losses of all micro-batches of a step add up to the loss of one batch.
///
/// # Errors
/// No draws, a `total` below their number, an advantage that is not finite, picks that do not fit their logits, independent
/// probabilities of draws that keep apart.
pub fn reinforce_loss(draws: &[Drawn], total: usize, config: &ReinforceConfig) -> Result<ReinforceLoss> {
    config.check()?;
    let Some(first) = draws.first() else {
        return Err(Error::Input("reinforce: expected draws, got none".into()));
    };
    if total < draws.len() {
        return Err(Error::Input(format!(
            "reinforce: the step must have at least the {} draws of this batch, got {total}",
            draws.len()
        )));
    }
    if let Some(at) = draws.iter().position(|draw| !draw.advantage.is_finite()) {
        return Err(Error::Input(format!(
            "reinforce: the advantage of draw {at} is {}",
            draws[at].advantage
        )));
    }
    let log_prob_of = |draw: &Drawn| match (config.probability, draw.apart) {
        (Probability::Independent, Some(_)) => Err(Error::Input(
            "reinforce: draws whose frames keep apart have no independent probabilities".into(),
        )),
        (Probability::Independent, None) => independent_log_prob(draw.logits, draw.picks),
        (Probability::PlackettLuce, None) => log_prob(draw.logits, draw.picks),
        (Probability::PlackettLuce, Some(apart)) => log_prob_apart(draw.logits, apart, draw.picks),
    };
    let log_probs = draws.iter().map(log_prob_of).collect::<Result<Vec<_>>>()?;
    let log_probs = Tensor::stack(&log_probs, 0)?;
    let advantages: Vec<f64> = draws.iter().map(|draw| draw.advantage).collect();
    let advantages = Tensor::new(advantages, first.logits.device())?.to_dtype(log_probs.dtype())?;
    // A product of tensors: candle drops the graph of a scalar factor 0.
    let mut loss = ((&log_probs * advantages)?.sum_all()? * (-1. / total as f64))?;

    let mut metrics = Tally::default();
    let count = draws.len() as f64;
    metrics.sum("sampler/policy_loss", number(&loss)?);
    metrics.mean("sampler/log_prob", number(&log_probs.sum_all()?)?, count);
    let entropy = summed_entropy(draws, config.entropy_bonus != 0.)?;
    metrics.mean("sampler/entropy", number(&entropy)?, count);
    if config.entropy_bonus != 0. {
        let bonus = (entropy.to_dtype(loss.dtype())? * (config.entropy_bonus / total as f64))?;
        loss = (loss - bonus)?;
    }
    Ok(ReinforceLoss { loss, metrics })
}

fn number(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.to_dtype(DType::F64)?.to_scalar()?)
}

/// The entropies of all draws' weights, summed; each distribution is computed once for the draws in a row that share it.
fn summed_entropy(draws: &[Drawn], tracked: bool) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for group in draws.chunk_by(|a, b| a.logits.id() == b.logits.id()) {
        let logits = if tracked { group[0].logits.clone() } else { group[0].logits.detach() };
        let entropy = (entropy(&logits)? * group.len() as f64)?;
        sum = Some(match sum {
            Some(sum) => (sum + entropy)?,
            None => entropy,
        });
    }
    sum.ok_or_else(|| Error::Input("reinforce: expected draws, got none".into()))
}

/// Entropy, in nats, of the softmax of `logits` (T,) -> scalar (); logits of minus infinity have no part in it.
///
/// # Errors
/// As the tensor operations.
pub fn entropy(logits: &Tensor) -> Result<Tensor> {
    let wide = if logits.dtype() == DType::F64 { logits.clone() } else { logits.to_dtype(DType::F32)? };
    // 0 * -inf would be NaN: a finite number this small has weight 0 all the same.
    let log_p = candle_nn::ops::log_softmax(&wide.maximum(-1e30)?, D::Minus1)?;
    Ok((log_p.exp()? * log_p)?.sum_all()?.neg()?)
}
