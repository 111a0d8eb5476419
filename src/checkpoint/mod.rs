//! Checkpoints in Hugging Face layout.

pub mod random;
