//! Joint evolution of language model and sampler (or either alone) for any checkpoints and any questions.
//!
//!     cargo run --release --example evolve -- --config examples/toy.toml --out runs
//!     cargo run --release --example evolve -- --resume runs/2026-01-31-toy
//!
//! The settings file is described in `msjoe::rl::settings::Settings`; `--print-config` writes one with every default. Models are
//! known names, Hub repositories or folders. With a
//! section `[pretrain]` the sampler learns alone first (stage 1), then both together. The run's folder holds the resolved
//! settings, `metrics.jsonl`, TensorBoard events, checkpoints and at the end `report.html`, those of stage 1 in its folder `sampler`; Ctrl-C saves and
//! ends, `--resume` goes on bit for bit. Output, one line per evaluation:
//!
//!     step 0: accuracy 0.412 +- 0.062 of 240 (category 0.35, count 0.30, ...)
//!     step 50: accuracy 0.463 +- 0.063 of 240 (...)
//!     best: runs/2026-01-31-toy/step-000050

mod cli;

use anyhow::Result;
use clap::Parser;
use cli::training::Training;

/// Trains the language model and the sampler jointly.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    training: Training,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    cli::run_telling("error,msjoe=warn", || run(&args.training))
}

fn run(training: &Training) -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    let stop = cli::Stop::on_ctrl_c()?;
    let Some((run, settings)) = training.begin(&stop, Ok)? else { return Ok(()) };
    let mut observe = training.observer(&stop)?;
    training.end(&run, msjoe::rl::evolve::evolve(settings, &run, &mut observe))
}
