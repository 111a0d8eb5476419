//! Chooses key frames for a question, without answering it.
//!
//! ```text
//! cargo run --release --example select -- --video talk.mp4 --question "Who opens the door?" \
//!     --query "a person opening a door" --frames 8 --strategy top-k --out frames/
//! ```
//! writes `frames/0000123.jpg`, ... (number among the candidates, native size) and `frames/frames.json`, an array of
//! `{index, seconds, weight, scale, file}`, which `--json` also prints. The folder appears when all of it is written.

mod cli;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Parser;
use image::codecs::jpeg::JpegEncoder;
use msjoe::checkpoint::write_folder;
use msjoe::pipeline::KeyFrame;
use msjoe::report::clock;
use msjoe::video::{Fit, Request, Times, Video};
use serde::Serialize;

/// Choose key frames for a question
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    ask: cli::Ask,
    #[command(flatten)]
    models: cli::Models,
    /// New folder for the frames (JPEG) and frames.json
    #[arg(long)]
    out: PathBuf,
    /// JPEG quality, 1 to 100
    #[arg(long, default_value_t = 92, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Print frames.json too
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    frame: &'a KeyFrame,
    file: String,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let out = &arguments.out;
    if out.exists() {
        bail!("{}: exists already; name a new folder", out.display());
    }
    let question = arguments.ask.question()?;
    let options = arguments.ask.pipeline_options()?;
    let stop = cli::Stop::on_ctrl_c()?;
    let pipeline = arguments.models.load(&options, false, &stop)?;
    let outcome = pipeline.choose(&arguments.ask.video, &question, &options, &mut cli::observer(&stop))?;
    outcome.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));

    let rows: Vec<Row> = (outcome.key_frames.iter())
        .map(|frame| Row { frame, file: format!("{:07}.jpg", frame.index) })
        .collect();
    let json = serde_json::to_string_pretty(&rows)?;
    write_folder(out, |folder| {
        write_frames(arguments, &rows, folder, &stop)?;
        Ok::<(), anyhow::Error>(std::fs::write(folder.join("frames.json"), &json)?)
    })?;

    if arguments.json {
        println!("{json}");
    } else {
        for row in &rows {
            let file = out.join(&row.file);
            println!("{}  weight {:.4}  {}", clock(row.frame.seconds), row.frame.weight, file.display());
        }
    }
    Ok(())
}

fn write_frames(arguments: &Arguments, rows: &[Row], folder: &Path, stop: &cli::Stop) -> Result<()> {
    let times = rows.iter().map(|row| row.frame.seconds).collect();
    let request =
        Request { times: Times::Seconds(times), fits: vec![Fit::Native], threads: arguments.ask.threads };
    let mut written = 0;
    for (row, sample) in rows.iter().zip(Video::open(&arguments.ask.video)?.samples(&request)?) {
        for image in sample?.images {
            let mut jpeg = vec![];
            JpegEncoder::new_with_quality(&mut jpeg, arguments.quality).encode_image(&image)?;
            std::fs::write(folder.join(&row.file), jpeg)?;
        }
        written += 1;
        if stop.flow() == ControlFlow::Break(()) {
            bail!("interrupted");
        }
    }
    if written < rows.len() {
        bail!("only {written} of {} key frames could be decoded", rows.len());
    }
    Ok(())
}
