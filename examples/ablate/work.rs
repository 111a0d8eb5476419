//! Training and grading one row, with everything that is done kept on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use msjoe::checkpoint::{Checkpoint, write_file};
use msjoe::data::world::{self, Spec, Split, World};
use msjoe::error::Error;
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::Qwen2_5Vl;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::sampler::Sampler;
use msjoe::rl::config::EvolveConfig;
use msjoe::rl::difficulty::{Estimation, pass_rates};
use msjoe::rl::evaluate::{TOGETHER, evaluate};
use msjoe::rl::evolve::greedy;
use msjoe::rl::gallery::Gallery;
use msjoe::rl::learner::Learner;
use msjoe::rl::plan::{Choosing, Plan};
use msjoe::rl::rates::Record;
use msjoe::rl::rollout::Policy;
use msjoe::rl::tasks::{balanced, world_tasks};
use msjoe::rl::trainer::Trainer;
use msjoe::rl::trajectory::Task;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::rows::{Row, Scale, TURN_TOKENS, plan, stages};

/// Models, questions and the folder of a run.
pub struct Work {
    pub scale: Scale,
    pub test: Vec<Task>,
    train: Vec<Task>,
    chat: Qwen2_5VlChat,
    weights: Checkpoint,
    mllm: PathBuf,
    clip: Clip,
    folder: PathBuf,
    /// Tells results of other models, worlds or questions apart.
    identity: String,
}

/// What one (row, seed) gave.
#[derive(Serialize, Deserialize)]
pub struct Graded {
    /// By number of key frames.
    pub by_frames: BTreeMap<usize, Grades>,
    /// One point per training step of the last stage.
    pub curve: Vec<Point>,
    /// Seconds of training, without those of a first stage that another row left behind.
    pub seconds: f64,
}

/// The questions in their order.
#[derive(Serialize, Deserialize)]
pub struct Grades {
    /// `1` for a right answer, `0` for a wrong one.
    pub right: String,
    /// Mean share of the evidence ranges with a key frame.
    pub evidence_recall: f64,
}

impl Grades {
    pub fn right(&self) -> Vec<bool> {
        self.right.bytes().map(|byte| byte == b'1').collect()
    }
}

/// Means of one training step.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Point {
    pub reward: f64,
    pub accuracy: f64,
    pub evidence_recall: f64,
    pub sampler_entropy: f64,
}

/// Called with a word on what is done, and the work of the row that is, see [`Work::load`]; `false` interrupts.
pub type Observe<'a> = &'a mut dyn FnMut(&str, u64) -> bool;

/// Where a row is.
struct Progress<'a> {
    observe: Observe<'a>,
    done: u64,
}

impl Progress<'_> {
    fn now(&mut self, said: &str, done: u64) -> bool {
        (self.observe)(said, self.done + done)
    }
}

impl Work {
    /// Loads the models and renders the questions.
    pub fn new(models: &Path, world_seed: u64, scale: Scale, folder: &Path) -> Result<Self> {
        let (mllm, clip) = (models.join("mllm"), models.join("clip"));
        let world = World::new(Spec::default(), world_seed)?;
        // Most videos have a question of each of the six families.
        let videos = scale.questions as u64 / 4;
        let test = balanced(world_tasks(&world, Split::Test, 0..videos), scale.questions);
        ensure!(test.len() == scale.questions, "{} test questions in {videos} videos", test.len());
        let clip = Clip::load(&clip, DType::F32, &Device::Cpu)?;
        let mut hash = Sha256::new();
        digest(&mllm, &mut hash)?;
        hash.update(clip.revision());
        hash.update(format!("{world_seed} {} {} {}", world::VERSION, scale.questions, scale.videos));
        hash.update(serde_json::to_string(&estimation(&scale))?);
        Ok(Self {
            test,
            train: world_tasks(&world, Split::Train, 0..scale.videos),
            chat: Qwen2_5VlChat::load(&mllm, DType::F32, &Device::Cpu)?,
            weights: Qwen2_5Vl::weights(&mllm)?,
            mllm,
            clip,
            folder: folder.to_owned(),
            identity: format!("{:x}", hash.finalize()),
            scale,
        })
    }

    /// The base model's pass rate on every training question, from uniform frames.
    pub fn estimate_pass_rates(&mut self, observe: Observe) -> Result<()> {
        let estimation = estimation(&self.scale);
        let path =
            self.path("pass-rates", &self.scale.pass_rate_rollouts.to_string()).with_extension("jsonl");
        let mut record = Record::open(path, &serde_json::json!([self.identity, estimation]))?;
        let policy = Policy { chat: &self.chat, clip: None, sampler: None };
        let mut progress = |done, of| observe(&format!("pass rates {done}/{of}"), 0);
        Ok(pass_rates(policy, &mut self.train, &estimation, &mut record, &mut progress)?)
    }

    /// What is on disk of a row, if it is done.
    pub fn done(&self, row: &Row, seed: u64, frames: &[usize]) -> Result<Option<Graded>> {
        read(&self.row_path(row, seed, frames)?)
    }

    /// The work of a row: answers graded, and trajectories trained on twice.
    pub fn load(&self, row: &Row, seed: u64, frames: &[usize]) -> u64 {
        let stages = stages(row, &self.scale, seed);
        let training: u64 = stages.iter().map(|config| config.steps * weight(config)).sum();
        training + (frames.len() * self.test.len()) as u64
    }

    /// Where the sampler of a first stage is kept for other rows.
    fn stored(&self, config: &EvolveConfig) -> Result<PathBuf> {
        Ok(self.path("sampler", &toml::to_string(config)?).with_extension("safetensors"))
    }

    /// Trains and grades a row.
    pub fn run(&self, row: &Row, seed: u64, frames: &[usize], observe: Observe) -> Result<Graded> {
        let start = std::time::Instant::now();
        let stages = stages(row, &self.scale, seed);
        let mut progress = Progress { observe, done: 0 };
        let mut trained: Option<Learner> = None;
        let mut curve = vec![];
        for (number, config) in stages.iter().enumerate() {
            let stored = self.stored(config)?;
            let kept = number == 0 && stages.len() == 2 && stored.is_file();
            let sampler = match &trained {
                Some(learner) => learner.sampler.clone(),
                None if kept => Sampler::load(&stored, &Device::Cpu)?,
                None => config.sampler.fresh(self.clip.config().projection_dim, seed, &Device::Cpu)?,
            };
            let learner = self.learner(sampler, config)?;
            if kept {
                progress.done += config.steps * weight(config);
                trained = Some(learner);
                continue;
            }
            let label = format!("{} seed {seed}, stage {}", row.name, number + 1);
            let (learner, points) = self.train(config, learner, &label, &mut progress)?;
            if number == 0 {
                learner.sampler.save(&stored)?;
            }
            (trained, curve) = (Some(learner), points);
        }
        let seconds = start.elapsed().as_secs_f64();
        let mut by_frames = BTreeMap::new();
        for &count in frames {
            let label = format!("{} seed {seed}, {count} key frames", row.name);
            by_frames.insert(count, self.grade(row, trained.as_ref(), count, &label, &mut progress)?);
        }
        let graded = Graded { by_frames, curve, seconds };
        write_file(&self.row_path(row, seed, frames)?, &serde_json::to_vec_pretty(&graded)?)?;
        Ok(graded)
    }

    fn learner(&self, sampler: Sampler, config: &EvolveConfig) -> Result<Learner> {
        let chat = Qwen2_5VlChat::load(&self.mllm, DType::F32, &Device::Cpu)?;
        Ok(Learner::new(chat, &self.weights, self.clip.clone(), sampler, config)?)
    }

    fn train(
        &self,
        config: &EvolveConfig,
        learner: Learner,
        label: &str,
        progress: &mut Progress,
    ) -> Result<(Learner, Vec<Point>)> {
        let mut trainer = Trainer::new(config.clone(), learner, self.train.clone())?;
        let mut curve = vec![];
        for step in 1..=config.steps {
            let of_step = || format!("{label}, step {step}");
            let values = trainer.step().with_context(of_step)?;
            trainer.watch(&values).with_context(of_step)?;
            let value = |name: &str| values.get(name).unwrap_or_default();
            let point = Point {
                reward: value("reward"),
                accuracy: value("rewards/accuracy"),
                evidence_recall: value("evidence_recall"),
                sampler_entropy: value("sampler/entropy"),
            };
            curve.push(point);
            let said = format!(
                "{label}, {step}/{}: reward {:.3}, accuracy {:.3}, recall {:.2}",
                config.steps, point.reward, point.accuracy, point.evidence_recall
            );
            if !progress.now(&said, step * weight(config)) {
                return Err(Error::Interrupted.into());
            }
        }
        progress.done += config.steps * weight(config);
        Ok((trainer.learner, curve))
    }

    fn grade(
        &self,
        row: &Row,
        trained: Option<&Learner>,
        count: usize,
        label: &str,
        progress: &mut Progress,
    ) -> Result<Grades> {
        let policy = match trained {
            Some(learner) => learner.policy(),
            None => Policy { chat: &self.chat, clip: Some(&self.clip), sampler: None },
        };
        let mut gallery = Gallery::new(1 << 28);
        let plan = match trained {
            // As it was trained: with the previews of its own row.
            Some(_) => stages(row, &self.scale, 0).pop().map_or(plan(row, count), |config| Plan {
                key_frames: count,
                previews: config.plan.previews,
                ..config.plan
            }),
            None => plan(row, count),
        };
        let all = self.test.len();
        let mut told = |done: usize| progress.now(&format!("{label}: {done}/{all}"), done as u64);
        let plan = greedy(&plan, Choosing::Spread);
        let graded = evaluate(policy, &mut gallery, &self.test, &plan, (0, TOGETHER), &mut told)?;
        progress.done += all as u64;
        let recalls: Vec<f64> = graded.iter().filter_map(|one| one.evidence_recall).collect();
        Ok(Grades {
            right: graded.iter().map(|one| if one.right { '1' } else { '0' }).collect(),
            evidence_recall: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
        })
    }

    fn row_path(&self, row: &Row, seed: u64, frames: &[usize]) -> Result<PathBuf> {
        let mut settings = format!("{frames:?} {:?}", plan(row, 0));
        for config in stages(row, &self.scale, seed) {
            settings += &toml::to_string(&config)?;
        }
        Ok(self.path(&format!("{}-seed{seed}", row.name), &settings))
    }

    /// A file whose name changes with everything that its content depends on.
    fn path(&self, name: &str, settings: &str) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(&self.identity);
        hash.update(settings);
        let digest = format!("{:x}", hash.finalize());
        self.folder.join(format!("{name}-{}.json", &digest[..10]))
    }
}

/// How the pass rates of stage 1 are estimated.
fn estimation(scale: &Scale) -> Estimation {
    Estimation {
        plan: Plan { query_tokens: TURN_TOKENS, answer_tokens: TURN_TOKENS, ..Plan::default() },
        rollouts: scale.pass_rate_rollouts,
        blind_rollouts: 0,
        seed: 0,
        at_once: scale.questions_per_step * scale.generations as usize,
    }
}

/// What a step counts beside a graded answer.
fn weight(config: &EvolveConfig) -> u64 {
    2 * config.questions as u64 * config.generations
}

/// Adds every file of a model's folder: weights in any number of shards, settings, tokenizer.
fn digest(folder: &Path, hash: &mut Sha256) -> Result<()> {
    let mut paths = vec![];
    for entry in std::fs::read_dir(folder).context(folder.display().to_string())? {
        let path = entry.context(folder.display().to_string())?.path();
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        let mut file = std::fs::File::open(&path).context(path.display().to_string())?;
        std::io::copy(&mut file, hash).context(path.display().to_string())?;
    }
    Ok(())
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context(path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(path.display().to_string()),
    }
}
