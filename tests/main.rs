//! The crate's one integration binary: a module per subject.
#![allow(missing_docs)]

mod backward;
mod clip;
mod evolve;
mod evolve_run;
mod feature_cache;
mod gradcheck;
mod grpo;
mod hub;
mod log_prob;
mod lora;
mod memory;
mod metrics;
mod nn;
mod optim;
mod parity;
mod parsers;
mod peft;
mod pipeline;
mod qwen_config;
mod qwen_generate;
mod qwen_goldens;
mod qwen_positions;
mod qwen_processor;
mod reinforce;
mod reward;
mod run;
mod sampler;
mod sampler_learning;
mod samples;
mod select;
mod text;
mod video;
mod video_formats;
mod world;
