//! The CPU attention kernel: blocks of query rows against all their keys, two small matrix products with a softmax
//! between them. Nothing larger than `BLOCK` x keys is ever held.

use gemm::{Parallelism, gemm};

use super::simd;

/// Most query rows that are handled at once.
pub(super) const BLOCK: usize = 128;

/// Rows of each block of a sequence of `len` rows: as even as can be, because every block packs all keys again.
pub(super) fn block_rows(len: usize) -> usize {
    len.div_ceil(len.div_ceil(BLOCK).max(1)).max(1)
}

/// Rows of a matrix that lie `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// A run of keys with their values; a sequence may consist of several (a shared prefix and a tail).
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub keys: Rows<'a>,
    pub values: Rows<'a>,
    pub len: usize,
}

/// A block of query rows. Row `i` sees the first `visible + i * step` keys.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub queries: Rows<'a>,
    pub rows: usize,
    pub width: usize,
    pub visible: usize,
    pub step: usize,
    pub scale: f32,
}

/// Where the rows of a block go; several threads write different rows of one buffer.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub data: *mut f32,
    pub stride: usize,
}

impl Out {
    /// Rows `stride` apart that begin `first` values further on.
    ///
    /// # Safety
    /// `first` must lie inside the buffer.
    pub unsafe fn rows(self, first: usize, stride: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { data: unsafe { self.data.add(first) }, stride }
    }
}

// SAFETY: each task writes rows of its own, as the callers lay out.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// `dst (m, n) = [dst +] scale * a (m, k) b (k, n)` with explicit (row, column) strides.
///
/// # Safety
/// The strides must stay inside the three buffers, and `dst` must not overlap the others.
#[inline]
pub(super) unsafe fn product(
    (m, n, k): (usize, usize, usize),
    dst: (*mut f32, usize, usize),
    add: bool,
    a: (*const f32, usize, usize),
    b: (*const f32, usize, usize),
    scale: f32,
) {
    let stride = |s: usize| s as isize;
    // SAFETY: the caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            dst.0,
            stride(dst.2),
            stride(dst.1),
            add,
            a.0,
            stride(a.2),
            stride(a.1),
            b.0,
            stride(b.2),
            stride(b.1),
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        )
    }
}

impl Block<'_> {
    /// Keys that row `i` sees.
    pub fn limit(&self, row: usize) -> usize {
        self.visible + row * self.step
    }

    /// Scores of the block into `scores` (rows, `limit(rows - 1)`), scaled, not masked.
    fn scores(&self, parts: &[Part<'_>], scores: &mut Vec<f32>) -> usize {
        let keys = self.limit(self.rows - 1);
        scores.clear();
        scores.resize(self.rows * keys, 0.0);
        let mut done = 0;
        for part in parts {
            let len = part.len.min(keys - done);
            if len == 0 {
                break;
            }
            // SAFETY: `queries` holds `rows` rows and `part.keys` at least `len`; `scores` was sized just above.
            unsafe {
                product(
                    (self.rows, len, self.width),
                    (scores.as_mut_ptr().add(done), keys, 1),
                    false,
                    (self.queries.data.as_ptr(), self.queries.stride, 1),
                    (part.keys.data.as_ptr(), 1, part.keys.stride),
                    self.scale,
                );
            }
            done += len;
        }
        keys
    }

    /// Attention of the block; `lse` (rows) receives the log-sum-exp of each row's scores.
    ///
    /// # Safety
    /// `out` must have room for `rows` rows of `width`, and nobody else may write them.
    pub unsafe fn forward(&self, parts: &[Part<'_>], out: Out, lse: *mut f32, scores: &mut Vec<f32>) {
        let keys = self.scores(parts, scores);
        let mut inverse = [0f32; BLOCK];
        simd::dispatch(|| {
            for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                let (seen, hidden) = row.split_at_mut(self.limit(i));
                let top = simd::max(seen);
                let sum = simd::exp_sum(seen, top);
                hidden.fill(0.0);
                inverse[i] = 1.0 / sum;
                // SAFETY: the caller gives room for `rows` values.
                unsafe { *lse.add(i) = top + sum.ln() };
            }
        });
        let mut done = 0;
        for part in parts {
            let len = part.len.min(keys - done);
            if len == 0 {
                break;
            }
            // SAFETY: as in `scores`; `out` is the caller's promise.
            unsafe {
                product(
                    (self.rows, self.width, len),
                    (out.data, out.stride, 1),
                    done > 0,
                    (scores.as_ptr().add(done), keys, 1),
                    (part.values.data.as_ptr(), part.values.stride, 1),
                    1.0,
                );
            }
            done += len;
        }
        for (i, inverse) in inverse.iter().enumerate().take(self.rows) {
            // SAFETY: row `i` of `out` is ours.
            let row = unsafe { std::slice::from_raw_parts_mut(out.data.add(i * out.stride), self.width) };
            row.iter_mut().for_each(|x| *x *= inverse);
        }
    }

    /// Probabilities of the block, recomputed from the saved log-sum-exp; returns the number of keys.
    pub fn probabilities(&self, parts: &[Part<'_>], lse: &[f32], probabilities: &mut Vec<f32>) -> usize {
        let keys = self.scores(parts, probabilities);
        simd::dispatch(|| {
            for (i, row) in probabilities.chunks_exact_mut(keys).enumerate() {
                let (seen, hidden) = row.split_at_mut(self.limit(i));
                seen.iter_mut().for_each(|x| *x = simd::exp(*x - lse[i]));
                hidden.fill(0.0);
            }
        });
        keys
    }
}
