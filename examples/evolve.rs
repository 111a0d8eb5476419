//! Joint evolution of language model and sampler (or either alone) for any checkpoints and any questions.
//!
//!     cargo run --release --example evolve -- --config configs/toy.toml --out runs
//!     cargo run --release --example evolve -- --resume runs/2026-01-31-toy
//!
//! The settings file is described in `msjoe::rl::evolve::Settings`; `--print-config` writes one with every default. The run's
//! folder holds the resolved settings, `metrics.jsonl`, TensorBoard events and checkpoints; Ctrl-C saves and ends, `--resume`
//! goes on bit for bit. Output, one line per evaluation:
//!
//!     step 0: accuracy 0.412 +- 0.062 of 240 (category 0.35, count 0.30, ...)
//!     step 50: accuracy 0.463 +- 0.063 of 240 (...)
//!     best: runs/2026-01-31-toy/step-000050

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use msjoe::data::world::Spec;
use msjoe::rl::config::EvolveConfig;
use msjoe::rl::evaluate::Summary;
use msjoe::rl::evolve::{Data, Evaluation, Event, Evolution, Models, Settings};
use msjoe::rl::run::{Build, Run, dated};

/// Trains the language model and the sampler jointly.
#[derive(Parser)]
struct Args {
    /// Settings of a new run.
    #[arg(long, required_unless_present_any = ["resume", "print_config"])]
    config: Option<PathBuf>,
    /// Folder that new runs are made in, by date and the settings file's name.
    #[arg(long, default_value = "runs")]
    out: PathBuf,
    /// Goes on with a run.
    #[arg(long, conflicts_with = "config")]
    resume: Option<PathBuf>,
    /// Prints a settings file with every default and ends.
    #[arg(long)]
    print_config: bool,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    if args.print_config {
        print!("{}", toml::to_string(&example())?);
        return Ok(());
    }
    let (run, settings) = match (&args.resume, &args.config) {
        (Some(folder), _) => {
            let run = Run::open(folder)?;
            let settings = run.config()?;
            (run, settings)
        }
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let settings: Settings = toml::from_str(&text).with_context(|| path.display().to_string())?;
            settings.evolve.check()?;
            let name = path.file_stem().map_or("run".into(), |stem| stem.to_string_lossy());
            (Run::create(dated(&args.out, &name)?, &settings, &Build::new("cpu"))?, settings)
        }
        (None, None) => bail!("give --config or --resume"),
    };
    eprintln!("run: {}", run.folder().display());
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    let bar = ProgressBar::new(settings.evolve.steps);
    let look = "{bar:24} {pos}/{len} {eta} left {msg}";
    bar.set_style(ProgressStyle::with_template(look)?);
    let mut observe = |event: Event| {
        match event {
            Event::Memory(plan) => bar.suspend(|| eprintln!("memory, at most:\n{plan}")),
            Event::Preparing(what, done, of) => bar.set_message(format!("{what} {done}/{of}")),
            Event::Step { step, values } => {
                let value = |name: &str| values.get(name).copied().unwrap_or(f64::NAN);
                bar.set_position(step);
                bar.set_message(format!(
                    "reward {:.3}, accuracy {:.3}, entropy {:.2}, sampler {:.2}",
                    value("reward"),
                    value("rewards/accuracy"),
                    value("entropy"),
                    value("sampler/entropy"),
                ));
            }
            Event::Evaluated { step, summary } => bar.suspend(|| {
                if !args.json {
                    println!("step {step}: {}", line(summary));
                }
            }),
        }
        !stop.load(Ordering::Relaxed)
    };
    bar.reset_eta();
    let mut evolution = Evolution::new(settings, &mut observe)?;
    let report = evolution.run(&run, &mut observe);
    bar.finish_and_clear();
    let report = report.with_context(|| format!("go on with --resume {}", run.folder().display()))?;
    match (args.json, &report.best) {
        (true, _) => println!("{}", serde_json::to_string_pretty(&report)?),
        (false, Some(best)) => println!("best: {}", best.display()),
        (false, None) => {}
    }
    Ok(())
}

fn line(summary: &Summary) -> String {
    let families: Vec<String> =
        summary.families.iter().map(|(name, share)| format!("{name} {share:.2}")).collect();
    format!(
        "accuracy {:.3} +- {:.3} of {} ({})",
        summary.accuracy,
        summary.interval,
        summary.questions,
        families.join(", ")
    )
}

fn example() -> Settings {
    Settings {
        models: Models { mllm: "models/toy/mllm".into(), clip: "models/toy/clip".into(), sampler: None },
        data: Data::World { seed: 1, spec: Spec::default(), videos: 300 },
        evaluation: Evaluation::default(),
        save_every: 50,
        evolve: EvolveConfig::default(),
    }
}
