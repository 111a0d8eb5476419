//! Learning from examples: labels of patches for a vision tower, the contrastive training of a CLIP, and supervised turns of
//! a Qwen2.5-VL.
//!
//! The base models of the toy world are made with it; joint training ([`crate::rl`]) starts from their checkpoints.

pub mod contrastive;
mod drills;
pub mod lessons;
pub mod patches;
pub mod reasoning;
pub mod turns;
