//! The program itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::report::Report;
use crate::{clock, model7b, models, ops, step, timing, trainer};

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
    /// Folder with the config.json of the 7B shape; `qwen2.5-vl-7b` beside the small models' folder by default.
    #[arg(long)]
    model7b: Option<PathBuf>,
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
    type Check<'a> = &'a dyn Fn(&mut Report) -> Result<()>;
    let parts: [(&[Part], &str, Check); 5] = [
        (&[Part::Ops], "operations against their CPU twins", &|report| ops::check(&device, seed, report)),
        (&[Part::Models], "models and steps of training on both devices", &|report| {
            models::check(&device, &args.models, seed, report)?;
            step::check(&device, &args.models, seed, report)?;
            trainer::check(&device, &args.models, report)
        }),
        (&[Part::Times, Part::Model7b], "what the card does at best", &|report| {
            report.set_ceilings(clock::ceilings(&device, args.rounds)?);
            Ok(())
        }),
        (&[Part::Times], "times", &|report| timing::ops(&device, args.rounds, report)),
        (&[Part::Model7b], "a 7B-shaped model with random weights", &|report| {
            let beside = || args.models.with_file_name("qwen2.5-vl-7b");
            model7b::times(&device, &args.model7b.clone().unwrap_or_else(beside), report)
        }),
    ];
    for (which, what, check) in parts {
        if args.only.is_some_and(|only| !which.contains(&only)) {
            continue;
        }
        eprintln!("{what}, seed {seed}");
        if let Err(error) = check(&mut report) {
            // The others still count, and so does what is known of this one.
            eprintln!("error: {what}: {error:#}");
            report.judge(&format!("{what}: came to its end"), f64::NAN, 0.0);
        }
    }
    report.write(&args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(report.passed())
}
