//! Attention over packed sequences of different lengths, without an N x N buffer.
//!
//! Queries, keys and values are rows of one packed tensor each; [`Segments`] says where a sequence ends. Grouped-query
//! attention is implied by the head counts. The backward recomputes the probabilities from the saved log-sum-exp
//! (FlashAttention-2, arXiv 2307.08691, section 3.1).

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::attention_kernel::{Block, Out, Part, Rows, block_rows, product};
use super::{f32_slice, fused};

/// Which keys a query may see inside its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those up to its own position.
    Causal,
}

/// Lengths of the sequences that are packed one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    bounds: Vec<usize>,
}

impl Segments {
    /// Segments of the given lengths, in order. Empty segments are allowed.
    pub fn new(lengths: &[usize]) -> Self {
        let ends = lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        });
        Self { bounds: std::iter::once(0).chain(ends).collect() }
    }

    /// Rows in all segments together.
    pub fn total(&self) -> usize {
        self.bounds.last().copied().unwrap_or(0)
    }

    /// First row of each segment.
    pub fn starts(&self) -> &[usize] {
        &self.bounds[..self.bounds.len() - 1]
    }

    /// `(start, length)` of each segment that is not empty.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.bounds.windows(2).map(|w| (w[0], w[1] - w[0])).filter(|(_, len)| *len > 0)
    }
}

/// `softmax(scale * q k^T) v` inside each segment: `q` (L, H, D), `k` and `v` (L, Hkv, D) -> (L, H, D).
///
/// Query head `h` uses key head `h / (H / Hkv)`.
///
/// # Errors
/// Ranks, widths, head counts or lengths that do not fit each other or the segments.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    mask: Mask,
    scale: f64,
) -> Result<Tensor> {
    let (l, h, d) = q.dims3()?;
    let (lk, hkv, dk) = k.dims3()?;
    let fits = lk == l && dk == d && v.dims() == k.dims() && hkv > 0 && h % hkv == 0 && segments.total() == l;
    if !fits {
        candle_core::bail!(
            "attention: q {:?}, k {:?}, v {:?} and segments of {} rows do not fit (expected (L, H, D), (L, Hkv, D) twice, H a multiple of Hkv)",
            q.dims(),
            k.dims(),
            v.dims(),
            segments.total()
        )
    }
    if !fused(q) {
        return attention_composed(q, k, v, segments, mask, scale);
    }
    let op = Attention { segments: segments.clone(), mask, scale: scale as f32, lse: Mutex::new(None) };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// The composed twin of [`attention`]: the same result from plain tensor operations, any device and dtype; softmax in
/// f32 at least.
///
/// # Errors
/// As the tensor operations.
pub fn attention_composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    mask: Mask,
    scale: f64,
) -> Result<Tensor> {
    let (l, h, d) = q.dims3()?;
    let mut outputs = vec![];
    for (start, len, count) in equal_runs(segments) {
        let heads = |x: &Tensor| -> Result<Tensor> {
            let rows = x.narrow(0, start, len * count)?.reshape((count, len, x.dim(1)?, d))?;
            rows.transpose(1, 2)?.contiguous()
        };
        let (k, v) = (repeat_heads(&heads(k)?, h)?, repeat_heads(&heads(v)?, h)?);
        let hidden = (mask == Mask::Causal).then_some(0);
        let out = softmax_product(&heads(q)?, &k, &v, hidden, scale)?;
        outputs.push(out.transpose(1, 2)?.reshape((count * len, h, d))?);
    }
    if outputs.is_empty() {
        return q.zeros_like()?.reshape((l, h, d));
    }
    Tensor::cat(&outputs, 0)
}

/// Consecutive segments of one length as `(start, length, count)`, so that they run as one batch.
fn equal_runs(segments: &Segments) -> Vec<(usize, usize, usize)> {
    let mut runs: Vec<(usize, usize, usize)> = vec![];
    for (start, len) in segments.iter() {
        match runs.last_mut() {
            Some((_, last, count)) if *last == len => *count += 1,
            _ => runs.push((start, len, 1)),
        }
    }
    runs
}

/// (B, Hkv, L, D) -> (B, H, L, D), each head repeated H / Hkv times.
pub(super) fn repeat_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, hkv, l, d) = xs.dims4()?;
    if hkv == heads {
        return Ok(xs.clone());
    }
    xs.unsqueeze(2)?.expand((b, hkv, heads / hkv, l, d))?.reshape((b, heads, l, d))
}

/// Attention of (B, H, Lq, D) over (B, H, Lk, D); `before`: query `i` sees the keys up to `before + i`.
pub(super) fn softmax_product(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    before: Option<usize>,
    scale: f64,
) -> Result<Tensor> {
    let (lq, lk) = (q.dim(2)?, k.dim(2)?);
    let dtype = q.dtype();
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
    let scores = if dtype.is_float() && dtype.size_in_bytes() < 4 {
        scores.to_dtype(candle_core::DType::F32)?
    } else {
        scores
    };
    let scores = match before {
        Some(before) if lq > 1 => {
            let mask: Vec<f32> = (0..lq)
                .flat_map(|i| (0..lk).map(move |j| if j > before + i { f32::NEG_INFINITY } else { 0.0 }))
                .collect();
            let mask = Tensor::from_vec(mask, (lq, lk), q.device())?.to_dtype(scores.dtype())?;
            scores.broadcast_add(&mask)?
        }
        _ => scores,
    };
    candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(dtype)?.matmul(v)
}

struct Attention {
    segments: Segments,
    mask: Mask,
    scale: f32,
    /// (L, H), kept for the backward.
    lse: Mutex<Option<Vec<f32>>>,
}

/// Shapes of one call.
#[derive(Clone, Copy)]
struct Heads {
    q: usize,
    kv: usize,
    width: usize,
}

impl Attention {
    fn block<'a>(
        &self,
        q: &'a [f32],
        heads: Heads,
        head: usize,
        segment: (usize, usize),
        at: usize,
    ) -> Block<'a> {
        let ((start, len), stride) = (segment, heads.q * heads.width);
        let (visible, step) = match self.mask {
            Mask::Full => (len, 0),
            Mask::Causal => (at + 1, 1),
        };
        Block {
            queries: Rows { data: &q[(start + at) * stride + head * heads.width..], stride },
            rows: block_rows(len).min(len - at),
            width: heads.width,
            visible,
            step,
            scale: self.scale,
        }
    }

    fn part<'a>(
        &self,
        k: &'a [f32],
        v: &'a [f32],
        heads: Heads,
        head: usize,
        segment: (usize, usize),
    ) -> Part<'a> {
        let stride = heads.kv * heads.width;
        let first = segment.0 * stride + head / (heads.q / heads.kv) * heads.width;
        let rows = |data: &'a [f32]| Rows { data: &data[first..], stride };
        Part { keys: rows(k), values: rows(v), len: segment.1 }
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> (Vec<f32>, Vec<f32>) {
        let rows = self.segments.total();
        let stride = heads.q * heads.width;
        let (mut out, mut lse) = (vec![0f32; rows * stride], vec![0f32; rows * heads.q]);
        let (to, to_lse) =
            (Out { data: out.as_mut_ptr(), stride }, Out { data: lse.as_mut_ptr(), stride: rows });
        // Long blocks first, so that the threads end together.
        let mut tasks: Vec<_> = (self.segments.iter())
            .flat_map(|segment| (0..segment.1).step_by(block_rows(segment.1)).map(move |at| (segment, at)))
            .flat_map(|(segment, at)| (0..heads.q).map(move |head| (segment, at, head)))
            .collect();
        if self.mask == Mask::Causal {
            tasks.sort_by_key(|(_, at, _)| std::cmp::Reverse(*at));
        }
        tasks.into_par_iter().for_each_init(Vec::new, |scores, (segment, at, head)| {
            let block = self.block(q, heads, head, segment, at);
            let part = self.part(k, v, heads, head, segment);
            let row = segment.0 + at;
            // SAFETY: the tasks cover each (row, head) once, so the rows written here are this task's alone.
            unsafe {
                let out = to.rows(row * stride + head * heads.width, stride);
                block.forward(&[part], out, to_lse.rows(head * rows + row, 1).data, scores);
            }
        });
        (out, lse)
    }
}

fn heads(op: &str, q: &Layout, k: &Layout) -> Result<Heads> {
    let ((_, h, width), (_, kv, _)) = (q.shape().dims3()?, k.shape().dims3()?);
    if kv == 0 || h % kv != 0 {
        candle_core::bail!("{op}: {h} query heads are no multiple of {kv} key heads")
    }
    Ok(Heads { q: h, kv, width })
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads = heads("attention", lq, lk)?;
        let op = "attention";
        let (out, lse) =
            self.forward(f32_slice(op, q, lq)?, f32_slice(op, k, lk)?, f32_slice(op, v, lv)?, heads);
        *self.lse.lock().unwrap_or_else(|e| e.into_inner()) = Some(lse);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(lse) = self.lse.lock().unwrap_or_else(|e| e.into_inner()).clone() else {
            candle_core::bail!("attention: backward without a forward")
        };
        let (l, h, d) = q.dims3()?;
        let hkv = k.dim(1)?;
        let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let saved = Saved {
            op: self,
            heads: Heads { q: h, kv: hkv, width: d },
            q: flat(q)?,
            k: flat(k)?,
            v: flat(v)?,
            grad: flat(grad)?,
            delta: flat(&(grad * out)?.sum(D::Minus1)?)?,
            lse,
        };
        let (dq, dk, dv) = saved.backward();
        let tensor = |x: Vec<f32>, heads: usize| Tensor::from_vec(x, (l, heads, d), q.device()).map(Some);
        Ok((tensor(dq, h)?, tensor(dk, hkv)?, tensor(dv, hkv)?))
    }
}

/// Everything the backward reads.
struct Saved<'a> {
    op: &'a Attention,
    heads: Heads,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    grad: Vec<f32>,
    /// (L, H): sum over the width of grad * out.
    delta: Vec<f32>,
    lse: Vec<f32>,
}

impl Saved<'_> {
    fn backward(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (mut dq, mut dk, mut dv) =
            (vec![0f32; self.q.len()], vec![0f32; self.k.len()], vec![0f32; self.v.len()]);
        let (q_stride, kv_stride) = (self.heads.q * self.heads.width, self.heads.kv * self.heads.width);
        let out = |x: &mut Vec<f32>, stride| Out { data: x.as_mut_ptr(), stride };
        let to = (out(&mut dq, q_stride), out(&mut dk, kv_stride), out(&mut dv, kv_stride));
        let tasks: Vec<_> = (self.op.segments.iter())
            .flat_map(|segment| (0..self.heads.kv).map(move |kv| (segment, kv)))
            .collect();
        tasks.into_par_iter().for_each(|(segment, kv)| {
            let (dq, dk, dv) = to;
            let group = self.heads.q / self.heads.kv;
            let (mut p, mut dp) = (vec![], vec![]);
            // A fixed order inside the task keeps the sums reproducible.
            for head in kv * group..(kv + 1) * group {
                for at in (0..segment.1).step_by(block_rows(segment.1)) {
                    // SAFETY: only this task writes the rows of this segment and key head, and the query
                    // heads of its group.
                    unsafe { self.block((dq, dk, dv), segment, (head, kv), at, (&mut p, &mut dp)) };
                }
            }
        });
        (dq, dk, dv)
    }

    /// Gradients of one block of query rows.
    ///
    /// # Safety
    /// The rows of `segment` for this head (dq) and key head (dk, dv) belong to the calling task.
    unsafe fn block(
        &self,
        (dq, dk, dv): (Out, Out, Out),
        segment: (usize, usize),
        (head, kv): (usize, usize),
        at: usize,
        (p, dp): (&mut Vec<f32>, &mut Vec<f32>),
    ) {
        let width = self.heads.width;
        let (rows_total, row) = (self.op.segments.total(), segment.0 + at);
        let block = self.op.block(&self.q, self.heads, head, segment, at);
        let part = self.op.part(&self.k, &self.v, self.heads, head, segment);
        let keys = block.probabilities(part, &self.lse[head * rows_total + row..], p);
        dp.clear();
        dp.resize(block.rows * keys, 0.0);
        let q_at = row * dq.stride + head * width;
        let kv_at = segment.0 * dk.stride + kv * width;
        let grad = (self.grad[q_at..].as_ptr(), dq.stride, 1);
        // SAFETY: `q_at` and `kv_at` are the first elements of rows that belong to this task (see the caller),
        // and the scratch buffers are (rows, keys).
        unsafe {
            let (m, n) = (block.rows, keys);
            let p_transposed = (p.as_ptr(), 1, keys);
            product((n, width, m), (dv.data.add(kv_at), dv.stride, 1), true, p_transposed, grad, 1.0);
            let values = (part.values.data.as_ptr(), 1, part.values.stride);
            product((m, n, width), (dp.as_mut_ptr(), keys, 1), false, grad, values, 1.0);
            for i in 0..m {
                let delta = self.delta[(row + i) * self.heads.q + head];
                for (dp, p) in dp[i * keys..(i + 1) * keys].iter_mut().zip(&p[i * keys..]) {
                    *dp = p * (*dp - delta) * block.scale;
                }
            }
            let keys_at = (part.keys.data.as_ptr(), part.keys.stride, 1);
            product(
                (m, width, n),
                (dq.data.add(q_at), dq.stride, 1),
                true,
                (dp.as_ptr(), keys, 1),
                keys_at,
                1.0,
            );
            let queries = (block.queries.data.as_ptr(), block.queries.stride, 1);
            let ds_transposed = (dp.as_ptr(), 1, keys);
            product((n, width, m), (dk.data.add(kv_at), dk.stride, 1), true, ds_transposed, queries, 1.0);
        }
    }
}
