//! The small CLIP: contrastive on frames and short phrases with hard negatives.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use msjoe::checkpoint::random::{self, ClipSpec};
use msjoe::checkpoint::write_safetensors;
use msjoe::data::world::{Colour, Noun, Place, Split, World, vocabulary};
use msjoe::models::clip::Clip;
use msjoe::optim::{AdamWConfig, Schedule, Shape};
use msjoe::similarity::similarity;
use msjoe::supervised::contrastive::ContrastiveTrainer;
use msjoe::supervised::lessons;
use msjoe::supervised::patches::Tower;

use crate::patches;
use crate::progress::bar;
use crate::save::{restore, save};
use crate::{Args, Worlds};

const STEPS: f64 = 4000.0;
const FRAMES: usize = 64;
const PER_VIDEO: usize = 4;

pub fn train(args: &Args, worlds: &Worlds) -> Result<()> {
    let (dir, unfinished) = (args.out.join("clip"), args.work.join("clip.safetensors"));
    let spec = ClipSpec {
        image_size: 56,
        patch: 7,
        vision_hidden: 64,
        vision_layers: 4,
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
    let tower = Tower::Clip(Box::new(trainer.clip.clone()));
    patches::train(args, worlds, ("clip", tower), &trainer.parameters, &dir.join("model.safetensors"))?;
    let total = (STEPS * args.scale) as u64;
    let schedule = Schedule { peak: 1e-3, warmup: 100, total, floor: 1e-5, shape: Shape::Cosine };
    let start = restore(&unfinished, &trainer.parameters, &mut trainer.optimizer)?;
    let bar = bar("clip", start, total);
    for step in start..total {
        let world = if step % 4 == 0 { &worlds.plain } else { &worlds.long };
        let batch = lessons::captions(world, step, FRAMES, PER_VIDEO);
        let done = trainer.step(&batch, schedule.rate(step))?;
        bar.set_message(format!("loss {:.3}, own phrase first {:.2}", done.loss, done.accuracy));
        bar.inc(1);
        if (step + 1) % 100 == 0 {
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
    measure(&Clip::load(&dir, candle_core::DType::F32, &Device::Cpu)?, &worlds.plain)?;
    measure(&Clip::load(&dir, candle_core::DType::F32, &Device::Cpu)?, &worlds.long)
}

/// On validation videos: zero-shot choice of the place, of a thing's noun and of its colour, and how often a needle's scene
/// holds the most similar frame of the whole video, by its noun and by a question that names the category alone.
fn measure(clip: &Clip, world: &World) -> Result<()> {
    let mut tally = BTreeMap::<&str, (usize, usize)>::new();
    let mut count = |name, right: bool| {
        let entry = tally.entry(name).or_default();
        entry.0 += usize::from(right);
        entry.1 += 1;
    };
    let texts = |texts: Vec<String>| clip.encode_texts(&texts);
    let places = texts(Place::ALL.iter().map(|place| place.name().to_owned()).collect())?;
    let nouns = texts(Noun::ALL.iter().map(|noun| with_article(noun.name())).collect())?;
    for video in 0..60 {
        let script = world.script(Split::Validation, video);
        let frames: Vec<_> = (0..script.seconds).map(|second| script.frame(second)).collect();
        let frames = clip.encode_images(&frames)?;
        for scene in script.scenes.iter().filter(|scene| scene.things.len() == 1) {
            let frame = frames.narrow(0, scene.start, 1)?;
            let thing = &scene.things[0];
            let colours =
                Colour::ALL.iter().map(|c| with_article(&format!("{} {}", c.name(), thing.noun.name())));
            count("place", Place::ALL[best(&frame, &places)?] == scene.place);
            count("noun", Noun::ALL[best(&frame, &nouns)?] == thing.noun);
            count("colour", Colour::ALL[best(&frame, &texts(colours.collect())?)?] == thing.colour);
        }
        for sample in world.samples(Split::Validation, video) {
            let (kind, query) = match sample.family.name() {
                "needle" => ("needle found by noun", sample.subjects[0].clone()),
                "category" => ("needle found by category", sample.question.text().to_owned()),
                _ => continue,
            };
            let at = best(&texts(vec![query])?, &frames)?;
            count(kind, sample.evidence.iter().any(|range| range.contains(&at)));
        }
    }
    for (name, (right, of)) in tally {
        println!("clip: {name} {:.3} of {of}", right as f64 / of as f64);
    }
    Ok(())
}

fn with_article(words: &str) -> String {
    let vowel = words.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {words}", if vowel { "an" } else { "a" })
}

/// The row of `of` that is most similar to the one of `one`.
fn best(one: &Tensor, of: &Tensor) -> Result<usize> {
    Ok(similarity(one, of)?.get(0)?.argmax(0)?.to_scalar::<u32>()? as usize)
}
