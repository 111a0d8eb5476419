//! A whole run: models, questions, training with evaluation and checkpoints, from one settings file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::config::{EvolveConfig, Learn, Rate, Worth};
use super::difficulty::pass_rates;
use super::evaluate::{Summary, evaluate, summary};
use super::footage::Footage;
use super::gallery::{Gallery, TOGETHER_ON_DEVICE};
use super::learner::{Learner, read_folder, whole};
use super::memory::{self, Demand, MemoryPlan, Nodes};
use super::plan::{Choosing, Plan};
use super::run::{Build, Run, Snapshot};
use super::tasks::{balanced, file_tasks, long_enough, world_tasks};
use super::trainer::{Progress, Trainer};
use super::trajectory::Task;
use crate::data::feature_cache::FeatureCache;
use crate::data::world::{Spec, Split, World};
use crate::device;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::models::clip::Clip;
use crate::models::qwen2_5_vl::Qwen2_5Vl;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::qwen2_5_vl::config::Config;
use crate::models::sampler::Sampler;
use crate::report::{self, Training};

/// Bytes of frame features kept during an evaluation.
const GALLERY: usize = 1 << 28;

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
    /// Refuses what cannot be run or contradicts itself.
    ///
    /// # Errors
    /// As [`EvolveConfig::check`]; no checkpoints; an evaluation that would grade something else than the sampler.
    pub fn check(&self) -> Result<()> {
        self.evolve.check()?;
        if self.save_every == 0 {
            return Err(Error::Input("config: save_every: expected at least 1, got 0".into()));
        }
        let choosing = self.evaluation.choosing;
        if matches!(choosing, Choosing::Draw | Choosing::Largest | Choosing::Spread) {
            return Ok(());
        }
        Err(Error::Input(format!(
            "config: evaluation.choosing: expected \"draw\", \"largest\" or \"spread\", got {choosing:?}, which does not \
             ask the sampler that is trained"
        )))
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
        let mut first = Self { pretrain: None, ..self.clone() };
        first.evolve.steps = steps;
        first.evolve.plan.temperature = temperature;
        first.evolve.generations = generations;
        first.evolve.model.learn = Learn::Nothing;
        first.evolve.sampler.learn = true;
        first.evolve.sampler.worth = worth;
        first.evolve.sampler.rate = rate;
        Some(first)
    }
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
    /// Rollouts with uniform frames that estimate a pass rate, where the advantage needs one.
    pub pass_rate_rollouts: u64,
    /// How key frames are chosen where training draws them.
    pub choosing: Choosing,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { every: 50, questions: 240, pass_rate_rollouts: 8, choosing: Choosing::Spread }
    }
}

/// What happens during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// What the run will need at most, before anything is loaded.
    Memory(&'a MemoryPlan),
    /// A stage begins: its name and its steps.
    Stage(&'a str, u64),
    /// Something slow is under way: what, done, of how many.
    Preparing(&'a str, usize, usize),
    /// A step was done.
    Step {
        /// Steps done.
        step: u64,
        /// Its metrics.
        values: &'a BTreeMap<String, f64>,
    },
    /// An evaluation was done.
    Evaluated {
        /// Steps done.
        step: u64,
        /// What it gave.
        summary: &'a Summary,
    },
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Evaluations by step.
    pub evaluations: BTreeMap<u64, Summary>,
    /// The last one.
    pub steps: u64,
    /// The checkpoint that scored best.
    pub best: Option<PathBuf>,
}

/// Called with events; `false` ends the run after saving it.
pub type Observer<'a> = &'a mut dyn FnMut(Event) -> bool;

/// Folder of stage 1 in a run's folder.
const FIRST: &str = "sampler";

/// A whole run in `run`'s folder, from where it was left: stage 1 if `settings` have one, in the folder `sampler` below, and
/// stage 2 with the best sampler of stage 1.
///
/// # Errors
/// As [`Evolution::new`] and [`Evolution::run`].
pub fn evolve(mut settings: Settings, run: &Run, observe: Observer) -> Result<Report> {
    settings.check()?;
    if let Some(first) = settings.first_stage() {
        first.check()?;
        // Stage 2 needs more than stage 1: it is refused now, not after hours of the other.
        memory_plan(&settings, &settings.placement()?)?.check()?;
        let folder = run.folder().join(FIRST);
        let first_run = match Run::exists(&folder) {
            true => Run::open(&folder)?,
            false => Run::create(&folder, &first, &Build::new(first.models.device.as_str()))?,
        };
        let steps = first.evolve.steps;
        if first_run.latest()?.is_none_or(|saved| saved.step < steps) {
            observe(Event::Stage("stage 1, sampler", steps));
            Evolution::new(first, observe)?.run(&first_run, observe)?;
        }
        let best = first_run.best()?.map(|saved| saved.folder.join("sampler.safetensors"));
        settings.models.sampler = best.or(settings.models.sampler);
    }
    observe(Event::Stage("stage 2, joint", settings.evolve.steps));
    Evolution::new(settings, observe)?.run(run, observe)
}

/// What a checkpoint's state holds.
#[derive(Serialize, Deserialize)]
struct State {
    #[serde(flatten)]
    progress: Progress,
    /// So that the report of a resumed run is that of an uninterrupted one.
    evaluations: BTreeMap<u64, Summary>,
}

/// Everything that a run works with.
pub struct Evolution {
    /// The run's settings.
    pub settings: Settings,
    /// The training.
    pub trainer: Trainer,
    validation: Vec<Task>,
    evaluations: BTreeMap<u64, Summary>,
}

impl Evolution {
    /// Loads models and questions. Everything that can be refused is refused here.
    ///
    /// # Errors
    /// Settings at odds, checkpoints or questions that cannot be read, videos with fewer candidates than key frames.
    pub fn new(settings: Settings, observe: Observer) -> Result<Self> {
        settings.check()?;
        let placement = settings.placement()?;
        let plan = memory_plan(&settings, &placement)?;
        observe(Event::Memory(&plan));
        plan.check()?;
        let (mllm, clip, (device, dtype)) = (&settings.models.mllm, &settings.models.clip, placement);
        let chat = Qwen2_5VlChat::load(mllm, dtype, &device)?;
        let clip = Clip::load(clip, DType::F32, &device)?;
        let sampler = match &settings.models.sampler {
            Some(path) => Sampler::load(path, &device)?,
            None => {
                let width = clip.config().projection_dim;
                settings.evolve.sampler.fresh(width, settings.evolve.seed, &device)?
            }
        };
        sampler.check(clip.config().projection_dim)?;
        settings.evolve.sampler.suits(&sampler)?;
        let (mut train, validation) = questions(&settings, &clip, observe)?;
        let learner = Learner::new(chat, &Qwen2_5Vl::weights(mllm)?, clip, sampler, &settings.evolve)?;
        if settings.evolve.sampler.learn && settings.evolve.sampler.worth == Worth::Difficulty {
            let rollouts = settings.evaluation.pass_rate_rollouts;
            let mut progress = |done, of| observe(Event::Preparing("pass rates", done, of));
            pass_rates(learner.policy(), &mut train, &settings.evolve, rollouts, &mut progress)?;
        }
        let trainer = Trainer::new(settings.evolve.clone(), learner, train)?;
        Ok(Self { settings, trainer, validation, evaluations: BTreeMap::new() })
    }

    /// Trains to the last step, from where `run` was left. At its end, and when it is stopped, `report.html` in the run's folder
    /// shows its curves.
    ///
    /// # Errors
    /// As [`Trainer::step`]; the message names the last good checkpoint. [`Error::Interrupted`] after saving, when the
    /// observer says so.
    pub fn run(&mut self, run: &Run, observe: Observer) -> Result<Report> {
        let mut metrics = self.resume(run)?;
        let every = self.settings.evaluation.every;
        if every > 0 && self.trainer.progress.step == 0 {
            self.evaluated(&mut metrics, observe)?;
        }
        let last = self.settings.evolve.steps;
        while self.trainer.progress.step < last {
            let tally = self.trainer.step().map_err(|error| told(error, run))?;
            let step = self.trainer.progress.step;
            let values: BTreeMap<String, f64> =
                tally.values().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            metrics.log(step, &values)?;
            let go_on = observe(Event::Step { step, values: &values });
            let mut score = None;
            if every > 0 && (step.is_multiple_of(every) || step == last) {
                score = Some(self.evaluated(&mut metrics, observe)?);
            }
            if step.is_multiple_of(self.settings.save_every) || step == last || score.is_some() || !go_on {
                run.save(step, &self.snapshot()?, score)?;
            }
            if !go_on {
                self.report(run)?;
                return Err(Error::Interrupted);
            }
        }
        self.report(run)?;
        let best = run.best()?.map(|saved| saved.folder);
        Ok(Report { evaluations: self.evaluations.clone(), steps: last, best })
    }

    /// The page of what is recorded so far, in the run's folder.
    fn report(&self, run: &Run) -> Result<()> {
        let page = Training::of_run(run.folder(), &self.settings, &self.evaluations)?;
        report::write(run.folder().join(report::FILE), &page.html())
    }

    fn resume(&mut self, run: &Run) -> Result<Metrics> {
        let Some(saved) = run.latest()? else {
            // Stopped before its first checkpoint: it begins anew, and so does its record.
            let record = run.folder().join("metrics.jsonl");
            if record.exists() {
                std::fs::remove_file(&record).map_err(|error| Error::io(&record, error))?;
            }
            return Metrics::create(run.folder());
        };
        let (saved, snapshot) = Snapshot::load(&saved.folder)?;
        let State { progress, evaluations } = serde_json::from_value(snapshot.state)
            .map_err(|cause| Error::checkpoint(&saved.folder, cause))?;
        (self.trainer.progress, self.evaluations) = (progress, evaluations);
        self.trainer.learner.restore(snapshot.tensors)?;
        run.rewind(saved.step)?;
        Metrics::resume(run.folder(), saved.step)
    }

    /// A checkpoint that is also a folder others can load: a model with its tokenizer and settings, or a PEFT adapter.
    fn snapshot(&self) -> Result<Snapshot> {
        let learner = &self.trainer.learner;
        let state = State { progress: self.trainer.progress, evaluations: self.evaluations.clone() };
        let state =
            serde_json::to_value(state).map_err(|cause| Error::Input(format!("checkpoint: {cause}")))?;
        let (mut tensors, mut files) = (learner.files()?, learner.readable()?);
        tensors.retain(|stem, _| !files.contains_key(&format!("{stem}.safetensors")));
        if tensors.contains_key("model") {
            let weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".index.json");
            files.extend(read_folder(&self.settings.models.mllm, |name| !weights(name))?);
        }
        Ok(Snapshot { tensors, state, files })
    }

    /// Greedy accuracy on the validation questions, logged and returned.
    fn evaluated(&mut self, metrics: &mut Metrics, observe: Observer) -> Result<f64> {
        let step = self.trainer.progress.step;
        let plan = greedy(&self.settings.evolve.plan, self.settings.evaluation.choosing);
        let summary = self.evaluate(&plan, &self.validation)?;
        let mut values = BTreeMap::from([
            ("eval_accuracy".to_owned(), summary.accuracy),
            ("eval_evidence_recall".to_owned(), summary.evidence_recall),
            ("eval_well_formed".to_owned(), summary.well_formed),
        ]);
        let families = summary.families.iter();
        values.extend(families.map(|(name, share)| (format!("eval_accuracy/{name}"), *share)));
        metrics.log(step, &values)?;
        observe(Event::Evaluated { step, summary: &summary });
        let accuracy = summary.accuracy;
        self.evaluations.insert(step, summary);
        Ok(accuracy)
    }

    /// Grades `tasks` with the models as they are.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(&self, plan: &Plan, tasks: &[Task]) -> Result<Summary> {
        let policy = self.trainer.learner.policy();
        let mut gallery = Gallery::new(GALLERY);
        let graded = evaluate(policy, &mut gallery, tasks, plan, self.settings.evolve.seed, &mut |_| true)?;
        Ok(summary(&graded))
    }
}

/// What a run needs in memory at most, beside what there is.
///
/// # Errors
/// A language model whose configuration cannot be read.
pub fn memory_plan(settings: &Settings, (device, dtype): &(Device, DType)) -> Result<MemoryPlan> {
    let config = Config::load(&settings.models.mllm)?;
    let demand = demand(settings, &config, (Nodes::of(device, *dtype), *dtype));
    Ok(MemoryPlan::new(&config, &demand, memory::available(device)))
}

/// What a run asks of memory: every prompt as long as the budgets of visual tokens allow.
pub fn demand(settings: &Settings, config: &Config, (nodes, dtype): (Nodes, DType)) -> Demand {
    let (run, plan) = (&settings.evolve, &settings.evolve.plan);
    let (d, inner) = (config.text.hidden_size, config.text.intermediate_size);
    let kv = config.text.num_key_value_heads * config.text.head_dim();
    // In and out of every affine map of a layer.
    let maps = 4 * d + 2 * (d + kv) + 3 * (d + inner);
    let learn = match run.model.learn {
        Learn::Nothing => memory::Learn::Adapter(0),
        Learn::Everything => memory::Learn::Text,
        Learn::Adapters { rank, .. } => memory::Learn::Adapter(rank * maps * config.text.num_hidden_layers),
    };
    let trajectories = run.questions * run.generations as usize;
    let text = 256;
    let longest = (plan.key_frame_tokens + text).min(config.text.max_position_embeddings);
    let new_tokens = plan.query_tokens.max(plan.answer_tokens);
    let tokens = run.micro_batch_tokens.max(longest + plan.query_tokens + plan.answer_tokens);
    // A frozen model has no update.
    let learns = usize::from(run.model.learn != Learn::Nothing);
    let tokens = tokens * run.micro_batches_at_once * learns;
    Demand {
        learn,
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
        },
        visual_tokens: trajectories * plan.key_frame_tokens.min(longest)
            + run.questions * plan.preview_count() * plan.preview_tokens,
        patches: if nodes == Nodes::Kernels { TOGETHER_ON_DEVICE } else { 4096 },
    }
}

/// The plan of an evaluation: greedy turns, and `instead` where training draws from the sampler.
pub fn greedy(plan: &Plan, instead: Choosing) -> Plan {
    let choosing = if plan.choosing == Choosing::Draw { instead } else { plan.choosing };
    Plan { temperature: 0.0, choosing, ..plan.clone() }
}

fn told(error: Error, run: &Run) -> Error {
    let good = run.latest().ok().flatten();
    let good = good.map_or("none was saved yet".to_owned(), |saved| saved.folder.display().to_string());
    match error {
        Error::Interrupted => Error::Interrupted,
        error => Error::Input(format!("training stopped: {error}; last good checkpoint: {good}")),
    }
}

/// Training and validation questions.
fn questions(settings: &Settings, clip: &Clip, observe: Observer) -> Result<(Vec<Task>, Vec<Task>)> {
    let wanted = settings.evaluation.questions;
    let (train, validation) = match &settings.data {
        Data::World { seed, spec, videos } => {
            let world = World::new(spec.clone(), *seed)?;
            // Six families, and some videos have no question of one of them.
            let enough = (wanted as u64).div_ceil(4);
            let validation = balanced(world_tasks(&world, Split::Validation, 0..enough), wanted);
            (world_tasks(&world, Split::Train, 0..*videos), validation)
        }
        Data::Files { train, validation, fps, cache } => {
            let cache = cache.as_ref().map(FeatureCache::new);
            let mut open = |video: &Path| Footage::of_file(video, *fps, clip, cache.as_ref());
            let mut progress = |done, of| observe(Event::Preparing("videos", done, of));
            let mut read = |path: &Path| file_tasks(path, *fps, &mut open, &mut progress);
            let train = read(train)?;
            let validation = validation.as_deref().map(&mut read).transpose()?.unwrap_or_default();
            (train, balanced(validation, wanted))
        }
    };
    long_enough(train.iter().chain(&validation), settings.evolve.plan.key_frames)?;
    if settings.evaluation.every > 0 && validation.is_empty() {
        return Err(Error::Input(
            "evaluation: expected validation questions, got none; name a file or set evaluation.every = 0"
                .into(),
        ));
    }
    Ok((train, validation))
}
