//! The text tower: tokens, learned positions, causal encoder, projection of the end-of-text token.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{EncoderConfig, TextConfig};
use super::encoder::Encoder;
use crate::nn::{LayerNorm, Linear};
use crate::ops::attention::{Mask, Segments};

/// The text tower with its projection (transformers 4.51.3, `CLIPTextTransformer` and `text_projection`).
#[derive(Debug, Clone)]
pub struct TextModel {
    token_embedding: Tensor,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    projection: Linear,
}

impl TextModel {
    /// Reads `text_model.*` and `text_projection` below `vb`; `projection_dim` is the width of the features.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape. `cfg` must have passed [`super::Config::check`].
    pub fn new(cfg: &TextConfig, projection_dim: usize, vb: VarBuilder) -> Result<Self> {
        let d = cfg.hidden_size;
        let projection = Linear::load_no_bias(d, projection_dim, vb.pp("text_projection"))?;
        let vb = vb.pp("text_model");
        let embeddings = vb.pp("embeddings");
        Ok(Self {
            token_embedding: embeddings.get((cfg.vocab_size, d), "token_embedding.weight")?,
            position_embedding: embeddings
                .get((cfg.max_position_embeddings, d), "position_embedding.weight")?,
            encoder: Encoder::new(EncoderConfig::from(cfg), vb.pp("encoder"))?,
            final_layer_norm: LayerNorm::load(d, cfg.layer_norm_eps, vb.pp("final_layer_norm"))?,
            projection,
        })
    }

    /// Features (Q, D), projected, not normalised, of Q rows of token ids, each ending with the token that stands for
    /// it: what follows that token cannot reach it through the causal mask, so callers cut it off.
    ///
    /// # Errors
    /// An empty row, a row beyond the position table, an id beyond the vocabulary.
    pub fn forward(&self, rows: &[&[u32]]) -> Result<Tensor> {
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        if let Some(at) = lengths.iter().position(|len| *len == 0) {
            candle_core::bail!("clip: row {at} of the token ids is empty")
        }
        let device = self.token_embedding.device();
        let index = |ids: Vec<u32>| Tensor::from_vec(ids, lengths.iter().sum::<usize>(), device);
        let ids = index(rows.concat())?;
        let positions = index(lengths.iter().flat_map(|len| 0..*len as u32).collect())?;
        let xs = (self.token_embedding.index_select(&ids, 0)?
            + self.position_embedding.index_select(&positions, 0)?)?;
        let ends = lengths.iter().scan(0, |end, len| {
            *end += *len as u32;
            Some(*end - 1)
        });
        let pooled = Tensor::from_vec(ends.collect::<Vec<u32>>(), rows.len(), device)?;
        let xs = self.encoder.forward(xs, &Segments::new(&lengths), Mask::Causal, &pooled)?;
        self.projection.forward(&self.final_layer_norm.forward(&xs)?)
    }
}
