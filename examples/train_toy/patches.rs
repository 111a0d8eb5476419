//! The first stage of both towers: what is in each patch of a frame.

use std::path::Path;

use anyhow::Result;
use msjoe::checkpoint::write_safetensors;
use msjoe::optim::{AdamWConfig, Parameters, Schedule, Shape};
use msjoe::supervised::lessons::{LABELS, rasters};
use msjoe::supervised::patches::{PatchTrainer, Tower};

use crate::progress::bar;
use crate::save::{restore, save};
use crate::{Args, Worlds};

const STEPS: f64 = 2500.0;
const FRAMES: usize = 96;
const PER_VIDEO: usize = 4;
/// Patches per side of a frame.
const GRID: usize = 8;

/// Trains the vision tower below `tower` and writes all of `parameters` to `model`.
pub fn train(
    args: &Args,
    worlds: &Worlds,
    (name, tower): (&str, Tower),
    parameters: &Parameters,
    model: &Path,
) -> Result<()> {
    let unfinished = args.work.join(format!("{name}-patches.safetensors"));
    let config = AdamWConfig { weight_decay: 0.01, beta2: 0.98, ..AdamWConfig::default() };
    let mut trainer = PatchTrainer::new(tower, parameters, LABELS, config)?;
    let total = (STEPS * args.scale) as u64;
    let schedule = Schedule { peak: 2e-3, warmup: 100, total, floor: 1e-4, shape: Shape::Cosine };
    let start = restore(&unfinished, &trainer.parameters, &mut trainer.optimizer)?;
    let bar = bar(&format!("{name} patches"), start, total);
    for step in start..total {
        let batch = rasters(&worlds.long, step, FRAMES, PER_VIDEO, GRID);
        let [things, looks] = trainer.step(&batch, schedule.rate(step))?.losses;
        bar.set_message(format!("loss {things:.3} + {looks:.3}"));
        bar.inc(1);
        if (step + 1) % 100 == 0 || step + 1 == total {
            save(&unfinished, step + 1, &trainer.parameters, &trainer.optimizer)?;
            bar.suspend(|| {
                println!(
                    "{name} patches {}/{total}: nouns {things:.3}, colours and places {looks:.3}",
                    step + 1
                )
            });
        }
    }
    bar.finish_and_clear();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(write_safetensors(model, &parameters.detached(), Some(metadata))?)
}
