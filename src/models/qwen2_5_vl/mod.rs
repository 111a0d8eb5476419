//! Qwen2.5-VL: the multimodal language model that asks and answers.

pub mod config;
pub mod mrope;
pub mod processor;
