//! One whole step of joint training on both devices: rollout, rewards, GRPO of an adapter and REINFORCE of the sampler on the
//! small models and a video of the toy world.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use msjoe::checkpoint::Checkpoint;
use msjoe::data::world::{Spec, Split, World};
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::sampler::Sampler;
use msjoe::rl::config::{EvolveConfig, Learn, ModelConfig};
use msjoe::rl::learner::Learner;
use msjoe::rl::plan::Plan;
use msjoe::rl::tally::Tally;
use msjoe::rl::tasks::world_tasks;
use msjoe::rl::trainer::Trainer;

use crate::report::Report;

/// Relative, of a step's figures. A draw that falls between two nearly equal probabilities may differ, and with it a reply.
const LIMIT: f64 = 0.02;
/// What depends on no reply in particular comes first.
const FIGURES: [&str; 7] = [
    "sampler/entropy",
    "entropy",
    "reward",
    "completions/mean_length",
    "loss",
    "grad_norm",
    "sampler/grad_norm",
];

pub fn check(device: &Device, folder: &Path, report: &mut Report) -> Result<()> {
    let (cpu, _) = stepped(&Device::Cpu, folder)?;
    let (gpu, trained) = stepped(device, folder)?;
    for name in FIGURES {
        let of = |tally: &Tally| tally.get(name).with_context(|| format!("the step has no {name}"));
        let (cpu, gpu) = (of(&cpu)?, of(&gpu)?);
        report.judge(&format!("joint step, {name}"), (gpu - cpu).abs() / cpu.abs().max(1e-3), LIMIT);
    }
    // What was written and rolled out by the same weights.
    let apart = gpu.get("sampling/sampling_logp_difference/max").context("no log-probabilities")?;
    report.judge("joint step, log-probabilities of rollout and update", apart, 1e-3);
    // A checkpoint goes over the host and back.
    let mut again = learner(device, folder)?;
    again.restore(trained.files()?)?;
    let (found, saved) = (flat(&again)?, flat(&trained)?);
    report.check("joint step, restored adapter and sampler", &found, &saved, (0.0, None, 0.0))
}

fn config() -> EvolveConfig {
    EvolveConfig {
        seed: 7,
        steps: 1,
        questions: 4,
        generations: 4,
        plan: Plan { key_frames: 8, query_tokens: 48, answer_tokens: 48, ..Plan::default() },
        model: ModelConfig {
            learn: Learn::Adapters { rank: 8, alpha: 16.0, targets: None },
            ..ModelConfig::default()
        },
        ..EvolveConfig::default()
    }
}

fn learner(device: &Device, folder: &Path) -> Result<Learner> {
    let mllm = folder.join("mllm");
    let chat = Qwen2_5VlChat::load(&mllm, DType::F32, device)?;
    let clip = Clip::load(&folder.join("clip"), DType::F32, device)?;
    let sampler = Sampler::load(folder.join("sampler.safetensors"), device)?;
    Ok(Learner::new(chat, &Checkpoint::open(&mllm)?, clip, sampler, &config())?)
}

fn stepped(device: &Device, folder: &Path) -> Result<(Tally, Learner)> {
    let tasks = world_tasks(&World::new(Spec::default(), 1)?, Split::Train, 0..2);
    let mut trainer = Trainer::new(config(), learner(device, folder)?, tasks)?;
    let tally = trainer.step()?;
    Ok((tally, trainer.learner))
}

fn flat(learner: &Learner) -> Result<Tensor> {
    let files: BTreeMap<String, _> = learner.files()?;
    let all = files.iter().filter(|(name, _)| ["adapter_model", "sampler"].contains(&name.as_str()));
    let all = all.flat_map(|(_, tensors)| tensors.values());
    let all: Vec<Tensor> =
        all.map(|x| x.to_device(&Device::Cpu)?.flatten_all()).collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&all, 0)?)
}
