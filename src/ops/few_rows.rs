//! Products of a few rows with many, `x w^T`: a step of decoding. `gemm` copies the many into its own layout first, which
//! costs more than the product itself; here both are read where they lie.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// From this many rows on `gemm` is faster.
pub(super) const FEW: usize = 17;
/// Rows of `w` that stay in the nearest cache while all of `x` passes.
const TILE: usize = 16;
/// Multiplications worth a thread of their own.
const WORTH: usize = 1 << 17;

/// `y (m, n) = keep * y + scale * x (m, k) w^T` with `w` (n, k); all row-major.
pub(super) fn few_rows(
    y: &mut [f32],
    (m, n, k): (usize, usize, usize),
    keep: bool,
    x: &[f32],
    w: &[f32],
    scale: f32,
) {
    assert!(y.len() >= m * n && x.len() >= m * k && w.len() >= n * k, "few_rows: out of bounds");
    let threads = rayon::current_num_threads().min(m * n * k / WORTH).max(1);
    let step = n.div_ceil(threads).next_multiple_of(TILE);
    let arch = pulp::Arch::new();
    let columns = |first: usize| {
        let mut sums = vec![0f32; m * step.min(n - first)];
        let width = sums.len() / m;
        arch.dispatch(Columns { x: &x[..m * k], w: &w[first * k..(first + width) * k], k, sums: &mut sums });
        (first, sums)
    };
    let firsts: Vec<usize> = (0..n).step_by(step).collect();
    let parts: Vec<(usize, Vec<f32>)> = match firsts[..] {
        [first] => vec![columns(first)],
        _ => firsts.into_par_iter().map(columns).collect(),
    };
    for (first, sums) in parts {
        let width = sums.len() / m;
        for (y, sums) in y.chunks_exact_mut(n).zip(sums.chunks_exact(width)) {
            for (y, sum) in y[first..first + width].iter_mut().zip(sums) {
                *y = if keep { *y + scale * sum } else { scale * sum };
            }
        }
    }
}

/// `sums` (m, width) of the rows of `x` with `width` rows of `w`.
struct Columns<'a> {
    x: &'a [f32],
    w: &'a [f32],
    k: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (rows, width) = (self.x.len() / self.k, self.w.len() / self.k);
        let (tile, apart) = if rows <= 4 { (width.max(1), Apart::Far) } else { (TILE, Apart::Near) };
        for first in (0..width).step_by(tile) {
            let tile = first..width.min(first + tile);
            for row in (0..rows).step_by(4) {
                match rows - row {
                    1 if apart == Apart::Far => self.strip::<S, 1, 8>(simd, row, tile.clone(), apart),
                    1 => self.strip::<S, 1, 4>(simd, row, tile.clone(), apart),
                    2 => self.strip::<S, 2, 4>(simd, row, tile.clone(), apart),
                    3 => self.strip::<S, 3, 4>(simd, row, tile.clone(), apart),
                    _ => self.strip::<S, 4, 4>(simd, row, tile.clone(), apart),
                }
            }
        }
    }
}

/// Which rows of `w` are read at the same time.
#[derive(Clone, Copy, PartialEq)]
enum Apart {
    /// Neighbours.
    Near,
    /// Some from each part of `w`: what passes once comes from memory faster in several streams than in one.
    Far,
}

impl Columns<'_> {
    /// M rows of `x` from `row` on with `columns` rows of `w`, N at a time.
    #[inline(always)]
    fn strip<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        columns: std::ops::Range<usize>,
        apart: Apart,
    ) {
        let (k, width) = (self.k, self.w.len() / self.k);
        let x: [&[f32]; M] = std::array::from_fn(|i| &self.x[(row + i) * k..(row + i + 1) * k]);
        let blocks = columns.len() / N;
        let (step, stride) = if apart == Apart::Far { (1, blocks) } else { (N, 1) };
        for at in 0..blocks {
            let first = columns.start + at * step;
            let of = |j: usize| &self.w[(first + j * stride) * k..(first + j * stride + 1) * k];
            let block = block::<S, M, N>(simd, x, std::array::from_fn(of));
            for (i, sums) in block.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    self.sums[(row + i) * width + first + j * stride] = *sum;
                }
            }
        }
        for column in columns.start + blocks * N..columns.end {
            let block = block::<S, M, 1>(simd, x, [&self.w[column * k..(column + 1) * k]]);
            block.iter().enumerate().for_each(|(i, [sum])| self.sums[(row + i) * width + column] = *sum);
        }
    }
}

/// The products of M rows with N others, which are all of one length.
#[inline(always)]
fn block<S: Simd, const M: usize, const N: usize>(simd: S, x: [&[f32]; M], w: [&[f32]; N]) -> [[f32; N]; M] {
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let (x, w) = (x.map(S::as_simd_f32s), w.map(S::as_simd_f32s));
    let length = x[0].0.len();
    let (xs, ws) = (x.map(|(lanes, _)| &lanes[..length]), w.map(|(lanes, _)| &lanes[..length]));
    for at in 0..length {
        let w: [S::f32s; N] = std::array::from_fn(|j| ws[j][at]);
        for (sums, x) in sums.iter_mut().zip(xs) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = simd.mul_add_f32s(x[at], w, *sum);
            }
        }
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            let rest = x[i].1.iter().zip(w[j].1).fold(0.0, |sum, (x, w)| sum + x * w);
            simd.reduce_sum_f32s(sums[i][j]) + rest
        })
    })
}
