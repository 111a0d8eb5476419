//! Keys and values of earlier tokens, one buffer per sequence and layer.
//!
//! A sequence may begin with a prefix that it shares with others ([`KvCache::fork`]): the prefix is stored once, each
//! continuation owns only its tail. Buffers are written in place, outside autograd.

use candle_core::{Result, Tensor};

use crate::ops::attention_cached::CachedKeys;

/// Rows a buffer starts with; it grows by a quarter when full.
const CAPACITY: usize = 256;

/// Rows of a buffer of `room` rows once it must hold `needed`.
fn grown(room: usize, needed: usize) -> usize {
    if needed <= room { room } else { needed.max(room + room / 4).max(CAPACITY) }
}

/// Rows that a buffer has taken once `prompt` rows came in chunks of `chunk`, and then `new` one by one.
pub(crate) fn capacity(prompt: usize, chunk: usize, new: usize) -> usize {
    let chunks = (0..prompt).step_by(chunk.max(1)).map(|start| prompt.min(start + chunk));
    chunks.chain(prompt + 1..=prompt + new).fold(0, grown)
}

#[derive(Debug, Clone)]
struct Buffer {
    /// (capacity, Hkv, D)
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl Buffer {
    fn append(slot: &mut Option<Buffer>, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (rows, hkv, d) = keys.dims3()?;
        let len = slot.as_ref().map_or(0, |b| b.len);
        let room = slot.as_ref().map_or(0, |b| b.keys.dims()[0]);
        if len + rows > room {
            let capacity = grown(room, len + rows);
            let larger = |old: Option<&Tensor>| -> Result<Tensor> {
                let new = Tensor::zeros((capacity, hkv, d), keys.dtype(), keys.device())?;
                if let Some(old) = old.filter(|_| len > 0) {
                    new.slice_set(&old.narrow(0, 0, len)?.contiguous()?, 0, 0)?;
                }
                Ok(new)
            };
            let (k, v) = (slot.as_ref().map(|b| &b.keys), slot.as_ref().map(|b| &b.values));
            *slot = Some(Buffer { keys: larger(k)?, values: larger(v)?, len });
        }
        if let Some(buffer) = slot {
            buffer.keys.slice_set(&keys.contiguous()?, 0, len)?;
            buffer.values.slice_set(&values.contiguous()?, 0, len)?;
            buffer.len += rows;
        }
        Ok(())
    }

    fn filled(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.keys.narrow(0, 0, self.len)?, self.values.narrow(0, 0, self.len)?))
    }
}

#[derive(Debug, Clone)]
struct Sequence {
    /// Shared runs before the tail, each with its layers; never written again.
    prefix: Vec<Vec<(Tensor, Tensor)>>,
    tail: Vec<Option<Buffer>>,
    len: usize,
}

/// The caches of a batch of sequences.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: usize,
    sequences: Vec<Sequence>,
}

impl KvCache {
    /// Empty caches for `sequences` sequences of a model with `layers` layers.
    pub fn new(layers: usize, sequences: usize) -> Self {
        let empty = Sequence { prefix: vec![], tail: vec![None; layers], len: 0 };
        Self { layers, sequences: vec![empty; sequences] }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens that sequence `i` holds; 0 when there is no such sequence.
    pub fn len(&self, i: usize) -> usize {
        self.sequences.get(i).map_or(0, |s| s.len)
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.sequences.iter().all(|s| s.len == 0)
    }

    /// Adds the sequences of `other` behind those of `self`.
    pub fn extend(&mut self, other: KvCache) {
        self.sequences.extend(other.sequences);
    }

    /// Keeps the sequences whose flag is set, in order.
    pub fn retain(&mut self, keep: &[bool]) {
        let mut flags = keep.iter();
        self.sequences.retain(|_| flags.next().copied().unwrap_or(false));
    }

    /// `counts[i]` continuations of sequence `i`, which they share as their prefix; in order.
    ///
    /// # Errors
    /// Another number of counts than of sequences, or a sequence whose layers are not all filled.
    pub fn fork(self, counts: &[usize]) -> Result<Self> {
        let layers = self.layers;
        if counts.len() != self.sequences.len() {
            candle_core::bail!("kv cache: {} counts for {} sequences", counts.len(), self.sequences.len())
        }
        let mut sequences = vec![];
        for (sequence, &count) in self.sequences.into_iter().zip(counts) {
            if count == 1 {
                sequences.push(sequence);
                continue;
            }
            let mut prefix = sequence.prefix;
            let run: Vec<_> = sequence.tail.iter().flatten().map(Buffer::filled).collect::<Result<_>>()?;
            if run.len() == layers {
                prefix.push(run);
            } else if sequence.len > 0 {
                candle_core::bail!("kv cache: {} of {layers} layers are filled", run.len())
            }
            let fork = Sequence { prefix, tail: vec![None; layers], len: sequence.len };
            sequences.extend(vec![fork; count]);
        }
        Ok(Self { layers, sequences })
    }

    /// Appends the packed `keys` and `values` (L, Hkv, D) of layer `layer`, `rows[i]` of them to sequence `i`, and
    /// returns what each sequence's queries attend to.
    ///
    /// # Errors
    /// Row counts that do not fit the tensors or the number of sequences.
    pub fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        rows: &[usize],
    ) -> Result<Vec<CachedKeys>> {
        let (l, _, _) = keys.dims3()?;
        if rows.len() != self.sequences.len() || rows.iter().sum::<usize>() != l || layer >= self.layers {
            candle_core::bail!(
                "kv cache: {l} rows for {} sequences of {} layers, given as {rows:?} for layer {layer}",
                self.sequences.len(),
                self.layers
            )
        }
        let mut start = 0;
        let mut attended = Vec::with_capacity(rows.len());
        for (sequence, &rows) in self.sequences.iter_mut().zip(rows) {
            let slot = &mut sequence.tail[layer];
            Buffer::append(slot, &keys.narrow(0, start, rows)?, &values.narrow(0, start, rows)?)?;
            start += rows;
            let mut parts: Vec<_> = sequence.prefix.iter().map(|run| run[layer].clone()).collect();
            if let Some(buffer) = slot {
                parts.push(buffer.filled()?);
            }
            if layer + 1 == self.layers {
                sequence.len += rows;
            }
            attended.push(CachedKeys { rows, parts });
        }
        Ok(attended)
    }
}
