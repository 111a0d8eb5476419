//! Trains the small models of the toy world from scratch: CLIP, the language model, and what joint evolution makes of them.
//!
//!     cargo run --release --example train_toy -- --out models/toy
//!
//! Writes `models/toy/{clip,mllm}` in Hugging Face layout with their own tokenizers, `sampler.safetensors` of stage 1 and, in
//! `evolved`, the adapter and the sampler of both stages (the settings of `toy_lora.toml`). Interrupted, it goes on where it
//! last saved (`--work`, default `runs/train_toy`). Prints one line per measurement:
//!
//!     mllm sift 4500/4500: loss 0.085; captions of one thing 0.49; ...; evidence 0.938 (category 1.00, ...); uniform 0.433 ...

mod clip;
mod evolve;
mod measure;
mod mllm;
mod patches;
mod progress;
mod save;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use msjoe::data::world::{Length, Span, Spec, World};

/// Trains the small models of the toy world from scratch.
#[derive(Parser)]
struct Args {
    /// Where the models go.
    #[arg(long, default_value = "models/toy")]
    out: PathBuf,
    /// Where unfinished training is kept.
    #[arg(long, default_value = "runs/train_toy")]
    work: PathBuf,
    /// Only this model.
    #[arg(long)]
    only: Option<Model>,
    /// Only this stage of the language model, beginning with the model that is there.
    #[arg(long, value_parser = mllm::STAGES.map(|stage| stage.name))]
    stage: Option<String>,
    /// Seed of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seed of the world the lessons come from.
    #[arg(long, default_value_t = 1)]
    world_seed: u64,
    /// Scales the number of steps, for a trial.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Model {
    Clip,
    Mllm,
    /// Both stages of joint evolution, with the other two models as they are
    Evolved,
}

/// The worlds lessons are taken from.
struct Worlds {
    /// One large thing at a time.
    plain: World,
    /// Clips of few scenes.
    short: World,
    /// Clips of scenes enough for every family of questions, each short enough to be seen in few frames.
    clips: World,
    /// The videos that results are reported on.
    long: World,
}

fn main() -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    let args = Args::parse();
    let plain = Spec { things: Span::new(1, 1), small: 27. / 56., noise: 4., ..Spec::default() };
    let clips = Spec {
        length: Length::Scenes(Span::new(8, 12)),
        scene_seconds: Span::new(2, 4),
        evidence_seconds: Span::new(2, 4),
        ..Spec::default()
    };
    let worlds = Worlds {
        plain: World::new(plain, args.world_seed)?,
        short: World::new(Spec::short(), args.world_seed)?,
        clips: World::new(clips, args.world_seed)?,
        long: World::new(Spec::default(), args.world_seed)?,
    };
    std::fs::create_dir_all(&args.work)?;
    if let (Some(only), true) = (args.only.filter(|only| *only != Model::Mllm), args.stage.is_some()) {
        bail!(
            "--stage is of the language model, which --only {} leaves out",
            only.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
        );
    }
    let wanted = |model| args.only.unwrap_or(model) == model;
    if wanted(Model::Clip) && args.stage.is_none() {
        clip::train(&args, &worlds)?;
    }
    if wanted(Model::Mllm) {
        mllm::train(&args, &worlds)?;
    }
    if wanted(Model::Evolved) && args.stage.is_none() {
        evolve::train(&args)?;
    }
    Ok(())
}
