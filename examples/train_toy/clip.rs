//! The small CLIP: contrastive on frames and short phrases with hard negatives.

use anyhow::Result;
use candle_core::Device;
use msjoe::checkpoint::random::{self, ClipSpec};
use msjoe::checkpoint::write_safetensors;
use msjoe::data::world::{Split, World, vocabulary};
use msjoe::models::clip::Clip;
use msjoe::optim::{AdamWConfig, Schedule, Shape};
use msjoe::supervised::contrastive::ContrastiveTrainer;
use msjoe::supervised::lessons;

use crate::progress::bar;
use crate::save::{restore, save};
use crate::{Args, Worlds};

const STEPS: f64 = 3000.0;
const FRAMES: usize = 96;
const PER_VIDEO: usize = 4;

pub fn train(args: &Args, worlds: &Worlds) -> Result<()> {
    let (dir, unfinished) = (args.out.join("clip"), args.work.join("clip.safetensors"));
    let spec = ClipSpec {
        image_size: 56,
        patch: 14,
        vision_hidden: 96,
        vision_layers: 3,
        vision_heads: 4,
        text_hidden: 64,
        text_layers: 2,
        text_heads: 4,
        projection: 64,
        std: 0.08,
        embedding_std: 0.02,
        words: vocabulary().into_iter().map(str::to_owned).collect(),
        positions: 32,
        ..ClipSpec::default()
    };
    random::clip(&dir, &spec, args.seed)?;
    let config = AdamWConfig { weight_decay: 0.02, ..AdamWConfig::default() };
    let mut trainer = ContrastiveTrainer::new(&dir, &Device::Cpu, config)?;
    let total = (STEPS * args.scale) as u64;
    let schedule = Schedule { peak: 1e-3, warmup: 100, total, floor: 1e-5, shape: Shape::Cosine };
    let start = restore(&unfinished, &trainer.parameters, &mut trainer.optimizer)?;
    let bar = bar("clip", start, total);
    for step in start..total {
        let batch = lessons::captions(&worlds.long, step, FRAMES, PER_VIDEO);

        let done = trainer.step(&batch, schedule.rate(step))?;
        bar.set_message(format!("loss {:.3}, own phrase first {:.2}", done.loss, done.accuracy));
        bar.inc(1);
        if (step + 1) % 50 == 0 {
            save(&unfinished, step + 1, &trainer.parameters, &trainer.optimizer)?;
            bar.suspend(|| {
                println!(
                    "clip {}/{total}: loss {:.3}, own phrase first {:.3}",
                    step + 1,
                    done.loss,
                    done.accuracy
                )
            });
        }
    }
    bar.finish_and_clear();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write_safetensors(&dir.join("model.safetensors"), &trainer.parameters.detached(), Some(metadata))?;
    measure(&Clip::load(&dir, candle_core::DType::F32, &Device::Cpu)?, &worlds.long)
}

/// On validation videos: how often a needle's scene holds the most similar frame, by its noun and by its category.
fn measure(clip: &Clip, world: &World) -> Result<()> {
    let (mut found, mut asked) = ([0usize; 2], [0usize; 2]);
    for video in 0..60 {
        let script = world.script(Split::Validation, video);
        let frames: Vec<_> = (0..script.seconds).map(|second| script.frame(second)).collect();
        let frames = clip.encode_images(&frames)?;
        for sample in world.samples(Split::Validation, video) {
            let (kind, query) = match sample.family.name() {
                "needle" => (0, sample.subjects[0].clone()),
                "category" => (1, sample.question.text().to_owned()),
                _ => continue,
            };
            let scores = msjoe::similarity::similarity(&clip.encode_texts(&[query])?, &frames)?;
            let best = scores.get(0)?.argmax(0)?.to_scalar::<u32>()? as usize;
            asked[kind] += 1;
            found[kind] += usize::from(sample.evidence.iter().any(|range| range.contains(&best)));
        }
    }
    let share = |kind: usize| found[kind] as f64 / asked[kind].max(1) as f64;
    println!(
        "clip: most similar frame in the right scene: by noun {:.2}, by a question with the category {:.2}",
        share(0),
        share(1)
    );
    Ok(())
}
