//! Reinforcement learning: GRPO for the language model, REINFORCE for the sampler, from one reward.
