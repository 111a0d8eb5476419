//! The reward of a trajectory: `r = 0.8 r_acc + 0.1 r_format + 0.1 r_info` (arXiv 2602.22932). Tensor-free.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// When a query's similarities over the frames have a clear peak.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Peak {
    /// The paper's: largest over smallest similarity above `threshold`. Cosines may be zero or negative, where the ratio means
    /// nothing: they are first raised to `floor` (ours).
    Ratio {
        /// What the ratio must exceed.
        threshold: f64,
        /// Smallest similarity that counts as such.
        floor: f64,
    },
    /// Ours: (largest - mean) / standard deviation above `threshold`.
    Deviation {
        /// What the distance must exceed, in standard deviations.
        threshold: f64,
    },
}

impl Default for Peak {
    fn default() -> Self {
        Self::Ratio { threshold: 10., floor: 1e-3 }
    }
}

impl Peak {
    /// Height of the peak of one query's similarities, to be compared with the threshold; 0 without frames or without spread.
    ///
    /// # Errors
    /// A similarity that is not finite.
    pub fn height(self, similarities: &[f32]) -> Result<f64> {
        if let Some(at) = similarities.iter().position(|similarity| !similarity.is_finite()) {
            let similarity = similarities[at];
            return Err(Error::Input(format!("reward: the similarity of frame {at} is {similarity}")));
        }
        let values = || similarities.iter().map(|&similarity| f64::from(similarity));
        let (count, largest) = (similarities.len() as f64, values().fold(f64::NEG_INFINITY, f64::max));
        if similarities.is_empty() {
            return Ok(0.);
        }
        Ok(match self {
            Self::Ratio { floor, .. } => {
                largest.max(floor) / values().fold(f64::INFINITY, f64::min).max(floor)
            }
            Self::Deviation { .. } => {
                let mean = values().sum::<f64>() / count;
                let deviation = (values().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
                if deviation > 0. { (largest - mean) / deviation } else { 0. }
            }
        })
    }

    fn threshold(self) -> f64 {
        match self {
            Self::Ratio { threshold, .. } | Self::Deviation { threshold } => threshold,
        }
    }
}

/// Weights of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// Of the right answer.
    pub accuracy: f64,
    /// Of the asked form in both turns.
    pub format: f64,
    /// Of queries with a peak.
    pub info: f64,
    /// What a peak is.
    pub peak: Peak,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self { accuracy: 0.8, format: 0.1, info: 0.1, peak: Peak::default() }
    }
}

impl RewardConfig {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// A weight that is negative or not a number, a threshold that is not a number, a floor that is not positive.
    pub fn check(&self) -> Result<()> {
        let weights = [("accuracy", self.accuracy), ("format", self.format), ("info", self.info)];
        if let Some((name, weight)) = weights.into_iter().find(|(_, w)| !(*w >= 0. && w.is_finite())) {
            return Err(Error::Input(format!(
                "reward: the weight of {name} must be a number of at least 0, got {weight}"
            )));
        }
        if !self.peak.threshold().is_finite() {
            return Err(Error::Input(format!(
                "reward: the threshold of a peak must be a number, got {}",
                self.peak.threshold()
            )));
        }
        match self.peak {
            Peak::Ratio { floor, .. } if !(floor > 0. && floor.is_finite()) => {
                Err(Error::Input(format!("reward: the floor of a ratio must be above 0, got {floor}")))
            }
            _ => Ok(()),
        }
    }
}

/// What the reward looks at.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The chosen option is the right one.
    pub right: bool,
    /// Both turns had the asked form.
    pub well_formed: bool,
    /// One row of similarities to all candidate frames per query that the model wrote.
    pub similarity: &'a [Vec<f32>],
}

/// A reward and its parts, each part before its weight and in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// The weighted sum.
    pub total: f32,
    /// 1 for the right answer.
    pub accuracy: f32,
    /// 1 for the asked form.
    pub format: f32,
    /// Share of the queries whose similarities have a peak; 0 without queries.
    pub info: f32,
}

impl Reward {
    /// The reward of one trajectory.
    ///
    /// # Errors
    /// As [`RewardConfig::check`]; a similarity that is not finite.
    pub fn of(outcome: &Outcome, config: &RewardConfig) -> Result<Self> {
        config.check()?;
        let mut peaked = 0;
        for row in outcome.similarity {
            peaked += u32::from(config.peak.height(row)? > config.peak.threshold());
        }
        let info = f64::from(peaked) / outcome.similarity.len().max(1) as f64;
        let (accuracy, format) =
            (f64::from(u8::from(outcome.right)), f64::from(u8::from(outcome.well_formed)));
        let total = config.accuracy * accuracy + config.format * format + config.info * info;
        Ok(Self { total: total as f32, accuracy: accuracy as f32, format: format as f32, info: info as f32 })
    }

    /// The total and the parts under the names of the metrics.
    pub fn parts(&self) -> [(&'static str, f32); 4] {
        [
            ("reward", self.total),
            ("rewards/accuracy", self.accuracy),
            ("rewards/format", self.format),
            ("rewards/info", self.info),
        ]
    }
}
