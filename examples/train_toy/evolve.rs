//! What both stages of training make of the small models: a sampler, and an adapter with a sampler of its own.

use std::path::Path;

use anyhow::{Context, Result, bail};
use msjoe::checkpoint::write_file;
use msjoe::rl::evolve::{Event, evolve};
use msjoe::rl::run::{Build, Run};
use msjoe::rl::settings::{Data, Models, Settings};
use sha2::{Digest, Sha256};

use crate::Args;
use crate::progress::bar;

const SETTINGS: &str = include_str!("../toy_lora.toml");

pub fn train(args: &Args) -> Result<()> {
    let folder = args.work.join("evolved");
    let (settings, of) = (settings(args)?, folder.join("models.sha256"));
    let models = digest(&settings.models)?;
    let run = match Run::exists(&folder) {
        true => Run::open(&folder)?,
        false => Run::create(&folder, &settings, &Build::new("cpu"))?,
    };
    // What lies there may be of another trial.
    let begun = std::fs::read_to_string(&of).unwrap_or_else(|_| models.clone());
    if run.config::<Settings>()? != settings || begun != models {
        bail!("{}: a run of other settings or models; remove it, or give another --work", folder.display());
    }
    write_file(&of, models.as_bytes())?;
    let mut shown = bar("evolved", 0, 1);
    let mut observe = |event: Event| {
        match event {
            Event::Stage(name, steps) => shown = bar(name, 0, steps),
            Event::Preparing(what, done, of) => shown.set_message(format!("{what} {done}/{of}")),
            Event::Step { step, values } => {
                shown.set_position(step);
                shown.set_message(format!("reward {:.2}", values.get("reward").copied().unwrap_or_default()));
            }
            Event::Evaluated { step, summary } => shown.suspend(|| {
                println!("evolved {step}: accuracy {:.3} +- {:.3}", summary.accuracy, summary.interval);
            }),
            Event::Warning(text) => shown.suspend(|| eprintln!("warning: {text}")),
            Event::Memory(..) => {}
        }
        true
    };
    evolve(run.config()?, &run, &mut observe)?;
    let best = run.best()?.context("a run with evaluations has a best checkpoint")?.folder;
    let evolved = args.out.join("evolved");
    std::fs::create_dir_all(&evolved)?;
    for name in ["adapter_model.safetensors", "adapter_config.json", "sampler.safetensors"] {
        copy(&best.join(name), &evolved.join(name))?;
    }
    copy(&folder.join("sampler/best/sampler.safetensors"), &args.out.join("sampler.safetensors"))
}

/// Those of `examples/toy_lora.toml` for the models and the world at hand.
fn settings(args: &Args) -> Result<Settings> {
    let mut settings: Settings = toml::from_str(SETTINGS)?;
    settings.models = Models::new(args.out.join("mllm"), args.out.join("clip"));
    if let Data::World { seed, .. } = &mut settings.data {
        *seed = args.world_seed;
    }
    let scaled = |steps: u64| ((steps as f64 * args.scale).round() as u64).max(1);
    settings.evolve.steps = scaled(settings.evolve.steps);
    for rate in [&mut settings.evolve.model.rate, &mut settings.evolve.sampler.rate] {
        rate.warmup = rate.warmup.min(settings.evolve.steps);
    }
    if let Some(first) = &mut settings.pretrain {
        first.steps = scaled(first.steps);
        first.rate.warmup = first.rate.warmup.min(first.steps);
    }
    Ok(settings)
}

fn digest(models: &Models) -> Result<String> {
    let mut hash = Sha256::new();
    for folder in [&models.mllm, &models.clip] {
        let path = folder.join("model.safetensors");
        hash.update(std::fs::read(&path).context(path.display().to_string())?);
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).context(from.display().to_string())?;
    Ok(write_file(to, &bytes)?)
}
