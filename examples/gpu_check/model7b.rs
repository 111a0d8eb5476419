//! Times of the 7B shape with random weights in bf16: what a question about 64 frames costs, and a step of training.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use msjoe::checkpoint::peft::LoraConfig;
use msjoe::models::qwen2_5_vl::adapter::Adapter;
use msjoe::models::qwen2_5_vl::config::{Config, TextConfig};
use msjoe::models::qwen2_5_vl::generate::Options;
use msjoe::models::qwen2_5_vl::mrope::{Media, Timing};
use msjoe::models::qwen2_5_vl::packed::{Group, Sharing};
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::ops::log_prob::log_probs;
use msjoe::optim::{AdamW, AdamWConfig, clip_grad_norm};
use msjoe::rl::grpo::{Completions, GrpoConfig, Totals, grpo_loss};

use crate::report::{Report, Work};

/// 64 frames of 336 x 644: patches of 32 slices.
const GRID: [usize; 3] = [32, 24, 46];
/// Rounds, of which the first is not timed.
const ROUNDS: usize = 4;
/// Tokens of the completion that is trained on.
const COMPLETION: usize = 512;

/// A random tensor under every name, made on the device.
struct Random;

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Tensor::rand(-0.03f32, 0.03, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} was asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// The model, its pixels, and a prompt that shows them.
struct Shown {
    model: Qwen2_5Vl,
    pixels: Tensor,
    input_ids: Vec<u32>,
}

impl Shown {
    fn prompt(&self, features: Tensor) -> Prompt {
        let media = vec![Media::Video { grid: GRID, timing: Timing::Uniform(1.0) }];
        Prompt { input_ids: self.input_ids.clone(), media, features: vec![features] }
    }
}

/// Question first, then training.
pub fn times(device: &Device, folder: &Path, report: &mut Report) -> Result<()> {
    let config = Config::load(folder).with_context(|| {
        format!("{}: expected the config.json of a 7B model; name its folder by --model7b", folder.display())
    })?;
    let vb = VarBuilder::from_backend(Box::new(Random), DType::BF16, device.clone());
    let model = Qwen2_5Vl::new(&config, vb)?;
    let patches: usize = GRID.iter().product();
    let pixels =
        Tensor::randn(0f32, 1.0, (patches, config.vision.patch_width()), device)?.to_dtype(DType::BF16)?;
    let visual = patches / config.vision.spatial_merge_size.pow(2);
    let mut input_ids: Vec<u32> = (1_000..1_030).collect();
    input_ids.extend(std::iter::repeat_n(config.video_token_id, visual));
    input_ids.extend(2_000..2_030);
    let shown = Shown { model, pixels, input_ids };
    question(&shown, device, report)?;
    training(&shown, device, report)
}

/// Linear maps of the decoder (`candle` counts 2 for a multiplication with its addition) and causal attention, forwards.
fn decoder_flop(tokens: f64) -> [f64; 2] {
    [13.05e9 * tokens, 0.2007e6 * tokens * tokens]
}

fn question(shown: &Shown, device: &Device, report: &mut Report) -> Result<()> {
    let cuda = device.as_cuda_device()?;
    let (mut prefills, mut decodes) = (vec![], vec![]);
    let new = 65;
    for _ in 0..ROUNDS {
        cuda.cuda_stream().synchronize()?;
        let start = Instant::now();
        let prompt = shown.prompt(shown.model.vision(&shown.pixels, &[GRID])?);
        let (mut first, mut last) = (None, start);
        let options = Options { max_new_tokens: new, prefill_chunk: 16_384, ..Options::default() };
        shown.model.generate(&[prompt], &options, &mut |_, _| {
            last = Instant::now();
            first.get_or_insert(last);
            ControlFlow::Continue(())
        })?;
        let first = first.context("no token was made")?;
        prefills.push((first - start).as_secs_f64() * 1e3);
        decodes.push((last - first).as_secs_f64() * 1e3);
    }
    let [linear, attention] = decoder_flop(shown.input_ids.len() as f64);
    let tower = 1.264e9 * GRID.iter().product::<usize>() as f64;
    let work = Work::Flop(tower + linear + attention);
    report.time("7B, vision and prefill of 64 frames", median(prefills), work);
    // The first token is the prefill's.
    let made = new - 1;
    let bytes = decoder_bytes(&shown.model.config.text, shown.input_ids.len() + 1, made);
    let work = Work::Decoded { tokens: made as f64, bytes };
    report.time("7B, decoding of one sequence", median(decodes), work);
    Ok(())
}

/// What `made` tokens behind `cached` ones must read in bf16: all weights of the decoder and its head, and keys and values.
fn decoder_bytes(text: &TextConfig, cached: usize, made: usize) -> f64 {
    let (hidden, heads) = (text.hidden_size, text.num_attention_heads + 2 * text.num_key_value_heads);
    let maps = (heads + text.num_attention_heads) * text.head_dim() + 3 * text.intermediate_size;
    let weights = text.num_hidden_layers * maps * hidden + text.vocab_size * hidden;
    let row = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim();
    let rows: usize = (0..made).map(|i| cached + i).sum();
    (DType::BF16.size_in_bytes() * (made * weights + rows * row)) as f64
}

/// A step of GRPO of an adapter of rank 16 on one trajectory, every layer run again in the backward pass: twice the forward
/// pass and the gradients of the inputs.
fn training(shown: &Shown, device: &Device, report: &mut Report) -> Result<()> {
    let cuda = device.as_cuda_device()?;
    let adapter = Adapter::new(&shown.model, LoraConfig::text(16, 32.0), 1)?;
    let model = shown.model.with_adapter(&adapter)?;
    let prompt = shown.prompt(shown.model.vision(&shown.pixels, &[GRID])?);
    let completions = vec![(3_000..3_000 + COMPLETION as u32).collect::<Vec<u32>>()];
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let mut times = vec![];
    for _ in 0..ROUNDS {
        cuda.cuda_stream().synchronize()?;
        let start = Instant::now();
        let group = [Group { prompt: &prompt, completions: &completions }];
        let packed = model.pack_completions(&group, Sharing::Shared)?;
        let (rows, targets) = (packed.rows.concat(), packed.targets.concat());
        let loss = |hidden: &Tensor| {
            let rows = Tensor::new(rows.as_slice(), device)?;
            let chosen = log_probs(&hidden.index_select(&rows, 0)?, model.text().head(), &targets, 1.0)?;
            loss_of(&chosen.log_probs).map_err(candle_core::Error::wrap)
        };
        let (_, store) = model.backward_checkpointed(&packed.batch, loss)?;
        let mut gradients = adapter.parameters().gradients(&store)?;
        clip_grad_norm(&mut gradients, 1.0)?;
        optimizer.step(adapter.parameters(), &gradients, 1e-4)?;
        cuda.cuda_stream().synchronize()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let [linear, attention] = decoder_flop((shown.input_ids.len() + COMPLETION) as f64);
    let work = Work::Flop(3.0 * linear + 4.5 * attention);
    report.time("7B, training step of an adapter on 64 frames", median(times), work);
    Ok(())
}

fn loss_of(log_probs: &Tensor) -> msjoe::Result<Tensor> {
    let batch = Completions {
        rows: &[COMPLETION],
        mask: &[true; COMPLETION],
        truncated: &[],
        advantages: &[1.0],
        old_log_probs: None,
        ref_log_probs: None,
        entropies: None,
    };
    let settings = GrpoConfig { beta: 0.0, ..GrpoConfig::default() };
    Ok(grpo_loss(log_probs, &batch, &Totals::over(&[batch], &settings)?, &settings)?.loss)
}

/// Without the first round.
fn median(times: Vec<f64>) -> f64 {
    let mut times = times;
    times.remove(0);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
