//! Affine map, with an adapter where one is attached.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::Lora;
use super::block_node::Flat;
use crate::ops::linear::{self as ops, InputGrad};

/// `y = x w^T + b` on the last axis, plus what an adapter adds.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

impl Linear {
    /// From `weight` (out, in) and `bias` (out,).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, lora: None }
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

    /// The same map for many rows at a time: on the CPU its weight is laid out as products read it, column by column, where it
    /// is frozen: a copy then, which follows no optimizer.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn for_many_rows(mut self) -> Result<Self> {
        if self.weight.device().is_cpu() && !self.weight.track_op() {
            self.weight = self.weight.t()?.contiguous()?.t()?;
        }
        Ok(self)
    }

    /// (out, in), without the adapter.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Attaches an adapter in place of the present one.
    ///
    /// # Errors
    /// Factors that do not fit the weight.
    pub fn set_lora(&mut self, lora: Lora) -> Result<()> {
        let ((d_out, d_in), (rank, a_in), (b_out, b_rank)) =
            (self.weight.dims2()?, lora.a.dims2()?, lora.b.dims2()?);
        if (d_in, d_out, rank) != (a_in, b_out, b_rank) {
            candle_core::bail!(
                "lora: A {:?} and B {:?} do not fit the weight {:?}",
                lora.a.dims(),
                lora.b.dims(),
                self.weight.dims()
            )
        }
        self.lora = Some(lora);
        Ok(())
    }

    /// Takes the adapter off, if there is one.
    pub fn remove_lora(&mut self) {
        self.lora = None;
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
        let ys = match &self.lora {
            Some(Lora { a, b, scale }) => {
                // As PEFT: the sum is made in the adapter's dtype and rounded once.
                let low = ops::linear_no_bias(&rows.to_dtype(a.dtype())?, a)?;
                ops::linear_onto(&ys.to_dtype(a.dtype())?, &low, b, *scale)?.to_dtype(ys.dtype())?
            }
            None => ys,
        };
        if xs.rank() == 2 {
            return Ok(ys);
        }
        let mut dims = xs.dims().to_vec();
        dims[xs.rank() - 1] = self.weight.dim(0)?;
        ys.reshape(dims)
    }

    /// The same map on the same storage, outside any graph.
    pub fn detached(&self) -> Self {
        Self {
            weight: self.weight.detach(),
            bias: self.bias.as_ref().map(Tensor::detach),
            lora: self.lora.as_ref().map(Lora::detached),
        }
    }

    /// Whether a gradient would reach any of its tensors.
    pub fn learns(&self) -> bool {
        self.tensors().iter().any(|tensor| tensor.track_op())
    }

    /// Weight, bias and the adapter's factors.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let factors = self.lora.iter().flat_map(|lora| [&lora.a, &lora.b]);
        std::iter::once(&self.weight).chain(&self.bias).chain(factors).collect()
    }

    /// Adds the gradient of the input for `grad` (M, out), for f32 on the CPU.
    pub(super) fn input_grad(&self, grad: &Tensor, sum: &mut InputGrad) -> Result<()> {
        sum.add(grad, &self.weight, 1.0)?;
        match &self.lora {
            Some(lora) => sum.add(&lora.low_grad(grad)?, &lora.a, 1.0),
            None => Ok(()),
        }
    }

    /// Writes the gradients of weight, bias and adapter for the input `x` (M, in) and `grad` (M, out).
    pub(super) fn weight_grads(&self, x: &Tensor, grad: &Tensor, into: &mut Flat) -> Result<()> {
        into.write(&self.weight, |into, keep| ops::weight_grad(x, grad, 1.0, into, keep))?;
        if let Some(bias) = &self.bias {
            into.write(bias, |into, keep| ops::bias_grad(grad, into, keep))?;
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        into.write(&lora.b, |into, keep| {
            let low = ops::linear_no_bias(x, &lora.a.detach())?;
            ops::weight_grad(&low, grad, lora.scale, into, keep)
        })?;
        into.write(&lora.a, |into, keep| ops::weight_grad(x, &lora.low_grad(grad)?, 1.0, into, keep))
    }
}

impl Lora {
    /// The gradient (M, rank) between the two factors.
    fn low_grad(&self, grad: &Tensor) -> Result<Tensor> {
        let mut low = InputGrad::new(grad.dim(0)?, self.b.dim(1)?);
        low.add(grad, &self.b, self.scale)?;
        low.tensor()
    }
}
