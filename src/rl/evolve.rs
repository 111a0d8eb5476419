//! A whole run: models, questions, training with evaluation and checkpoints, from one settings file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::config::Worth;
use super::difficulty::Estimation;
use super::evaluate::{Summary, TOGETHER, evaluate, summary};
use super::footage::Footage;
use super::gallery::Gallery;
use super::learner::{Learner, read_folder};
use super::memory::MemoryPlan;
use super::plan::{Choosing, Plan};
use super::rates::Record;
use super::run::{Build, Run, Saved, Snapshot};
use super::settings::{Data, STAGES, Settings, memory_plan};
use super::trainer::{Progress, Trainer};
use super::trajectory::Task;
use crate::data::feature_cache::FeatureCache;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::models::clip::Clip;
use crate::models::qwen2_5_vl::Qwen2_5Vl;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::sampler::Sampler;
use crate::report::{self, Training};

/// Bytes of frame features kept during an evaluation.
const GALLERY: usize = 1 << 28;

/// What happens during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// What a stage will need at most, before anything is loaded: its name and the plan.
    Memory(&'a str, &'a MemoryPlan),
    /// A stage begins: its name and its steps.
    Stage(&'a str, u64),
    /// Something that is no error, and that whoever trains should know.
    Warning(&'a str),
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
/// The pass rates that were estimated, in a run's folder.
const RATES: &str = "pass-rates.jsonl";

/// A whole run in `run`'s folder, from where it was left: stage 1 if `settings` have one, in the folder `sampler` below, and
/// stage 2 with the best sampler of stage 1.
///
/// # Errors
/// As [`Settings::check`], [`Settings::plans`], [`Evolution::new`] and [`Evolution::run`].
pub fn evolve(mut settings: Settings, run: &Run, observe: Observer) -> Result<Report> {
    settings.check()?;
    for (name, plan) in &settings.plans()? {
        observe(Event::Memory(name, plan));
    }
    if let Some(first) = settings.first_stage() {
        let folder = run.folder().join(FIRST);
        let first_run = match Run::exists(&folder) {
            true => Run::open(&folder)?,
            false => Run::create(&folder, &first, &Build::new(first.models.device.as_str()))?,
        };
        let steps = first.evolve.steps;
        if first_run.latest()?.is_none_or(|saved| saved.step < steps) {
            observe(Event::Stage(STAGES[0], steps));
            Evolution::new(first, observe)?.run(&first_run, observe)?;
        }
        let best = first_run.best()?.map(|saved| saved.folder.join("sampler.safetensors"));
        settings.models.sampler = best.or(settings.models.sampler);
    }
    observe(Event::Stage(STAGES[1], settings.evolve.steps));
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
    /// Loads models and questions.
    ///
    /// # Errors
    /// As [`Settings::check`] and the plan of its memory, before anything is loaded; checkpoints or questions that cannot be
    /// read, videos with fewer candidates than key frames.
    pub fn new(settings: Settings, observe: Observer) -> Result<Self> {
        settings.check()?;
        let (device, dtype) = settings.placement()?;
        memory_plan(&settings, &(device.clone(), dtype))?.check()?;
        let (mllm, clip) = (&settings.models.mllm, &settings.models.clip);
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
        let (train, validation) = questions(&settings, &clip, observe)?;
        let learner = Learner::new(chat, &Qwen2_5Vl::weights(mllm)?, clip, sampler, &settings.evolve)?;
        let trainer = Trainer::new(settings.evolve.clone(), learner, train)?;
        Ok(Self { settings, trainer, validation, evaluations: BTreeMap::new() })
    }

    /// Estimates the pass rates that the advantage needs and the data do not give; `run` keeps them.
    fn rate(&mut self, run: &Run, observe: Observer) -> Result<()> {
        let Settings { evolve, evaluation, .. } = &self.settings;
        if !evolve.sampler.learn || evolve.sampler.worth != Worth::Difficulty {
            return Ok(());
        }
        let estimation = Estimation {
            plan: Plan { temperature: evaluation.pass_rate_temperature, ..evolve.plan.clone() },
            rollouts: evaluation.pass_rate_rollouts,
            blind_rollouts: 0,
            seed: evolve.seed,
            at_once: evolve.trajectories(),
        };
        let path = run.folder().join(RATES);
        if run.latest()?.is_some_and(|saved| saved.step > 0) && !path.is_file() {
            return Err(Error::Input(format!(
                "{}: this run was begun with pass rates that it did not keep, and others would not be the same; begin a new one",
                path.display()
            )));
        }
        let mut record = Record::open(path, &serde_json::json!(estimation))?;
        let mut progress = |done, of| observe(Event::Preparing("pass rates", done, of));
        self.trainer.rate(&estimation, &mut record, &mut progress)
    }

    /// Trains to the last step, from where `run` was left. At its end, and when it is stopped, `report.html` in the run's folder
    /// shows its curves.
    ///
    /// # Errors
    /// As [`Trainer::step`]; the message names the last good checkpoint. [`Error::Interrupted`] after saving, when the
    /// observer says so.
    pub fn run(&mut self, run: &Run, observe: Observer) -> Result<Report> {
        self.rate(run, observe)?;
        let mut metrics = self.resume(run)?;
        let every = self.settings.evaluation.every;
        if run.latest()?.is_none() {
            // What training starts from may stay the best there is, and is the last good one until there is another.
            let score = if every > 0 { Some(self.evaluated(&mut metrics, observe)?) } else { None };
            run.save(0, &self.snapshot()?, score)?;
        }
        let last = self.settings.evolve.steps;
        while self.trainer.progress.step < last {
            let tally = self.trainer.step().map_err(|error| told(error, run))?;
            let step = self.trainer.progress.step;
            let values: BTreeMap<String, f64> =
                tally.values().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            metrics.log(step, &values)?;
            let mut go_on = observe(Event::Step { step, values: &values });
            if let Err(error) = self.trainer.watch(&tally) {
                self.report(run)?;
                return Err(told(error, run));
            }
            if let Some(warning) = self.trainer.progress.alarm.warning() {
                go_on &= observe(Event::Warning(&warning));
            }
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
        // No more at once than the memory plan counts for a step.
        let evolve = &self.settings.evolve;
        let of = (evolve.seed, TOGETHER.min(evolve.trajectories()));
        let graded = evaluate(policy, &mut gallery, tasks, plan, of, &mut |_| true)?;
        Ok(summary(&graded))
    }
}

/// The plan of an evaluation: greedy turns, and `instead` where training draws from the sampler.
pub fn greedy(plan: &Plan, instead: Choosing) -> Plan {
    let choosing = if plan.choosing == Choosing::Draw { instead } else { plan.choosing };
    Plan { temperature: 0.0, choosing, ..plan.clone() }
}

fn told(error: Error, run: &Run) -> Error {
    if matches!(error, Error::Interrupted) {
        return error;
    }
    let name = |saved: Option<Saved>| {
        saved.map_or("none yet".to_owned(), |saved| saved.folder.display().to_string())
    };
    let (latest, best) = (name(run.latest().ok().flatten()), name(run.best().ok().flatten()));
    Error::Input(format!(
        "training stopped: {error}; last good checkpoint: {latest}; best by evaluation: {best}"
    ))
}

/// Training and validation questions, with the features of their videos.
fn questions(settings: &Settings, clip: &Clip, observe: Observer) -> Result<(Vec<Task>, Vec<Task>)> {
    let cache = match &settings.data {
        Data::Files { cache, .. } => cache.as_ref().map(FeatureCache::new),
        Data::World { .. } => None,
    };
    let fps = if let Data::Files { fps, .. } = settings.data { fps } else { 1.0 };
    let mut open = |video: &Path| Footage::of_file(video, fps, clip, cache.as_ref());
    settings.questions(&mut open, &mut |done, of| observe(Event::Preparing("videos", done, of)))
}
