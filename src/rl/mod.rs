//! Reinforcement learning: GRPO for the language model, REINFORCE for the sampler, from one reward.

pub mod advantage;
pub mod evaluate;
pub mod footage;
pub mod gallery;
pub mod grpo;
pub mod kl;
pub mod objective;
pub mod plan;
pub mod reinforce;
pub mod reward;
pub mod rollout;
pub mod run;
pub mod tally;
pub mod tasks;
pub mod trajectory;
