//! Reinforcement learning: GRPO for the language model, REINFORCE for the sampler, from one reward.

pub mod evaluate;
pub mod footage;
pub mod gallery;
pub mod plan;
pub mod rollout;
pub mod run;
pub mod tasks;
pub mod trajectory;
