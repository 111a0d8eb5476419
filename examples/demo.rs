//! The whole path in one command, with nothing to download: `make demo`.
//!
//! Encodes a 10-minute H.264 video of a moving scene with the crate's own encoder, writes small random checkpoints in
//! Hugging Face layout, and asks a question about the video through the real pipeline. The weights are random, so the
//! queries and the answer are too; everything else is what a real checkpoint goes through.
//!
//! ```text
//! cargo run --release --example demo
//! ```
//! prints the queries, 16 key frames with their times, the answer and the time of each step.

mod cli;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use image::{Rgb, RgbImage};
use msjoe::checkpoint::random::{ClipSpec, QwenSpec, clip, qwen2_5_vl};
use msjoe::pipeline::{Options, Pipeline, Weights};
use msjoe::text::Question;
use msjoe::video::{H264Writer, Rational};

/// Ask a question about a rendered 10-minute video, with small random models
#[derive(Parser)]
struct Arguments {
    /// Folder for the video and the checkpoints
    #[arg(long, default_value = "target/demo")]
    dir: PathBuf,
    /// Length of the video in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// Key frames K
    #[arg(long, default_value_t = 16)]
    frames: usize,
}

/// Frames per second of the video.
const RATE: u32 = 8;
const SIZE: (u32, u32) = (320, 180);

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    std::fs::create_dir_all(&arguments.dir)?;
    let (video, mllm, clip_dir) =
        (arguments.dir.join("scene.mp4"), arguments.dir.join("mllm"), arguments.dir.join("clip"));
    encode(&video, arguments.seconds)?;
    qwen2_5_vl(&mllm, &QwenSpec::default(), 7)?;
    clip(&clip_dir, &ClipSpec::default(), 7)?;
    println!("video    {} ({} s of {} x {} H.264)", video.display(), arguments.seconds, SIZE.0, SIZE.1);
    println!("prepared {:.1} s", start.elapsed().as_secs_f64());

    let pipeline = Pipeline::load(&Weights::new(&mllm, &clip_dir))?;
    let question = Question::new(
        "Which shape crosses the picture while the sky is green?",
        ["a disc", "a square", "nothing"],
    )?;
    let options =
        Options { key_frames: arguments.frames, query_tokens: 64, answer_tokens: 32, ..Options::default() };
    let stop = cli::Stop::on_ctrl_c()?;
    let outcome = pipeline.answer_observed(&video, &question, &options, &mut cli::observer(&stop))?;

    println!("question {question}");
    if let Some(queries) = &outcome.queries {
        queries.queries.iter().for_each(|query| println!("query    {query:?} ({:?})", queries.form));
    }
    for frame in &outcome.key_frames {
        println!("frame    {}  weight {:.5}", cli::clock(frame.seconds), frame.weight);
    }
    for step in &outcome.steps {
        println!("{:8} {:.2} s", format!("{:?}", step.step).to_lowercase(), step.seconds);
    }
    if let Some(answer) = &outcome.answer {
        println!("answer   {:?} (random weights: nothing to be learned from it)", answer.text);
    }
    outcome.warnings.iter().for_each(|warning| eprintln!("note: {warning}"));
    println!("total    {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn encode(path: &Path, seconds: u32) -> Result<()> {
    let mut writer = H264Writer::create(path, SIZE.0, SIZE.1, Rational::new(RATE as i32, 1))?;
    for frame in 0..seconds * RATE {
        writer.push(&scene(f64::from(frame) / f64::from(RATE)))?;
    }
    Ok(writer.finish()?)
}

/// A sky whose colour changes every 20 s, and a shape that crosses it.
fn scene(seconds: f64) -> RgbImage {
    let place = (seconds / 20.0) as usize;
    let skies = [[40, 60, 120], [50, 130, 60], [150, 90, 40], [90, 90, 100], [130, 50, 110]];
    let (sky, round) = (skies[place % skies.len()], place % 3 != 1);
    let phase = (seconds % 20.0) / 20.0;
    let (x, y) = (phase * 380.0 - 30.0, 90.0 + 50.0 * (phase * 12.0).sin());
    RgbImage::from_fn(SIZE.0, SIZE.1, |column, row| {
        let (dx, dy) = (f64::from(column) - x, f64::from(row) - y);
        let inside = if round { dx * dx + dy * dy < 700.0 } else { dx.abs().max(dy.abs()) < 24.0 };
        let shade = (row / 6) as u8;
        if inside { Rgb([230, 210 - shade, 60]) } else { Rgb(sky.map(|c: u8| c.saturating_add(shade))) }
    })
}
