//! One step of training on both devices: GRPO of the small language model, REINFORCE of the sampler.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use msjoe::models::qwen2_5_vl::config::Config;
use msjoe::models::qwen2_5_vl::packed::{Group, Sharing};
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::models::unet1d::UNet1d;
use msjoe::ops::log_prob::log_probs;
use msjoe::optim::{AdamW, AdamWConfig, Parameters};
use msjoe::rl::advantage::{Scale, group_relative};
use msjoe::rl::grpo::{Completions, GrpoConfig, Totals, grpo_loss};
use msjoe::rl::reinforce::{Drawn, ReinforceConfig, reinforce_loss};

use crate::random::Source;
use crate::report::Report;

const LIMIT: f64 = 2e-4;

pub fn check(device: &Device, folder: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let language = |device: &Device| grpo(device, &folder.join("mllm"));
    same(report, "GRPO", language(&Device::Cpu)?, language(device)?)?;
    let matrix = (Source::new(seed).normal(&[5, 200], 0.2, DType::F32)?).clamp(-1.0, 1.0)?;
    let sampler = |device: &Device| reinforce(device, &folder.join("sampler.safetensors"), &matrix);
    same(report, "REINFORCE", sampler(&Device::Cpu)?, sampler(device)?)
}

type Tensors = BTreeMap<String, Tensor>;

/// What one step makes, from first to last.
struct Stepped {
    /// A result of the forward pass that depends on the device, and its name.
    forward: (&'static str, Tensor),
    gradients: Tensors,
    /// What the step added to the parameters.
    change: Tensor,
}

fn stepped(forward: (&'static str, Tensor), loss: &Tensor, parameters: &Parameters) -> Result<Stepped> {
    let gradients = parameters.gradients(&loss.backward()?)?;
    // The step is in place: this copy keeps what was before.
    let before = flat(&parameters.detached())?.copy()?;
    // Without the division by their own size, which turns the rounding of a small gradient into a whole step; and at a rate
    // whose changes stand above the rounding of the parameters.
    let mut optimizer = AdamW::new(AdamWConfig { eps: 1.0, ..AdamWConfig::default() });
    optimizer.step(parameters, &gradients, 1.0)?;
    let change = (flat(&parameters.detached())? - before)?;
    Ok(Stepped { forward, gradients, change })
}

/// All tensors as one vector, so that one that is zero everywhere counts beside the others.
fn flat(tensors: &Tensors) -> Result<Tensor> {
    let all = tensors.values().map(|x| x.to_device(&Device::Cpu)?.flatten_all());
    Ok(Tensor::cat(&all.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

fn same(report: &mut Report, what: &str, cpu: Stepped, gpu: Stepped) -> Result<()> {
    let mut check = |name: &str, gpu: &Tensor, cpu: &Tensor| {
        report.check(&format!("step of {what}, {name}"), gpu, cpu, (LIMIT, None, 0.0))
    };
    check(gpu.forward.0, &gpu.forward.1, &cpu.forward.1)?;
    check("gradients", &flat(&gpu.gradients)?, &flat(&cpu.gradients)?)?;
    check("change of the parameters", &gpu.change, &cpu.change)
}

fn grpo(device: &Device, folder: &Path) -> Result<Stepped> {
    let config = Config::load(folder)?;
    let all = Parameters::new(Qwen2_5Vl::weights(folder)?.tensors(DType::F32, device)?)?;
    let model = Qwen2_5Vl::new(&config, all.builder(DType::F32, device))?;
    let prompt = Prompt::text((10..40).collect());
    let completions: Vec<Vec<u32>> = (0..4u32).map(|i| (50 + 7 * i..56 + 8 * i).collect()).collect();
    let group = [Group { prompt: &prompt, completions: &completions }];
    let packed = model.pack_completions(&group, Sharing::Shared)?;
    let (rows, targets) = (packed.rows.concat(), packed.targets.concat());
    let hidden = model.hidden_packed(&packed.batch)?;
    let rows = Tensor::new(rows.as_slice(), device)?;
    let chosen = log_probs(&hidden.index_select(&rows, 0)?, model.text().head(), &targets, 1.0)?;
    let rewards = [Some(1.0), Some(0.0), Some(0.5), Some(0.0)];
    let advantages: Vec<f64> = group_relative(&rewards, 4, Scale::Group).into_iter().map(f64::from).collect();
    let (lengths, mask): (Vec<usize>, _) =
        (completions.iter().map(Vec::len).collect(), vec![true; targets.len()]);
    let batch = Completions {
        rows: &lengths,
        mask: &mask,
        truncated: &[],
        advantages: &advantages,
        old_log_probs: None,
        ref_log_probs: None,
        entropies: None,
    };
    let settings = GrpoConfig { beta: 0.0, ..GrpoConfig::default() };
    let loss = grpo_loss(&chosen.log_probs, &batch, &Totals::over(&[batch], &settings)?, &settings)?.loss;
    // Not the loss: in the first update the ratio of old and new probabilities is 1 whatever they are.
    let forward = ("chosen log-probabilities", chosen.log_probs.detach());
    stepped(forward, &loss, &all.filtered(|name| !name.starts_with("visual.")))
}

fn reinforce(device: &Device, file: &Path, matrix: &Tensor) -> Result<Stepped> {
    let loaded = UNet1d::load(file, device)?;
    let parameters = Parameters::new(loaded.parameters().into_iter().collect())?;
    let sampler = UNet1d::new(loaded.config(), parameters.builder(DType::F32, device))?;
    let logits = sampler.forward(&matrix.to_device(device)?)?;
    let picks = [[3, 77, 150], [199, 0, 42]];
    let draw = |(picks, advantage)| Drawn { logits: &logits, picks, advantage, apart: None };
    let draws: Vec<Drawn> = picks.iter().map(|p| p.as_slice()).zip([1.0, -0.5]).map(draw).collect();
    let loss = reinforce_loss(&draws, draws.len(), &ReinforceConfig::default())?.loss;
    stepped(("loss", loss.detach()), &loss, &parameters).context("step of the sampler")
}
