//! Layers that are safe to train: every forward goes through an operation whose gradient is tested.

mod block;
mod block_node;
mod conv1d;
mod group_norm;
pub mod kv_cache;
mod linear;
mod lora;
mod norm;
mod upsample;

use candle_core::{D, Result, Tensor};

pub use crate::ops::pointwise::{add, quick_gelu, swiglu};
pub use block::Block;
pub use conv1d::Conv1d;
pub use group_norm::GroupNorm;
pub use linear::Linear;
pub use lora::{Lora, fresh as fresh_lora};
pub use norm::{LayerNorm, RmsNorm};
pub use upsample::upsample1d;

/// Softmax over the last axis; the fused form only where no gradient is needed.
///
/// # Errors
/// As the tensor operations.
#[allow(clippy::disallowed_methods)] // the one place that asks `track_op` first
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    if xs.track_op() { candle_nn::ops::softmax(xs, D::Minus1) } else { candle_nn::ops::softmax_last_dim(xs) }
}

/// `x * sigmoid(x)`.
///
/// # Errors
/// As the tensor operations.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    xs.silu()
}

/// The exact GELU, with `erf` (not the tanh approximation).
///
/// # Errors
/// As the tensor operations.
pub fn gelu_erf(xs: &Tensor) -> Result<Tensor> {
    xs.gelu_erf()
}
