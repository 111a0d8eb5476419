//! The settings of a whole run, and what is refused of them before anything is loaded.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::config::{EvolveConfig, Learn, Rate, Worth};
use super::footage::Footage;
use super::gallery::TOGETHER_ON_DEVICE;
use super::learner::whole;
use super::memory::{self, Demand, MemoryPlan, Nodes};
use super::plan::Choosing;
use super::tasks::{balanced, enough, file_tasks, long_enough, world_tasks};
use super::trainer;
use super::trajectory::Task;
use crate::checkpoint::Checkpoint;
use crate::data::world::{Spec, Split, World};
use crate::device;
use crate::error::{Error, Result};
use crate::models::qwen2_5_vl::adapter;
use crate::models::qwen2_5_vl::config::Config;
use crate::models::sampler::Sampler;

/// What a run is made of, as its `config.toml` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Checkpoints to start from.
    pub models: Models,
    /// Questions.
    pub data: Data,
    /// Evaluation before the first step and every so often.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// Steps between checkpoints.
    #[serde(default = "fifty")]
    pub save_every: u64,
    /// Stage 1, before anything else: the sampler learns while the language model is frozen. Without it the run begins
    /// with the sampler of `models`.
    #[serde(default)]
    pub pretrain: Option<Pretraining>,
    /// The training itself.
    pub evolve: EvolveConfig,
}

/// What stage 1 has of its own; everything else is as in stage 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pretraining {
    /// Optimizer steps.
    pub steps: u64,
    /// What a draw is worth.
    pub worth: Worth,
    /// Learning rate and its course.
    pub rate: Rate,
    /// Sampling temperature of both turns. 0, greedy replies, leaves the draw as the only difference between the
    /// trajectories of a question.
    pub temperature: f32,
    /// Draws per question.
    pub generations: u64,
}

impl Default for Pretraining {
    fn default() -> Self {
        Self {
            steps: 200,
            worth: Worth::Difficulty,
            rate: Rate { peak: 1e-3, ..Rate::default() },
            temperature: 0.0,
            generations: 8,
        }
    }
}

impl Settings {
    /// Refuses what cannot be run or contradicts itself, in either stage.
    ///
    /// # Errors
    /// As [`EvolveConfig::check`]; an evaluation that would grade something else than the sampler, or cannot tell how hard a
    /// question is.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Input(format!("config: {what}")));
        self.evolve.check()?;
        if let Some(Pretraining { rate, steps, .. }) = &self.pretrain {
            rate.check("pretrain.rate", *steps)?;
        }
        if let Some(first) = self.first_stage() {
            first.check().map_err(|error| Error::Input(format!("stage 1: {error}")))?;
        }
        if self.save_every == 0 {
            return wrong("save_every: expected at least 1, got 0".into());
        }
        let Evaluation { choosing, pass_rate_rollouts: rollouts, pass_rate_temperature: heat, .. } =
            self.evaluation;
        if self.rates() && rollouts == 0 {
            return wrong("evaluation.pass_rate_rollouts: expected at least 1, got 0".into());
        }
        if self.rates() && (!(heat >= 0.0 && heat.is_finite()) || (heat == 0.0 && rollouts > 1)) {
            return wrong(format!(
                "evaluation.pass_rate_temperature: expected above 0, or 0 with pass_rate_rollouts = 1, since greedy replies to the \
                 same frames are all alike; got {heat} with {rollouts}"
            ));
        }
        let sampler = &self.evolve.sampler;
        if self.models.sampler.is_none() && sampler.agent.is_some() && sampler.network != Default::default() {
            return wrong("evolve.sampler: expected either an agent or a network, got both".into());
        }
        if matches!(choosing, Choosing::Draw | Choosing::Largest | Choosing::Spread) {
            return Ok(());
        }
        wrong(format!(
            "evaluation.choosing: expected \"draw\", \"largest\" or \"spread\", got {choosing:?}, which does not ask the \
             sampler that is trained"
        ))
    }

    /// Whether a stage needs to know how hard questions are.
    fn rates(&self) -> bool {
        let first = self.pretrain.as_ref().is_some_and(|first| first.worth == Worth::Difficulty);
        first || (self.evolve.sampler.learn && self.evolve.sampler.worth == Worth::Difficulty)
    }

    /// Refuses whatever can be refused without the models and without decoding a video: settings, device, question files,
    /// videos that are missing or too short. `progress` hears (done, of) of the questions whose videos were opened.
    ///
    /// # Errors
    /// Names the setting or the file, what was expected and what came; [`Error::Interrupted`] when `progress` says so.
    pub fn refuse(&self, progress: &mut dyn FnMut(usize, usize) -> bool) -> Result<()> {
        self.check()?;
        self.placement()?;
        let fps = if let Data::Files { fps, .. } = self.data { fps } else { 1.0 };
        self.questions(&mut |video| Footage::open(video, fps), progress)?;
        Ok(())
    }

    /// The memory plans of the stages, by name and in their order. Refuses what the models' folders tell without being
    /// loaded: too little memory, adapter targets that mean nothing, a file that is no sampler.
    ///
    /// # Errors
    /// Names the setting or the file, what was expected and what came.
    pub fn plans(&self) -> Result<Vec<(&'static str, MemoryPlan)>> {
        let config = Config::load(&self.models.mllm)?;
        if let Learn::Adapters { targets: Some(pattern), .. } = &self.evolve.model.learn {
            adapter::targets_of_text(&config, pattern)?;
        }
        if let Some(path) = &self.models.sampler {
            self.evolve.sampler.suits(&Sampler::load(path, &Device::Cpu)?)?;
        }
        let whole = Self { pretrain: None, ..self.clone() };
        let mut plans = vec![];
        for stage in self.first_stage().into_iter().chain([whole]) {
            let name = STAGES[usize::from(stage.evolve.model.learn != Learn::Nothing)];
            let plan = memory_plan(&stage, &stage.placement()?)?;
            plan.check()?;
            plans.push((name, plan));
        }
        Ok(plans)
    }

    /// Training and validation questions; both files are read before any video is opened.
    ///
    /// # Errors
    /// Names the file, line, question or video.
    pub fn questions(
        &self,
        open: &mut dyn FnMut(&Path) -> Result<Footage>,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(Vec<Task>, Vec<Task>)> {
        let wanted = self.evaluation.questions;
        let (train, validation) = match &self.data {
            Data::World { seed, spec, videos } => {
                let world = World::new(spec.clone(), *seed)?;
                // Six families, and some videos have no question of one of them.
                let enough_videos = (wanted as u64).div_ceil(4);
                let validation = world_tasks(&world, Split::Validation, 0..enough_videos);
                (world_tasks(&world, Split::Train, 0..*videos), validation)
            }
            Data::Files { train, validation, fps, .. } => {
                if self.evaluation.every > 0 && validation.is_none() {
                    return Err(no_validation());
                }
                let files: Vec<&Path> =
                    [Some(train), validation.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
                let mut tasks = file_tasks(&files, *fps, open, progress)?.into_iter();
                (tasks.next().unwrap_or_default(), tasks.next().unwrap_or_default())
            }
        };
        let validation = balanced(validation, wanted);
        let plan = &self.evolve.plan;
        long_enough(train.iter().chain(&validation), (plan.key_frames, plan.preview_count()))?;
        if self.evaluation.every > 0 && validation.is_empty() {
            return Err(no_validation());
        }
        enough(&train, self.evolve.questions)?;
        Ok((train, validation))
    }

    /// The device of the run and the precision of its language model.
    ///
    /// # Errors
    /// A device that this program or machine does not have; settings that it cannot train with.
    pub fn placement(&self) -> Result<(Device, DType)> {
        let device = device::device(&self.models.device)?;
        let everything = self.evolve.model.learn == Learn::Everything;
        let dtype = match self.models.dtype.as_str() {
            "auto" if everything => DType::F32,
            name => device::dtype(name, &device)?,
        };
        if everything {
            whole(dtype)?;
        }
        let at_once = self.evolve.micro_batches_at_once;
        if !device.is_cpu() && at_once > 1 {
            return Err(Error::Input(format!(
                "config: micro_batches_at_once: {at_once} micro-batches side by side share the cores of a CPU; on {} set 1 \
                 and raise micro_batch_tokens",
                self.models.device
            )));
        }
        Ok((device, dtype))
    }

    /// Stage 1 as a run of its own.
    pub fn first_stage(&self) -> Option<Self> {
        let Pretraining { steps, worth, rate, temperature, generations } = self.pretrain.clone()?;
        // A draw is worth something by the question's pass rate alone: no group is without a signal.
        let resample = if worth == Worth::Difficulty { 0 } else { self.evolve.resample };
        let mut first = Self { pretrain: None, ..self.clone() };
        (first.evolve.steps, first.evolve.resample) = (steps, resample);
        first.evolve.plan.temperature = temperature;
        first.evolve.generations = generations;
        first.evolve.model.learn = Learn::Nothing;
        first.evolve.sampler.learn = true;
        first.evolve.sampler.worth = worth;
        first.evolve.sampler.rate = rate;
        Some(first)
    }
}

/// The stages by name: the sampler alone, and with the language model.
pub(super) const STAGES: [&str; 2] = ["stage 1, sampler", "stage 2, joint"];

fn no_validation() -> Error {
    let text = "evaluation: expected validation questions, got none; name a file or set evaluation.every = 0";
    Error::Input(text.into())
}

fn fifty() -> u64 {
    50
}

/// Checkpoints to start from: folders in Hugging Face layout, and the sampler's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// A Qwen2.5-VL.
    pub mllm: PathBuf,
    /// A CLIP.
    pub clip: PathBuf,
    /// A sampler, a U-Net or a temporal agent; without one a new network is made as `evolve.sampler` says.
    pub sampler: Option<PathBuf>,
    /// Where all models are: `cpu` or `cuda[:N]`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Precision of the language model: `f32`, `bf16`, `f16`, or `auto`, which is f32 on the CPU and where all weights learn,
    /// and bf16 elsewhere. CLIP, the sampler and adapters are f32.
    #[serde(default = "auto")]
    pub dtype: String,
}

impl Models {
    /// Models on the CPU in f32, without a sampler.
    pub fn new(mllm: impl Into<PathBuf>, clip: impl Into<PathBuf>) -> Self {
        Self { mllm: mllm.into(), clip: clip.into(), sampler: None, device: cpu(), dtype: auto() }
    }
}

fn cpu() -> String {
    "cpu".to_owned()
}

fn auto() -> String {
    "auto".to_owned()
}

/// Where the questions come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Data {
    /// The toy world; its validation split is what evaluations use.
    World {
        /// Seed of the world.
        seed: u64,
        /// Its knobs.
        #[serde(default)]
        spec: Spec,
        /// Training videos, each with up to six questions.
        videos: u64,
    },
    /// JSON lines of `{video, question, options, answer, difficulty?}`.
    Files {
        /// Training questions.
        train: PathBuf,
        /// Questions for evaluations.
        validation: Option<PathBuf>,
        /// Candidate frames per second.
        fps: f64,
        /// Where CLIP features are kept.
        cache: Option<PathBuf>,
    },
}

/// How a run is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Steps between evaluations; 0 for none.
    pub every: u64,
    /// Questions of an evaluation, as many of each family.
    pub questions: usize,
    /// Rollouts with uniform frames that estimate a pass rate, where the advantage needs one and the data give none.
    pub pass_rate_rollouts: u64,
    /// Their sampling temperature.
    pub pass_rate_temperature: f32,
    /// How key frames are chosen where training draws them.
    pub choosing: Choosing,
}

impl Default for Evaluation {
    fn default() -> Self {
        let (pass_rate_rollouts, pass_rate_temperature) = (8, 1.0);
        Self {
            every: 50,
            questions: 240,
            pass_rate_rollouts,
            pass_rate_temperature,
            choosing: Choosing::Spread,
        }
    }
}

/// What a run needs in memory at most, beside what there is.
///
/// # Errors
/// Models whose configuration or weights cannot be found.
pub fn memory_plan(settings: &Settings, (device, dtype): &(Device, DType)) -> Result<MemoryPlan> {
    let config = Config::load(&settings.models.mllm)?;
    let demand = demand(settings, &config, (Nodes::of(device, *dtype), *dtype));
    let clip = Checkpoint::open(&settings.models.clip)?;
    let values = clip.names().map(|name| clip.elements(name)).sum::<Result<usize>>()?;
    let demand = Demand { others: values * DType::F32.size_in_bytes(), ..demand };
    Ok(MemoryPlan::new(&config, &demand, memory::available(device)))
}

/// What a run asks of memory for its language model: every prompt as long as the budgets of visual tokens allow.
pub fn demand(settings: &Settings, config: &Config, (nodes, dtype): (Nodes, DType)) -> Demand {
    let (run, plan) = (&settings.evolve, &settings.evolve.plan);
    let (d, inner) = (config.text.hidden_size, config.text.intermediate_size);
    let kv = config.text.num_key_value_heads * config.text.head_dim();
    // In and out of every affine map of a layer.
    let maps = 4 * d + 2 * (d + kv) + 3 * (d + inner);
    let everything = run.model.learn == Learn::Everything;
    let learn = match run.model.learn {
        Learn::Nothing => memory::Learn::Adapter(0),
        Learn::Everything => memory::Learn::Text,
        Learn::Adapters { rank, .. } => memory::Learn::Adapter(rank * maps * config.text.num_hidden_layers),
    };
    let trajectories = run.trajectories();
    let text = 256;
    let longest = (plan.key_frame_tokens + text).min(config.text.max_position_embeddings);
    let new_tokens = plan.query_tokens.max(plan.answer_tokens);
    let whole = longest + plan.query_tokens + plan.answer_tokens;
    let tokens = run.micro_batch_tokens.max(whole);
    // A frozen model has no update.
    let learns = usize::from(run.model.learn != Learn::Nothing);
    let parts = trajectories.saturating_mul(whole).div_ceil(tokens).clamp(1, run.micro_batches_at_once);
    // Of the parts side by side, and their sum where there are more.
    let gradients = if trajectories.saturating_mul(whole) <= tokens { 1 } else { parts + 1 };
    let tokens = tokens * parts * learns;
    Demand {
        learn,
        reference: everything && run.model.grpo.beta != 0.0,
        others: 0,
        dtype,
        nodes,
        rollout: memory::Rollout {
            prompts: trajectories,
            prompt_tokens: longest,
            num_generations: 1,
            new_tokens,
        },
        update: memory::Update {
            tokens,
            learned_tokens: tokens.min(trajectories * (plan.query_tokens + plan.answer_tokens)),
            longest: longest + new_tokens,
            keep: if run.model.checkpointing { memory::Keep::Inputs } else { memory::Keep::Everything },
            gradients,
        },
        visual_tokens: trajectories * plan.key_frame_tokens.min(longest)
            + run.questions * plan.preview_count() * plan.preview_tokens,
        gallery: trainer::GALLERY,
        patches: if nodes == Nodes::Kernels { TOGETHER_ON_DEVICE } else { 4096 },
    }
}
