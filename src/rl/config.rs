//! Everything that decides a run of joint training, as it is written in its TOML file.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::advantage::{Baseline, Scale};
use super::alarm::AlarmConfig;
use super::grpo::GrpoConfig;
use super::objective::LossType;
use super::plan::Plan;
use super::reinforce::{Probability, ReinforceConfig};
use super::reward::RewardConfig;
use crate::checkpoint::peft::Targets;
use crate::error::{Error, Result};
use crate::models::sampler::Sampler;
use crate::models::temporal_agent::{self, TemporalAgent};
use crate::models::unet1d::{self, UNet1d};
use crate::optim::{AdamWConfig, Schedule, Shape};

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvolveConfig {
    /// Decides every random number of the run.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Questions per step.
    pub questions: usize,
    /// G, trajectories per question.
    pub generations: u64,
    /// Updates of the language model from one batch of trajectories.
    pub iterations: usize,
    /// Tokens of a micro-batch; changes memory, not results.
    pub micro_batch_tokens: usize,
    /// Micro-batches computed side by side, each with its own memory; changes memory and time, not results.
    pub micro_batches_at_once: usize,
    /// How often questions whose trajectories all earn the same are replaced by others before a step; 0 keeps them.
    pub resample: usize,
    /// Deals the rewards of a step out at random before anything learns from them: the control that must not learn.
    pub shuffle_rewards: bool,
    /// Shape of a trajectory.
    pub plan: Plan,
    /// The reward.
    pub reward: RewardConfig,
    /// The language model's side.
    pub model: ModelConfig,
    /// The sampler's side.
    pub sampler: SamplerConfig,
    /// What stops it.
    pub alarm: AlarmConfig,
}

/// How the language model learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Whether and what.
    pub learn: Learn,
    /// Division of the advantages.
    pub scale: Scale,
    /// The loss.
    pub grpo: GrpoConfig,
    /// Learning rate and its course.
    pub rate: Rate,
    /// Keep only the input of each decoder layer and compute the rest again in the backward pass.
    pub checkpointing: bool,
}

/// What of the language model learns. The vision tower never does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Learn {
    /// Nothing.
    Nothing,
    /// Every parameter of the text model.
    Everything,
    /// Low-rank adapters over frozen weights (LoRA, arXiv 2106.09685).
    Adapters {
        /// Rank of the two factors.
        rank: usize,
        /// Their product is scaled by `alpha / rank`.
        alpha: f64,
        /// Full-match regular expression of the modules' names; `None` for every map of the text model.
        targets: Option<String>,
    },
}

/// How the sampler learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Whether it does.
    pub learn: bool,
    /// What a draw is worth.
    pub worth: Worth,
    /// The loss.
    pub reinforce: ReinforceConfig,
    /// Learning rate and its course.
    pub rate: Rate,
    /// Size of a U-Net that starts from scratch, and its draws; one from a file keeps its own.
    pub network: unet1d::Config,
    /// Start with a temporal agent of these settings in its place.
    pub agent: Option<temporal_agent::Config>,
}

/// The advantage of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Worth {
    /// The reward less a baseline.
    Reward(Baseline),
    /// 1 / c when right and -1 / (1 - c) when wrong, c the question's pass rate.
    Difficulty,
}

/// AdamW and the course of its learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// Largest learning rate.
    pub peak: f64,
    /// Steps until then.
    pub warmup: u64,
    /// What it falls to at the last step.
    pub floor: f64,
    /// How it falls.
    pub shape: Shape,
    /// Largest global norm of the gradient.
    pub max_grad_norm: f64,
    /// Moments and decay.
    pub adamw: AdamWConfig,
}

impl Rate {
    pub(super) fn check(&self, name: &str, steps: u64) -> Result<()> {
        let wrong = |what: String| Err(Error::Input(format!("config: {name}.{what}")));
        if let Err(error) = self.schedule(steps).check() {
            return wrong(error.to_string());
        }
        if self.max_grad_norm.is_nan() || self.max_grad_norm <= 0.0 {
            return wrong(format!("max_grad_norm: expected above 0, got {}", self.max_grad_norm));
        }
        self.adamw.check().or_else(|error| wrong(format!("adamw: {error}")))
    }
}

impl Default for EvolveConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 200,
            questions: 8,
            generations: 8,
            iterations: 1,
            micro_batch_tokens: 4096,
            micro_batches_at_once: 1,
            resample: 0,
            shuffle_rewards: false,
            plan: Plan::default(),
            reward: RewardConfig::default(),
            model: ModelConfig::default(),
            sampler: SamplerConfig::default(),
            alarm: AlarmConfig::default(),
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            learn: Learn::Everything,
            scale: Scale::Group,
            grpo: GrpoConfig::default(),
            rate: Rate { peak: 1e-6, ..Rate::default() },
            checkpointing: true,
        }
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            learn: true,
            worth: Worth::Reward(Baseline::LeaveOneOut),
            reinforce: ReinforceConfig::default(),
            rate: Rate { peak: 5e-4, ..Rate::default() },
            network: unet1d::Config::default(),
            agent: None,
        }
    }
}

impl ModelConfig {
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Input(format!("config: {what}")));
        if let Learn::Adapters { rank, alpha, targets } = &self.learn {
            if *rank == 0 {
                return wrong("model.learn.adapters.rank: expected at least 1, got 0".into());
            }
            if !(alpha.is_finite() && *alpha != 0.0) {
                return wrong(format!(
                    "model.learn.adapters.alpha: expected a number that is not 0, got {alpha}"
                ));
            }
            if let Some(pattern) = targets {
                Targets::Regex(pattern.clone()).matches(&[])?;
            }
        }
        let cap = self.grpo.epsilon_high;
        if self.learn != Learn::Nothing && self.grpo.loss == LossType::Cispo && cap < 1.0 {
            return wrong(format!(
                "model.grpo.epsilon_high: \"cispo\" takes it as the largest weight of a token: expected at least 1, got {cap}"
            ));
        }
        Ok(())
    }
}

impl SamplerConfig {
    fn check(&self, generations: u64, steps: u64) -> Result<()> {
        let wrong = |what: String| Err(Error::Input(format!("config: {what}")));
        if let Worth::Reward(baseline @ (Baseline::GroupMean | Baseline::LeaveOneOut)) = self.worth
            && generations < 2
        {
            return wrong(format!(
                "generations: sampler.worth {baseline:?} compares draws: expected at least 2, got 1"
            ));
        }
        self.reinforce.check()?;
        self.rate.check("sampler.rate", steps)
    }

    /// Refuses a sampler that cannot learn by these settings.
    ///
    /// # Errors
    /// Independent probabilities for a sampler whose draws keep apart.
    pub fn suits(&self, sampler: &Sampler) -> Result<()> {
        let alone = self.reinforce.probability == Probability::Independent;
        if self.learn && alone && sampler.apart() != 0.0 {
            let text = "\"independent\" takes each frame for itself, which this sampler's draws do not";
            return Err(Error::Input(format!(
                "config: sampler.reinforce.probability: {text} (apart {})",
                sampler.apart()
            )));
        }
        Ok(())
    }

    /// A sampler that starts from scratch, over CLIP features of `width`.
    ///
    /// # Errors
    /// Sizes out of their bounds.
    pub fn fresh(&self, width: usize, seed: u64, device: &Device) -> Result<Sampler> {
        match &self.agent {
            Some(agent) => TemporalAgent::init(agent, width, seed, device).map(Sampler::from),
            None => UNet1d::init(&self.network, seed, device).map(Sampler::from),
        }
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            peak: 1e-4,
            warmup: 10,
            floor: 0.0,
            shape: Shape::Cosine,
            max_grad_norm: 1.0,
            adamw: AdamWConfig::default(),
        }
    }
}

impl Rate {
    /// The course over a run of `total` steps.
    pub fn schedule(&self, total: u64) -> Schedule {
        Schedule { peak: self.peak, warmup: self.warmup, total, floor: self.floor, shape: self.shape }
    }
}

impl EvolveConfig {
    /// Trajectories of a step.
    pub fn trajectories(&self) -> usize {
        self.questions.saturating_mul(self.generations as usize)
    }

    /// Refuses what cannot be run or contradicts itself.
    ///
    /// # Errors
    /// Names the setting, what was expected and what came.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Input(format!("config: {what}")));
        self.plan.check()?;
        self.reward.check()?;
        self.model.grpo.check()?;
        for (name, value) in [
            ("steps", self.steps),
            ("questions", self.questions as u64),
            ("generations", self.generations),
            ("iterations", self.iterations as u64),
            ("micro_batch_tokens", self.micro_batch_tokens as u64),
            ("micro_batches_at_once", self.micro_batches_at_once as u64),
        ] {
            if value == 0 {
                return wrong(format!("{name}: expected at least 1, got 0"));
            }
        }
        let learns = self.model.learn != Learn::Nothing;
        if !learns && !self.sampler.learn {
            return wrong("nothing learns: model.learn is \"nothing\" and sampler.learn is false".into());
        }
        if learns && self.generations < 2 {
            return wrong("generations: group-relative advantages need at least 2, got 1".into());
        }
        if self.sampler.learn && self.plan.choosing != super::plan::Choosing::Draw {
            return wrong("sampler.learn: key frames must be drawn (plan.choosing = \"draw\")".into());
        }
        if self.plan.temperature == 0.0 && learns {
            return wrong("plan.temperature: 0 gives equal generations, which teach nothing".into());
        }
        if self.model.grpo.top_entropy < 1.0 {
            return wrong("model.grpo.top_entropy: below 1 is not supported in joint training".into());
        }
        self.model.check()?;
        if self.sampler.learn && self.sampler.worth == Worth::Difficulty && self.resample > 0 {
            // Of hard questions mostly the failed draws would go, and the mean that is expected to be 0 with them.
            let text = "a pass rate gives every draw its worth, so that no question is replaced; set it to 0";
            return wrong(format!("resample: {text}, got {}", self.resample));
        }
        if learns {
            self.model.rate.check("model.rate", self.steps)?;
        }
        if self.sampler.learn {
            self.sampler.check(self.generations, self.steps)?;
        }
        self.alarm.check()
    }
}
