//! Nearest-neighbour upsampling along the last axis.

use candle_core::{Result, Tensor};

/// Repeats every position `factor` times: (B, C, L) -> (B, C, L * factor).
///
/// A broadcast rather than candle 0.11.1's `upsample_nearest1d`, whose backward overwrites the gradients that other
/// consumers of the same input (a skip connection) have already added.
///
/// # Errors
/// An input that is not of rank 3.
pub fn upsample1d(xs: &Tensor, factor: usize) -> Result<Tensor> {
    let (b, c, l) = xs.dims3()?;
    xs.unsqueeze(3)?.expand((b, c, l, factor))?.reshape((b, c, l * factor))
}
