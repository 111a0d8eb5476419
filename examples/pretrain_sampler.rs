//! Stage 1 alone: the sampler learns by REINFORCE while the language model is frozen.
//!
//!     cargo run --release --example pretrain_sampler -- --config examples/toy.toml --out runs
//!     cargo run --release --example pretrain_sampler -- --resume runs/2026-01-31-toy
//!
//! Takes the settings file of `evolve` and trains what its section `[pretrain]` says. Each checkpoint in the run's folder
//! holds `sampler.safetensors`, which `ask --sampler`, `select --sampler` and `models.sampler` of a settings file take.
//! Output as of `evolve`.

mod cli;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use cli::training::Training;
use msjoe::rl::evolve::{Event, Evolution};
use msjoe::rl::settings::Settings;

/// Trains the sampler, with the language model frozen.
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
    let first = |settings: Settings| {
        settings
            .first_stage()
            .context("expected a section [pretrain], such as `[pretrain]` with `steps = 60`; got none")
    };
    let begun = training.begin(&stop, first)?;
    let Some((run, settings)) = begun else { return Ok(()) };
    ensure!(
        settings.pretrain.is_none(),
        "{} is a run of both stages: go on with it by `evolve --resume`, which begins where it was left",
        run.folder().display()
    );
    let mut observe = training.observer(&stop)?;
    for (name, plan) in &settings.plans()? {
        observe(Event::Memory(name, plan));
    }
    let report = Evolution::new(settings, &mut observe).and_then(|mut stage| stage.run(&run, &mut observe));
    training.end(&run, report)
}
