//! The paper's comparison and its ablations on the toy world: what joint evolution gains, and from what.
//!
//!     cargo run --release --example ablate -- --quick
//!     cargo run --release --example ablate -- --out runs/ablate
//!
//! Every row is trained where it learns and graded on held-out questions of rendered videos. Each finished (row, seed) is
//! kept in `--out`: run again, the command goes on with what is missing, and grades nothing twice. The table goes to
//! stdout and, with reward curves, to `table.md` and `table.json` in that folder, and as a page to `report.html`. `--rows` takes some of the rows:
//! blind, uniform, top-k, question, frozen, joint, no-difficulty, no-info, no-previews, mlp, independent, no-baseline, shuffled, apart, evidence.

#[path = "../cli/mod.rs"]
mod cli;
mod rows;
mod table;
mod work;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use msjoe::checkpoint::write_file;
use rows::{CONTROL, FULL, JOINT, QUICK, ROWS, Row, Scale, Training};
use table::K;
use work::{Graded, Work};

/// Trains and grades the rows of the table.
#[derive(Parser)]
struct Args {
    /// Folder with `mllm` and `clip`.
    #[arg(long, default_value = "models/toy")]
    models: PathBuf,
    /// Where results are kept.
    #[arg(long, default_value = "runs/ablate")]
    out: PathBuf,
    /// Seed of the world: its train split to learn from, its test split to be graded on.
    #[arg(long, default_value_t = 1)]
    world_seed: u64,
    /// Few steps and questions: shows that every row runs, not what it reaches.
    #[arg(long)]
    quick: bool,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Seeds per row that learns: 3, of the control 8.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Held-out questions, at least 8.
    #[arg(long, value_parser = clap::value_parser!(u64).range(8..))]
    questions: Option<u64>,
    /// Steps of joint evolution.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// The table as JSON on stdout.
    #[arg(long)]
    json: bool,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    cli::run(|| run(&args))
}

fn run(args: &Args) -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    let mut scale = if args.quick { QUICK } else { FULL };
    scale.seeds = args.seeds.unwrap_or(scale.seeds);
    scale.control_seeds = args.seeds.unwrap_or(scale.control_seeds);
    scale.questions = args.questions.map_or(scale.questions, |count| count as usize);
    scale.joint_steps = args.steps.unwrap_or(scale.joint_steps);
    if let Some(name) = args.rows.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        bail!("--rows: expected any of {}, got {name:?}", names.join(", "));
    }
    let rows: Vec<&'static Row> =
        ROWS.iter().filter(|row| args.rows.is_empty() || args.rows.iter().any(|n| n == row.name)).collect();
    std::fs::create_dir_all(&args.out)?;

    let mut work = Work::new(&args.models, args.world_seed, scale, &args.out)?;
    let done = train_and_grade(&mut work, &rows)?;
    let table = table::table(&done, &work.test, args.world_seed)?;
    let (markdown, json) = (table.markdown(), serde_json::to_string_pretty(&table)?);
    write_file(&args.out.join("table.md"), markdown.as_bytes())?;
    write_file(&args.out.join("table.json"), json.as_bytes())?;
    msjoe::report::write(args.out.join(msjoe::report::FILE), &table.page().html())?;
    print!("{}", if args.json { format!("{json}\n") } else { markdown });
    Ok(())
}

/// The rows with the grades of each of their seeds, from disk where they are there.
fn train_and_grade(work: &mut Work, rows: &[&'static Row]) -> Result<Vec<(&'static Row, Vec<Graded>)>> {
    let stop = cli::Stop::on_ctrl_c()?;
    let jobs: Vec<(&'static Row, u64)> =
        rows.iter().flat_map(|row| seeds(row, &work.scale).map(|s| (*row, s))).collect();
    let mut missing = 0;
    for (row, seed) in &jobs {
        let frames = counts(row);
        if work.done(row, *seed, &frames)?.is_none() {
            missing += work.load(row, *seed, &frames);
        }
    }
    let bar = ProgressBar::new(missing);
    bar.set_style(ProgressStyle::with_template(
        "{bar:24} {percent} % of what is missing, {eta} left; {msg}",
    )?);
    let mut before = 0;
    if missing > 0 && rows.iter().any(|row| row.training != Training::None) {
        work.estimate_pass_rates(&mut |said, _| {
            bar.set_message(said.to_owned());
            stop.flow().is_continue()
        })?;
        bar.reset_eta();
    }
    let mut done: Vec<(&'static Row, Vec<Graded>)> = rows.iter().map(|row| (*row, vec![])).collect();
    for (row, seed) in jobs {
        let frames = counts(row);
        let graded = match work.done(row, seed, &frames)? {
            Some(graded) => graded,
            None => {
                let mut observe = |said: &str, done: u64| {
                    bar.set_message(said.to_owned());
                    bar.set_position(before + done);
                    stop.flow().is_continue()
                };
                let graded = work.run(row, seed, &frames, &mut observe)?;
                before += work.load(row, seed, &frames);
                let grades = &graded.by_frames[&K];
                let right = grades.right().iter().filter(|right| **right).count();
                let line = format!(
                    "{} seed {seed}: {right} of {} right, recall {:.2}, {:.0} s of training",
                    row.name,
                    work.test.len(),
                    grades.evidence_recall,
                    graded.seconds
                );
                bar.suspend(|| eprintln!("{line}"));
                graded
            }
        };
        if let Some((_, of_row)) = done.iter_mut().find(|(other, _)| other.name == row.name) {
            of_row.push(graded);
        }
    }
    bar.finish_and_clear();
    Ok(done)
}

/// Rows without any chance in them are graded once. Rewards that say nothing move the model somewhere, each time elsewhere: the
/// control needs more seeds than what it is a control of.
fn seeds(row: &Row, scale: &Scale) -> std::ops::RangeInclusive<u64> {
    match (row.training, row.name) {
        (Training::None, _) => 1..=1,
        (_, CONTROL) => 1..=scale.control_seeds,
        _ => 1..=scale.seeds,
    }
}

/// The curve over the number of key frames is drawn for the rows that the paper draws it for.
fn counts(row: &Row) -> Vec<usize> {
    match row.name {
        "uniform" | "top-k" | JOINT => vec![2, 4, K, 16],
        _ => vec![K],
    }
}
