//! Joint training as a whole, on the shipped small models: what it is rewarded for happens more often, and with rewards dealt
//! out at random it does not.

use std::path::Path;

use candle_core::{DType, Device};
use msjoe::data::world::{Spec, Split, World};
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::Qwen2_5Vl;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::rl::config::{EvolveConfig, Learn, ModelConfig, Rate, SamplerConfig};
use msjoe::rl::gallery::Gallery;
use msjoe::rl::learner::Learner;
use msjoe::rl::plan::Plan;
use msjoe::rl::rollout::rollout;
use msjoe::rl::tasks::world_tasks;
use msjoe::rl::trainer::Trainer;
use msjoe::rl::trajectory::Task;

fn config(learns: [bool; 2], shuffle_rewards: bool) -> EvolveConfig {
    let rate = |peak: f64| Rate { peak, warmup: 0, ..Rate::default() };
    // A sampler alone learns from what its draws change.
    let (steps, temperature, peak) = if learns[0] { (12, 1.0, 3e-2) } else { (120, 0.0, 1e-2) };
    let learn = match learns[0] {
        true => Learn::Adapters { rank: 8, alpha: 16.0, targets: None },
        false => Learn::Nothing,
    };
    let network = crate::evolve::config().sampler.network;
    EvolveConfig {
        seed: 5,
        steps,
        questions: 6,
        generations: 8,
        shuffle_rewards,
        micro_batch_tokens: 1024,
        plan: Plan { query_tokens: 32, answer_tokens: 24, temperature, ..Plan::default() },
        model: ModelConfig { learn, rate: rate(1e-3), checkpointing: false, ..ModelConfig::default() },
        sampler: SamplerConfig { learn: learns[1], rate: rate(peak), network, ..SamplerConfig::default() },
        ..EvolveConfig::default()
    }
}

fn learner(config: &EvolveConfig) -> Learner {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/toy");
    let chat = Qwen2_5VlChat::load(models.join("mllm"), DType::F32, &Device::Cpu).unwrap();
    let clip = Clip::load(&models.join("clip"), DType::F32, &Device::Cpu).unwrap();
    let sampler = config.sampler.fresh(clip.config().projection_dim, 1, &Device::Cpu).unwrap();
    let weights = Qwen2_5Vl::weights(models.join("mllm")).unwrap();
    Learner::new(chat, &weights, clip, sampler, config).unwrap()
}

/// Share of right answers over 64 fresh trajectories of each question.
fn right(trainer: &Trainer, tasks: &[Task], gallery: &mut Gallery) -> f64 {
    let groups = rollout(trainer.learner.policy(), gallery, tasks, &trainer.config.plan, 64, 99).unwrap();
    let all: Vec<bool> = groups.iter().flatten().map(|one| one.right).collect();
    all.iter().filter(|right| **right).count() as f64 / all.len() as f64
}

/// Before and after training on six questions again and again.
fn trained(learns: [bool; 2], shuffled: bool) -> [f64; 2] {
    let world = World::new(Spec::default(), 21).unwrap();
    let tasks: Vec<Task> = world_tasks(&world, Split::Train, 0..1).into_iter().take(6).collect();
    let mut gallery = Gallery::new(1 << 26);
    let config = config(learns, shuffled);
    let mut trainer = Trainer::new(config.clone(), learner(&config), tasks.clone()).unwrap();
    let before = right(&trainer, &tasks, &mut gallery);
    for _ in 0..config.steps {
        trainer.step().unwrap();
    }
    [before, right(&trainer, &tasks, &mut gallery)]
}

#[test]
fn training_raises_its_reward_and_shuffled_rewards_do_not() {
    // The sampler from a flat start, and both together; 384 trajectories have a standard error of 0.025.
    for (learns, least) in [([false, true], 0.15), ([true, true], 0.2)] {
        let [before, after] = trained(learns, false);
        assert!(after > before + least, "{learns:?}: {before} -> {after}");
        let [before, dealt] = trained(learns, true);
        assert!(dealt - before < 0.5 * (after - before), "{learns:?}, shuffled rewards: {before} -> {dealt}");
        println!("{learns:?}: {before:.3} -> {after:.3}, shuffled {dealt:.3}");
    }
}
