//! The models: CLIP (both towers), the samplers (a 1-D U-Net, TSPO's temporal agent), and the Qwen2.5-VL backbone behind one
//! trait.

pub mod clip;
pub mod language;
pub mod qwen2_5_vl;
pub mod sampler;
pub mod temporal_agent;
pub mod unet1d;
