//! Attention of new tokens over cached keys, for generation. Outside autograd: the cache is written in place.

use std::collections::HashMap;
use std::ops::{Deref, Range};

use candle_core::{Layout, Result, Storage, Tensor};
use rayon::prelude::*;

use super::attention::{Mask, repeat_heads, softmax_product};
use super::attention_kernel::{BLOCK, Block, Out, Part, Rows, block_rows};
use super::kernels::attention::Packing;
use super::kernels::decode::Run;
use super::kernels::{check_same, offsets};
use super::{f32_slice, fused, has_kernels};

/// What the new tokens of one sequence attend to.
#[derive(Debug, Clone)]
pub struct CachedKeys {
    /// New tokens of this sequence.
    pub rows: usize,
    /// Keys and values (len, Hkv, D) in order; the new tokens' own are the last `rows` of them.
    pub parts: Vec<(Tensor, Tensor)>,
}

impl CachedKeys {
    fn keys(&self) -> Result<usize> {
        self.parts.iter().map(|(k, _)| k.dim(0)).sum()
    }

    /// The distinct pairs of keys and values, in order, and which of them each sequence attends to. A part that several
    /// sequences share is one pair: the same rows of the same storage.
    pub fn distinct<'a>(sequences: impl Iterator<Item = &'a Self>) -> (Vec<(Tensor, Tensor)>, Vec<Vec<Run>>) {
        let (mut pairs, mut places) = (vec![], HashMap::new());
        let runs = sequences.map(|sequence| {
            let parts = sequence.parts.iter().filter(|(k, _)| k.dims()[0] > 0).map(|(k, v)| {
                let pair = *places.entry((place(k), place(v))).or_insert_with(|| {
                    pairs.push((k.clone(), v.clone()));
                    pairs.len() - 1
                });
                Run { pair, len: k.dims()[0] }
            });
            parts.collect()
        });
        let runs = runs.collect();
        (pairs, runs)
    }

    /// All keys and all values, one sequence behind the other, and where each begins.
    ///
    /// # Errors
    /// Tensors that do not fit each other, more rows than can be counted.
    pub fn packed(sequences: &[Self], scale: f32) -> Result<(Tensor, Tensor, Packing)> {
        let (keys, values): (Vec<_>, Vec<_>) =
            sequences.iter().flat_map(|sequence| sequence.parts.iter().cloned()).unzip();
        if keys.is_empty() {
            candle_core::bail!("attention over a cache: {} sequences without keys", sequences.len())
        }
        let op = "attention over a cache";
        let lengths = sequences.iter().map(Self::keys).collect::<Result<Vec<_>>>()?;
        let packing = Packing {
            cu_q: offsets(op, sequences.iter().map(|sequence| sequence.rows))?,
            cu_k: offsets(op, lengths)?,
            prefixes: vec![],
            mask: Mask::Causal,
            scale,
        };
        Ok((Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?, packing))
    }
}

/// Storage, first value and rows.
fn place(xs: &Tensor) -> (usize, usize, usize) {
    let (storage, layout) = xs.storage_and_layout();
    (&*storage as *const Storage as usize, layout.start_offset(), layout.dims()[0])
}

/// Causal attention of the packed queries `q` (L, H, D), `sequences[i].rows` of them per sequence -> (L, H, D).
///
/// # Errors
/// Shapes that do not fit; queries that track gradients, which the cache would drop.
pub fn attention_cached(q: &Tensor, sequences: &[CachedKeys], scale: f64) -> Result<Tensor> {
    let (l, h, d) = q.dims3()?;
    if q.track_op() {
        candle_core::bail!("attention over a cache drops gradients; train without a cache")
    }
    if sequences.iter().map(|s| s.rows).sum::<usize>() != l {
        candle_core::bail!("attention: {l} query rows do not fit the sequences")
    }
    for sequence in sequences {
        for (k, v) in &sequence.parts {
            let (_, hkv, dk) = k.dims3()?;
            if dk != d || hkv == 0 || h % hkv != 0 || v.dims() != k.dims() {
                candle_core::bail!(
                    "attention: q {:?}, k {:?} and v {:?} do not fit",
                    q.dims(),
                    k.dims(),
                    v.dims()
                )
            }
        }
        if sequence.keys()? < sequence.rows {
            candle_core::bail!("attention: {} new rows, but only {} keys", sequence.rows, sequence.keys()?)
        }
    }
    if has_kernels(q) && l > 0 {
        let parts = sequences.iter().flat_map(|s| &s.parts).flat_map(|(k, v)| [k, v]);
        check_same("attention over a cache", &std::iter::once(q).chain(parts).collect::<Vec<_>>())?;
        return on_device(q, sequences, scale);
    }
    if fused(q) {
        fused_cached(&q.contiguous()?, sequences, scale as f32)
    } else {
        composed(q, sequences, scale)
    }
}

#[cfg(feature = "cuda")]
fn on_device(q: &Tensor, sequences: &[CachedKeys], scale: f64) -> Result<Tensor> {
    super::cuda::attention::cached(q, sequences, scale, super::cuda::Memory::Uninitialised)
}

#[cfg(not(feature = "cuda"))]
fn on_device(q: &Tensor, sequences: &[CachedKeys], scale: f64) -> Result<Tensor> {
    composed(q, sequences, scale)
}

/// The composed twin of [`attention_cached`].
///
/// # Errors
/// As the tensor operations.
pub fn composed(q: &Tensor, sequences: &[CachedKeys], scale: f64) -> Result<Tensor> {
    let (_, h, _) = q.dims3()?;
    let (mut start, mut outputs) = (0, vec![]);
    for sequence in sequences.iter().filter(|s| s.rows > 0) {
        let (keys, values): (Vec<_>, Vec<_>) = sequence.parts.iter().cloned().unzip();
        let heads = |x: Tensor| x.transpose(0, 1)?.contiguous()?.unsqueeze(0);
        let k = repeat_heads(&heads(Tensor::cat(&keys, 0)?)?, h)?;
        let v = repeat_heads(&heads(Tensor::cat(&values, 0)?)?, h)?;
        let rows = heads(q.narrow(0, start, sequence.rows)?)?;
        let out = softmax_product(&rows, &k, &v, Some(sequence.keys()? - sequence.rows), scale)?;
        outputs.push(out.squeeze(0)?.transpose(0, 1)?);
        start += sequence.rows;
    }
    if outputs.is_empty() { Ok(q.clone()) } else { Tensor::cat(&outputs, 0) }
}

fn slice<'a, G: Deref<Target = Storage>>((storage, layout): &'a (G, &Layout)) -> Result<&'a [f32]> {
    match &**storage {
        Storage::Cpu(storage) => f32_slice("attention", storage, layout),
        _ => candle_core::bail!("attention: the cache is on another device than the queries"),
    }
}

fn fused_cached(q: &Tensor, sequences: &[CachedKeys], scale: f32) -> Result<Tensor> {
    let (l, h, width) = q.dims3()?;
    let shape = Shape { h, width, scale };
    let q_guard = q.storage_and_layout();
    let queries = slice(&q_guard)?;
    let guards: Vec<Vec<_>> = (sequences.iter())
        .map(|s| s.parts.iter().map(|(k, v)| (k.storage_and_layout(), v.storage_and_layout())).collect())
        .collect();
    let mut tasks = vec![];
    let mut start = 0;
    for (sequence, guards) in sequences.iter().zip(&guards) {
        let span = (start, sequence.rows, sequence.keys()?);
        let hkv = sequence.parts.first().map_or(Ok(h), |(k, _)| k.dim(1))?;
        let stride = hkv * width;
        let parts = guards.iter().map(|(k, v)| Ok((slice(k)?, slice(v)?))).collect::<Result<Vec<_>>>()?;
        for head in 0..hkv {
            let rows = |data| Rows { data, stride };
            let parts: Vec<Part> = (parts.iter().filter(|(k, _)| !k.is_empty()))
                .map(|(k, v)| {
                    let (keys, values) = (rows(&k[head * width..]), rows(&v[head * width..]));
                    Part { keys, values, len: k.len() / stride }
                })
                .collect();
            let group = head * (h / hkv)..(head + 1) * (h / hkv);
            tasks.extend(blocks(queries, shape, span, group).into_iter().map(|b| (b, parts.clone())));
        }
        start += sequence.rows;
    }
    let mut out = vec![0f32; l * h * width];
    let to = Out { data: out.as_mut_ptr(), stride: h * width };
    tasks.into_par_iter().for_each_init(Vec::new, |scores, ((at, block), parts)| {
        let mut lse = [0f32; BLOCK];
        // SAFETY: the blocks cover each (row, head) once; `at` is the first element of this block's rows, which lie
        // as far apart as its queries.
        unsafe {
            block.forward(&parts, to.rows(at, block.queries.stride), lse.as_mut_ptr(), scores);
        }
    });
    Tensor::from_vec(out, (l, h, width), q.device())
}

#[derive(Clone, Copy)]
struct Shape {
    h: usize,
    width: usize,
    scale: f32,
}

/// The blocks of one sequence and one key head, each with the index of its first element. A single new token takes the
/// query heads of the group as the rows of a block; several tokens take blocks of their own for each head.
fn blocks<'a>(
    q: &'a [f32],
    Shape { h, width, scale }: Shape,
    (start, rows, keys): (usize, usize, usize),
    group: Range<usize>,
) -> Vec<(usize, Block<'a>)> {
    let block = |at: usize, rows, stride, visible, step| {
        (at, Block { queries: Rows { data: &q[at..], stride }, rows, width, visible, step, scale })
    };
    if rows == 1 {
        let heads = group.clone().step_by(BLOCK);
        return heads
            .map(|at| block((start * h + at) * width, BLOCK.min(group.end - at), width, keys, 0))
            .collect();
    }
    let size = block_rows(rows);
    let firsts = || (0..rows).step_by(size);
    (group.flat_map(|head| firsts().map(move |first| (head, first))))
        .map(|(head, first)| {
            let at = ((start + first) * h + head) * width;
            block(at, size.min(rows - first), h * width, keys - rows + first + 1, 1)
        })
        .collect()
}
