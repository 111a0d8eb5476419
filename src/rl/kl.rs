//! Estimates of the divergence from a reference, from the log-probabilities of one token.

use serde::{Deserialize, Serialize};

/// Schulman's estimators of KL(policy || reference), with `d = log_prob - reference`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kl {
    /// `d`: unbiased, but its gradient has expectation 0, so that as a loss it does nothing on average.
    K1,
    /// `d^2 / 2`: its gradient is that of the divergence.
    K2,
    /// `exp(-d) + d - 1`: unbiased and never negative; TRL's.
    K3,
    /// The value of k3 with the gradient of k2.
    K3Plus,
}

impl Kl {
    /// The estimate and its derivative with respect to `log_prob`.
    pub fn estimate(self, log_prob: f64, reference: f64) -> (f64, f64) {
        let d = log_prob - reference;
        let k3 = (-d).exp() + d - 1.;
        match self {
            Self::K1 => (d, 1.),
            Self::K2 => (d * d / 2., d),
            Self::K3 => (k3, 1. - (-d).exp()),
            Self::K3Plus => (k3, d),
        }
    }
}
