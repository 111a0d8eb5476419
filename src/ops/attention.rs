//! Attention over packed sequences of different lengths, without an N x N buffer.
//!
//! Queries, keys and values are rows of one packed tensor each; [`Segments`] says where a sequence ends. Grouped-query
//! attention is implied by the head counts. The backward recomputes the probabilities from the saved log-sum-exp
//! (FlashAttention-2, arXiv 2307.08691, section 3.1).

use std::sync::Mutex;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor};

use super::attention_packed::{Heads, Kernel};
use super::kernels;
use super::{f32_slice, fused, has_kernels, with_slices};

/// Which keys a query may see inside its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those up to its own position.
    Causal,
}

/// Lengths of the sequences that are packed one after another. Several may continue one that was packed before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    bounds: Vec<usize>,
    /// The segment whose keys come before a segment's own.
    prefixes: Vec<Option<usize>>,
}

/// A segment: its rows, and those of the prefix it continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// First row and number of rows of the prefix.
    pub prefix: Option<(usize, usize)>,
}

impl Segments {
    /// Segments of the given lengths, in order. Empty segments are allowed.
    pub fn new(lengths: &[usize]) -> Self {
        let ends = lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        });
        Self { bounds: std::iter::once(0).chain(ends).collect(), prefixes: vec![None; lengths.len()] }
    }

    /// As [`Self::new`], where segment `i` continues segment `prefixes[i]`: its queries see that segment's keys, all of
    /// them, before its own. Several segments may continue one; it is stored and computed once.
    ///
    /// # Errors
    /// Another number of prefixes than lengths, or a prefix that does not come before its segment or has one itself.
    pub fn continuing(lengths: &[usize], prefixes: &[Option<usize>]) -> Result<Self> {
        if prefixes.len() != lengths.len() {
            candle_core::bail!("segments: {} lengths, but {} prefixes", lengths.len(), prefixes.len())
        }
        for (i, prefix) in prefixes.iter().enumerate() {
            let Some(prefix) = *prefix else { continue };
            if prefix >= i || prefixes[prefix].is_some() {
                candle_core::bail!(
                    "segments: segment {i} continues segment {prefix}, expected an earlier one without a prefix"
                )
            }
        }
        Ok(Self { prefixes: prefixes.to_vec(), ..Self::new(lengths) })
    }

    /// Rows in all segments together.
    pub fn total(&self) -> usize {
        self.bounds.last().copied().unwrap_or(0)
    }

    /// Number of rows of each segment.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.bounds.windows(2).map(|bounds| bounds[1] - bounds[0])
    }

    /// The segment that each one continues.
    pub fn prefixes(&self) -> &[Option<usize>] {
        &self.prefixes
    }

    /// First row of each segment.
    pub fn starts(&self) -> &[usize] {
        &self.bounds[..self.bounds.len() - 1]
    }

    /// `(start, length)` of each segment that is not empty.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.spans().map(|span| (span.start, span.len))
    }

    /// The segments that are not empty, with their prefixes.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        let rows = |i: usize| (self.bounds[i], self.bounds[i + 1] - self.bounds[i]);
        let span = move |(i, prefix): (usize, &Option<usize>)| {
            let ((start, len), prefix) = (rows(i), prefix.map(rows).filter(|(_, len)| *len > 0));
            Span { start, len, prefix }
        };
        self.prefixes.iter().enumerate().map(span).filter(|span| span.len > 0)
    }
}

/// `softmax(scale * q k^T) v` inside each segment: `q` (L, H, D), `k` and `v` (L, Hkv, D) -> (L, H, D).
///
/// Query head `h` uses key head `h / (H / Hkv)`. f32 on the CPU, and f32, bf16 and f16 on a CUDA device, have kernels;
/// everything else is composed.
///
/// # Errors
/// Ranks, widths, head counts or lengths that do not fit each other or the segments; no row at all; on a CUDA device, a width
/// above 128.
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
    if l == 0 {
        candle_core::bail!(
            "attention: q {:?} and k {:?} in {} segments have no row; expected one at least (single segments may be empty)",
            q.dims(),
            k.dims(),
            segments.starts().len()
        )
    }
    let kernel = Kernel { segments: segments.clone(), mask, scale: scale as f32 };
    let op = Attention { kernel, saved: Mutex::new(None) };
    if has_kernels(q) {
        kernels::check_same("attention", &[q, k, v])?;
        let [q, k, v] = [q, k, v].map(kernels::attention::padded);
        let out = q?.apply_op3(&k?, &v?, op)?;
        return if out.dim(2)? == d { Ok(out) } else { out.narrow(2, 0, d)?.contiguous() };
    }
    if !fused(q) {
        return attention_composed(q, k, v, segments, mask, scale);
    }
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
    for (span, count) in equal_runs(segments) {
        let heads = |x: &Tensor, start: usize, len: usize, count: usize| -> Result<Tensor> {
            let rows = x.narrow(0, start, len * count)?.reshape((count, len, x.dim(1)?, d))?;
            rows.transpose(1, 2)?.contiguous()
        };
        let own = |x: &Tensor| heads(x, span.start, span.len, count);
        let keys = |x: &Tensor| match span.prefix {
            Some((start, len)) => Tensor::cat(&[heads(x, start, len, 1)?, own(x)?], 2),
            None => own(x),
        };
        let (k, v) = (repeat_heads(&keys(k)?, h)?, repeat_heads(&keys(v)?, h)?);
        let hidden = (mask == Mask::Causal).then_some(span.prefix.map_or(0, |(_, len)| len));
        let out = softmax_product(&own(q)?, &k, &v, hidden, scale)?;
        outputs.push(out.transpose(1, 2)?.reshape((count * span.len, h, d))?);
    }
    if outputs.is_empty() {
        return q.zeros_like()?.reshape((l, h, d));
    }
    Tensor::cat(&outputs, 0)
}

/// Consecutive segments of one length and without prefix, with their number, so that they run as one batch.
fn equal_runs(segments: &Segments) -> Vec<(Span, usize)> {
    let mut runs: Vec<(Span, usize)> = vec![];
    for span in segments.spans() {
        match runs.last_mut() {
            Some((last, count)) if last.len == span.len && last.prefix.or(span.prefix).is_none() => {
                *count += 1;
            }
            _ => runs.push((span, 1)),
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
    let scores =
        if dtype.is_float() && dtype.size_in_bytes() < 4 { scores.to_dtype(DType::F32)? } else { scores };
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
    kernel: Kernel,
    saved: Mutex<Option<Saved>>,
}

/// The log-sum-exp (H, L), kept for the backward.
enum Saved {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Device(Tensor),
}

impl Attention {
    fn save(&self, saved: Saved) {
        *self.saved.lock().unwrap_or_else(|e| e.into_inner()) = Some(saved);
    }

    #[cfg(feature = "cuda")]
    fn packing(&self) -> Result<kernels::attention::Packing> {
        kernels::attention::Packing::of(&self.kernel.segments, self.kernel.mask, self.kernel.scale)
    }
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
        let op = "attention";
        let heads = Heads::of(lq.shape(), lk.shape())?;
        let values = [f32_slice(op, q, lq)?, f32_slice(op, k, lk)?, f32_slice(op, v, lv)?];
        let (out, lse) = self.kernel.forward(values, heads);
        self.save(Saved::Host(lse));
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        lq: &Layout,
        k: &CudaStorage,
        lk: &Layout,
        v: &CudaStorage,
        lv: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inputs = [(q, lq), (k, lk), (v, lv)];
        let (out, shape, lse) = super::cuda::attention::attend(&self.packing()?, inputs)?;
        self.save(Saved::Device(lse));
        Ok((out, shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        let grad = &grad.contiguous()?;
        let [dq, dk, dv] = match saved.as_ref() {
            Some(Saved::Host(lse)) => gradients(&self.kernel, [q, k, v, out, grad], lse)?,
            #[cfg(feature = "cuda")]
            Some(Saved::Device(lse)) => {
                super::cuda::attention::gradients(&self.packing()?, [q, k, v, out, grad, lse])?
            }
            None => candle_core::bail!("attention: backward without a forward"),
        };
        Ok((q.track_op().then_some(dq), k.track_op().then_some(dk), v.track_op().then_some(dv)))
    }
}

/// Output (L, H, D) and log-sum-exp (H, L) of f32 tensors on the CPU, outside any graph.
pub(crate) fn forward_saved(kernel: &Kernel, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Vec<f32>)> {
    let heads = Heads::of(q.shape(), k.shape())?;
    let (out, lse) = with_slices("attention", [q, k, v], |values| Ok(kernel.forward(values, heads)))?;
    Ok((Tensor::from_vec(out, q.shape(), &Device::Cpu)?, lse))
}

/// Gradients of q, k and v, given those, the output and its gradient.
pub(crate) fn gradients(
    kernel: &Kernel,
    [q, k, v, out, grad]: [&Tensor; 5],
    lse: &[f32],
) -> Result<[Tensor; 3]> {
    let heads = Heads::of(q.shape(), k.shape())?;
    let [dq, dk, dv] =
        with_slices("attention", [q, k, v, out, grad], |values| Ok(kernel.backward(values, lse, heads)))?;
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
}
