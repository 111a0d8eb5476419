//! The per-token terms of the GRPO family, with their derivatives: plain numbers, to be read beside the papers.
//!
//! As TRL (commit f2cd577, July 2026) computes them; checked against it value by value and gradient by gradient.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which loss; together they decide the term of a token and how the tokens are added up. `n` are the loss tokens of a completion,
/// `N` those of the optimizer step, `B` its completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Clipped ratio; every completion counts alike: 1 / (n B) (arXiv 2402.03300).
    Grpo,
    /// Clipped ratio; every token counts alike: 1 / N. TRL divides by the tokens of the micro-batch, we by those of the step.
    Bnpo,
    /// Clipped ratio; 1 / (B max_completion_length), which has no bias towards short right answers (arXiv 2503.20783).
    DrGrpo,
    /// Clipped ratio; every token counts alike: 1 / N (arXiv 2503.14476).
    Dapo,
    /// REINFORCE with a capped ratio as weight, so that no token is dropped; 1 / N (arXiv 2506.13585).
    Cispo,
    /// A soft gate in place of the clip; 1 / (n B) (arXiv 2511.20347).
    Sapo,
    /// Clipped sequence ratio times the length of the completion; 1 / B.
    Luspo,
    /// REINFORCE with a gamma-shaped weight on the ratio of the whole completion; 1 / N.
    Vespo,
}

impl LossType {
    /// Whether the term is the clipped surrogate.
    pub(super) fn clips(self) -> bool {
        matches!(self, Self::Grpo | Self::Bnpo | Self::DrGrpo | Self::Dapo | Self::Luspo)
    }

    /// Whether the entropy bonus is divided by all loss tokens, not by those above the entropy threshold.
    pub(super) fn per_token_of_step(self) -> bool {
        matches!(self, Self::Dapo | Self::Cispo | Self::Vespo)
    }
}

/// Of what the importance ratio is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// Of each token.
    Token,
    /// Of a completion: the geometric mean over its loss tokens (GSPO, arXiv 2507.18071).
    Sequence,
}

/// Temperatures of [`LossType::Sapo`] by the sign of the advantage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sapo {
    /// Advantage above 0.
    pub positive: f64,
    /// Advantage of 0 and below.
    pub negative: f64,
}

impl Default for Sapo {
    fn default() -> Self {
        Self { positive: 1., negative: 1.05 }
    }
}

/// Weights `e^lambda w^k e^(-lambda w)` of [`LossType::Vespo`] by the sign of the advantage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vespo {
    /// `k` at advantages of 0 and above.
    pub k_positive: f64,
    /// `lambda` at advantages of 0 and above.
    pub lambda_positive: f64,
    /// `k` below.
    pub k_negative: f64,
    /// `lambda` below.
    pub lambda_negative: f64,
}

impl Default for Vespo {
    fn default() -> Self {
        Self { k_positive: 2., lambda_positive: 3., k_negative: 3., lambda_negative: 2. }
    }
}

impl Vespo {
    /// The weight of a completion whose summed log-ratio is `log_ratio`.
    pub(super) fn weight(&self, advantage: f64, log_ratio: f64) -> f64 {
        let (k, lambda) = match advantage >= 0. {
            true => (self.k_positive, self.lambda_positive),
            false => (self.k_negative, self.lambda_negative),
        };
        let (log_w, lambda) = (log_ratio.clamp(1e-8f64.ln(), 20.), lambda.max(1e-4));
        let weight = (lambda + k * log_w - lambda * log_w.exp()).exp();
        if weight.is_finite() { weight } else { 0. }
    }
}

/// The clip range of the ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Clip {
    pub low: f64,
    pub high: f64,
    /// Upper bound of the unclipped branch.
    pub delta: f64,
}

/// A term, and its derivatives with respect to the ratio and, at a constant ratio, to the log-probability.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Term {
    pub value: f64,
    pub by_ratio: f64,
    pub by_log_prob: f64,
}

impl Term {
    /// `-min( min(ratio, delta) A, clamp(ratio, low, high) A )`
    pub fn clipped(ratio: f64, advantage: f64, clip: Clip) -> Self {
        let free = ratio.min(clip.delta) * advantage;
        let bounded = ratio.clamp(clip.low, clip.high) * advantage;
        let (value, moves) = match free <= bounded {
            true => (free, ratio <= clip.delta),
            false => (bounded, (clip.low..=clip.high).contains(&ratio)),
        };
        Self { value: -value, by_ratio: if moves { -advantage } else { 0. }, by_log_prob: 0. }
    }

    /// `-A sigmoid(tau (ratio - 1)) 4 / tau`
    pub fn sapo(ratio: f64, advantage: f64, temperatures: Sapo) -> Self {
        let tau = if advantage > 0. { temperatures.positive } else { temperatures.negative };
        let gate = 1. / (1. + (-tau * (ratio - 1.)).exp());
        let by_ratio = -advantage * gate * (1. - gate) * 4.;
        Self { value: -advantage * gate * 4. / tau, by_ratio, by_log_prob: 0. }
    }

    /// `-weight A log_prob`, the weight a constant.
    pub fn weighted(weight: f64, advantage: f64, log_prob: f64) -> Self {
        let by_log_prob = -weight * advantage;
        Self { value: by_log_prob * log_prob, by_ratio: 0., by_log_prob }
    }

    pub fn scaled(self, by: f64) -> Self {
        let Self { value, by_ratio, by_log_prob } = self;
        Self { value: value * by, by_ratio: by_ratio * by, by_log_prob: by_log_prob * by }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            by_ratio: self.by_ratio + other.by_ratio,
            by_log_prob: self.by_log_prob + other.by_log_prob,
        }
    }
}

/// The `share` quantile of `values` with linear interpolation, in f32 as `torch.quantile` takes it; `None` of nothing.
pub(super) fn quantile(mut values: Vec<f32>, share: f64) -> Option<f32> {
    values.sort_by(f32::total_cmp);
    let rank = share as f32 * values.len().checked_sub(1)? as f32;
    let (below, above) = (*values.get(rank.floor() as usize)?, *values.get(rank.ceil() as usize)?);
    let part = rank - rank.floor();
    // As torch.lerp: from the nearer end, which is exact at both.
    Some(if part < 0.5 { below + part * (above - below) } else { above - (above - below) * (1. - part) })
}

/// The values of a range of settings, or an error that names the first one outside.
pub(super) fn check_settings(settings: &[(&str, f64, std::ops::RangeInclusive<f64>)]) -> Result<()> {
    match settings.iter().find(|(_, value, range)| !range.contains(value)) {
        None => Ok(()),
        Some((name, value, range)) => {
            let expected = match (*range.start(), *range.end()) {
                (f64::MIN, _) => "a finite number".to_owned(),
                (f64::MIN_POSITIVE, high) if high >= f64::MAX => "above 0".to_owned(),
                (low, high) if high >= f64::MAX => format!("at least {low}"),
                (f64::MIN_POSITIVE, high) => format!("above 0 and at most {high}"),
                (low, high) => format!("from {low} to {high}"),
            };
            Err(Error::Input(format!("{name} must be {expected}, got {value}")))
        }
    }
}
