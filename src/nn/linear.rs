//! Affine map.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::block_node::Flat;
use crate::ops::linear::{self as ops, InputGrad};

/// `y = x w^T + b` on the last axis.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From `weight` (out, in) and `bias` (out,).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load(d_in: usize, d_out: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self::new(vb.get((d_out, d_in), "weight")?, Some(vb.get(d_out, "bias")?)))
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load_no_bias(d_in: usize, d_out: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self::new(vb.get((d_out, d_in), "weight")?, None))
    }

    /// The same map on the same storage, outside any graph.
    pub fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach) }
    }

    /// Whether a gradient would reach any of its tensors.
    pub fn learns(&self) -> bool {
        self.weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op)
    }

    /// Weight and bias.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        std::iter::once(&self.weight).chain(&self.bias).collect()
    }

    /// Adds the gradient of the input for `grad` (M, out), for f32 on the CPU.
    pub(super) fn input_grad(&self, grad: &Tensor, sum: &mut InputGrad) -> Result<()> {
        sum.add(grad, &self.weight, 1.0)
    }

    /// Writes the gradients of weight and bias for the input `x` (M, in) and `grad` (M, out).
    pub(super) fn weight_grads(&self, x: &Tensor, grad: &Tensor, into: &mut Flat) -> Result<()> {
        into.write(&self.weight, |into, keep| ops::weight_grad(x, grad, 1.0, into, keep))?;
        match &self.bias {
            Some(bias) => into.write(bias, |into, keep| ops::bias_grad(grad, into, keep)),
            None => Ok(()),
        }
    }

    /// (out, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `xs` (.., in) -> (.., out).
    ///
    /// # Errors
    /// A last axis that is not `in`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let d_in = xs.dim(D::Minus1)?;
        let rows = xs.reshape(((), d_in))?;
        let ys = match &self.bias {
            Some(bias) => ops::linear(&rows, &self.weight, bias)?,
            None => ops::linear_no_bias(&rows, &self.weight)?,
        };
        if xs.rank() == 2 {
            return Ok(ys);
        }
        let mut dims = xs.dims().to_vec();
        dims[xs.rank() - 1] = self.weight.dim(0)?;
        ys.reshape(dims)
    }
}
