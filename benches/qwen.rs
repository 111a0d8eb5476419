//! Qwen2.5-VL on the CPU at a middle size, f32, random weights: vision tower, prefill, decode. The Python twin is
//! `peers/qwen.py`.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo bench --bench qwen -- --part decode
//! {"name":"qwen-decode","with":"msjoe","threads":2,"tokens_per_second":..,"peak_mib":..}
//! ```

mod random;

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::{Parser, ValueEnum};
use msjoe::models::qwen2_5_vl::config::Config;
use msjoe::models::qwen2_5_vl::generate::Options;
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Timed runs, after one that is not timed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Debug, ValueEnum)]
enum Part {
    /// 4 slices of 24 x 46 patches through the tower.
    Vision,
    /// 1,024 tokens.
    Prefill,
    /// 64 tokens after a prompt of 256.
    Decode,
}

/// The configuration of `peers/qwen.py`, key for key.
const CONFIG: &str = include_str!("peers/qwen.json");
const GRID: [usize; 3] = [4, 24, 46];
const PREFILL: u32 = 1024;
const PROMPT: u32 = 256;
const NEW: usize = 64;

fn main() -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    let args = Args::parse();
    let Some(part) = args.part else {
        eprintln!("qwen: no --part given, nothing measured");
        return Ok(());
    };
    let config: Config = serde_json::from_str(CONFIG)?;
    let model = Qwen2_5Vl::new(&config, random::var_builder())?;
    let patches: usize = GRID.iter().product();
    let pixels: Vec<f32> = (0..patches * 1176).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let pixels = Tensor::from_vec(pixels, (patches, 1176), &Device::Cpu)?;
    let mut seconds = vec![];
    for _ in 0..args.rounds + 1 {
        seconds.push(match part {
            Part::Vision => {
                let start = Instant::now();
                std::hint::black_box(model.vision(&pixels, &[GRID])?);
                start.elapsed().as_secs_f64()
            }
            Part::Prefill => tokens(&model, PREFILL, 1)?.0,
            Part::Decode => tokens(&model, PROMPT, NEW)?.1 / (NEW - 1) as f64,
        });
    }
    let second = random::median(seconds.split_off(1));
    let (key, value) = match part {
        Part::Vision => ("patches_per_second", patches as f64 / second),
        Part::Prefill => ("tokens_per_second", f64::from(PREFILL) / second),
        Part::Decode => ("tokens_per_second", 1.0 / second),
    };
    println!(
        "{}",
        json!({
            "name": format!("qwen-{part:?}").to_lowercase(),
            "with": "msjoe",
            "threads": rayon::current_num_threads(),
            key: (value * 100.0).round() / 100.0,
            "peak_mib": random::peak_mib()?,
        })
    );
    Ok(())
}

/// Seconds to the first token, and from there to the last.
fn tokens(model: &Qwen2_5Vl, prompt: u32, new: usize) -> Result<(f64, f64)> {
    let prompt = Prompt::text((0..prompt).map(|i| 10 + i * 31 % 20_000).collect());
    let options = Options { max_new_tokens: new, ..Options::default() };
    let start = Instant::now();
    let mut first = None;
    model.generate(&[prompt], &options, &mut |_, _| {
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        ControlFlow::Continue(())
    })?;
    let first = first.unwrap_or_default();
    Ok((first, start.elapsed().as_secs_f64() - first))
}
