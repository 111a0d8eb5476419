//! Custom operations: each has a fused CPU forward, a backward, and a composed twin made of plain tensor operations
//! that it is tested against. A fused form is taken for f32 on the CPU; everything else goes the composed way, except
//! where a CUDA device has kernels: attention, similarity, RMS norm, rotary positions and SwiGLU.

pub mod attention;
pub mod attention_cached;
mod attention_kernel;
pub(crate) mod attention_packed;
#[cfg(feature = "cuda")]
pub mod cuda;
mod few_rows;
pub mod heap;
pub mod kernels;
pub mod linear;
pub mod log_prob;
mod log_prob_kernel;
pub mod norm;
pub mod pointwise;
pub mod rope;
pub(crate) mod simd;
pub mod similarity;
pub mod vjp;

use std::ops::Range;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

/// Whether the fused CPU forms apply: f32 on the CPU.
pub(crate) fn fused(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32
}

/// Whether the CUDA kernels apply. f64, for gradient checks, is composed everywhere.
pub(crate) fn has_kernels(xs: &Tensor) -> bool {
    xs.device().is_cuda() && xs.dtype() != DType::F64
}

/// The f32 values of a contiguous CPU tensor, as a custom op receives it.
pub(crate) fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => candle_core::bail!("{op}: expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// `f` on the values of contiguous f32 tensors on the CPU.
pub(crate) fn with_slices<const N: usize, R>(
    op: &str,
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(|tensor| tensor.storage_and_layout());
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("{op}: expected all tensors on the CPU")
        };
        *slice = f32_slice(op, storage, layout)?;
    }
    f(slices)
}

/// `f(first, rows_out)` on blocks of whole rows of a new buffer of `len` values, in parallel; `first` is the index of
/// the block's first value.
fn par_rows(len: usize, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let [ys] = par_rows_of(len, width, |first, [ys]: [&mut [f32]; 1]| f(first, ys));
    ys
}

/// As [`par_rows`] with several buffers of `len` values.
fn par_rows_of<const N: usize>(
    len: usize,
    width: usize,
    f: impl Fn(usize, [&mut [f32]; N]) + Sync,
) -> [Vec<f32>; N] {
    let mut ys: [Vec<f32>; N] = std::array::from_fn(|_| vec![0f32; len]);
    let rows = (len / width.max(1)).div_ceil(4 * rayon::current_num_threads()).max(1);
    let block = (rows * width).max(1);
    if len <= block.max(1 << 14) {
        f(0, ys.each_mut().map(Vec::as_mut_slice));
        return ys;
    }
    let mut rest = ys.each_mut().map(Vec::as_mut_slice);
    let mut blocks = Vec::with_capacity(len.div_ceil(block));
    for first in (0..len).step_by(block) {
        let cut = rest.map(|ys| ys.split_at_mut(block.min(len - first)));
        let mut parts = cut.map(|(head, tail)| (head, Some(tail)));
        rest = parts.each_mut().map(|(_, tail)| tail.take().unwrap_or_default());
        blocks.push((first, parts.map(|(head, _)| head)));
    }
    blocks.into_par_iter().for_each(|(first, parts)| f(first, parts));
    ys
}

/// Sums over rows into `into`, which is kept (added to) or replaced: `f(rows, partial)` adds the rows of a range to the
/// partial sums. The ranges do not depend on the number of threads, so neither do the sums.
fn sum_rows(rows: usize, into: &mut [f32], keep: bool, f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    const RANGE: usize = 256;
    let (width, firsts) = (into.len(), (0..rows).step_by(RANGE).collect::<Vec<_>>());
    let partial = |first: usize| {
        let mut partial = vec![0f32; width];
        f(first..(first + RANGE).min(rows), &mut partial);
        partial
    };
    let partials: Vec<Vec<f32>> = firsts.into_par_iter().map(partial).collect();
    if !keep {
        into.fill(0.0);
    }
    for partial in partials {
        into.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
    }
}

/// Sums of the columns of rows of `into.len()` values.
fn column_sums(xs: &[f32], into: &mut [f32], keep: bool) {
    let width = into.len().max(1);
    sum_rows(xs.len() / width, into, keep, |rows, sums| {
        simd::dispatch(|| {
            for row in xs[rows.start * width..rows.end * width].chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        })
    });
}
