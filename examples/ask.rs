//! Asks a question about a video.
//!
//! ```text
//! cargo run --release --example ask -- --video talk.mp4 --question "What does she hold up?" \
//!     --option "A. a cup" --option "B. a book" --frames 32 --strategy msjoe
//! ```
//! prints the visual queries, the key frames with their times and weights, what each step took, and the answer:
//! ```text
//! query    a woman holding an object in front of an audience
//! frames   0:03:12 (0.081)  0:03:13 (0.077)  ...
//! answer   B. a book
//! ```
//! With `--json` the whole outcome as one JSON object; with `--report FILE` also a page to look at.

mod cli;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use msjoe::pipeline::Outcome;
use msjoe::report::{Answered, clock};
use msjoe::text::Question;

/// Ask a question about a video
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    ask: cli::Ask,
    #[command(flatten)]
    models: cli::Models,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Write a page with the timeline, the key frames and the answer (HTML, one file) here
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let question = arguments.ask.question()?;
    if let Some(path) = &arguments.report {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let known = folder.is_none_or(|folder| folder.is_dir());
        ensure!(known, "--report {}: expected a file in a folder that exists", path.display());
    }
    let options = arguments.ask.pipeline_options()?;
    let stop = cli::Stop::on_ctrl_c()?;
    let pipeline = arguments.models.load(&options, true, &stop)?;
    let outcome =
        pipeline.answer_observed(&arguments.ask.video, &question, &options, &mut cli::observer(&stop))?;
    outcome.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if let Some(path) = &arguments.report {
        let page = Answered::of(&arguments.ask.video, &question, &options, &outcome)?;
        msjoe::report::write(path, &page.html())?;
        eprintln!("report: {}", path.display());
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print(&question, &outcome);
    }
    Ok(())
}

fn print(question: &Question, outcome: &Outcome) {
    for query in outcome.queries.iter().flat_map(|queries| &queries.queries) {
        println!("query    {query}");
    }
    let frames = outcome.key_frames.iter().map(|f| format!("{} ({:.3})", clock(f.seconds), f.weight));
    println!("frames   {}", frames.collect::<Vec<_>>().join("  "));
    for step in &outcome.steps {
        let name = step.step.name();
        let tokens = match (step.prompt_tokens, step.visual_tokens, step.new_tokens) {
            (Some(prompt), Some(visual), Some(new)) => {
                format!("  {prompt} prompt tokens ({visual} visual), {new} new")
            }
            _ => String::new(),
        };
        println!("{name:8} {:.2} s{tokens}", step.seconds);
    }
    let Some(answer) = &outcome.answer else { return };
    match answer.choice.and_then(|i| Some((question.label(i)?, question.options().get(i)?))) {
        Some((label, option)) => println!("answer   {label}. {option}"),
        None => println!("answer   {}", answer.text),
    }
}
