//! One-dimensional convolution as padding, unfolding and one matrix product.
//!
//! candle 0.11.1 computes a wrong kernel gradient in its own `conv1d` as soon as the batch and the output channels are
//! both above one. This form is built from operations whose gradients are right, and needs one product per batch.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Cross-correlation along the last axis, zeros beyond both ends: (B, C_in, L) -> (B, C_out, L_out) with
/// `L_out = (L + 2 * padding - kernel) / stride + 1`, as `torch.nn.Conv1d` with dilation 1 and one group.
#[derive(Debug, Clone)]
pub struct Conv1d {
    weight: Tensor,       // (C_out, C_in, kernel)
    bias: Option<Tensor>, // (C_out,)
    stride: usize,
    padding: usize,
}

impl Conv1d {
    /// Wraps a kernel (C_out, C_in, kernel) and a bias (C_out,).
    ///
    /// # Errors
    /// A kernel that is not of rank 3 or has a zero axis, a bias of another width, a stride of 0.
    pub fn new(weight: Tensor, bias: Option<Tensor>, stride: usize, padding: usize) -> Result<Self> {
        let (c_out, c_in, kernel) = weight.dims3()?;
        if c_out * c_in * kernel * stride == 0 {
            bail!("Conv1d: kernel {:?} and stride {stride} must be at least 1 on every axis", weight.dims())
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.dims() != [c_out]) {
            bail!("Conv1d: expected a bias of shape [{c_out}], got {:?}", bias.dims())
        }
        Ok(Self { weight, bias, stride, padding })
    }

    /// Stride 1 with `(kernel - 1) / 2` zeros on both sides: an odd kernel keeps the length. `size` is
    /// (C_in, C_out, kernel); reads `weight` and `bias`.
    ///
    /// # Errors
    /// As [`Self::new`], and what the builder reports.
    pub fn load(size: (usize, usize, usize), vb: VarBuilder) -> Result<Self> {
        Self::load_strided(size, 1, vb)
    }

    /// As [`Self::load`], keeping every `stride`-th position: `L_out = ceil(L / stride)` for an odd kernel.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_strided(size: (usize, usize, usize), stride: usize, vb: VarBuilder) -> Result<Self> {
        let (_, c_out, kernel) = size;
        let bias = vb.get_with_hints(c_out, "bias", Init::Const(0.))?;
        Self::new(Self::kernel(size, 1.0, &vb)?, Some(bias), stride, kernel.saturating_sub(1) / 2)
    }

    /// As [`Self::load`] without a bias; a builder that initialises draws the kernel `gain` times as wide.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_no_bias(size: (usize, usize, usize), gain: f64, vb: VarBuilder) -> Result<Self> {
        Self::new(Self::kernel(size, gain, &vb)?, None, 1, size.2.saturating_sub(1) / 2)
    }

    // Uniform with variance gain^2 / fan_in, which keeps the scale of the signal through the layer.
    fn kernel((c_in, c_out, kernel): (usize, usize, usize), gain: f64, vb: &VarBuilder) -> Result<Tensor> {
        let bound = gain * (3.0 / (c_in * kernel).max(1) as f64).sqrt();
        vb.get_with_hints((c_out, c_in, kernel), "weight", Init::Uniform { lo: -bound, up: bound })
    }

    /// The parameters with the names [`Self::load`] reads them under.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        std::iter::once(("weight", &self.weight)).chain(self.bias.iter().map(|bias| ("bias", bias)))
    }

    /// (B, C_in, L) -> (B, C_out, L_out).
    ///
    /// # Errors
    /// An input of another rank or width, or shorter than the kernel after padding.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, l) = xs.dims3()?;
        let (c_out, c_in, kernel) = self.weight.dims3()?;
        if c != c_in || l + 2 * self.padding < kernel {
            bail!(
                "Conv1d: expected (B, {c_in}, L) with L + {} >= {kernel}, got {:?}",
                2 * self.padding,
                xs.dims()
            )
        }
        let l_out = (l + 2 * self.padding - kernel) / self.stride + 1;
        let columns = self.unfold(xs, l_out)?; // (C_in * kernel, B * L_out)
        let ys = self.weight.reshape((c_out, c_in * kernel))?.matmul(&columns)?;
        let ys = ys.reshape((c_out, b, l_out))?.transpose(0, 1)?.contiguous()?;
        match &self.bias {
            Some(bias) => ys.broadcast_add(&bias.reshape((1, c_out, 1))?),
            None => Ok(ys),
        }
    }

    /// Column `b * L_out + i` holds what the kernel sees at output position `i` of batch entry `b`.
    fn unfold(&self, xs: &Tensor, l_out: usize) -> Result<Tensor> {
        let (b, c, _) = xs.dims3()?;
        let kernel = self.weight.dim(2)?;
        // `stride - 1` more zeros at the end let the last tap be cut as whole strides; they are never read.
        let xs = match (self.padding, self.padding + self.stride - 1) {
            (0, 0) => xs.clone(),
            (left, right) => xs.pad_with_zeros(2, left, right)?,
        };
        let taps = (0..kernel).map(|tap| match self.stride {
            1 => xs.narrow(2, tap, l_out),
            s => xs.narrow(2, tap, l_out * s)?.reshape((b, c, l_out, s))?.narrow(3, 0, 1)?.squeeze(3),
        });
        let taps = taps.collect::<Result<Vec<_>>>()?;
        Tensor::stack(&taps, 2)?.permute((1, 2, 0, 3))?.reshape((c * kernel, b * l_out))
    }
}
