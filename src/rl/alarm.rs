//! When a run is stopped although its numbers are still finite: a loss or a gradient that explodes, a reward that collapses.
//!
//! A policy that has come apart earns the same for everything it says, so that no gradient is left to notice it by. What it
//! earned before is kept for that.

use serde::{Deserialize, Serialize};

use super::objective::check_settings;
use super::tally::Tally;
use crate::error::{Error, Result};

/// Limits of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlarmConfig {
    /// Largest loss of the language model, by its absolute value. (The sampler's grows with the frames of a draw.)
    pub max_loss: f64,
    /// Largest norm of a gradient before it is clipped, in multiples of the running mean.
    pub max_grad_norm_growth: f64,
    /// The running mean of the reward may fall to this share of its highest value. Below that by four standard errors, or with no
    /// group that had a signal for ten steps, the run ends; 0 lets it fall.
    pub min_reward_share: f64,
}

impl Default for AlarmConfig {
    fn default() -> Self {
        Self { max_loss: 1e3, max_grad_norm_growth: 1e3, min_reward_share: 0.33 }
    }
}

impl AlarmConfig {
    /// Whether the limits are limits.
    ///
    /// # Errors
    /// Names the setting, what was expected and what came.
    pub fn check(&self) -> Result<()> {
        check_settings(&[
            ("config: alarm.max_loss", self.max_loss, f64::MIN_POSITIVE..=f64::INFINITY),
            ("config: alarm.max_grad_norm_growth", self.max_grad_norm_growth, 1.0..=f64::INFINITY),
            ("config: alarm.min_reward_share", self.min_reward_share, 0.0..=1.0),
        ])
    }
}

/// Running means, part of a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Alarm {
    /// Of the reward, and its highest value so far.
    reward: Mean,
    best: f64,
    /// The variance of the running mean, and the highest value so far less four standard errors.
    variance: f64,
    sure: f64,
    /// Of the norm of the language model's gradient and of the sampler's.
    norms: [Mean; 2],
    /// Steps in a row in which no group had a signal.
    silent: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Mean {
    value: f64,
    steps: u64,
}

/// Steps before a running mean says anything.
const SETTLED: u64 = 10;
/// How much of a running mean is kept at a step.
const KEPT: f64 = 0.9;
/// Steps without a signal between two warnings.
const SILENCE: u64 = 10;

impl Mean {
    /// Returns the share of the new value: every step so far counts alike at first, then the last ten most.
    fn add(&mut self, value: f64) -> f64 {
        self.steps += 1;
        let share = (1.0 / self.steps as f64).max(1.0 - KEPT);
        self.value += share * (value - self.value);
        share
    }

    fn settled(&self) -> bool {
        self.steps >= SETTLED
    }
}

impl Alarm {
    /// Looks at the metrics of a step.
    ///
    /// # Errors
    /// What exploded or collapsed, from which value to which, and what to do.
    pub fn look(&mut self, tally: &Tally, config: &AlarmConfig) -> Result<()> {
        if let Some(loss) = tally.get("loss").filter(|loss| loss.abs() > config.max_loss) {
            return Err(stop(format!(
                "the loss is {loss:.3e}, expected at most {:e} (max_loss)",
                config.max_loss
            )));
        }
        for (mean, name) in self.norms.iter_mut().zip(["grad_norm", "sampler/grad_norm"]) {
            let Some(norm) = tally.get(name) else { continue };
            let limit = config.max_grad_norm_growth * mean.value;
            if mean.settled() && norm > limit && limit > 0.0 {
                return Err(stop(format!(
                    "{name} is {norm:.3e} after {:.3e} on average, expected at most {:e} times that (max_grad_norm_growth)",
                    mean.value, config.max_grad_norm_growth
                )));
            }
            mean.add(norm);
        }
        // A pass rate gives a draw its worth where all rewards are alike: then the sampler has a gradient.
        let alike = tally.get("frac_reward_zero_std").is_some_and(|share| share >= 1.0);
        let silent = alike && tally.get("sampler/grad_norm").is_none();
        self.silent = if silent { self.silent + 1 } else { 0 };
        let Some(reward) = tally.get("reward") else { return Ok(()) };
        let error = tally.get("reward_standard_error").unwrap_or_default();
        let share = self.reward.add(reward);
        self.variance = (1.0 - share).powi(2) * self.variance + (share * error).powi(2);
        // A policy may come apart at its second step: what it earned before that counts, as far as it is sure.
        self.best = self.best.max(self.reward.value);
        self.sure = self.sure.max(self.reward.value - 4.0 * self.variance.sqrt());
        let fallen = self.reward.settled() && self.reward.value < config.min_reward_share * self.best;
        // A policy that earns the same whatever it draws is sure to have come apart.
        if fallen && (self.reward.value < self.sure || self.silent >= SILENCE) {
            return Err(stop(format!(
                "the reward fell to {:.3} on average from {:.3}, expected at least {} of it (min_reward_share)",
                self.reward.value, self.best, config.min_reward_share
            )));
        }
        Ok(())
    }

    /// What should be said of a run that goes on without learning; every ten steps.
    pub fn warning(&self) -> Option<String> {
        (self.silent > 0 && self.silent.is_multiple_of(SILENCE)).then(|| {
            format!(
                "no group of the last {} steps had a signal: all of its trajectories earned the same; look at groups_all_right and \
                 groups_all_wrong, and change questions, temperature or generations",
                self.silent
            )
        })
    }
}

fn stop(what: String) -> Error {
    Error::Input(format!(
        "alarm: {what}; lower the learning rate and begin from a checkpoint before it, or change the limit in [evolve.alarm]"
    ))
}
