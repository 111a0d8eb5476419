//! The toy world on disk: videos, questions and a contact sheet.
//!
//! ```text
//! $ cargo run --release --example world -- --out target/world --split test --count 20 --seed 1
//! videos    20 in target/world
//! questions 120 in target/world/questions.jsonl (needle 20, category 20, neighbour 20, order 20, count 20, global 20)
//! ```
//! Beside them lie `sheet.png`, one frame of the middle of each scene, and `nouns.png`, every noun in both sizes.

mod cli;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use cli::sheet::sheet;
use image::RgbImage;
use msjoe::checkpoint::write_file;
use msjoe::data::world::{Colour, Noun, Place, Scene, Script, Size, Spec, Split, Thing, World};
use serde_json::json;

/// Writes videos of the toy world with their questions
#[derive(Parser)]
struct Arguments {
    /// Folder for the files; created if missing
    #[arg(long)]
    out: PathBuf,
    /// train, validation or test
    #[arg(long, default_value = "test")]
    split: Split,
    /// Number of videos
    #[arg(long, default_value_t = 20)]
    count: u64,
    /// Seed of the world
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Frames per second of the video files
    #[arg(long, default_value_t = 1)]
    fps: usize,
    /// Difficulty as a TOML file of the fields of `Spec`; without it the default
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Short clips of 1 to 8 scenes
    #[arg(long, conflicts_with = "spec")]
    short: bool,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    cli::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let spec = match &arguments.spec {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            toml::from_str(&text).with_context(|| path.display().to_string())?
        }
        None if arguments.short => Spec::short(),
        None => Spec::default(),
    };
    let world = World::new(spec, arguments.seed)?;
    let out = &arguments.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut lines = String::new();
    let mut families: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut frames, mut tiles) = (0, vec![]);
    let start = Instant::now();
    for index in 0..arguments.count {
        let script = world.script(arguments.split, index);
        let video = format!("{}.mp4", script.id);
        script.write_video(out.join(&video), arguments.fps)?;
        frames += script.seconds * arguments.fps;
        for sample in world.samples(arguments.split, index) {
            *families.entry(sample.family.name()).or_default() += 1;
            let (question, options) = (sample.question.text(), sample.question.options());
            lines += &serde_json::to_string(&json!({
                "id": sample.id, "video": video, "question": question, "options": options,
                "answer": options[sample.answer], "family": sample.family, "evidence": sample.evidence,
                "subjects": sample.subjects,
            }))?;
            lines.push('\n');
        }
        if tiles.len() < 96 {
            tiles.extend(script.scenes.iter().map(|scene| script.frame(scene.start + scene.seconds / 2)));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    write_file(&out.join("questions.jsonl"), lines.as_bytes())?;
    tiles.truncate(96);
    sheet(&tiles, 12, 2, &out.join("sheet.png"))?;
    sheet(&gallery(&world.script(arguments.split, 0)), 12, 2, &out.join("nouns.png"))?;
    let total: usize = families.values().sum();
    let mut stdout = std::io::stdout().lock();
    if arguments.json {
        let report = json!({"videos": arguments.count, "frames": frames, "questions": total,
            "families": families, "seconds": seconds});
        writeln!(stdout, "{report}")?;
    } else {
        let families: Vec<String> = families.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(stdout, "videos    {} in {}", arguments.count, out.display())?;
        writeln!(stdout, "questions {total} in {}/questions.jsonl ({})", out.display(), families.join(", "))?;
    }
    eprintln!("{frames} frames in {seconds:.1} s");
    Ok(())
}

/// Every noun as a column; each place with a large and a small one as two rows, colours along the diagonal.
fn gallery(script: &Script) -> Vec<RgbImage> {
    let mut tiles = vec![];
    for (row, place) in Place::ALL.into_iter().enumerate() {
        for (size, radius) in [(Size::Large, 13.5 / 56.), (Size::Small, 9. / 56.)] {
            for (column, noun) in Noun::ALL.into_iter().enumerate() {
                let colour = Colour::ALL[(row + column) % 6];
                let (centre, tint) = ([0.5, 0.5], [0; 3]);
                let (velocity, bounds) = ([0.; 2], [centre; 2]);
                let thing =
                    Thing { noun, colour, size, radius, position: centre, velocity, bounds, tilt: 0., tint };
                let scene = Scene { start: 0, seconds: 1, place, things: vec![thing], look: column as u64 };
                let mut one = script.clone();
                one.scenes = vec![scene];
                tiles.push(one.frame(0));
            }
        }
    }
    tiles
}
