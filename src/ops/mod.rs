//! Custom operations: each has a fused CPU forward, a backward, and a composed twin made of plain tensor operations
//! that it is tested against. A fused form is taken for f32 on the CPU; everything else goes the composed way.

pub mod attention;
pub mod attention_cached;
mod attention_kernel;
pub mod linear;
pub mod log_prob;
mod log_prob_kernel;
pub mod norm;
pub mod pointwise;
pub mod rope;
pub(crate) mod simd;
pub mod vjp;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

/// Whether the fused CPU forms apply: f32 on the CPU.
pub(crate) fn fused(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32
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
fn with_slices<const N: usize, R>(
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
    let mut ys = vec![0f32; len];
    let rows = (len / width.max(1)).div_ceil(4 * rayon::current_num_threads()).max(1);
    let block = (rows * width).max(1);
    if len <= block.max(1 << 14) {
        f(0, &mut ys);
    } else {
        ys.par_chunks_mut(block).enumerate().for_each(|(i, ys)| f(i * block, ys));
    }
    ys
}
