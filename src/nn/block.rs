//! The pre-norm transformer block of Qwen2.5-VL's decoder and vision tower: attention with rotary positions, then a gated
//! MLP, each added to what came in.

use candle_core::{Result, Tensor};

use super::block_node;
use super::{Linear, RmsNorm, add, swiglu};
use crate::ops::attention::{Mask, Segments, attention};
use crate::ops::fused;
use crate::ops::rope::rope;

/// Weights and shape of a block. The output (L, D) of a forward pass is as wide as its input.
#[derive(Debug, Clone)]
pub struct Block {
    /// Before the attention.
    pub norm1: RmsNorm,
    /// Queries (D -> heads * width).
    pub q: Linear,
    /// Keys (D -> kv_heads * width).
    pub k: Linear,
    /// Values (D -> kv_heads * width).
    pub v: Linear,
    /// Behind the attention (heads * width -> D).
    pub o: Linear,
    /// Before the MLP.
    pub norm2: RmsNorm,
    /// The gated half of the MLP.
    pub gate: Linear,
    /// The other half.
    pub up: Linear,
    /// Back to D.
    pub down: Linear,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub width: usize,
}

impl Block {
    /// `xs` (L, D) packed in `segments`, with the rotary angles `(cos, sin)` (L, width / 2). A block that learns, in f32
    /// on the CPU, is one node of the graph with a backward of its own.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn forward(
        &self,
        xs: &Tensor,
        angles: (&Tensor, &Tensor),
        segments: &Segments,
        mask: Mask,
    ) -> Result<Tensor> {
        if fused(xs) && (xs.track_op() || self.learns()) {
            return block_node::forward(self, xs, angles, segments, mask);
        }
        self.forward_composed(xs, angles, segments, mask)
    }

    /// The composed twin of [`Self::forward`]: a node for each step.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_composed(
        &self,
        xs: &Tensor,
        angles: (&Tensor, &Tensor),
        segments: &Segments,
        mask: Mask,
    ) -> Result<Tensor> {
        self.forward_with(xs, angles, |q, k, v| attention(q, k, v, segments, mask, self.scale()))
    }

    /// As [`Self::forward`] with another attention of rotated queries (L, heads, width), keys and values
    /// (L, kv_heads, width), for example over a cache.
    ///
    /// # Errors
    /// As [`Self::forward`] and `attend`.
    pub fn forward_with(
        &self,
        xs: &Tensor,
        angles: (&Tensor, &Tensor),
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let [q, k, v] = self.qkv(xs, angles)?;
        let out = attend(&q, &k, &v)?.flatten_from(1)?;
        let xs = add(xs, &self.o.forward(&out)?)?;
        let ys = self.norm2.forward(&xs)?;
        add(&xs, &self.down.forward(&swiglu(&self.gate.forward(&ys)?, &self.up.forward(&ys)?)?)?)
    }

    /// Queries and keys, rotated, and values: (L, heads, width) each.
    pub(super) fn qkv(&self, xs: &Tensor, (cos, sin): (&Tensor, &Tensor)) -> Result<[Tensor; 3]> {
        let (l, _) = xs.dims2()?;
        let ys = self.norm1.forward(xs)?;
        let heads = |linear: &Linear, heads: usize| linear.forward(&ys)?.reshape((l, heads, self.width));
        let q = rope(&heads(&self.q, self.heads)?, cos, sin)?;
        let k = rope(&heads(&self.k, self.kv_heads)?, cos, sin)?;
        Ok([q, k, heads(&self.v, self.kv_heads)?])
    }

    /// Factor of the scores.
    pub fn scale(&self) -> f64 {
        (self.width as f64).powf(-0.5)
    }

    /// The same block on the same storage, outside any graph.
    pub fn detached(&self) -> Self {
        Self {
            norm1: self.norm1.detached(),
            q: self.q.detached(),
            k: self.k.detached(),
            v: self.v.detached(),
            o: self.o.detached(),
            norm2: self.norm2.detached(),
            gate: self.gate.detached(),
            up: self.up.detached(),
            down: self.down.detached(),
            ..*self
        }
    }

    /// Whether a gradient would reach any of its tensors.
    pub fn learns(&self) -> bool {
        self.tensors().iter().any(|tensor| tensor.track_op())
    }

    /// All weights.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let linears = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        let norms = [self.norm1.weight(), self.norm2.weight()];
        norms.into_iter().chain(linears.into_iter().flat_map(Linear::tensors)).collect()
    }
}
