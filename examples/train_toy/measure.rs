//! What the small Qwen2.5-VL knows so far.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use msjoe::data::world::{Split, World};
use msjoe::models::language::{Show, Turn};
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::qwen2_5_vl::generate::Options;
use msjoe::models::qwen2_5_vl::sampling::Sampling;
use msjoe::rl::evaluate::{TOGETHER, evaluate, summary};
use msjoe::rl::gallery::Gallery;
use msjoe::rl::plan::{Choosing, Plan};
use msjoe::rl::rollout::Policy;
use msjoe::rl::tasks::{balanced, world_tasks};
use msjoe::supervised::lessons::DESCRIBE;

use crate::Worlds;

/// On validation videos: captions of single frames that are right to the word, and answers from frames with the evidence,
/// from frames spread evenly, and from none.
pub fn measure(dir: &Path, worlds: &Worlds) -> Result<String> {
    let chat = Qwen2_5VlChat::load(dir, DType::F32, &Device::Cpu)?;
    let mut said = vec![];
    for (name, world) in [("one thing", &worlds.plain), ("all", &worlds.long)] {
        said.push(format!("captions of {name} {:.2}", captions(&chat, world)?));
    }
    let tasks = balanced(world_tasks(&worlds.long, Split::Validation, 0..60), 240);
    let policy = Policy { chat: &chat, clip: None, sampler: None };
    let ways =
        [("evidence", Choosing::Evidence), ("uniform", Choosing::Uniform), ("no frame", Choosing::Nothing)];
    for (name, choosing) in ways {
        let plan = Plan { choosing, temperature: 0.0, answer_tokens: 48, ..Plan::default() };
        let graded =
            evaluate(policy, &mut Gallery::new(1 << 28), &tasks, &plan, (0, TOGETHER), &mut |_| true)?;
        let summary = summary(&graded);
        let families = summary.families.iter().map(|(name, share)| format!("{name} {share:.2}"));
        let families: Vec<String> = families.collect();
        said.push(format!("{name} {:.3} ({})", summary.accuracy, families.join(", ")));
    }
    Ok(said.join("; "))
}

fn captions(chat: &Qwen2_5VlChat, world: &World) -> Result<f64> {
    let (mut prompts, mut right) = (vec![], vec![]);
    for video in 0..100 {
        let script = world.script(Split::Validation, video);
        let images = [script.frame(script.seconds / 2)];
        let sampling = Sampling::default();
        let turn = Turn { show: vec![Show::Images(&images)], text: DESCRIBE, max_new_tokens: 32, sampling };
        prompts.push(chat.prompt(&turn)?);
        right.push(script.caption(script.seconds / 2));
    }
    let options = Options { max_new_tokens: 32, stop_tokens: chat.stop_tokens.clone(), ..Options::default() };
    let completions = chat.model.generate(&prompts, &options, &mut |_, _| ControlFlow::Continue(()))?;
    let mut equal = 0;
    for (completion, right) in completions.iter().zip(&right) {
        equal += usize::from(chat.tokenizer.decode(&completion.tokens)?.trim() == right);
    }
    Ok(equal as f64 / right.len() as f64)
}
