//! The CPU kernels over packed sequences: forward, and the backward that recomputes the probabilities.

use candle_core::{Result, Shape};
use rayon::prelude::*;

use super::attention::{Mask, Segments, Span};
use super::attention_kernel::{Block, Out, Part, Rows, block_rows, product};

/// What one call attends to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub segments: Segments,
    pub mask: Mask,
    pub scale: f32,
}

/// Shapes of one call.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    q: usize,
    kv: usize,
    width: usize,
}

impl Heads {
    /// From the shapes of the queries (L, H, D) and of the keys (L, Hkv, D).
    pub fn of(q: &Shape, k: &Shape) -> Result<Self> {
        let ((_, h, width), (_, kv, _)) = (q.dims3()?, k.dims3()?);
        if kv == 0 || h % kv != 0 {
            candle_core::bail!("attention: {h} query heads are no multiple of {kv} key heads")
        }
        Ok(Self { q: h, kv, width })
    }

    fn q_stride(self) -> usize {
        self.q * self.width
    }

    fn kv_stride(self) -> usize {
        self.kv * self.width
    }
}

/// Blocks of query rows of a span.
fn blocks(span: Span) -> impl Iterator<Item = usize> {
    (0..span.len).step_by(block_rows(span.len))
}

impl Kernel {
    fn block<'a>(&self, q: &'a [f32], heads: Heads, head: usize, span: Span, at: usize) -> Block<'a> {
        let before = span.prefix.map_or(0, |(_, len)| len);
        let (visible, step) = match self.mask {
            Mask::Full => (before + span.len, 0),
            Mask::Causal => (before + at + 1, 1),
        };
        let stride = heads.q_stride();
        Block {
            queries: Rows { data: &q[(span.start + at) * stride + head * heads.width..], stride },
            rows: block_rows(span.len).min(span.len - at),
            width: heads.width,
            visible,
            step,
            scale: self.scale,
        }
    }

    /// `(out, lse)` of queries, keys and values: (L, H, D) and (H, L).
    pub fn forward(&self, [q, k, v]: [&[f32]; 3], heads: Heads) -> (Vec<f32>, Vec<f32>) {
        let rows = self.segments.total();
        let stride = heads.q_stride();
        let (mut out, mut lse) = (vec![0f32; rows * stride], vec![0f32; rows * heads.q]);
        let (to, to_lse) =
            (Out { data: out.as_mut_ptr(), stride }, Out { data: lse.as_mut_ptr(), stride: rows });
        // Long blocks first, so that the threads end together.
        let mut tasks: Vec<_> = (self.segments.spans())
            .flat_map(|span| blocks(span).map(move |at| (span, at)))
            .flat_map(|(span, at)| (0..heads.q).map(move |head| (span, at, head)))
            .collect();
        if self.mask == Mask::Causal {
            tasks.sort_by_key(|(_, at, _)| std::cmp::Reverse(*at));
        }
        tasks.into_par_iter().for_each_init(Vec::new, |scores, (span, at, head)| {
            let block = self.block(q, heads, head, span, at);
            let parts = Runs::of(span).parts(k, v, heads, head / (heads.q / heads.kv));
            let row = span.start + at;
            // SAFETY: the tasks cover each (row, head) once, so the rows written here are this task's alone.
            unsafe {
                let out = to.rows(row * stride + head * heads.width, stride);
                block.forward(parts.as_slice(), out, to_lse.rows(head * rows + row, 1).data, scores);
            }
        });
        (out, lse)
    }

    /// `(dq, dk, dv)` of queries, keys, values, output and gradient of the output.
    pub fn backward(&self, [q, k, v, out, grad]: [&[f32]; 5], lse: &[f32], heads: Heads) -> [Vec<f32>; 3] {
        let (mut dq, mut dk, mut dv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]);
        let to = |x: &mut Vec<f32>, stride| Out { data: x.as_mut_ptr(), stride };
        let saved = Saved { kernel: self, heads, q, k, v, out, grad, lse };
        let to = Gradients {
            q: to(&mut dq, heads.q_stride()),
            k: to(&mut dk, heads.kv_stride()),
            v: to(&mut dv, heads.kv_stride()),
        };
        let tasks: Vec<_> = (self.families().into_iter())
            .flat_map(|family| (0..heads.kv).map(move |kv| (family.clone(), kv)))
            .collect();
        tasks.into_par_iter().for_each(|(family, kv)| {
            let group = heads.q / heads.kv;
            let mut scratch = Scratch::default();
            // A fixed order inside the task keeps the sums reproducible.
            for span in family {
                for head in kv * group..(kv + 1) * group {
                    for at in blocks(span) {
                        // SAFETY: only this task writes the rows of this family and key head, and the query heads
                        // of its group.
                        unsafe { saved.block(to, span, (head, kv), at, &mut scratch) };
                    }
                }
            }
        });
        [dq, dk, dv]
    }

    /// Segments that write the same rows of dk and dv: a prefix with all that continue it.
    fn families(&self) -> Vec<Vec<Span>> {
        let mut families: Vec<Vec<Span>> = vec![];
        let mut places = std::collections::HashMap::new();
        for span in self.segments.spans() {
            let root = span.prefix.map_or(span.start, |(start, _)| start);
            let place = *places.entry(root).or_insert_with(|| {
                families.push(vec![]);
                families.len() - 1
            });
            families[place].push(span);
        }
        families
    }
}

/// The runs of key rows that a segment sees, in order: `(first row, rows)`.
#[derive(Clone, Copy)]
struct Runs {
    runs: [(usize, usize); 2],
    count: usize,
}

impl Runs {
    fn of(span: Span) -> Self {
        let own = (span.start, span.len);
        match span.prefix {
            Some(prefix) => Self { runs: [prefix, own], count: 2 },
            None => Self { runs: [own, own], count: 1 },
        }
    }

    fn parts<'a>(self, k: &'a [f32], v: &'a [f32], heads: Heads, kv: usize) -> Parts<'a> {
        let stride = heads.kv_stride();
        let part = |(start, len): (usize, usize)| {
            let first = start * stride + kv * heads.width;
            Part { keys: Rows { data: &k[first..], stride }, values: Rows { data: &v[first..], stride }, len }
        };
        Parts { parts: self.runs.map(part), count: self.count }
    }
}

struct Parts<'a> {
    parts: [Part<'a>; 2],
    count: usize,
}

impl<'a> Parts<'a> {
    fn as_slice(&self) -> &[Part<'a>] {
        &self.parts[..self.count]
    }
}

#[derive(Clone, Copy)]
struct Gradients {
    q: Out,
    k: Out,
    v: Out,
}

#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    dp: Vec<f32>,
}

/// Everything the backward reads.
struct Saved<'a> {
    kernel: &'a Kernel,
    heads: Heads,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
    lse: &'a [f32],
}

impl Saved<'_> {
    /// Gradients of one block of query rows.
    ///
    /// # Safety
    /// The rows of `span` for this head (dq), and its key rows with those of its prefix for this key head (dk, dv),
    /// belong to the calling task.
    unsafe fn block(
        &self,
        to: Gradients,
        span: Span,
        (head, kv): (usize, usize),
        at: usize,
        Scratch { p, dp }: &mut Scratch,
    ) {
        let width = self.heads.width;
        let (total, row) = (self.kernel.segments.total(), span.start + at);
        let block = self.kernel.block(self.q, self.heads, head, span, at);
        let runs = Runs::of(span);
        let parts = runs.parts(self.k, self.v, self.heads, kv);
        let keys = block.probabilities(parts.as_slice(), &self.lse[head * total + row..], p);
        dp.clear();
        dp.resize(block.rows * keys, 0.0);
        let m = block.rows;
        let q_at = row * to.q.stride + head * width;
        let grad = (self.grad[q_at..].as_ptr(), to.q.stride, 1);
        let mut done = 0;
        for (part, (start, _)) in parts.as_slice().iter().zip(runs.runs) {
            let n = part.len.min(keys - done);
            // SAFETY: `q_at` and `kv_at` are the first elements of rows that belong to this task (see the caller),
            // and the scratch buffers are (rows, keys).
            unsafe {
                let kv_at = start * to.v.stride + kv * width;
                let p_transposed = (p.as_ptr().add(done), 1, keys);
                product((n, width, m), (to.v.data.add(kv_at), to.v.stride, 1), true, p_transposed, grad, 1.0);
                let values = (part.values.data.as_ptr(), 1, part.values.stride);
                product((m, n, width), (dp.as_mut_ptr().add(done), keys, 1), false, grad, values, 1.0);
            }
            done += n;
        }
        self.score_gradients(&block, q_at, keys, p, dp);
        let queries = (block.queries.data.as_ptr(), block.queries.stride, 1);
        let mut done = 0;
        for (part, (start, _)) in parts.as_slice().iter().zip(runs.runs) {
            let n = part.len.min(keys - done);
            // SAFETY: as above.
            unsafe {
                let kv_at = start * to.k.stride + kv * width;
                let ds = dp.as_ptr().add(done);
                let keys_at = (part.keys.data.as_ptr(), part.keys.stride, 1);
                let dq = (to.q.data.add(q_at), to.q.stride, 1);
                product((m, width, n), dq, true, (ds, keys, 1), keys_at, 1.0);
                let dk = (to.k.data.add(kv_at), to.k.stride, 1);
                product((n, width, m), dk, true, (ds, 1, keys), queries, 1.0);
            }
            done += n;
        }
    }

    /// From the gradients of the probabilities to those of the scores, in place: `p * (dp - delta) * scale`, where
    /// `delta` is the sum over the width of gradient * output.
    fn score_gradients(&self, block: &Block, q_at: usize, keys: usize, p: &[f32], dp: &mut [f32]) {
        let (width, stride) = (block.width, self.heads.q_stride());
        super::simd::dispatch(|| {
            for (i, (dp, p)) in dp.chunks_exact_mut(keys).zip(p.chunks_exact(keys)).enumerate() {
                let row = q_at + i * stride..q_at + i * stride + width;
                let delta = super::simd::sum_pairs(&self.grad[row.clone()], &self.out[row], |g, o| g * o);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = p * (*dp - delta) * block.scale;
                }
            }
        });
    }
}
