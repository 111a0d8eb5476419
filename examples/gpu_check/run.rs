//! The program itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::report::Report;
use crate::{model7b, models, ops, step, timing, trainer};

/// Checks and times the CUDA kernels on a GPU.
#[derive(Parser)]
struct Args {
    /// Folder for `gpu.md` and `gpu.json`; made if it is missing.
    #[arg(long)]
    out: PathBuf,
    /// Which device: cuda or cuda:N.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Seed of the random inputs; a new one each time by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Timed runs of each operation, after two that are not timed.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Folder of the small models.
    #[arg(long, default_value = "models/toy")]
    models: PathBuf,
    /// Print the JSON instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// Operations against their twins.
    Ops,
    /// The small models, and steps of training.
    Models,
    /// Times of the operations.
    Times,
    /// Times of a 7B-shaped model with random weights.
    Model7b,
}

pub fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: some checks failed; the table names them");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let device = msjoe::device::device(&args.device)
        .context("no GPU to check: this program needs an NVIDIA GPU and its driver")?;
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut report = Report::new(&device, seed)?;
    let wanted = |part: Part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Ops) {
        eprintln!("operations against their CPU twins, seed {seed}");
        ops::check(&device, seed, &mut report)?;
    }
    if wanted(Part::Models) {
        eprintln!("models and a step of training on both devices");
        models::check(&device, &args.models, seed, &mut report)?;
        step::check(&device, &args.models, seed, &mut report)?;
        trainer::check(&device, &args.models, &mut report)?;
    }
    if wanted(Part::Times) {
        eprintln!("times");
        timing::ops(&device, args.rounds, &mut report)?;
    }
    if wanted(Part::Model7b) {
        eprintln!("a 7B-shaped model with random weights");
        model7b::times(&device, &mut report)?;
    }
    report.write(&args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(report.passed())
}
