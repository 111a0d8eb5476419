//! Writes small random checkpoints in Hugging Face layout: a Qwen2.5-VL and a CLIP that any loader opens.
//!
//! ```text
//! $ cargo run --release --example random_checkpoints -- --out /tmp/checkpoints --seed 7
//! /tmp/checkpoints/qwen2.5-vl
//! /tmp/checkpoints/clip
//! ```

mod cli;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use msjoe::checkpoint::random::{self, ClipSpec, QwenSpec};

/// Write small random checkpoints in Hugging Face layout.
#[derive(Parser)]
struct Args {
    /// Folder to write the two checkpoint folders into.
    #[arg(long)]
    out: PathBuf,
    /// Seed of the weights; the same seed gives the same files.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Decoder width of the Qwen2.5-VL (4 heads, so a multiple of 32).
    #[arg(long, default_value_t = 64)]
    hidden: usize,
    /// Decoder layers of the Qwen2.5-VL.
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// Take the Qwen2.5-VL's logits with its embedding table (no lm_head).
    #[arg(long)]
    tied: bool,
    /// Files to spread the Qwen2.5-VL's weights over.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Number format of the weights.
    #[arg(long, value_enum, default_value_t = Format::F32)]
    dtype: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    F32,
    Bf16,
    F16,
}

impl From<Format> for candle_core::DType {
    fn from(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::Bf16 => Self::BF16,
            Format::F16 => Self::F16,
        }
    }
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    cli::run(|| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let (qwen, clip) = (args.out.join("qwen2.5-vl"), args.out.join("clip"));
    let spec = QwenSpec {
        hidden: args.hidden,
        intermediate: 2 * args.hidden,
        layers: args.layers,
        tied: args.tied,
        shards: args.shards,
        dtype: args.dtype.into(),
        ..QwenSpec::default()
    };
    random::qwen2_5_vl(&qwen, &spec, args.seed)?;
    println!("{}", qwen.display());
    random::clip(&clip, &ClipSpec { dtype: args.dtype.into(), ..ClipSpec::default() }, args.seed)?;
    println!("{}", clip.display());
    Ok(())
}
