//! The learning rate over a run.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Stays at the peak.
    Constant,
    /// Falls to the floor in a straight line.
    Linear,
    /// Falls to the floor along half a cosine.
    Cosine,
}

/// Warm-up to `peak`, then `shape` down to `floor`.
///
/// From the end of the warm-up on this is what `transformers` (4.51.3) computes for the same shape; its warm-up begins with a
/// rate of 0, ours with `peak / warmup`, so that no step is lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Largest rate.
    pub peak: f64,
    /// Number of steps that rise towards the peak in a straight line; 0 for none.
    pub warmup: u64,
    /// Number of steps of the run. Later ones have the last rate.
    pub total: u64,
    /// The rate, not a fraction of the peak, that a falling shape ends at.
    pub floor: f64,
    /// What follows the warm-up.
    pub shape: Shape,
}

impl Schedule {
    /// Whether the numbers make a schedule.
    ///
    /// # Errors
    /// A peak that is not a number above 0, a floor outside 0 to the peak, a warm-up longer than the run.
    pub fn check(&self) -> Result<()> {
        let Self { peak, floor, warmup, total, .. } = *self;
        if !(peak > 0. && peak.is_finite()) {
            return Err(Error::Input(format!("schedule: the peak rate must be above 0, got {peak}")));
        }
        if !(0. ..=peak).contains(&floor) {
            return Err(Error::Input(format!(
                "schedule: the floor must be from 0 to the peak {peak}, got {floor}"
            )));
        }
        if warmup > total {
            return Err(Error::Input(format!(
                "schedule: {warmup} steps of warm-up do not fit into a run of {total}; set warmup to at most that"
            )));
        }
        Ok(())
    }

    /// The rate of update number `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let left = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / left).min(1.);
        let share = match self.shape {
            Shape::Constant => 1.,
            Shape::Linear => 1. - progress,
            Shape::Cosine => 0.5 * (1. + (std::f64::consts::PI * progress).cos()),
        };
        self.floor + (self.peak - self.floor) * share
    }
}
