//! Attention on a device.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Result, Shape, Tensor};

use super::{Input, Memory, device, run, run_tensors, tensor};
use crate::ops::attention_cached::CachedKeys;
use crate::ops::kernels::attention::{Packing, Shape as Heads, backward, forward, padded};
use crate::ops::kernels::decode::{Cached, decode};

/// Output (L, H, D) and, outside any graph, the log-sum-exp (H, L).
///
/// # Errors
/// Shapes, types and offsets without kernels; the driver's.
pub fn attend(packing: &Packing, [q, k, v]: [Input; 3]) -> Result<(CudaStorage, Shape, Tensor)> {
    let dims = [q.1.dims(), k.1.dims(), v.1.dims()];
    let heads = Heads::new("attention", dims, q.0.dtype())?.within(device::shared_memory(q.0.device())?);
    let mut outputs = run(&forward(packing, &heads)?, &[q, k, v], Memory::Uninitialised)?;
    match (outputs.pop(), outputs.pop()) {
        (Some(lse), Some(out)) => Ok((out, q.1.shape().clone(), tensor(lse, &[heads.heads, heads.rows]))),
        _ => candle_core::bail!("attention: the launches gave no output"),
    }
}

/// Gradients of q, k and v from those, the output, its gradient and the log-sum-exp; all contiguous.
///
/// # Errors
/// As [`attend`].
pub fn gradients(packing: &Packing, tensors: [&Tensor; 6]) -> Result<[Tensor; 3]> {
    let [q, k, v, ..] = tensors;
    let heads = Heads::new("attention backward", [q.dims(), k.dims(), v.dims()], q.dtype())?
        .within(device::shared_memory(q.device().as_cuda_device()?)?);
    let outputs = run_tensors(&backward(packing, &heads)?, &tensors, Memory::Uninitialised)?;
    outputs.try_into().or_else(|_| candle_core::bail!("attention backward: the launches gave no output"))
}

/// Causal attention over caches: one new row per sequence is spread over the keys, more go through the packed kernel. `memory`
/// is what outputs hold before.
///
/// # Errors
/// As [`attend`].
pub fn cached(q: &Tensor, sequences: &[CachedKeys], scale: f64, memory: Memory) -> Result<Tensor> {
    let width = q.dim(2)?;
    let queries = padded(q)?;
    let one_each = sequences.iter().all(|sequence| sequence.rows <= 1);
    let out = if one_each {
        spread(&queries, sequences, scale as f32, memory)?
    } else {
        packed(&queries, sequences, scale as f32, memory)?
    };
    if out.dim(2)? == width { Ok(out) } else { out.narrow(2, 0, width)?.contiguous() }
}

fn spread(q: &Tensor, sequences: &[CachedKeys], scale: f32, memory: Memory) -> Result<Tensor> {
    let (pairs, runs) = CachedKeys::distinct(sequences.iter().filter(|sequence| sequence.rows == 1));
    let pairs = (pairs.into_iter())
        .map(|(k, v)| Ok([padded(&k)?, padded(&v)?]))
        .collect::<Result<Vec<[Tensor; 2]>>>()?;
    let Some([k, v]) = pairs.first() else { return Ok(q.clone()) };
    if let Some([other, _]) = pairs.iter().find(|[other, _]| other.dims()[1..] != k.dims()[1..]) {
        candle_core::bail!(
            "attention over a cache: keys {:?} and {:?} of different sequences differ in their heads",
            k.dims(),
            other.dims()
        )
    }
    let heads = Heads::new("attention over a cache", [q.dims(), k.dims(), v.dims()], q.dtype())?;
    let rows = pairs.iter().map(|[k, _]| k.dim(0)).collect::<Result<Vec<_>>>()?;
    let multiprocessors = device::multiprocessors(q.device())?;
    let cached = Cached { sequences: runs, rows, scale, multiprocessors };
    let inputs: Vec<&Tensor> = std::iter::once(q).chain(pairs.iter().flatten()).collect();
    let mut outputs = run_tensors(&decode(&cached, &heads)?, &inputs, memory)?;
    outputs.pop().map_or_else(|| candle_core::bail!("attention: the launches gave no output"), Ok)
}

fn packed(q: &Tensor, sequences: &[CachedKeys], scale: f32, memory: Memory) -> Result<Tensor> {
    let (k, v, packing) = CachedKeys::packed(sequences, scale)?;
    let (k, v) = (padded(&k)?, padded(&v)?);
    let heads = Heads::new("attention over a cache", [q.dims(), k.dims(), v.dims()], q.dtype())?
        .within(device::shared_memory(q.device().as_cuda_device()?)?);
    let outputs = run_tensors(&forward(&packing, &heads)?, &[q, &k, &v], memory)?;
    outputs
        .into_iter()
        .next()
        .map_or_else(|| candle_core::bail!("attention: the launches gave no output"), Ok)
}
