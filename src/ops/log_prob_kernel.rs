//! The CPU kernel of token log-probabilities: logits of a panel of rows against a chunk of the vocabulary, reduced before the
//! next chunk overwrites them.

use candle_core::{Result, bail};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::log_prob::Chunks;
use super::simd;

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, transposed: false }
    }

    fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }

    /// (column, row) strides.
    fn strides(&self) -> (isize, isize) {
        if self.transposed { (self.rows as isize, 1) } else { (1, self.columns as isize) }
    }
}

/// `dst = scale * a b`, or that added to `dst`, in parallel.
fn multiply(dst: &mut [f32], add: bool, a: Matrix, b: Matrix, scale: f32) -> Result<()> {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if b.rows != k || dst.len() != m * n || a.data.len() != m * k || b.data.len() != k * n {
        bail!("log-probs: a product of ({m}, {k}) and ({}, {n}) does not fit its buffers", b.rows)
    }
    let ((a_column, a_row), (b_column, b_row)) = (a.strides(), b.strides());
    // SAFETY: the lengths were checked against the shapes, and `dst` is borrowed alone.
    unsafe {
        gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a_column,
            a_row,
            b.data.as_ptr(),
            b_column,
            b_row,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
    Ok(())
}

/// One call: `hidden` (N, D), `head` (V, D), a target per row; logits are `scale * hidden head^T`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub hidden: &'a [f32],
    pub head: &'a [f32],
    pub targets: &'a [u32],
    pub width: usize,
    pub scale: f32,
    pub chunks: Chunks,
}

/// What the forward gives per row, and the backward reads.
#[derive(Clone, Copy, Default)]
pub(super) struct Reduced {
    pub log_prob: f32,
    pub entropy: f32,
    pub log_sum_exp: f32,
}

/// Gradients of the two inputs, where asked for.
#[derive(Default)]
pub(super) struct Gradients {
    pub hidden: Option<Vec<f32>>,
    pub head: Option<Vec<f32>>,
}

/// Largest logit so far, and the sums of `e^(z - largest)` and of `e^(z - largest) (z - largest)`: about the maximum, so that
/// logits of hundreds cost no digits.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    sum: f64,
    weighted: f64,
    target: f32,
}

impl Running {
    const START: Self = Self { largest: f32::NEG_INFINITY, sum: 0., weighted: 0., target: f32::NAN };

    #[inline(always)]
    fn take(&mut self, logits: &[f32]) {
        let top = simd::max(logits);
        if top > self.largest {
            if self.sum > 0. {
                let shift = f64::from(self.largest) - f64::from(top);
                self.weighted = shift.exp() * (self.weighted + self.sum * shift);
                self.sum *= shift.exp();
            }
            self.largest = top;
        }
        let (sum, weighted) = exp_sums(logits, self.largest);
        self.sum += f64::from(sum);
        self.weighted += f64::from(weighted);
    }

    fn reduced(self) -> Reduced {
        let log_sum_exp = f64::from(self.largest) + self.sum.ln();
        Reduced {
            log_prob: (f64::from(self.target) - log_sum_exp) as f32,
            entropy: (self.sum.ln() - self.weighted / self.sum) as f32,
            log_sum_exp: log_sum_exp as f32,
        }
    }
}

/// Sums of `e^(x - shift)` and of `e^(x - shift) (x - shift)`.
#[inline(always)]
fn exp_sums(xs: &[f32], shift: f32) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut sums, mut weighted) = ([0f32; LANES], [0f32; LANES]);
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for ((sum, weighted), x) in sums.iter_mut().zip(&mut weighted).zip(block) {
            let e = simd::exp(x - shift);
            *sum += e;
            *weighted += e * (x - shift);
        }
    }
    let mut total = (sums.iter().sum::<f32>(), weighted.iter().sum::<f32>());
    for x in rest {
        let e = simd::exp(x - shift);
        total = (total.0 + e, total.1 + e * (x - shift));
    }
    total
}

impl<'a> Rows<'a> {
    fn vocabulary(&self) -> usize {
        self.head.len() / self.width.max(1)
    }

    /// Hidden states and targets of each panel, with the index of its first row.
    fn panels(&self) -> impl Iterator<Item = (usize, &'a [f32], &'a [u32])> {
        let (rows, width) = (self.chunks.rows, self.width);
        let panels = self.hidden.chunks(rows * width).zip(self.targets.chunks(rows));
        panels.enumerate().map(move |(i, (hidden, targets))| (i * rows, hidden, targets))
    }

    /// Each chunk of the head, with the index of its first token.
    fn head_chunks(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        let size = self.chunks.vocabulary;
        self.head.chunks(size * self.width).enumerate().map(move |(i, chunk)| (i * size, chunk))
    }

    /// Logits of a panel over a chunk, in the first part of `buffer`; returns the size of the chunk.
    fn logits(&self, hidden: &[f32], head: &[f32], buffer: &mut [f32]) -> Result<usize> {
        let (rows, size) = (hidden.len() / self.width, head.len() / self.width);
        let (a, b) = (Matrix::new(hidden, rows, self.width), Matrix::new(head, size, self.width));
        multiply(&mut buffer[..rows * size], false, a, b.t(), self.scale)?;
        Ok(size)
    }

    fn buffer(&self) -> Vec<f32> {
        vec![0.; self.chunks.rows.min(self.targets.len()) * self.chunks.vocabulary.min(self.vocabulary())]
    }

    pub fn forward(&self) -> Result<Vec<Reduced>> {
        let mut buffer = self.buffer();
        let mut result = Vec::with_capacity(self.targets.len());
        for (_, hidden, targets) in self.panels() {
            let mut running = vec![Running::START; targets.len()];
            for (first, head) in self.head_chunks() {
                let size = self.logits(hidden, head, &mut buffer)?;
                let rows = buffer[..targets.len() * size].par_chunks(size);
                (rows.zip(&mut running).zip(targets)).with_min_len(8).for_each(
                    |((logits, running), &target)| {
                        simd::dispatch(|| running.take(logits));
                        if let Some(&logit) =
                            (target as usize).checked_sub(first).and_then(|at| logits.get(at))
                        {
                            running.target = logit;
                        }
                    },
                );
            }
            result.extend(running.into_iter().map(Running::reduced));
        }
        Ok(result)
    }

    /// Given the gradients of log-probability and entropy of each row. With `l` the log-probability of a logit,
    /// `dz = d_log_prob (1[target] - e^l) - d_entropy e^l (l + entropy)`.
    pub fn backward(
        &self,
        reduced: &[Reduced],
        upstream: [&[f32]; 2],
        mut gradients: Gradients,
    ) -> Result<Gradients> {
        let width = self.width;
        let mut buffer = self.buffer();
        for (start, hidden, targets) in self.panels() {
            let range = start..start + targets.len();
            let (of_log_prob, of_entropy) = (&upstream[0][range.clone()], &upstream[1][range.clone()]);
            for (first, head) in self.head_chunks() {
                let size = self.logits(hidden, head, &mut buffer)?;
                let dz = &mut buffer[..targets.len() * size];
                (dz.par_chunks_mut(size).zip(&reduced[range.clone()]))
                    .zip(of_log_prob.par_iter().zip(of_entropy).zip(targets))
                    .with_min_len(8)
                    .for_each(|((row, reduced), ((&log_prob, &entropy), &target))| {
                        simd::dispatch(|| slope(row, *reduced, log_prob, entropy));
                        let at = (target as usize).checked_sub(first);
                        if let Some(logit) = at.and_then(|at| row.get_mut(at)) {
                            *logit += log_prob;
                        }
                    });
                let dz = Matrix::new(dz, targets.len(), size);
                if let Some(to) = &mut gradients.hidden {
                    let to = &mut to[start * width..start * width + hidden.len()];
                    multiply(to, true, dz, Matrix::new(head, size, width), self.scale)?;
                }
                if let Some(to) = &mut gradients.head {
                    let to = &mut to[first * width..first * width + head.len()];
                    let hidden = Matrix::new(hidden, targets.len(), width);
                    multiply(to, true, dz.t(), hidden, self.scale)?;
                }
            }
        }
        Ok(gradients)
    }
}

/// Replaces logits by the part of their gradient that all of them share.
#[inline(always)]
fn slope(logits: &mut [f32], reduced: Reduced, log_prob: f32, entropy: f32) {
    let about = reduced.entropy - reduced.log_sum_exp;
    for z in logits {
        let p = simd::exp(*z - reduced.log_sum_exp);
        *z = -p * (log_prob + entropy * (*z + about));
    }
}
