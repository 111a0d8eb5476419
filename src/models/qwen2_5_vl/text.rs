//! The text model: Qwen2 layers with grouped-query attention and three-axis rotary positions (mRoPE).
//!
//! All sequences of a batch are packed into one row of tokens; nothing is padded. Reference: transformers 4.51.3.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::TextConfig;
use crate::nn::kv_cache::KvCache;
use crate::nn::{Linear, RmsNorm, swiglu};
use crate::ops::attention::{Mask, Segments, attention};
use crate::ops::attention_cached::attention_cached;
use crate::ops::rope::rope;

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

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    fn new(cfg: &TextConfig, vb: VarBuilder) -> Result<Self> {
        let (d, head_dim) = (cfg.hidden_size, cfg.head_dim());
        let (q, kv) = (cfg.num_attention_heads * head_dim, cfg.num_key_value_heads * head_dim);
        Ok(Self {
            q_proj: Linear::load(d, q, vb.pp("q_proj"))?,
            k_proj: Linear::load(d, kv, vb.pp("k_proj"))?,
            v_proj: Linear::load(d, kv, vb.pp("v_proj"))?,
            o_proj: Linear::load_no_bias(q, d, vb.pp("o_proj"))?,
            heads: cfg.num_attention_heads,
            kv_heads: cfg.num_key_value_heads,
            head_dim,
        })
    }

    fn forward(
        &self,
        xs: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        layer: usize,
        context: &mut Context,
    ) -> Result<Tensor> {
        let (l, _) = xs.dims2()?;
        let heads = |xs: Tensor, heads: usize| xs.reshape((l, heads, self.head_dim));
        let q = rope(&heads(self.q_proj.forward(xs)?, self.heads)?, cos, sin)?;
        let k = rope(&heads(self.k_proj.forward(xs)?, self.kv_heads)?, cos, sin)?;
        let v = heads(self.v_proj.forward(xs)?, self.kv_heads)?;
        let scale = (self.head_dim as f64).powf(-0.5);
        let out = match context {
            Context::Packed(segments) => attention(&q, &k, &v, segments, Mask::Causal, scale)?,
            Context::Cached { cache, rows } => {
                attention_cached(&q, &cache.append(layer, &k, &v, rows)?, scale)?
            }
        };
        self.o_proj.forward(&out.reshape((l, self.heads * self.head_dim))?)
    }
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn new(cfg: &TextConfig, vb: VarBuilder) -> Result<Self> {
        let (d, inner) = (cfg.hidden_size, cfg.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load_no_bias(d, inner, vb.pp("gate_proj"))?,
            up_proj: Linear::load_no_bias(d, inner, vb.pp("up_proj"))?,
            down_proj: Linear::load_no_bias(inner, d, vb.pp("down_proj"))?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&swiglu(&self.gate_proj.forward(xs)?, &self.up_proj.forward(xs)?)?)
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Layer {
    fn new(cfg: &TextConfig, vb: VarBuilder) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(cfg.hidden_size, cfg.rms_norm_eps, vb.pp(name));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(cfg, vb.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(cfg, vb.pp("mlp"))?,
        })
    }

    fn forward(
        &self,
        xs: &Tensor,
        angles: (&Tensor, &Tensor),
        index: usize,
        context: &mut Context,
    ) -> Result<Tensor> {
        let xs =
            (xs + self.self_attn.forward(&self.input_layernorm.forward(xs)?, angles, index, context)?)?;
        let ys = self.mlp.forward(&self.post_attention_layernorm.forward(&xs)?)?;
        xs + ys
    }
}

/// Embeddings, layers, final norm and output head.
pub struct TextModel {
    embed_tokens: Tensor,
    layers: Vec<Layer>,
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
            layers: (0..cfg.num_hidden_layers)
                .map(|i| Layer::new(cfg, layers.pp(i)))
                .collect::<Result<_>>()?,
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
        if embeds.dim(0)? != positions.len() {
            candle_core::bail!("text model: {} embeddings, but {} positions", embeds.dim(0)?, positions.len())
        }
        let (cos, sin) = self.angles(positions)?;
        let mut xs = embeds.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            xs = layer.forward(&xs, (&cos, &sin), i, &mut context)?;
        }
        self.norm.forward(&xs)
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

    /// Rotary angles, each frequency taken at its section's axis: two tensors (L, head_dim / 2) in the model's dtype.
    fn angles(&self, positions: &[[i64; 3]]) -> Result<(Tensor, Tensor)> {
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
        Ok((angles.cos()?.to_dtype(self.dtype)?, angles.sin()?.to_dtype(self.dtype)?))
    }
}
