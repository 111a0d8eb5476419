//! The similarity matrix: how well each query matches each frame.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::ops::has_kernels;
use crate::ops::similarity::{self as pairs, Pair};

/// Cosine similarity of every query with every frame: `queries` (Q, D), `frames` (T, D) -> (Q, T) in [-1, 1].
///
/// Embeddings need not be normalised. Half-precision inputs are widened, and the result is f32 (f64 when both inputs are
/// f64). A vector whose length is not well above 1e-8 counts as zero, and a zero vector has similarity 0 with everything.
/// Differentiable in both arguments.
///
/// # Errors
/// Inputs that are not matrices, are empty, differ in width, or live on different devices.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let queries = Tensor::new(&[[1f32, 0.], [0., 0.]], &Device::Cpu)?;
/// let frames = Tensor::new(&[[2f32, 0.], [0., 1.], [-3., 0.]], &Device::Cpu)?;
/// let similarity = msjoe::similarity::similarity(&queries, &frames)?;
/// assert_eq!(similarity.to_vec2::<f32>()?, [[1., 0., -1.], [0., 0., 0.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn similarity(queries: &Tensor, frames: &Tensor) -> Result<Tensor> {
    let (q, t) = (queries.dims(), frames.dims());
    let (&[count, width], &[times, frame_width]) = (q, t) else {
        return Err(Error::Input(format!(
            "similarity: expected queries (Q, D) and frames (T, D), got {q:?} and {t:?}"
        )));
    };
    if width != frame_width {
        return Err(Error::Input(format!(
            "similarity: queries ({count}, {width}) and frames ({times}, {frame_width}) differ in width"
        )));
    }
    if count * times * width == 0 {
        return Err(Error::Input(format!(
            "similarity: queries ({count}, {width}) and frames ({times}, {width}) must not be empty"
        )));
    }
    if has_kernels(queries) && width.is_multiple_of(8) && queries.dtype() == frames.dtype() {
        let pair = Pair { queries: count, frames: times };
        return Ok(pairs::similarity(queries, frames, &[pair], 1.0)?.reshape((count, times))?);
    }
    Ok(pairs::cosines(queries, frames)?)
}
