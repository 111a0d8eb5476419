//! Layer and RMS normalisation with their weights.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::ops::norm::{layer_norm, rms_norm};

/// Layer normalisation over the last axis.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, both (dim,).
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load(dim: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(dim, "weight")?, bias: vb.get(dim, "bias")?, eps })
    }

    /// `xs` (.., dim) -> the same shape.
    ///
    /// # Errors
    /// A last axis that is not `dim`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        layer_norm(xs, &self.weight, &self.bias, self.eps)
    }
}

/// RMS normalisation over the last axis.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// From a weight (dim,); `eps` is added to the mean square.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// Reads `weight` (dim,).
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load(dim: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(dim, "weight")?, eps })
    }

    /// `xs` (.., dim) -> the same shape.
    ///
    /// # Errors
    /// A last axis that is not `dim`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        rms_norm(xs, &self.weight, self.eps)
    }

    /// (dim,).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Added to the mean square.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The same norm on the same storage, outside any graph.
    pub fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), eps: self.eps }
    }

    /// Whether a gradient would reach the weight.
    pub fn learns(&self) -> bool {
        self.weight.track_op()
    }
}
