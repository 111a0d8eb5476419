//! The whole path in one command, with nothing to download: `make demo`.
//!
//! Renders a 10-minute video of the toy world that no model has seen, encodes it as H.264, and asks its questions through
//! the real pipeline with the small trained models in `models/toy`: decode, previews, queries, CLIP, sampler, key frames,
//! answer.
//!
//! ```text
//! cargo run --release --example demo
//! ```
//! prints queries, key frames with their times and the answer of each question, and writes the key frames of each as a
//! picture, and a page with the timeline of why.

mod cli;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use cli::sheet::sheet;
use msjoe::data::world::{Length, Sample, Span, Spec, Split, World};
use msjoe::pipeline::{Options, Outcome, Pipeline, ShowKeyFrames, Weights};
use msjoe::report::{Answered, clock};

/// Answer the questions of a rendered 10-minute video with small trained models
#[derive(Parser)]
struct Arguments {
    /// Folder with `mllm`, `clip` and what joint evolution made of them: an adapter and a sampler, in `evolved`
    #[arg(long, default_value = "models/toy")]
    models: PathBuf,
    /// Folder for the video and the pictures
    #[arg(long, default_value = "target/demo")]
    dir: PathBuf,
    /// Length of the video in seconds
    #[arg(long, default_value_t = 600)]
    seconds: usize,
    /// Which of the world's held-out videos
    #[arg(long, default_value_t = 0)]
    video: u64,
    /// Key frames K
    #[arg(long, default_value_t = 8)]
    frames: usize,
}

/// Frames per second of the video.
const RATE: usize = 8;
/// Pictures show a frame's pixels this many times as large, in rows of four.
const ZOOM: u32 = 4;
const COLUMNS: usize = 4;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    std::fs::create_dir_all(&arguments.dir)?;
    let length = Length::Seconds(Span::new(arguments.seconds, arguments.seconds));
    let world = World::new(Spec { length, ..Spec::default() }, 1)?;
    let script = world.script(Split::Test, arguments.video);
    let samples = world.samples(Split::Test, arguments.video);
    let video = arguments.dir.join("video.mp4");
    script.write_video(&video, RATE)?;
    println!("video    {} ({} s of H.264, {} scenes)", video.display(), script.seconds, script.scenes.len());
    println!("prepared {:.1} s", start.elapsed().as_secs_f64());

    let mut weights = Weights::new(arguments.models.join("mllm"), arguments.models.join("clip"));
    let evolved = arguments.models.join("evolved");
    weights.sampler = Some(evolved.join("sampler.safetensors")).filter(|path| path.is_file());
    weights.adapter = Some(evolved).filter(|path| path.is_dir());
    // Decoded and compared with CLIP once, for all questions.
    weights.cache = Some(arguments.dir.join("cache"));
    let pipeline = Pipeline::load(&weights)?;
    let options = Options {
        key_frames: arguments.frames,
        show: ShowKeyFrames::Images,
        query_tokens: 48,
        answer_tokens: 48,
        ..Options::default()
    };
    let stop = cli::Stop::on_ctrl_c()?;
    let mut right = 0;
    for sample in &samples {
        let outcome =
            pipeline.answer_observed(&video, &sample.question, &options, &mut cli::observer(&stop))?;
        right += usize::from(told(&outcome, sample)?);
        let picture = arguments.dir.join(format!("{}.png", sample.family.name()));
        sheet(&outcome.images, COLUMNS, ZOOM, &picture)?;
        let mut page = Answered::of(&video, &sample.question, &options, &outcome)?;
        page.right = Some(sample.answer);
        page.evidence = sample.evidence.iter().map(|at| at.start as f64..at.end as f64).collect();
        let why = picture.with_extension("html");
        msjoe::report::write(&why, &page.html())?;
        println!("picture  {}, {}", picture.display(), why.display());
        outcome.warnings.iter().for_each(|warning| eprintln!("note: {warning}"));
    }
    println!("\nright    {right} of {}", samples.len());
    println!("total    {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Prints what was asked, seen and answered; whether it is right.
fn told(outcome: &Outcome, sample: &Sample) -> Result<bool> {
    println!("\nquestion {} ({})", sample.question, sample.family.name());
    if let Some(queries) = &outcome.queries {
        queries.queries.iter().for_each(|query| println!("query    {query:?} ({:?})", queries.form));
    }
    for range in &sample.evidence {
        println!("evidence {} to {}", clock(range.start as f64), clock(range.end as f64));
    }
    for frame in &outcome.key_frames {
        let evidence = sample.evidence.iter().any(|range| range.contains(&(frame.seconds as usize)));
        let mark = if evidence { "  in the evidence" } else { "" };
        println!("frame    {}  weight {:.5}{mark}", clock(frame.seconds), frame.weight);
    }
    let steps = outcome.steps.iter().map(|step| format!("{} {:.2} s", step.step.name(), step.seconds));
    println!("time     {}", steps.collect::<Vec<_>>().join(", "));
    let answer = outcome.answer.as_ref().context("the pipeline gave no answer")?;
    let right = answer.choice == Some(sample.answer);
    let truth = &sample.question.options()[sample.answer];
    outcome.reply.iter().for_each(|reply| println!("reply    {}", reply.text));
    println!("answer   {:?}: {}", answer.text, if right { "right" } else { &**truth });
    Ok(right)
}
