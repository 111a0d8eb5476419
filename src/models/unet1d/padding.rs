//! Matrices of unequal size in one batch: what is padding, and how it stays without effect.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::nn::GroupNorm;

/// The true sizes of a padded batch (B, Q, T), with 0/1 masks; a batch of equal sizes has none and pays nothing.
pub(super) struct Padding {
    pub frames: Vec<usize>,
    /// Per level of the U-Net (B, 1, ceil(T / 2^level)): 1 at real positions.
    levels: Option<Vec<Tensor>>,
    /// The first level once per query (B * Q, 1, T).
    rows: Option<Tensor>,
    /// (B, Q, 1, 1): 1 at real queries.
    real: Option<Tensor>,
}

impl Padding {
    /// Pads matrices (Q_b, T_b) with zeros to (B, Q, T).
    pub fn stack(items: &[Tensor], levels: usize, dtype: DType) -> Result<(Tensor, Self)> {
        let mut sizes = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            match *item.dims() {
                [queries, frames] if queries * frames > 0 => sizes.push((queries, frames)),
                _ => bail!(
                    "UNet1d: expected a similarity matrix (queries, frames) with at least one of each, \
                     got {:?} at position {i}",
                    item.dims()
                ),
            }
        }
        let (queries, frames): (Vec<_>, Vec<_>) = sizes.iter().copied().unzip();
        let (q, t) = (longest(&queries), longest(&frames));
        let padded = items.iter().zip(&sizes).map(|(item, &(rows, columns))| {
            let item = if rows < q { item.pad_with_zeros(0, 0, q - rows)? } else { item.clone() };
            let item = if columns < t { item.pad_with_zeros(1, 0, t - columns)? } else { item };
            item.to_dtype(dtype)
        });
        let stacked = Tensor::stack(&padded.collect::<Result<Vec<_>>>()?, 0)?;
        let device = stacked.device();
        let ragged_frames = frames.iter().any(|&n| n < t);
        let levels = ragged_frames.then(|| {
            (0..levels).map(|level| mask(&halved(&frames, level), dtype, device)).collect::<Result<Vec<_>>>()
        });
        let levels = levels.transpose()?;
        let rows = levels.as_ref().and_then(|levels| levels.first()).map(|first| {
            first.unsqueeze(1)?.expand((items.len(), q, 1, t))?.reshape((items.len() * q, 1, t))
        });
        let real =
            queries.iter().any(|&n| n < q).then(|| mask(&queries, dtype, device)?.reshape(((), q, 1, 1)));
        let (rows, real) = (rows.transpose()?, real.transpose()?);
        Ok((stacked, Self { frames, levels, rows, real }))
    }

    /// Sets padding of a level to zero, as a convolution expects beyond the end.
    pub fn clear(&self, xs: Tensor, level: usize) -> Result<Tensor> {
        match &self.levels {
            Some(levels) => xs.broadcast_mul(&levels[level]),
            None => Ok(xs),
        }
    }

    /// As [`Self::clear`] for one row per query (B * Q, C, T).
    pub fn clear_rows(&self, xs: Tensor) -> Result<Tensor> {
        match &self.rows {
            Some(mask) => xs.broadcast_mul(mask),
            None => Ok(xs),
        }
    }

    /// Group normalisation over real positions.
    pub fn norm(&self, norm: &GroupNorm, xs: &Tensor, level: usize) -> Result<Tensor> {
        match &self.levels {
            Some(levels) => norm.forward_masked(xs, &levels[level]),
            None => norm.forward(xs),
        }
    }

    /// Mean over the real positions of each item: (B, C, T) -> (B, C, 1). Expects cleared items.
    pub fn mean(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.levels {
            Some(levels) => xs.sum_keepdim(2)?.broadcast_div(&levels[0].sum_keepdim(2)?),
            None => xs.mean_keepdim(2),
        }
    }

    /// Mean over the real positions of each row: (B * Q, 1, T) -> (B * Q, 1, 1). Expects cleared rows.
    pub fn row_mean(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.rows {
            Some(mask) => xs.sum_keepdim(2)?.broadcast_div(&mask.sum_keepdim(2)?),
            None => xs.mean_keepdim(2),
        }
    }

    /// Maximum over the real positions of each row: (B * Q, 1, T) -> (B * Q, 1, 1).
    pub fn row_max(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.rows {
            Some(mask) => max_keepdim(&excluded(xs, mask)?, 2),
            None => max_keepdim(xs, 2),
        }
    }

    /// (B, Q, C, T) -> (B, C, T).
    pub fn mean_over_queries(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.real {
            Some(real) => xs.broadcast_mul(real)?.sum(1)?.broadcast_div(&real.sum(1)?),
            None => xs.mean(1),
        }
    }

    /// (B, Q, C, T) -> (B, C, T).
    pub fn max_over_queries(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = match &self.real {
            Some(real) => excluded(xs, real)?,
            None => xs.clone(),
        };
        max_keepdim(&xs, 1)?.squeeze(1)
    }

    /// The largest real value within `windows` positions to either side, ascending: (B, 1, T) -> (B, windows, T), padding cleared.
    pub fn max_within(&self, xs: &Tensor, windows: &[usize]) -> Result<Tensor> {
        let mut widest = match &self.levels {
            Some(levels) => excluded(xs, &levels[0])?,
            None => xs.clone(),
        };
        let (mut reach, mut all) = (0, Vec::with_capacity(windows.len()));
        for &window in windows {
            while reach < window {
                // Three windows side by side leave no gap when they are moved by no more than their width.
                let step = (window - reach).min(2 * reach + 1);
                widest = max_of_three(&widest, step)?;
                reach += step;
            }
            all.push(widest.clone());
        }
        self.clear(Tensor::cat(&all, 1)?, 0)
    }

    /// The real part of each item: (B, T) -> (T_b,) each.
    pub fn split(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        self.frames.iter().enumerate().map(|(b, &frames)| xs.get(b)?.narrow(0, 0, frames)).collect()
    }
}

fn longest(sizes: &[usize]) -> usize {
    sizes.iter().copied().max().unwrap_or(0)
}

/// Lengths after `level` halvings, each rounded up.
fn halved(lengths: &[usize], level: usize) -> Vec<usize> {
    lengths.iter().map(|n| n.div_ceil(1 << level)).collect()
}

/// (B, 1, longest): 1 below each length, 0 from there on.
fn mask(lengths: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let longest = longest(lengths);
    let cells = lengths.iter().flat_map(|&n| (0..longest).map(move |i| f32::from(u8::from(i < n))));
    Tensor::from_vec(cells.collect::<Vec<_>>(), (lengths.len(), 1, longest), device)?.to_dtype(dtype)
}

/// The largest of each value and the two that lie `step` before and after it: (B, 1, T) -> (B, 1, T).
fn max_of_three(xs: &Tensor, step: usize) -> Result<Tensor> {
    let (b, c, t) = xs.dims3()?;
    let low = Tensor::full(-1e30f32, (b, c, step), xs.device())?.to_dtype(xs.dtype())?;
    let padded = Tensor::cat(&[&low, xs, &low], 2)?;
    let moved = [0, step, 2 * step].map(|start| padded.narrow(2, start, t));
    let [before, at, after] = moved;
    max_keepdim(&Tensor::stack(&[before?, at?, after?], 3)?, 3)?.squeeze(3)
}

/// Masked places so low that they are never a maximum; the others unchanged.
fn excluded(xs: &Tensor, mask: &Tensor) -> Result<Tensor> {
    xs.broadcast_add(&mask.affine(1e30, -1e30)?)
}

/// Maximum along an axis, its gradient shared equally among ties. candle's reduction gives the full gradient to each, and
/// ties are no accident here: two queries can be the same text.
fn max_keepdim(xs: &Tensor, dim: usize) -> Result<Tensor> {
    let peak = xs.detach().max_keepdim(dim)?;
    let ties = xs.detach().broadcast_eq(&peak)?.to_dtype(xs.dtype())?;
    let share = ties.broadcast_div(&ties.sum_keepdim(dim)?)?;
    // `peak` itself, exact, with the gradient of the mean of the ties.
    let mean = (xs * share)?.sum_keepdim(dim)?;
    &peak + (&mean - mean.detach())?
}
