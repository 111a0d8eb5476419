//! The rows of the table: which method, what is trained for it, and what is left out.

use msjoe::models::unet1d;
use msjoe::rl::advantage::Baseline;
use msjoe::rl::config::{EvolveConfig, Learn, ModelConfig, Rate, SamplerConfig, Worth};
use msjoe::rl::plan::{Asking, Choosing, Plan};
use msjoe::rl::reinforce::Probability;

/// What a row trains before it is graded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Training {
    /// Nothing.
    None,
    /// The sampler; the language model stays frozen.
    Sampler,
    /// The sampler, then both together.
    Joint,
}

/// One row.
pub struct Row {
    /// For file names and `--rows`.
    pub name: &'static str,
    /// In the table.
    pub title: &'static str,
    pub training: Training,
    pub asking: Asking,
    pub choosing: Choosing,
    /// What is different from joint evolution, in either stage; stage 1 is the one in which the model learns nothing.
    change: fn(&mut EvolveConfig),
}

const fn row(
    name: &'static str,
    title: &'static str,
    training: Training,
    asking: Asking,
    choosing: Choosing,
) -> Row {
    Row { name, title, training, asking, choosing, change: |_| {} }
}

const fn joint(name: &'static str, title: &'static str, change: fn(&mut EvolveConfig)) -> Row {
    let row = row(name, title, Training::Joint, Asking::Model, Choosing::Draw);
    Row { change, ..row }
}

/// The row that every other one is compared with.
pub const JOINT: &str = "joint";
/// The row whose rewards say nothing.
pub const CONTROL: &str = "shuffled";

pub const ROWS: [Row; 15] = [
    row("blind", "no frame at all", Training::None, Asking::Question, Choosing::Nothing),
    row("uniform", "uniform", Training::None, Asking::Question, Choosing::Uniform),
    row("top-k", "top-k, the question as query", Training::None, Asking::Question, Choosing::TopK),
    row(
        "question",
        "sampler trained, the question as query, MLLM frozen",
        Training::Sampler,
        Asking::Question,
        Choosing::Draw,
    ),
    row(
        "frozen",
        "sampler trained, generated queries, MLLM frozen",
        Training::Sampler,
        Asking::Model,
        Choosing::Draw,
    ),
    joint(JOINT, "**joint evolution**", |_| {}),
    joint("no-difficulty", "joint, without the difficulty-aware reward", |config| {
        if config.model.learn == Learn::Nothing {
            config.sampler.worth = Worth::Reward(Baseline::LeaveOneOut);
        }
    }),
    joint("no-info", "joint, without the informativeness reward", |config| {
        if config.model.learn != Learn::Nothing {
            config.reward.info = 0.0;
        }
    }),
    joint("no-previews", "joint, without previews", |config| config.plan.previews = Some(0)),
    joint("mlp", "joint, an MLP instead of the U-Net", |config| config.sampler.network = mlp()),
    joint("independent", "joint, independent log-probabilities instead of Plackett-Luce", |config| {
        config.sampler.reinforce.probability = Probability::Independent;
    }),
    joint("no-baseline", "joint, without a baseline", |config| {
        if config.model.learn != Learn::Nothing {
            config.sampler.worth = Worth::Reward(Baseline::None);
        }
    }),
    joint(CONTROL, "joint, rewards dealt out at random (control)", |config| {
        if config.model.learn != Learn::Nothing {
            config.shuffle_rewards = true;
            // A control may fall as far as it likes.
            config.alarm.min_reward_share = 0.0;
        }
    }),
    joint("apart", "joint, the frames of a draw kept apart (ours)", |config| {
        config.sampler.network.apart = 1.0
    }),
    row(
        "evidence",
        "frames of the evidence (upper bound)",
        Training::None,
        Asking::Question,
        Choosing::Evidence,
    ),
];

/// How much is trained and graded.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub questions: usize,
    pub seeds: u64,
    /// Of the row [`CONTROL`].
    pub control_seeds: u64,
    /// Training videos, each with up to six questions.
    pub videos: u64,
    /// Rollouts of the base model per training question, for its pass rate.
    pub pass_rate_rollouts: u64,
    pub sampler_steps: u64,
    pub joint_steps: u64,
    pub questions_per_step: usize,
    pub generations: u64,
}

pub const FULL: Scale = Scale {
    questions: 1002,
    seeds: 3,
    control_seeds: 8,
    videos: 200,
    pass_rate_rollouts: 4,
    sampler_steps: 60,
    joint_steps: 80,
    questions_per_step: 8,
    generations: 8,
};

pub const QUICK: Scale = Scale {
    questions: 96,
    seeds: 1,
    control_seeds: 1,
    videos: 20,
    pass_rate_rollouts: 4,
    sampler_steps: 8,
    joint_steps: 8,
    questions_per_step: 4,
    generations: 4,
};

/// Stage 1 and stage 2 of a row, as far as it has them.
pub fn stages(row: &Row, scale: &Scale, seed: u64) -> Vec<EvolveConfig> {
    let base = EvolveConfig {
        seed,
        questions: scale.questions_per_step,
        generations: scale.generations,
        plan: plan(row, 8),
        micro_batch_tokens: 1024,
        ..EvolveConfig::default()
    };
    let sampler =
        SamplerConfig { network: unet(), rate: rate(3e-3, scale.sampler_steps), ..SamplerConfig::default() };
    let mut first = EvolveConfig {
        steps: scale.sampler_steps,
        plan: Plan { temperature: 0.0, ..base.plan.clone() },
        model: ModelConfig { learn: Learn::Nothing, ..ModelConfig::default() },
        sampler: SamplerConfig { worth: Worth::Difficulty, ..sampler.clone() },
        ..base.clone()
    };
    let model = ModelConfig {
        learn: Learn::Everything,
        rate: rate(3e-5, scale.joint_steps),
        checkpointing: false,
        ..ModelConfig::default()
    };
    let rate = rate(1e-3, scale.joint_steps);
    let mut second =
        EvolveConfig { steps: scale.joint_steps, model, sampler: SamplerConfig { rate, ..sampler }, ..base };
    (row.change)(&mut first);
    (row.change)(&mut second);
    match row.training {
        Training::None => vec![],
        Training::Sampler => vec![first],
        Training::Joint => vec![first, second],
    }
}

/// A rate that has reached its peak before the run is over.
fn rate(peak: f64, steps: u64) -> Rate {
    let usual = Rate::default();
    Rate { peak, warmup: usual.warmup.min(steps), ..usual }
}

/// Most tokens of either turn: the small model needs about 30.
pub const TURN_TOKENS: usize = 48;

/// The trajectory of a row with K key frames.
pub fn plan(row: &Row, key_frames: usize) -> Plan {
    Plan {
        key_frames,
        query_tokens: TURN_TOKENS,
        answer_tokens: TURN_TOKENS,
        asking: row.asking,
        choosing: row.choosing,
        ..Plan::default()
    }
}

/// About 0.1 M parameters: videos of minutes, and a table that is done in hours.
fn unet() -> unet1d::Config {
    unet1d::Config {
        channels: vec![16, 32, 48, 64],
        stem: 8,
        groups: 8,
        kernel: 3,
        gain: 8.0,
        windows: vec![0, 2, 4, 8],
        apart: 0.0,
    }
}

/// The same features frame by frame: one level, and no kernel that reaches a neighbour.
fn mlp() -> unet1d::Config {
    unet1d::Config {
        channels: vec![128],
        stem: 32,
        groups: 8,
        kernel: 1,
        gain: 8.0,
        windows: vec![0],
        apart: 0.0,
    }
}
