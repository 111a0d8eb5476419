//! Every selection method on a benchmark, side by side.
//!
//!     cargo run --release --example evaluate -- --benchmark toy --methods all --frames 8 --seeds 3
//!     cargo run --release --example evaluate -- --benchmark video-mme --data DIR --methods uniform,bolt,msjoe --frames 8,32
//!     cargo run --release --example evaluate -- --benchmark longvideobench --data lvb_val.json --selections frames.json
//!     cargo run --release --example evaluate -- --benchmark mlvu --data DIR --check
//!
//! Every answer is a line of `predictions.jsonl` in `--out` as soon as it is given: after Ctrl-C or a crash the same command
//! goes on, and methods, numbers of frames and questions can be added to it. Stdout gets the tables (`--json`: results.json);
//! the folder gets `table.md`, `results.json`, `report.html`, and the field's harness's files under `lmms-eval`:
//!
//!     | K = 8 | accuracy % (95 %) | better than uniform by (95 %) | McNemar p | category | ... | evidence recall | ...
//!     | uniform | 40.0 [34.7, 45.3] | - | - | 40 | ...
//!
//! `--selections` judges frame lists made elsewhere by the annotation alone; `--check` only reads and counts the files.

#[path = "../cli/mod.rs"]
mod cli;
mod loading;
mod told;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use msjoe::benchmarks::{self, Benchmark};
use msjoe::data::world::Spec;
use msjoe::evaluation::{
    Check, Event, Journal, Questions, Work, columns, main_group, methods, of_benchmark, of_file, of_world,
    results, run as answer, write,
};

use loading::Args;

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    cli::run(|| run(&args))
}

fn run(args: &Args) -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    if args.benchmark == "toy" {
        if args.check || args.selections.is_some() {
            bail!("--check and --selections read a benchmark's files; toy has none");
        }
        let questions = match &args.data {
            Some(file) => of_file(file, args.limit)?,
            None => of_world(Spec::default(), args.world_seed, args.limit.unwrap_or(args.questions))?,
        };
        return evaluate(args, None, &questions);
    }
    let benchmark: Benchmark = args.benchmark.parse().map_err(|_| {
        let known = Benchmark::ALL.map(Benchmark::name).join(", ");
        anyhow::anyhow!("--benchmark: expected toy or one of {known}, got {:?}", args.benchmark)
    })?;
    let Some(data) = &args.data else {
        bail!("--data: give the folder of {benchmark}, or its annotation file")
    };
    let start = Instant::now();
    let loaded = benchmarks::read(benchmark, data)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.check {
        return told::check(args, &loaded, &Check::of(benchmark, &loaded, data, seconds));
    }
    told::remarks(&loaded);
    if let Some(file) = &args.selections {
        return told::selections(args, benchmark, &loaded, data, file);
    }
    let questions = of_benchmark(&loaded, data, args.limit);
    told::missing(&questions);
    if questions.items.is_empty() {
        bail!(
            "{}: none of the {} videos is there, so no question can be asked",
            data.display(),
            questions.missing.len()
        );
    }
    evaluate(args, Some(benchmark), &questions)
}

/// Answers what is missing, then sums up everything.
fn evaluate(args: &Args, benchmark: Option<Benchmark>, questions: &Questions) -> Result<()> {
    let methods = methods(&args.methods, &args.queries)?;
    let columns = columns(&methods, &args.frames, args.seeds());
    let stop = cli::Stop::on_ctrl_c()?;
    let (models, mut settings) = args.load(benchmark, &columns, &stop)?;
    settings.questions = questions.hash.clone();
    let default = PathBuf::from("runs/evaluate").join(&settings.benchmark);
    let mut journal = Journal::open(args.out.as_ref().unwrap_or(&default), &settings)?;
    if journal.dropped > 0 {
        eprintln!("{} broken lines of {} were dropped", journal.dropped, journal.folder().display());
    }
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} answers, {eta} left {msg}")?);
    let mut observe = |event: Event| {
        match event {
            Event::Answered(done, of) => {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                bar.set_message("");
            }
            Event::Watching(video, done, of) => bar.set_message(format!("{video}: frame {done}/{of}")),
            Event::Writing => bar.tick(),
        }
        stop.flow()
    };
    let together = args.together(benchmark);
    let work = Work { items: &questions.items, columns: &columns, data: args.data.as_deref(), together };
    let counts = answer(&models, &settings, work, &mut journal, &mut observe)?;
    bar.finish_and_clear();
    let mut found = results(&settings, &questions.items, &columns, &journal, main_group(benchmark))?;
    (found.counts, found.missing) = (counts.clone(), questions.missing.clone());
    write(&found, &questions.items, &columns, &journal, benchmark)?;
    print!("{}", if args.json { serde_json::to_string_pretty(&found)? + "\n" } else { found.markdown() });
    eprintln!("{}", told::said(&counts, journal.folder()));
    match counts.interrupted {
        true => bail!("interrupted; the same command goes on"),
        false => Ok(()),
    }
}
