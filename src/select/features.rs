//! Frame embeddings on the host, for the methods that look at how frames resemble each other.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// Embeddings of the T candidate frames, (T, D), each brought to length 1; one of length 0 stays as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    width: usize,
    values: Vec<f32>,
}

impl Features {
    /// `values` row after row, `width` (D) of them per frame, of any length.
    ///
    /// # Errors
    /// A width of 0, values that do not make whole rows, or one that is NaN or infinite.
    pub fn new(mut values: Vec<f32>, width: usize) -> Result<Self> {
        if width == 0 || !values.len().is_multiple_of(width) {
            let count = values.len();
            return Err(Error::Input(format!("features: {count} values do not make rows of {width}")));
        }
        for (frame, row) in values.chunks_exact_mut(width).enumerate() {
            let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if !length.is_finite() {
                return Err(Error::Input(format!("features: those of frame {frame} are not all finite")));
            }
            if length > 0. {
                row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
            }
        }
        Ok(Self { width, values })
    }

    /// Embeddings (T, D), as [`crate::models::clip::Clip`] gives them.
    ///
    /// # Errors
    /// A tensor of another rank; as [`Self::new`].
    pub fn of(embeds: &Tensor) -> Result<Self> {
        let (_, width) = embeds.dims2()?;
        Self::new(embeds.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, width)
    }

    /// T, the number of frames.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// D, the width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The embedding of a frame (D,).
    pub fn row(&self, frame: usize) -> &[f32] {
        &self.values[frame * self.width..][..self.width]
    }

    /// All rows, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }

    /// Cosine of two frames, in [-1, 1].
    pub fn cosine(&self, a: usize, b: usize) -> f64 {
        f64::from(dot(self.row(a), self.row(b))).clamp(-1., 1.)
    }

    /// Squared distance of two frames, in [0, 4].
    pub(super) fn distance(&self, a: usize, b: usize) -> f64 {
        // From the differences where it matters: 2 - 2 cos loses all its digits for frames that are nearly the same.
        let distance = 2. - 2. * self.cosine(a, b);
        if distance > 1e-2 { distance } else { squared_distance(self.row(a), self.row(b)) }
    }

    /// Refuses features of another number of frames.
    pub(super) fn check(&self, method: &str, frames: usize) -> Result<()> {
        if self.len() != frames {
            let got = self.len();
            return Err(Error::Input(format!(
                "{method}: features: expected one row per candidate frame ({frames}), got {got}"
            )));
        }
        Ok(())
    }
}

// Independent sums, so that the compiler may use vector instructions.
const LANES: usize = 16;

/// Inner product of two rows of one width.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, (a, b)) = ([0f32; LANES], (a.chunks_exact(LANES), b.chunks_exact(LANES)));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}
