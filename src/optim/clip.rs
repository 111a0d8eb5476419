//! Bounding the length of a step.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::ops::{fused, with_slices};

/// Values that make a task of their own.
const PARALLEL: usize = 1 << 15;

/// Scales all gradients by `max / (norm + 1e-6)` where their common L2 norm exceeds `max`, and returns the norm before, as
/// `torch.nn.utils.clip_grad_norm_` does. Squares are summed in f64, in a fixed order.
///
/// # Errors
/// Names the gradients that hold NaN or infinity; a `max` that is not positive (infinity only measures).
pub fn clip_grad_norm(gradients: &mut BTreeMap<String, Tensor>, max: f64) -> Result<f64> {
    if max.is_nan() || max <= 0. {
        bail!("clip_grad_norm: the largest norm must be positive, got {max}")
    }
    let mut total = 0.;
    let mut wrong: Vec<&str> = vec![];
    for (name, gradient) in gradients.iter() {
        let square = sum_of_squares(gradient)?;
        if square.is_finite() {
            total += square;
        } else {
            wrong.push(name);
        }
    }
    if !wrong.is_empty() {
        let (count, all) = (wrong.len(), gradients.len());
        wrong.truncate(5);
        let names = wrong.join(", ");
        bail!("clip_grad_norm: {count} of {all} gradients hold NaN or infinity: {names}")
    }
    let norm = total.sqrt();
    let scale = max / (norm + 1e-6);
    if scale < 1. {
        for gradient in gradients.values_mut() {
            *gradient = scaled(gradient, scale)?;
        }
    }
    Ok(norm)
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    if fused(tensor) {
        return with_slices("clip_grad_norm", [&tensor.contiguous()?], |[values]| Ok(squares(values)));
    }
    let wide = if tensor.dtype() == DType::F64 { tensor.clone() } else { tensor.to_dtype(DType::F32)? };
    wide.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar()
}

/// A new tensor: others may hold the old one.
fn scaled(tensor: &Tensor, scale: f64) -> Result<Tensor> {
    if !fused(tensor) || tensor.elem_count() < PARALLEL {
        return tensor * scale;
    }
    let scale = scale as f32;
    let values = with_slices("clip_grad_norm", [&tensor.contiguous()?], |[values]| {
        Ok(values.par_iter().with_min_len(PARALLEL).map(|x| x * scale).collect::<Vec<f32>>())
    })?;
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

fn squares(values: &[f32]) -> f64 {
    let block = |values: &[f32]| {
        let mut lanes = [0f64; 8];
        let (blocks, rest) = values.as_chunks::<8>();
        for block in blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    };
    if values.len() <= PARALLEL {
        return block(values);
    }
    let sums: Vec<f64> = values.par_chunks(PARALLEL).map(block).collect();
    sums.iter().sum()
}
