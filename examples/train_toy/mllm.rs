//! The small Qwen2.5-VL: describes single frames first, then answers and writes queries, from frames sampled evenly
//! (`msjoe::supervised::lessons`).

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use msjoe::checkpoint::random::{self, QwenSpec};
use msjoe::checkpoint::{write_file, write_safetensors};
use msjoe::data::world::vocabulary;
use msjoe::optim::{AdamWConfig, Schedule, Shape};
use msjoe::supervised::lessons::{Lesson, conversation};
use msjoe::supervised::patches::Tower;
use msjoe::supervised::turns::{Conversation, Learn, TurnTrainer};
use rayon::prelude::*;

use crate::measure::measure;
use crate::patches;
use crate::progress::bar;
use crate::save::{restore, save};
use crate::{Args, Worlds};

const TEMPLATE: &str = "{%- for message in messages -%}
<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}{% else %}\
{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>\n{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}";
const TAGS: [&str; 6] = ["<think>", "</think>", "<query>", "</query>", "<answer>", "</answer>"];

/// Conversations per step, and the shares of the lessons in percent: look at one large thing, look, watch short clips, ask,
/// follow longer clips, sift cuts of long videos; the rest watches long videos.
pub struct Stage {
    pub name: &'static str,
    learn: Learn,
    steps: f64,
    batch: usize,
    shares: [u64; 6],
    /// The largest learning rate.
    peak: f64,
    course: Shape,
    measure: u64,
}

pub const STAGES: [Stage; 4] = [
    Stage {
        name: "look",
        learn: Learn::All,
        steps: 750.0,
        batch: 96,
        shares: [30, 70, 0, 0, 0, 0],
        peak: 1e-3,
        course: Shape::Constant,
        measure: 250,
    },
    Stage {
        name: "watch",
        learn: Learn::All,
        steps: 1500.0,
        batch: 24,
        shares: [5, 15, 50, 15, 0, 0],
        peak: 1e-3,
        course: Shape::Cosine,
        measure: 250,
    },
    Stage {
        name: "follow",
        learn: Learn::Text,
        steps: 4500.0,
        batch: 20,
        shares: [0, 2, 35, 13, 45, 0],
        peak: 1e-3,
        course: Shape::Cosine,
        measure: 500,
    },
    Stage {
        name: "sift",
        learn: Learn::Text,
        steps: 4500.0,
        batch: 20,
        shares: [0, 2, 8, 13, 17, 40],
        peak: 5e-4,
        course: Shape::Cosine,
        measure: 500,
    },
];

pub fn train(args: &Args, worlds: &Worlds) -> Result<()> {
    let dir = args.out.join("mllm");
    if let Some(name) = &args.stage {
        let stage = STAGES.iter().find(|stage| stage.name == name);
        let stage = stage.with_context(|| format!("--stage: there is no {name}"))?;
        return run(args, worlds, &dir, stage);
    }
    start(args, worlds, &dir)?;
    STAGES.iter().try_for_each(|stage| run(args, worlds, &dir, stage))
}

/// A new model whose vision tower has learned what is in each patch.
fn start(args: &Args, worlds: &Worlds, dir: &Path) -> Result<()> {
    let words =
        vocabulary().into_iter().chain(["describe", "look", "answer", "what", "is", "asked", "to", "see"]);
    let mut words: Vec<String> = words.map(str::to_owned).collect();
    words.sort_unstable();
    words.dedup();
    let spec = QwenSpec {
        hidden: 128,
        intermediate: 384,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        vision_hidden: 64,
        vision_intermediate: 192,
        vision_depth: 4,
        vision_heads: 4,
        patch: 7,
        merge: 4,
        full_attention: vec![0, 1, 2, 3],
        max_positions: 4096,
        tied: true,
        std: 0.06,
        embedding_std: 0.02,
        words,
        tags: TAGS.map(str::to_owned).to_vec(),
        template: Some(TEMPLATE.to_owned()),
        ..QwenSpec::default()
    };
    random::qwen2_5_vl(dir, &spec, args.seed)?;
    write_file(&dir.join("msjoe.json"), b"{ \"dialogue\": \"brief\" }\n")?;
    let config = AdamWConfig::default();
    let TurnTrainer { chat, parameters, .. } = TurnTrainer::new(dir, &Device::Cpu, Learn::All, config)?;
    let tower = Tower::Qwen(Box::new(chat));
    patches::train(args, worlds, ("mllm", tower), &parameters, &dir.join("model.safetensors"))
}

fn run(args: &Args, worlds: &Worlds, dir: &Path, stage: &Stage) -> Result<()> {
    let unfinished = args.work.join(format!("mllm-{}.safetensors", stage.name));
    let config = AdamWConfig { weight_decay: 0.01, beta2: 0.98, ..AdamWConfig::default() };
    let mut trainer = TurnTrainer::new(dir, &Device::Cpu, stage.learn, config)?;
    let total = (stage.steps * args.scale) as u64;
    let schedule = Schedule { peak: stage.peak, warmup: 100, total, floor: 1e-5, shape: stage.course };
    let start = restore(&unfinished, &trainer.parameters, &mut trainer.optimizer)?;
    let bar = bar(&format!("mllm {}", stage.name), start, total);
    for step in start..total {
        let done = trainer.step(&batch(worlds, stage, step), schedule.rate(step))?;
        bar.set_message(format!("loss {:.3}, {} tokens", done.loss, done.length));
        bar.inc(1);
        if (step + 1) % stage.measure == 0 || step + 1 == total {
            save(&unfinished, step + 1, &trainer.parameters, &trainer.optimizer)?;
            write(dir, &trainer)?;
            let measured = measure(dir, worlds)?;
            let line = format!("mllm {} {}/{total}: loss {:.3}; {measured}", stage.name, step + 1, done.loss);
            bar.suspend(|| println!("{line}"));
        }
    }
    bar.finish_and_clear();
    // Also when all of the stage was done before: the folder was written anew.
    write(dir, &trainer)
}

fn write(dir: &Path, trainer: &TurnTrainer) -> Result<()> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let tensors = trainer.parameters.detached();
    Ok(write_safetensors(&dir.join("model.safetensors"), &tensors, Some(metadata))?)
}

fn batch(worlds: &Worlds, stage: &Stage, step: u64) -> Vec<Conversation> {
    let first = step * stage.batch as u64;
    let one = |number: u64| {
        let lessons = [
            (&worlds.plain, Lesson::Look),
            (&worlds.long, Lesson::Look),
            (&worlds.short, Lesson::Watch),
            (&worlds.long, Lesson::Ask),
            (&worlds.clips, Lesson::Follow),
            (&worlds.long, Lesson::Sift),
        ];
        // Spread evenly over the hundred, so that every batch has its share of each.
        let place = number * 37 % 100;
        let mut end = 0;
        let here = stage.shares.iter().position(|share| {
            end += share;
            place < end
        });
        let (world, lesson) = here.map_or((&worlds.long, Lesson::Watch), |at| lessons[at]);
        conversation(world, lesson, number)
    };
    (first..first + stage.batch as u64).into_par_iter().map(one).collect()
}
