//! Reinforcement learning: GRPO for the language model, REINFORCE for the sampler, from one reward.
//!
//! ```text
//! tasks -> rollout -> trajectories -> reward -> advantage -> update (grpo, reinforce) -> learner
//! ```
//!
//! [`trainer`] is that line as one function, and [`evolve`] a whole run with evaluation and checkpoints.

pub mod footage;
pub mod gallery;
pub mod tasks;

pub mod memory;
pub mod plan;
pub mod rollout;
pub mod trajectory;

pub mod advantage;
pub mod reward;

pub mod grpo;
pub mod kl;
pub mod objective;
pub mod reinforce;
pub mod update;

pub mod config;
pub mod learner;
pub mod trainer;

pub mod alarm;

pub mod difficulty;
pub mod evaluate;
pub mod evolve;
pub mod rates;
pub mod run;
pub mod settings;
pub mod tally;
