//! Group normalisation over channels and positions, with sequences of unequal length in one batch.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Normalises each group of channels to zero mean and unit variance over its channels and all positions, then scales
/// and shifts per channel (`torch.nn.GroupNorm`, biased variance). Statistics are computed in f32 for half inputs.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor, // (C,)
    bias: Tensor,   // (C,)
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Wraps scale and shift, both (C,).
    ///
    /// # Errors
    /// Different shapes, or a number of groups that does not divide C.
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        let channels = weight.dims1()?;
        if bias.dims() != [channels] {
            bail!("GroupNorm: weight [{channels}] and bias {:?} differ", bias.dims())
        }
        if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
            bail!("GroupNorm: {channels} channels cannot be split into {groups} equal groups")
        }
        Ok(Self { weight, bias, groups, eps })
    }

    /// Reads `weight` and `bias`; eps is 1e-5.
    ///
    /// # Errors
    /// As [`Self::new`], and what the builder reports.
    pub fn load(channels: usize, groups: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(channels, "weight", Init::Const(1.))?;
        let bias = vb.get_with_hints(channels, "bias", Init::Const(0.))?;
        Self::new(weight, bias, groups, 1e-5)
    }

    /// The parameters with the names [`Self::load`] reads them under.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [("weight", &self.weight), ("bias", &self.bias)].into_iter()
    }

    /// (B, C, L) -> (B, C, L).
    ///
    /// # Errors
    /// An input of another rank or width.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.normalise(xs, None)
    }

    /// As [`Self::forward`] for padded sequences: `mask` (B, 1, L) holds 1 at real positions and 0 at padding, and has
    /// at least one real position per entry. Padding takes no part in the statistics and comes out as 0.
    ///
    /// # Errors
    /// As [`Self::forward`], or a mask of another shape.
    pub fn forward_masked(&self, xs: &Tensor, mask: &Tensor) -> Result<Tensor> {
        self.normalise(xs, Some(mask))
    }

    fn normalise(&self, xs: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (b, c, l) = xs.dims3()?;
        let channels = self.weight.dims1()?;
        if c != channels || l == 0 {
            bail!("GroupNorm: expected (B, {channels}, L) with L >= 1, got {:?}", xs.dims())
        }
        if let Some(mask) = mask.filter(|mask| mask.dims() != [b, 1, l]) {
            bail!("GroupNorm: expected a mask of shape [{b}, 1, {l}], got {:?}", mask.dims())
        }
        let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let width = c / self.groups;
        let mask = mask.map(|mask| mask.to_dtype(dtype)?.unsqueeze(1)).transpose()?; // (B, 1, 1, L)
        let real = |xs: Tensor| match &mask {
            Some(mask) => xs.broadcast_mul(mask),
            None => Ok(xs),
        };
        let total = |xs: &Tensor| xs.flatten_from(2)?.sum_keepdim(2)?.unsqueeze(3); // (B, G, 1, 1)
        let mean = |xs: &Tensor| match &mask {
            Some(mask) => total(xs)?.broadcast_div(&(mask.sum_keepdim(3)? * width as f64)?),
            None => total(xs)? / (width * l) as f64,
        };
        let xs_grouped = real(xs.to_dtype(dtype)?.reshape((b, self.groups, width, l))?)?;
        let centred = real(xs_grouped.broadcast_sub(&mean(&xs_grouped)?)?)?;
        let std = (mean(&centred.sqr()?)? + self.eps)?.sqrt()?;
        let ys = centred.broadcast_div(&std)?.reshape((b, c, l))?.to_dtype(xs.dtype())?;
        let ys = ys
            .broadcast_mul(&self.weight.reshape((1, c, 1))?)?
            .broadcast_add(&self.bias.reshape((1, c, 1))?)?;
        match mask {
            Some(mask) => ys.broadcast_mul(&mask.squeeze(1)?.to_dtype(xs.dtype())?), // the shift also fills padding
            None => Ok(ys),
        }
    }
}
