//! The text model: Qwen2 layers with grouped-query attention and three-axis rotary positions (mRoPE).
//!
//! All sequences of a batch are packed into one row of tokens; nothing is padded. Reference: transformers 4.51.3.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;

use super::config::TextConfig;
use crate::nn::kv_cache::KvCache;
use crate::nn::{Block, Linear, RmsNorm};
use crate::ops::attention::{Mask, Segments};
use crate::ops::attention_cached::attention_cached;
use crate::ops::vjp::{leaves, vjp};

/// What the tokens of a forward pass may attend to.
pub enum Context<'a> {
    /// Whole sequences, packed; differentiable.
    Packed(&'a Segments),
    /// New tokens of cached sequences, `rows[i]` for sequence `i`; they are added to the cache.
    Cached {
        /// The sequences' earlier tokens.
        cache: &'a mut KvCache,
        /// New tokens per sequence.
        rows: &'a [usize],
    },
}

/// A decoder layer below `vb`.
fn layer(cfg: &TextConfig, vb: VarBuilder) -> Result<Block> {
    let (d, inner, width) = (cfg.hidden_size, cfg.intermediate_size, cfg.head_dim());
    let (q, kv) = (cfg.num_attention_heads * width, cfg.num_key_value_heads * width);
    let norm = |name: &str| RmsNorm::load(d, cfg.rms_norm_eps, vb.pp(name));
    let (attn, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
    Ok(Block {
        norm1: norm("input_layernorm")?,
        q: Linear::load(d, q, attn.pp("q_proj"))?,
        k: Linear::load(d, kv, attn.pp("k_proj"))?,
        v: Linear::load(d, kv, attn.pp("v_proj"))?,
        o: Linear::load_no_bias(q, d, attn.pp("o_proj"))?,
        norm2: norm("post_attention_layernorm")?,
        gate: Linear::load_no_bias(d, inner, mlp.pp("gate_proj"))?,
        up: Linear::load_no_bias(d, inner, mlp.pp("up_proj"))?,
        down: Linear::load_no_bias(inner, d, mlp.pp("down_proj"))?,
        heads: cfg.num_attention_heads,
        kv_heads: cfg.num_key_value_heads,
        width,
    })
}

/// Embeddings, layers, final norm and output head.
#[derive(Clone)]
pub struct TextModel {
    embed_tokens: Tensor,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
    config: TextConfig,
    device: Device,
    dtype: DType,
}

impl TextModel {
    /// Reads the model below `vb` (`model.` and `lm_head.`; the head is the embedding table when the config ties them).
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(cfg: &TextConfig, vb: VarBuilder) -> Result<Self> {
        let (model, shape) = (vb.pp("model"), (cfg.vocab_size, cfg.hidden_size));
        let embed_tokens = model.get(shape, "embed_tokens.weight")?;
        let lm_head =
            if cfg.tie_word_embeddings { embed_tokens.clone() } else { vb.get(shape, "lm_head.weight")? };
        let layers = model.pp("layers");
        Ok(Self {
            embed_tokens,
            layers: (0..cfg.num_hidden_layers).map(|i| layer(cfg, layers.pp(i))).collect::<Result<_>>()?,
            norm: RmsNorm::load(cfg.hidden_size, cfg.rms_norm_eps, model.pp("norm"))?,
            lm_head: Linear::new(lm_head, None),
            config: cfg.clone(),
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// Embeddings of `ids`: (L, D).
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            candle_core::bail!("token {id} is outside the vocabulary of {} tokens", self.config.vocab_size)
        }
        self.embed_tokens.index_select(&Tensor::new(ids, &self.device)?, 0)
    }

    /// `embeds` (L, D) at `positions` (t, h, w) -> normed hidden states (L, D).
    ///
    /// # Errors
    /// Lengths that do not fit each other or the context.
    pub fn hidden(&self, embeds: &Tensor, positions: &[[i64; 3]], mut context: Context) -> Result<Tensor> {
        let (cos, sin) = self.angles(embeds, positions)?;
        let mut xs = embeds.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            xs = match &mut context {
                Context::Packed(segments) => layer.forward(&xs, (&cos, &sin), segments, Mask::Causal)?,
                Context::Cached { cache, rows } => layer.forward_with(&xs, (&cos, &sin), |q, k, v| {
                    attention_cached(q, &cache.append(i, k, v, rows)?, layer.scale())
                })?,
            };
        }
        self.norm.forward(&xs)
    }

    /// Loss and gradients without a graph through the layers: only the input of each layer is kept, and the layer is run
    /// again when the backward pass reaches it. `loss` turns the normed hidden states (L, D) into a scalar; where it needs
    /// few rows it selects them. The gradients are those of `loss(hidden(..)).backward()`, for variables alone.
    ///
    /// # Errors
    /// As [`Self::hidden`] and `loss`; a loss that depends on nothing trainable has no gradients, which is no error here.
    pub fn backward_checkpointed(
        &self,
        embeds: &Tensor,
        positions: &[[i64; 3]],
        segments: &Segments,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, GradStore)> {
        let (cos, sin) = self.angles(embeds, positions)?;
        let run = |layer: &Block, xs: &Tensor| layer.forward(xs, (&cos, &sin), segments, Mask::Causal);
        // Below the first layer that learns nothing needs a gradient, unless the embeddings do.
        let first = if embeds.track_op() { Some(0) } else { self.layers.iter().position(Block::learns) };
        let first = first.unwrap_or(self.layers.len());
        let mut inputs = vec![];
        let mut xs = embeds.detach();
        for (i, layer) in self.layers.iter().enumerate() {
            let ys = run(&layer.detached(), &xs)?;
            if i >= first {
                inputs.push(xs);
            }
            xs = ys;
        }
        let below = |i: usize| i > first || embeds.track_op();
        let top = leaf(xs, below(self.layers.len()))?;
        let value = loss(&self.norm.forward(&top)?)?;
        let mut grads = leaves(&value)?;
        let mut grad = grads.remove(&top);
        for (i, layer) in self.layers.iter().enumerate().skip(first).rev() {
            let (Some(xs), Some(above)) = (inputs.pop(), grad.take()) else { break };
            let xs = leaf(xs, below(i))?;
            let mut store = vjp(&run(layer, &xs)?, &above)?;
            grad = store.remove(&xs);
            grads.extend(store)?;
        }
        if let (true, Some(grad)) = (embeds.track_op(), grad) {
            grads.extend(vjp(embeds, &grad)?)?;
        }
        Ok((value.detach(), grads))
    }

    /// The same model on the same storage, outside any graph: it sees every step of the optimizer.
    pub fn detached(&self) -> Self {
        Self {
            embed_tokens: self.embed_tokens.detach(),
            layers: self.layers.iter().map(Block::detached).collect(),
            norm: self.norm.detached(),
            lm_head: self.lm_head.detached(),
            config: self.config.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
        }
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Type of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The maps that may take an adapter, by name.
    pub(super) fn maps(&mut self) -> Vec<(String, Vec<&mut Linear>)> {
        let mut maps = vec![];
        for (i, block) in self.layers.iter_mut().enumerate() {
            let attention =
                [("q", &mut block.q), ("k", &mut block.k), ("v", &mut block.v), ("o", &mut block.o)];
            let mlp = [("gate", &mut block.gate), ("up", &mut block.up), ("down", &mut block.down)];
            let attention = attention.map(|(name, linear)| (format!("self_attn.{name}"), linear));
            let mlp = mlp.map(|(name, linear)| (format!("mlp.{name}"), linear));
            for (name, linear) in attention.into_iter().chain(mlp) {
                maps.push((format!("layers.{i}.{name}_proj"), vec![linear]));
            }
        }
        maps
    }

    /// Logits of hidden states (L, D) -> (L, V), in f32.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)?.to_dtype(DType::F32)
    }

    /// The output head (V, D); the embedding table when the config ties them.
    pub fn head(&self) -> &Tensor {
        self.lm_head.weight()
    }

    /// An empty cache for `sequences` sequences.
    pub fn cache(&self, sequences: usize) -> KvCache {
        KvCache::new(self.layers.len(), sequences)
    }

    /// The width of the hidden states.
    pub fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Rotary angles, each frequency taken at its section's axis: two tensors (L, head_dim / 2), f32 for a model in half
    /// precision.
    fn angles(&self, embeds: &Tensor, positions: &[[i64; 3]]) -> Result<(Tensor, Tensor)> {
        if embeds.dim(0)? != positions.len() {
            candle_core::bail!("text model: {} embeddings, but {} positions", embeds.dim(0)?, positions.len())
        }
        let half = self.config.head_dim() / 2;
        let theta = self.config.rope_theta as f32;
        let sections = self.config.mrope_section;
        let frequencies: Vec<(usize, f32)> = (0..half)
            .map(|i| {
                let axis = usize::from(i >= sections[0]) + usize::from(i >= sections[0] + sections[1]);
                (axis, 1.0 / theta.powf((2 * i) as f32 / (2 * half) as f32))
            })
            .collect();
        let angles: Vec<f32> = (positions.iter())
            .flat_map(|at| frequencies.iter().map(|&(axis, frequency)| at[axis] as f32 * frequency))
            .collect();
        let angles = Tensor::from_vec(angles, (positions.len(), half), &self.device)?;
        let dtype = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Ok((angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?))
    }
}

/// `xs` as the place where a backward pass ends, when something below wants its gradient.
fn leaf(xs: Tensor, wanted: bool) -> Result<Tensor> {
    if wanted { Ok(Var::from_tensor(&xs)?.into_inner()) } else { Ok(xs) }
}
