//! Log-probabilities and entropies of tokens from hidden states and head, without a (tokens, vocabulary) tensor.
//!
//! Logits exist for one panel of rows and one chunk of the vocabulary at a time; a running maximum and two sums give the
//! log-sum-exp and the entropy. The backward computes each block of logits again. On f32 CPU tensors both passes are one kernel;
//! elsewhere they are the same blocks in tensor operations.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, D, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::log_prob_kernel::{Gradients, Reduced, Rows};
use super::{fused, with_slices};

/// How much of the (tokens, vocabulary) rectangle is held at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Rows of a panel.
    pub rows: usize,
    /// Tokens of the vocabulary in a chunk.
    pub vocabulary: usize,
}

impl Chunks {
    /// Those of a GPU. A block is some fifteen launches there, which for smaller ones take longer than their work.
    pub const ON_GPU: Self = Self { rows: 1024, vocabulary: 16_384 };

    /// Those of a device.
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() { Self::default() } else { Self::ON_GPU }
    }
}

/// Those of the CPU.
impl Default for Chunks {
    fn default() -> Self {
        Self { rows: 1024, vocabulary: 2048 }
    }
}

/// What [`log_probs`] returns, both (N,), f32 (f64 for f64 hidden states).
#[derive(Debug, Clone)]
pub struct TokenLogProbs {
    /// Natural logarithm of the probability of each target.
    pub log_probs: Tensor,
    /// Entropy of each distribution, in nats.
    pub entropies: Tensor,
}

/// Log-probabilities of `targets` (N), and entropies, under `softmax(hidden head^T / temperature)`.
///
/// `hidden` (N, D), `head` (V, D), of one dtype or not; gradients flow to each that is tracked, through both results. Half types
/// are multiplied as they are on a GPU and as f32 on the CPU; everything after the product is f32.
///
/// # Errors
/// Shapes that do not fit, a target outside the vocabulary, a temperature that is not positive.
pub fn log_probs(hidden: &Tensor, head: &Tensor, targets: &[u32], temperature: f64) -> Result<TokenLogProbs> {
    log_probs_in(hidden, head, targets, temperature, Chunks::of(hidden.device()))
}

/// As [`log_probs`], with chunks of another size: the same result up to rounding.
///
/// # Errors
/// As [`log_probs`], and chunks of size 0.
pub fn log_probs_in(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    temperature: f64,
    chunks: Chunks,
) -> Result<TokenLogProbs> {
    check(hidden, head, targets, temperature)?;
    if chunks.rows == 0 || chunks.vocabulary == 0 {
        bail!("log-probs: chunks must hold at least one row and one token, got {chunks:?}")
    }
    let rows = hidden.dim(0)?;
    if rows == 0 {
        let none = Tensor::zeros(0, wide_dtype(hidden), hidden.device())?;
        return Ok(TokenLogProbs { log_probs: none.clone(), entropies: none });
    }
    let pass = Pass { targets: targets.to_vec(), scale: 1. / temperature, chunks };
    let (result, saved) = pass.forward(&hidden.detach(), &head.detach())?;
    let result = if hidden.track_op() || head.track_op() {
        hidden.apply_op2(head, LogProbs { pass, result, saved })?
    } else {
        result
    };
    Ok(TokenLogProbs { log_probs: result.get(0)?, entropies: result.get(1)? })
}

/// The composed twin of [`log_probs`]: plain tensor operations on all logits at once.
///
/// # Errors
/// As [`log_probs`].
pub fn log_probs_composed(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<TokenLogProbs> {
    check(hidden, head, targets, temperature)?;
    let logits = logits(hidden, head, 1. / temperature)?;
    let log_all = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
    let log_probs = log_all.gather(&targets, 1)?.squeeze(1)?;
    let entropies = (log_all.exp()? * &log_all)?.sum(1)?.neg()?;
    Ok(TokenLogProbs { log_probs, entropies })
}

fn check(hidden: &Tensor, head: &Tensor, targets: &[u32], temperature: f64) -> Result<()> {
    let fits =
        matches!((hidden.dims(), head.dims()), (&[n, d], &[v, w]) if n == targets.len() && d == w && v > 0);
    if !fits {
        bail!(
            "log-probs: hidden {:?}, head {:?} and {} targets do not fit (expected (N, D), (V, D) and N)",
            hidden.dims(),
            head.dims(),
            targets.len()
        )
    }
    let size = head.dim(0)?;
    if let Some(at) = targets.iter().position(|&target| target as usize >= size) {
        bail!("log-probs: target {at} is {}, outside the vocabulary of {size}", targets[at])
    }
    if !(temperature > 0. && temperature.is_finite()) {
        bail!("log-probs: the temperature must be positive, got {temperature}")
    }
    Ok(())
}

fn wide_dtype(hidden: &Tensor) -> DType {
    if hidden.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Whether logits are computed in the dtype of the tensors. candle multiplies half types on the CPU ten times slower than f32.
fn rounds(hidden: &Tensor, head: &Tensor) -> bool {
    hidden.dtype() == head.dtype() && !hidden.device().is_cpu()
}

/// `scale * hidden head^T` in the wide dtype.
fn logits(hidden: &Tensor, head: &Tensor, scale: f64) -> Result<Tensor> {
    let wide = wide_dtype(hidden);
    let product = if rounds(hidden, head) {
        hidden.matmul(&head.t()?)?.to_dtype(wide)?
    } else {
        hidden.to_dtype(wide)?.matmul(&head.to_dtype(wide)?.t()?)?
    };
    product * scale
}

/// The settings of one call.
struct Pass {
    targets: Vec<u32>,
    scale: f64,
    chunks: Chunks,
}

/// What the backward needs besides the result.
enum Saved {
    Kernel(Vec<Reduced>),
    /// (N, 1)
    LogSumExp(Tensor),
}

impl Pass {
    fn rows<'a>(&'a self, hidden: &'a [f32], head: &'a [f32]) -> Rows<'a> {
        let width = hidden.len() / self.targets.len();
        Rows { hidden, head, targets: &self.targets, width, scale: self.scale as f32, chunks: self.chunks }
    }

    /// Log-probabilities and entropies as one tensor (2, N), since an operation has one result.
    fn forward(&self, hidden: &Tensor, head: &Tensor) -> Result<(Tensor, Saved)> {
        if !(fused(hidden) && fused(head)) {
            return self.forward_tensors(hidden, head);
        }
        let reduced =
            with_slices("log-probs", [&hidden.contiguous()?, &head.contiguous()?], |[hidden, head]| {
                self.rows(hidden, head).forward()
            })?;
        let values = reduced.iter().map(|row| row.log_prob).chain(reduced.iter().map(|row| row.entropy));
        let result = Tensor::from_vec(values.collect(), (2, reduced.len()), hidden.device())?;
        Ok((result, Saved::Kernel(reduced)))
    }

    /// Starts and lengths of the pieces of `len` rows or tokens.
    fn pieces(len: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..len).step_by(size).map(move |start| (start, size.min(len - start)))
    }

    fn forward_tensors(&self, hidden: &Tensor, head: &Tensor) -> Result<(Tensor, Saved)> {
        let (mut results, mut log_sums) = (vec![], vec![]);
        for (start, rows) in Self::pieces(hidden.dim(0)?, self.chunks.rows) {
            let panel = hidden.narrow(0, start, rows)?;
            // Largest logit, sum and weighted sum so far, as in the kernel.
            let mut running: Option<[Tensor; 3]> = None;
            for (first, size) in Self::pieces(head.dim(0)?, self.chunks.vocabulary) {
                let z = logits(&panel, &head.narrow(0, first, size)?, self.scale)?;
                let top = z.max_keepdim(1)?;
                let largest = match &running {
                    Some([largest, ..]) => largest.maximum(&top)?,
                    None => top,
                };
                let z = z.broadcast_sub(&largest)?;
                let e = z.exp()?;
                let (mut sum, mut weighted) = (e.sum_keepdim(1)?, (e * z)?.sum_keepdim(1)?);
                if let Some([before, old_sum, old_weighted]) = &running {
                    let shift = (before - &largest)?;
                    let scale = shift.exp()?;
                    weighted = (weighted + ((old_weighted + (old_sum * &shift)?)? * &scale)?)?;
                    sum = (sum + (old_sum * scale)?)?;
                }
                running = Some([largest, sum, weighted]);
            }
            let Some([largest, sum, weighted]) = running else { bail!("log-probs: the vocabulary is empty") };
            let log_sum = (largest + sum.log()?)?;
            let target = self.target_rows(head, start, rows)?.to_dtype(log_sum.dtype())?;
            let mut chosen = (panel.to_dtype(log_sum.dtype())? * target)?.sum_keepdim(1)?;
            if rounds(hidden, head) {
                // As the logits that it is compared with.
                chosen = chosen.to_dtype(hidden.dtype())?.to_dtype(log_sum.dtype())?;
            }
            let log_prob = ((chosen * self.scale)? - &log_sum)?;
            results.push(Tensor::cat(&[log_prob, (sum.log()? - (weighted / sum)?)?], 1)?);
            log_sums.push(log_sum);
        }
        let result = Tensor::cat(&results, 0)?.t()?.contiguous()?;
        Ok((result, Saved::LogSumExp(Tensor::cat(&log_sums, 0)?)))
    }

    /// The rows of the head that belong to the targets of a panel.
    fn target_rows(&self, head: &Tensor, start: usize, rows: usize) -> Result<Tensor> {
        let targets = Tensor::from_slice(&self.targets[start..start + rows], rows, head.device())?;
        head.index_select(&targets, 0)
    }

    /// Gradients of hidden states and, when it is tracked, head; `result` and `upstream` are (2, N).
    fn backward_tensors(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        (result, log_sums): (&Tensor, &Tensor),
        upstream: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let wide = log_sums.dtype();
        let learned = head.track_op();
        let (hidden, head) = (hidden.detach(), head.detach());
        let entropies = result.get(1)?.unsqueeze(1)?;
        let (of_log_probs, of_entropies) = (upstream.get(0)?.unsqueeze(1)?, upstream.get(1)?.unsqueeze(1)?);
        let mut to_hidden = vec![];
        let mut to_head: Vec<Tensor> = vec![];
        for (start, rows) in Self::pieces(hidden.dim(0)?, self.chunks.rows) {
            let part = |tensor: &Tensor| tensor.narrow(0, start, rows);
            let panel = part(&hidden)?;
            let (log_sum, entropy) = (part(log_sums)?, part(&entropies)?);
            let (of_log_prob, of_entropy) = (part(&of_log_probs)?, part(&of_entropies)?);
            let mut sum =
                self.target_rows(&head, start, rows)?.to_dtype(wide)?.broadcast_mul(&of_log_prob)?;
            for (i, (first, size)) in Self::pieces(head.dim(0)?, self.chunks.vocabulary).enumerate() {
                let chunk = head.narrow(0, first, size)?;
                let log_p = logits(&panel, &chunk, self.scale)?.broadcast_sub(&log_sum)?;
                let slope = log_p.broadcast_add(&entropy)?.broadcast_mul(&of_entropy)?;
                let dz = (log_p.exp()? * slope.broadcast_add(&of_log_prob)?)?.neg()?;
                // Wide: a probability close to 1, rounded to a half type, would not cancel with its target's part in `sum`.
                sum = (sum + dz.matmul(&chunk.to_dtype(wide)?)?)?;
                if learned {
                    let to_chunk = dz.t()?.matmul(&panel.to_dtype(wide)?)?;
                    match to_head.get_mut(i) {
                        Some(sum) => *sum = (&*sum + to_chunk)?,
                        None => to_head.push(to_chunk),
                    }
                }
            }
            to_hidden.push(sum);
        }
        let to_hidden = (Tensor::cat(&to_hidden, 0)? * self.scale)?;
        if !learned {
            return Ok((to_hidden, None));
        }
        let targets = Tensor::from_slice(&self.targets, self.targets.len(), head.device())?;
        let chosen = hidden.to_dtype(wide)?.broadcast_mul(&of_log_probs)?;
        let to_head = (Tensor::cat(&to_head, 0)?.index_add(&targets, &chosen, 0)? * self.scale)?;
        Ok((to_hidden, Some(to_head)))
    }

    fn backward_kernel(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        reduced: &[Reduced],
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let upstream: Vec<Vec<f32>> = upstream.to_vec2()?;
        let [of_log_probs, of_entropies] = upstream.as_slice() else {
            bail!("log-probs: expected gradients (2, N)")
        };
        let zeros = |tensor: &Tensor| tensor.track_op().then(|| vec![0.; tensor.elem_count()]);
        let gradients = Gradients { hidden: zeros(hidden), head: zeros(head) };
        let gradients =
            with_slices("log-probs", [&hidden.contiguous()?, &head.contiguous()?], |[hidden, head]| {
                self.rows(hidden, head).backward(reduced, [of_log_probs, of_entropies], gradients)
            })?;
        let tensor = |values: Option<Vec<f32>>, like: &Tensor| {
            values.map(|values| Tensor::from_vec(values, like.shape(), like.device())).transpose()
        };
        Ok((tensor(gradients.hidden, hidden)?, tensor(gradients.head, head)?))
    }
}

/// Carries the result, which is there already, into the graph, and the gradients out of it.
struct LogProbs {
    pass: Pass,
    result: Tensor,
    saved: Saved,
}

impl CustomOp2 for LogProbs {
    fn name(&self) -> &'static str {
        "log-probs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => Ok((cpu.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("log-probs: the result is not on the CPU"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        match &*storage {
            Storage::Cuda(cuda) => Ok((cuda.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("log-probs: the result is not on the GPU"),
        }
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        result: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.contiguous()?;
        let log_sums = match &self.saved {
            Saved::Kernel(reduced) => return self.pass.backward_kernel(hidden, head, reduced, &upstream),
            Saved::LogSumExp(log_sums) => log_sums,
        };
        let result = result.detach();
        let (to_hidden, to_head) =
            self.pass.backward_tensors(hidden, head, (&result, log_sums), &upstream)?;
        // Leaves without tracking take no gradient; of the tracked ones each gets its own dtype back.
        let to_hidden = hidden.track_op().then(|| to_hidden.to_dtype(hidden.dtype())).transpose()?;
        Ok((to_hidden, to_head.map(|to_head| to_head.to_dtype(head.dtype())).transpose()?))
    }
}
