//! The three models: CLIP (both towers), the 1-D U-Net sampler, and the Qwen2.5-VL backbone behind one trait.

pub mod clip;
pub mod language;
pub mod qwen2_5_vl;
pub mod unet1d;
