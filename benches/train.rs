//! One training step (forward and backward, no optimizer) of a small Qwen2.5-VL on the CPU, f32, random weights: 64
//! sequences of 90 tokens, 8 images of 4 tokens in each, 24 learned tokens at the end of each. The Python twin is
//! `peers/train.py`.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo bench --bench train -- --part text
//! {"name":"train-text","with":"msjoe","threads":2,"seconds":..,"gflops":..,"peak_mib":..}
//! ```

mod random;

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use clap::{Parser, ValueEnum};
use msjoe::models::qwen2_5_vl::config::Config;
use msjoe::models::qwen2_5_vl::mrope::Media;
use msjoe::models::qwen2_5_vl::packed::PackedBatch;
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::ops::linear::linear_no_bias;
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Decoder layers instead of the configuration's, to see what a layer adds to the peak of memory.
    #[arg(long)]
    layers: Option<usize>,
    /// Timed runs, after one that is not timed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Debug, ValueEnum)]
enum Part {
    /// The text model learns; features are given.
    Text,
    /// The same, keeping only the input of each layer.
    Checkpointed,
    /// Vision tower and text model learn.
    All,
}

/// The configuration of `peers/train.py`, key for key.
const CONFIG: &str = include_str!("peers/train.json");
const GRID: [usize; 3] = [1, 4, 4];
const SEQUENCES: usize = 64;
const IMAGES: usize = 8;
const LENGTH: usize = 90;
const LEARNED: usize = 24;

fn main() -> Result<()> {
    let args = Args::parse();
    let Some(part) = args.part else {
        eprintln!("train: no --part given, nothing measured");
        return Ok(());
    };
    msjoe::ops::heap::keep_freed_memory();
    let mut config: Config = serde_json::from_str(CONFIG)?;
    config.text.num_hidden_layers = args.layers.unwrap_or(config.text.num_hidden_layers);
    let model = tracked(&config, part)?;
    let width = config.vision.patch_width();
    let patches = SEQUENCES * IMAGES * 16;
    let pixels: Vec<f32> = (0..patches * width).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let pixels = Tensor::from_vec(pixels, (patches, width), &Device::Cpu)?;
    let grids = vec![GRID; SEQUENCES * IMAGES];
    let given = model.detached().vision(&pixels, &grids)?;
    let mut batch = batch(&model)?;
    let mut seconds = vec![];
    for _ in 0..args.rounds + 1 {
        let start = Instant::now();
        batch.features = vec![if part == Part::All { model.vision(&pixels, &grids)? } else { given.clone() }];
        let grads = match part {
            Part::Checkpointed => {
                model.backward_checkpointed(&batch, |hidden| loss(&model, &batch, hidden))?.1
            }
            _ => loss(&model, &batch, &model.hidden_packed(&batch)?)?.backward()?,
        };
        std::hint::black_box(grads);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let seconds = seconds.split_off(1);
    let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let second = random::median(seconds);
    println!(
        "{}",
        json!({
            "name": format!("train-{part:?}").to_lowercase(),
            "with": "msjoe",
            "threads": rayon::current_num_threads(),
            "layers": config.text.num_hidden_layers,
            "seconds": (second * 1000.0).round() / 1000.0,
            "fastest": (fastest * 1000.0).round() / 1000.0,
            "gflops": (work(&config, part) / second / 1e9).round(),
            "peak_mib": random::peak_mib()?,
        })
    );
    Ok(())
}

/// Random tensors, those that learn as variables.
struct Learning {
    random: VarBuilder<'static>,
    vision: bool,
}

impl SimpleBackend for Learning {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.random.get(shape, name)?;
        let learns = self.vision || !name.starts_with("visual.");
        if learns { Ok(Var::from_tensor(&tensor)?.into_inner()) } else { Ok(tensor) }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} was asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn tracked(config: &Config, part: Part) -> Result<Qwen2_5Vl> {
    let backend = Learning { random: random::var_builder(), vision: part == Part::All };
    Ok(Qwen2_5Vl::new(config, VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu))?)
}

fn batch(model: &Qwen2_5Vl) -> Result<PackedBatch> {
    let prompts: Vec<Prompt> = (0..SEQUENCES)
        .map(|sequence| {
            let mut input_ids = vec![];
            for _ in 0..IMAGES {
                input_ids.extend([2, 5, 5, 5, 5, 3]);
            }
            let words = LENGTH - input_ids.len();
            input_ids.extend((0..words).map(|i| (10 + (sequence * 131 + i * 31) % 780) as u32));
            Prompt { input_ids, media: vec![Media::Image { grid: GRID }; IMAGES], features: vec![] }
        })
        .collect();
    Ok(model.pack(&prompts)?)
}

/// Mean cross-entropy of the learned tokens.
fn loss(model: &Qwen2_5Vl, batch: &PackedBatch, hidden: &Tensor) -> candle_core::Result<Tensor> {
    let rows: Vec<u32> = (batch.starts().iter())
        .flat_map(|start| (start + LENGTH - LEARNED - 1..start + LENGTH - 1).map(|row| row as u32))
        .collect();
    let targets: Vec<u32> = rows.iter().map(|row| batch.input_ids[*row as usize + 1]).collect();
    let rows = hidden.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
    let logits = linear_no_bias(&rows, model.text().head())?;
    candle_nn::loss::cross_entropy(&logits, &Tensor::new(targets, &Device::Cpu)?)
}

/// Floating-point operations of the matrix products, attention included, without the recomputed forward.
fn work(config: &Config, part: Part) -> f64 {
    let (t, v) = (&config.text, &config.vision);
    let (d, kv) = (t.hidden_size, t.num_key_value_heads * t.head_dim());
    let linear = t.num_hidden_layers * (2 * d * d + 2 * d * kv + 3 * d * t.intermediate_size);
    let attention = t.num_hidden_layers * LENGTH * d; // causal: half of 2 * length * d
    let head = LEARNED * t.vocab_size * d / LENGTH;
    let text = 3.0 * 2.0 * (SEQUENCES * LENGTH * (linear + attention + head)) as f64;
    let block =
        4 * v.hidden_size * v.hidden_size + 3 * v.hidden_size * v.intermediate_size + 32 * v.hidden_size;
    let merger = 4 * v.hidden_size * (4 * v.hidden_size + d) / 4;
    let patches = SEQUENCES * IMAGES * 16;
    let vision = 2.0 * (patches * (v.depth * block + merger)) as f64;
    let patch = 2.0 * (patches * v.patch_width() * v.hidden_size) as f64;
    if part == Part::All { text + 3.0 * vision + 2.0 * patch } else { text }
}
