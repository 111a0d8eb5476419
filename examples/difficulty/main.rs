//! How hard questions are for a model: its pass rates from even frames, and which questions teach nothing.
//!
//! ```text
//! $ cargo run --release --example difficulty -- --data train.jsonl --out train.jsonl --mllm qwen2.5-vl-7b
//! $ cargo run --release --example difficulty -- --world --videos 20 --mllm models/toy/mllm --out rated.jsonl
//! questions  120, right in 0.359 of 8 rollouts from 8 even frames
//! blind      7 solvable without the video: right in more than 0.5 of 8 rollouts (0.219 over all)
//! always     16 always right
//! never      28 never right
//! unfiltered 70 are in none of these
//! written    120 to rated.jsonl
//! ```
//! Writes the lines of `--data` with `difficulty`, one minus the pass rate, to `--out`, which may be the same file: the whole
//! new one or the old one is there. For the toy world the lines name the videos that `world --out` writes, to lie beside
//! them. `--drop blind,always,never` leaves questions out. Rates are kept in `<out>.rates` as they come: Ctrl-C ends, the same
//! command goes on.

mod arguments;
#[path = "../cli/mod.rs"]
mod cli;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use arguments::Arguments;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use msjoe::checkpoint::write_file;
use msjoe::data::samples::write_difficulty;
use msjoe::data::world::{Spec, World};
use msjoe::hub::Hub;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::rl::difficulty::{Counts, Rated, counts, estimate};
use msjoe::rl::footage::Footage;
use msjoe::rl::rates::Record;
use msjoe::rl::rollout::Policy;
use msjoe::rl::tasks::{file_tasks, long_enough, world_tasks};
use msjoe::rl::trajectory::Task;
use serde_json::json;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run_telling("error,msjoe=warn", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    msjoe::ops::heap::keep_freed_memory();
    let estimation = arguments.estimation()?;
    let (device, dtype) = arguments.placement.open()?;
    let stop = cli::Stop::on_ctrl_c()?;
    let tasks = arguments.tasks(&stop)?;
    long_enough(&tasks, (arguments.frames, 0))?;
    let folder = cli::fetch(&Hub::from_env()?, &arguments.mllm, &stop)?;
    // Before the model is loaded: a record of another estimation is refused.
    let mut record = Record::open(arguments.record(), &arguments.settings(&folder, dtype, &estimation))?;
    match (record.len(), record.dropped) {
        (0, 0) => {}
        (known, dropped) => eprintln!("resumed: {known} questions are known, {dropped} broken lines dropped"),
    }
    let adapter = arguments.adapter.as_deref();
    let chat = Qwen2_5VlChat::load_adapted(&folder, adapter, dtype, &device)?;
    let bar = ProgressBar::new(tasks.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} questions, {eta} left")?);
    bar.set_position(record.len() as u64);
    bar.reset_eta();
    let mut progress = |done: usize, _| {
        bar.set_position(done as u64);
        stop.flow().is_continue()
    };
    let policy = Policy { chat: &chat, clip: None, sampler: None };
    let rated = estimate(policy, &tasks, &estimation, &mut record, &mut progress)
        .with_context(|| format!("what is done is in {}", arguments.record().display()))?;
    bar.finish_and_clear();
    let written = arguments.write(&tasks, &rated)?;
    record.remove()?;
    arguments.print(&counts(&rated, arguments.blind_above), written)
}

impl Arguments {
    fn tasks(&self, stop: &cli::Stop) -> Result<Vec<Task>> {
        let Some(path) = &self.data else {
            let world = World::new(Spec::default(), self.world_seed)?;
            return Ok(world_tasks(&world, self.split, 0..self.videos));
        };
        let mut progress = |_, _| stop.flow().is_continue();
        let mut open = |video: &std::path::Path| Footage::open(video, self.fps);
        Ok(file_tasks(&[path], self.fps, &mut open, &mut progress)?.remove(0))
    }

    fn write(&self, tasks: &[Task], rated: &[Rated]) -> Result<usize> {
        let kept = |one: &&Rated| !self.drop.iter().any(|filter| filter.concerns(one, self.blind_above));
        let difficulty: BTreeMap<String, f32> =
            rated.iter().filter(kept).map(|one| (one.id.clone(), one.difficulty())).collect();
        if let Some(data) = &self.data {
            return Ok(write_difficulty(data, &self.out, &difficulty)?);
        }
        let mut lines = String::new();
        for task in tasks {
            let Some(difficulty) = difficulty.get(&*task.id) else { continue };
            let line = json!({
                "id": &*task.id, "video": format!("{}.mp4", task.footage.id), "question": task.question.text(),
                "options": task.question.options(), "answer": task.answer, "family": &*task.family,
                "evidence": task.evidence, "difficulty": difficulty,
            });
            lines += &format!("{line}\n");
        }
        write_file(&self.out, lines.as_bytes())?;
        Ok(difficulty.len())
    }

    fn print(&self, counts: &Counts, written: usize) -> Result<()> {
        if self.json {
            let mut report = serde_json::to_value(counts)?;
            report["written"] = written.into();
            report["out"] = self.out.display().to_string().into();
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        let Counts { questions, pass_rate, blind_rate, filters, unfiltered } = counts;
        let (rollouts, frames) = (self.rollouts, self.frames);
        println!(
            "questions  {questions}, right in {pass_rate:.3} of {rollouts} rollouts from {frames} even frames"
        );
        if let Some(rate) = blind_rate {
            let (blind, above, rollouts) = (filters["blind"], self.blind_above, self.blind_rollouts);
            println!(
                "blind      {blind} solvable without the video: right in more than {above} of {rollouts} rollouts \
                 ({rate:.3} over all)"
            );
        }
        println!("always     {} always right", filters["always"]);
        println!("never      {} never right", filters["never"]);
        println!("unfiltered {unfiltered} are in none of these");
        println!("written    {written} to {}", self.out.display());
        Ok(())
    }
}
