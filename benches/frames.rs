//! Frames of a video at a fixed rate; the twin of `benches/peers/frames.py`, with the same output.
//!
//! ```text
//! cargo bench --bench frames -- VIDEO FPS [THREADS] [RUNS] [EDGE]
//! ```
//!
//! Frames come as RGB at native size; with EDGE above 0, cropped for CLIP at that side instead. Opening the file counts.
#![allow(missing_docs)]

use std::time::Instant;

use anyhow::{Context, Result};
use msjoe::video::{Fit, Request, Times, Video};
use serde_json::json;

fn main() -> Result<()> {
    // cargo adds --bench to the arguments
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = args.first() else {
        eprintln!("frames: no video given, nothing measured (cargo bench --bench frames -- VIDEO FPS)");
        return Ok(());
    };
    let number = |at: usize, default: usize| args.get(at).map_or(Ok(default), |text| text.parse());
    let fps: f64 = args.get(1).context("the second argument is the rate")?.parse()?;
    let (threads, count, edge) = (number(2, 0)?, number(3, 3)?.max(1), number(4, 0)?);
    let fit = if edge == 0 { Fit::Native } else { Fit::ShortEdgeCrop(edge as u32) };
    let mut runs = Vec::new();
    let mut frames = 0;
    for _ in 0..count {
        let start = Instant::now();
        let video = Video::open(path)?;
        frames = 0;
        for sample in video.samples(&Request { times: Times::Fps(fps), fits: vec![fit], threads })? {
            std::hint::black_box(sample?);
            frames += 1;
        }
        runs.push(start.elapsed().as_secs_f64());
    }
    let mut sorted = runs.clone();
    sorted.sort_by(f64::total_cmp);
    let seconds = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
    let report = json!({
        "reader": "msjoe",
        "version": env!("CARGO_PKG_VERSION"),
        "frames": frames,
        "threads": threads,
        "seconds": seconds,
        "runs": runs,
        "peak_rss_mib": peak_rss_mib(),
    });
    println!("{report}");
    Ok(())
}

/// Largest resident size of this process so far.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}
