//! Fetches weights into the Hugging Face cache and verifies them.
//!
//! ```text
//! $ cargo run --release --example download -- clip-vit-large-patch14
//! /home/me/.cache/huggingface/hub/models--openai--clip-vit-large-patch14/snapshots/<commit>
//! commit <commit>
//! ```
//!
//! Run again after an interruption to resume. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use msjoe::hub::{Hub, Progress, Stage, known_models, resolve};

/// Fetches weights into the Hugging Face cache and verifies them.
#[derive(Parser)]
struct Args {
    /// A known name, a repository `org/name`, or a folder (which is only verified).
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Branch, tag or commit [default: the one of the known model, else main].
    #[arg(long)]
    revision: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// List the known names instead.
    #[arg(long, conflicts_with_all = ["name", "revision"])]
    list: bool,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter("msjoe=warn")
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let Some(name) = args.name.as_ref().filter(|_| !args.list) else { return list(args.json) };
    let spec = match &args.revision {
        Some(revision) => format!("{name}@{revision}"),
        None => name.clone(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let pressed = stop.clone();
    ctrlc::set_handler(move || pressed.store(true, Ordering::Relaxed))?;
    let mut bars = Bars::default();
    let weights = resolve(&Hub::from_env()?, &spec, &mut |progress| {
        bars.show(progress);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bars.clear();
    let weights = weights?;
    if args.json {
        let value = serde_json::json!({
            "folder": weights.folder, "repo": weights.repo, "commit": weights.commit, "files": weights.files,
            "warnings": weights.warnings,
        });
        println!("{value}");
    } else {
        println!("{}", weights.folder.display());
        if let Some(commit) = weights.commit {
            println!("commit {commit}");
        }
    }
    Ok(())
}

fn list(json: bool) -> anyhow::Result<()> {
    let models = known_models()?;
    if json {
        let describe = |m: &msjoe::hub::Model| {
            serde_json::json!({
                "name": m.name, "repo": m.repo, "revision": m.revision, "description": m.description,
            })
        };
        println!("{}", serde_json::Value::from_iter(models.iter().map(describe)));
        return Ok(());
    }
    for model in models {
        println!("{:<24} {}", model.name, model.description);
    }
    Ok(())
}

/// A bar per file that is being worked on.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    of_file: HashMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, progress: &Progress) {
        if progress.file.is_empty() || progress.stage == Stage::Listing {
            return;
        }
        let bar = self.of_file.entry(progress.file.clone()).or_insert_with(|| {
            let template = "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(progress.total).with_style(style).with_prefix(progress.file.clone());
            // What is there already is not speed.
            let bar = bar.with_position(progress.done);
            bar.reset_eta();
            self.all.add(bar)
        });
        bar.set_message(if progress.stage == Stage::Verifying { "verifying" } else { "" });
        bar.set_position(progress.done);
        if progress.done == progress.total {
            bar.finish_and_clear();
            self.of_file.remove(&progress.file);
        }
    }

    fn clear(&mut self) {
        self.of_file.drain().for_each(|(_, bar)| bar.finish_and_clear());
    }
}
