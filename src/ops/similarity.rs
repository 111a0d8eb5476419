//! The similarity matrices of many (video, question) pairs at once. [`crate::similarity`] is that of one pair.

#[cfg(feature = "cuda")]
use std::sync::Mutex;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, D, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::attention_kernel::product;
use super::kernels::{Element, check_same, offsets, similarity as launches};
use super::{f32_slice, fused, has_kernels, simd, with_slices};

/// Added to the squared length: far below the rounding of any real embedding, and it keeps a zero vector (similarity 0)
/// and its gradient finite.
pub const SQUARED_LENGTH_EPS: f64 = 1e-16;

/// A pair: how many rows of the packed queries, and how many of the packed frames, belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Queries, one at least.
    pub queries: usize,
    /// Frames, or none.
    pub frames: usize,
}

impl Pair {
    /// Similarities of the pair.
    pub fn values(self) -> usize {
        self.queries * self.frames
    }
}

/// `scale` times the cosine similarity of every query with every frame of its pair: `queries` (sum Q, D), `frames`
/// (sum T, D) -> the matrices (Q, T) of all pairs, one behind the other, as one vector. [`split`] takes it apart.
///
/// The result is f32 (f64 of f64 inputs). Differentiable in both arguments. A CUDA device needs a width that is a
/// multiple of 8.
///
/// # Errors
/// Inputs that are no matrices, differ in width, dtype or device, or have other rows than the pairs; no pair, or a pair
/// without a query; a width or dtype without kernels.
pub fn similarity(queries: &Tensor, frames: &Tensor, pairs: &[Pair], scale: f64) -> Result<Tensor> {
    let op = "similarity";
    let (&[rows, width], &[times, frame_width]) = (queries.dims(), frames.dims()) else {
        candle_core::bail!(
            "{op}: expected queries (Q, D) and frames (T, D), got {:?} and {:?}",
            queries.dims(),
            frames.dims()
        )
    };
    if width != frame_width || width == 0 {
        candle_core::bail!(
            "{op}: queries ({rows}, {width}) and frames ({times}, {frame_width}) differ in width or have none"
        )
    }
    let total: (usize, usize) = pairs.iter().fold((0, 0), |(q, t), pair| (q + pair.queries, t + pair.frames));
    if pairs.is_empty() || total != (rows, times) {
        candle_core::bail!(
            "{op}: {} pairs of {total:?} queries and frames do not fit queries ({rows}, {width}) and frames ({times}, {width})",
            pairs.len()
        )
    }
    if let Some(i) = pairs.iter().position(|pair| pair.queries == 0) {
        candle_core::bail!("{op}: pair {i} has no query")
    }
    check_same(op, &[queries, frames])?;
    if !has_kernels(queries) && !fused(queries) {
        return composed(queries, frames, pairs, scale);
    }
    let element = Element::of(op, queries.dtype())?;
    let call = launches::Pairs {
        element,
        width,
        query_offsets: offsets(op, pairs.iter().map(|pair| pair.queries))?,
        frame_offsets: offsets(op, pairs.iter().map(|pair| pair.frames))?,
        scale: scale as f32,
    };
    let op = Similarity {
        pairs: pairs.to_vec(),
        call,
        #[cfg(feature = "cuda")]
        inverse: Mutex::new(None),
    };
    queries.contiguous()?.apply_op2(&frames.contiguous()?, op)
}

/// The matrices (Q, T) of the pairs, from what [`similarity`] gives.
///
/// # Errors
/// Another number of values than the pairs have.
pub fn split(values: &Tensor, pairs: &[Pair]) -> Result<Vec<Tensor>> {
    let mut start = 0;
    let matrices = pairs.iter().map(|pair| {
        let matrix = values.narrow(0, start, pair.values())?.reshape((pair.queries, pair.frames));
        start += pair.values();
        matrix
    });
    let matrices = matrices.collect::<Result<Vec<_>>>()?;
    if start != values.dim(0)? {
        candle_core::bail!("similarity: {} values, but the pairs have {start}", values.dim(0)?)
    }
    Ok(matrices)
}

/// The composed twin of [`similarity`]: a product for each pair, any device.
///
/// # Errors
/// As the tensor operations.
pub fn composed(queries: &Tensor, frames: &Tensor, pairs: &[Pair], scale: f64) -> Result<Tensor> {
    let (mut query, mut frame, mut values) = (0, 0, vec![]);
    for pair in pairs {
        let of = |x: &Tensor, start, len| x.narrow(0, start, len);
        let (q, f) = (of(queries, query, pair.queries)?, of(frames, frame, pair.frames)?);
        if pair.frames > 0 {
            values.push((cosines(&q, &f)? * scale)?.flatten_all()?);
        }
        query += pair.queries;
        frame += pair.frames;
    }
    match values.is_empty() {
        true => Tensor::zeros(0, DType::F32, queries.device()),
        false => Tensor::cat(&values, 0),
    }
}

/// Cosines of (Q, D) with (T, D), from plain tensor operations: half precision is widened, the result is f32, or f64 when
/// both inputs are.
///
/// # Errors
/// As the tensor operations.
pub fn cosines(queries: &Tensor, frames: &Tensor) -> Result<Tensor> {
    let dtype = match (queries.dtype(), frames.dtype()) {
        (DType::F64, DType::F64) => DType::F64,
        _ => DType::F32,
    };
    let queries = unit(&queries.to_dtype(dtype)?)?;
    let frames = unit(&frames.to_dtype(dtype)?)?;
    // Rounding can leave the interval by an ulp; the true gradient at both ends is 0, as the clamp's.
    queries.matmul(&frames.t()?)?.clamp(-1., 1.)
}

fn unit(rows: &Tensor) -> Result<Tensor> {
    let length = (rows.sqr()?.sum_keepdim(D::Minus1)? + SQUARED_LENGTH_EPS)?.sqrt()?;
    rows.broadcast_div(&length)
}

struct Similarity {
    pairs: Vec<Pair>,
    call: launches::Pairs,
    /// One over the length of each frame, kept for the backward.
    #[cfg(feature = "cuda")]
    inverse: Mutex<Option<Tensor>>,
}

/// Rows of one pair in the packed tensors.
struct Rows<'a> {
    queries: &'a [f32],
    frames: &'a [f32],
    /// First value in the result.
    at: usize,
}

impl Similarity {
    /// The rows of each pair.
    fn rows<'a>(&self, queries: &'a [f32], frames: &'a [f32]) -> Vec<Rows<'a>> {
        let (mut query, mut frame, mut at) = (0, 0, 0);
        let rows = self.pairs.iter().map(|pair| {
            let (q, f) = (pair.queries * self.call.width, pair.frames * self.call.width);
            let rows = Rows { queries: &queries[query..query + q], frames: &frames[frame..frame + f], at };
            (query, frame, at) = (query + q, frame + f, at + pair.values());
            rows
        });
        rows.collect()
    }

    /// Similarities of one pair.
    fn forward(&self, rows: &Rows) -> Vec<f32> {
        let width = self.call.width;
        let (lq, lf) = (inverse_lengths(rows.queries, width), inverse_lengths(rows.frames, width));
        let mut values = vec![0f32; lq.len() * lf.len()];
        times(&mut values, (lq.len(), lf.len(), width), (rows.queries, width, 1), (rows.frames, 1, width));
        for (row, q) in values.chunks_exact_mut(lf.len().max(1)).zip(&lq) {
            for (value, f) in row.iter_mut().zip(&lf) {
                *value = (*value * q * f).clamp(-1.0, 1.0) * self.call.scale;
            }
        }
        values
    }

    /// Gradients of the queries and frames of one pair, from its similarities and their gradient.
    fn backward(&self, rows: &Rows, out: &[f32], grad: &[f32]) -> [Vec<f32>; 2] {
        let width = self.call.width;
        let (lq, lf) = (inverse_lengths(rows.queries, width), inverse_lengths(rows.frames, width));
        let (q, t) = (lq.len(), lf.len());
        let mut weights = vec![0f32; q * t];
        // Per row, the gradient along the row itself: it only changes the length, which does not matter.
        let (mut along_q, mut along_f) = (vec![0f32; q], vec![0f32; t]);
        for i in 0..q {
            for j in 0..t {
                let at = i * t + j;
                weights[at] = grad[at] * self.call.scale * lq[i] * lf[j];
                along_q[i] += grad[at] * out[at];
                along_f[j] += grad[at] * out[at];
            }
        }
        let (mut dq, mut df) = (vec![0f32; q * width], vec![0f32; t * width]);
        times(&mut dq, (q, width, t), (&weights, t, 1), (rows.frames, width, 1));
        times(&mut df, (t, width, q), (&weights, 1, t), (rows.queries, width, 1));
        let project = |d: &mut [f32], rows: &[f32], inverse: &[f32], along: &[f32]| {
            let rows = d.chunks_exact_mut(width).zip(rows.chunks_exact(width));
            for ((d, x), (inverse, along)) in rows.zip(inverse.iter().zip(along)) {
                d.iter_mut().zip(x).for_each(|(d, x)| *d -= along * inverse * inverse * x);
            }
        };
        project(&mut dq, rows.queries, &lq, &along_q);
        project(&mut df, rows.frames, &lf, &along_f);
        [dq, df]
    }

    fn gradients(&self, tensors: [&Tensor; 4]) -> Result<[Tensor; 2]> {
        let [queries, frames, ..] = tensors;
        let [dq, df] = with_slices("similarity", tensors, |[queries, frames, out, grad]| {
            let parts: Vec<[Vec<f32>; 2]> = (self.rows(queries, frames).into_par_iter().zip(&self.pairs))
                .map(|(rows, pair)| {
                    let own = rows.at..rows.at + pair.values();
                    self.backward(&rows, &out[own.clone()], &grad[own])
                })
                .collect();
            let (dq, df): (Vec<_>, Vec<_>) = parts.into_iter().map(|[dq, df]| (dq, df)).unzip();
            Ok([dq.concat(), df.concat()])
        })?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        Ok([tensor(dq, queries)?, tensor(df, frames)?])
    }
}

fn inverse_lengths(rows: &[f32], width: usize) -> Vec<f32> {
    simd::dispatch(|| {
        let squares = rows.chunks_exact(width).map(|row| simd::sum_by(row, |x| x * x));
        squares.map(|sum| 1.0 / (sum + SQUARED_LENGTH_EPS as f32).sqrt()).collect()
    })
}

/// `to (m, n) = a (m, k) b (k, n)`, the operands with their (row, column) strides.
fn times(
    to: &mut [f32],
    (m, n, k): (usize, usize, usize),
    a: (&[f32], usize, usize),
    b: (&[f32], usize, usize),
) {
    if m * n == 0 || k == 0 {
        return;
    }
    // SAFETY: `to` has m n values, and the callers pass matrices of these shapes with the strides of their layouts.
    unsafe {
        product(
            (m, n, k),
            (to.as_mut_ptr(), n, 1),
            false,
            (a.0.as_ptr(), a.1, a.2),
            (b.0.as_ptr(), b.1, b.2),
            1.0,
        )
    }
}

impl CustomOp2 for Similarity {
    fn name(&self) -> &'static str {
        "similarity"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        f: &CpuStorage,
        lf: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (queries, frames) = (f32_slice("similarity", q, lq)?, f32_slice("similarity", f, lf)?);
        let parts: Vec<Vec<f32>> =
            self.rows(queries, frames).into_par_iter().map(|rows| self.forward(&rows)).collect();
        let values = parts.concat();
        let shape = Shape::from(values.len());
        Ok((CpuStorage::F32(values), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        lq: &Layout,
        f: &CudaStorage,
        lf: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (out, shape, inverse) = super::cuda::similarity::compare(&self.call, (q, lq), (f, lf))?;
        *self.inverse.lock().unwrap_or_else(|e| e.into_inner()) = Some(inverse);
        Ok((out, shape))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        frames: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = &grad.contiguous()?;
        #[cfg(feature = "cuda")]
        let [dq, df] = match self.inverse.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            Some(inverse) => {
                super::cuda::similarity::gradients(&self.call, [queries, frames, inverse, out, grad])?
            }
            None => self.gradients([queries, frames, out, grad])?,
        };
        #[cfg(not(feature = "cuda"))]
        let [dq, df] = self.gradients([queries, frames, out, grad])?;
        Ok((queries.track_op().then_some(dq), frames.track_op().then_some(df)))
    }
}
