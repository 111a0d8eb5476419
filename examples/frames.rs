//! Frames of a video at a fixed rate, described in a few numbers each.
//!
//! ```text
//! $ cargo run --release --example frames -- --video holiday.mp4 --fps 0.5
//! index  seconds     size       mean RGB
//!     0    0.000   320x180   13.0  13.6  14.4
//!     1    2.000   320x180   98.3 100.1 103.0
//! ```
//!
//! With `--json`, an array of `{index, seconds, width, height, mean_rgb, thumb}` where `thumb` is the frame's luma
//! averaged over an 8x8 grid of equal areas, row by row.

mod cli;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use image::RgbImage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use msjoe::video::{Fit, Request, Times, Video};
use serde_json::json;

/// Prints the frames on display at 0, 1/F, 2/F, ... seconds.
#[derive(Parser)]
struct Args {
    /// Video file, or folder of images (one second each)
    #[arg(long)]
    video: PathBuf,
    /// Frames per second of video time
    #[arg(long, default_value_t = 1.0)]
    fps: f64,
    /// Decoding threads; 0 uses every core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    cli::run(|| run(&args))
}

fn run(args: &Args) -> Result<()> {
    let video = Video::open(&args.video)?;
    let request = Request { times: Times::Fps(args.fps), fits: vec![Fit::Native], threads: args.threads };
    let mut samples = video.samples(&request)?;
    let bar = progress(samples.size_hint().1.unwrap_or(0));
    let mut frames = Vec::new();
    for sample in samples.by_ref() {
        let sample = sample?;
        let image = &sample.images[0];
        frames.push(json!({
            "index": sample.index,
            "seconds": sample.seconds,
            "width": image.width(),
            "height": image.height(),
            "mean_rgb": mean_rgb(image),
            "thumb": thumb(image),
        }));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if let Some(warning) = samples.warning() {
        eprintln!("warning: {}: {warning}", args.video.display());
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&frames)?)?;
        return Ok(());
    }
    writeln!(out, "index  seconds      size       mean RGB")?;
    for frame in &frames {
        let size = format!("{}x{}", frame["width"], frame["height"]);
        let mean = |c: usize| frame["mean_rgb"][c].as_f64().unwrap_or(0.0);
        let seconds = frame["seconds"].as_f64().unwrap_or(0.0);
        let index = frame["index"].as_u64().unwrap_or(0);
        writeln!(
            out,
            "{index:>5} {seconds:>8.3} {size:>9}  {:5.1} {:5.1} {:5.1}",
            mean(0),
            mean(1),
            mean(2)
        )?;
    }
    Ok(())
}

/// A bar on stderr where that is a terminal, nothing elsewhere.
fn progress(total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} frames, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn mean_rgb(image: &RgbImage) -> [f64; 3] {
    let mut sums = [0u64; 3];
    for pixel in image.pixels() {
        for (sum, value) in sums.iter_mut().zip(pixel.0) {
            *sum += u64::from(value);
        }
    }
    let pixels = f64::from(image.width()) * f64::from(image.height());
    sums.map(|sum| sum as f64 / pixels)
}

/// Area-averaged luma on an 8x8 grid; a pixel on a border counts for each side by the part that lies there.
fn thumb(image: &RgbImage) -> Vec<u8> {
    let (columns, rows) = (shares(image.width()), shares(image.height()));
    let stride = image.width() as usize * 3;
    let mut sums = [0f64; 64];
    for &(y, row, weight) in &rows {
        let pixels = &image.as_raw()[y * stride..][..stride];
        for &(x, column, share) in &columns {
            let [r, g, b] = [0, 1, 2].map(|channel| f64::from(pixels[x * 3 + channel]));
            sums[row * 8 + column] += (0.299 * r + 0.587 * g + 0.114 * b) * share * weight;
        }
    }
    sums.iter().map(|luma| luma.round().clamp(0.0, 255.0) as u8).collect()
}

/// For `length` pixels: each pixel with each cell it reaches into, and which part of the cell it fills.
fn shares(length: u32) -> Vec<(usize, usize, f64)> {
    let length = length as usize;
    let mut shares = Vec::new();
    for at in 0..length {
        // in eighths of a pixel: the pixel covers 8 of them, the cell `length`
        for cell in at * 8 / length..=((at * 8 + 7) / length).min(7) {
            let overlap = ((at + 1) * 8).min((cell + 1) * length) - (at * 8).max(cell * length);
            shares.push((at, cell, overlap as f64 / length as f64));
        }
    }
    shares
}
