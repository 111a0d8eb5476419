//! The image tower: patches, class token, learned positions, encoder, projection of the class token.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{EncoderConfig, VisionConfig};
use super::encoder::Encoder;
use crate::nn::{LayerNorm, Linear};
use crate::ops::attention::{Mask, Segments};

/// The image tower with its projection (transformers 4.51.3, `CLIPVisionTransformer` and `visual_projection`).
#[derive(Debug, Clone)]
pub struct VisionModel {
    image_size: usize,
    patch_size: usize,
    patch_embedding: Linear,
    class_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    projection: Linear,
}

impl VisionModel {
    /// Reads `vision_model.*` and `visual_projection` below `vb`; `projection_dim` is the width of the features.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape. `cfg` must have passed [`super::Config::check`].
    pub fn new(cfg: &VisionConfig, projection_dim: usize, vb: VarBuilder) -> Result<Self> {
        let (d, p) = (cfg.hidden_size, cfg.patch_size);
        let projection = Linear::load_no_bias(d, projection_dim, vb.pp("visual_projection"))?;
        let vb = vb.pp("vision_model");
        let embeddings = vb.pp("embeddings");
        let patches = (cfg.image_size / p).pow(2);
        // A convolution whose stride is its kernel is one product per patch.
        let kernel = embeddings.get((d, cfg.num_channels, p, p), "patch_embedding.weight")?;
        Ok(Self {
            image_size: cfg.image_size,
            patch_size: p,
            patch_embedding: Linear::new(kernel.flatten_from(1)?, None),
            class_embedding: embeddings.get(d, "class_embedding")?,
            position_embedding: embeddings.get((patches + 1, d), "position_embedding.weight")?,
            pre_layrnorm: LayerNorm::load(d, cfg.layer_norm_eps, vb.pp("pre_layrnorm"))?,
            encoder: Encoder::new(EncoderConfig::from(cfg), vb.pp("encoder"))?.for_many_rows()?,
            post_layernorm: LayerNorm::load(d, cfg.layer_norm_eps, vb.pp("post_layernorm"))?,
            projection,
        })
    }

    /// Normalised pixels (B, C, S, S) -> features (B, D), projected, not normalised.
    ///
    /// # Errors
    /// Pixels of another size than the tower's.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, _, h, w) = pixel_values.dims4()?;
        if (h, w) != (self.image_size, self.image_size) {
            candle_core::bail!(
                "clip: pixel_values {:?}, expected (B, 3, {s}, {s})",
                pixel_values.dims(),
                s = self.image_size
            )
        }
        let n = self.position_embedding.dim(0)?;
        let class_rows = (0..b).map(|i| (i * n) as u32).collect();
        self.projection.forward(&self.states(pixel_values, class_rows)?)
    }

    /// Normalised pixels (B, C, S, S) -> what the tower knows of each patch (B * N, D), image by image and row by row.
    ///
    /// # Errors
    /// Pixels of another size than the tower's.
    pub fn patch_states(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, n) = (pixel_values.dim(0)?, self.position_embedding.dim(0)?);
        let rows = (0..b * n).filter(|row| row % n != 0).map(|row| row as u32).collect();
        self.states(pixel_values, rows)
    }

    /// The normalised states of `rows` of all images' tokens, the class token first in each.
    fn states(&self, pixel_values: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
        let xs = self.embed(pixel_values)?;
        let (b, n, d) = xs.dims3()?;
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, xs.device())?;
        let xs = self.pre_layrnorm.forward(&xs.reshape((b * n, d))?)?;
        let xs = self.encoder.forward(xs, &Segments::new(&vec![n; b]), Mask::Full, &rows)?;
        self.post_layernorm.forward(&xs)
    }

    /// (B, C, S, S) -> (B, 1 + N, D): the class token, then the patches row by row.
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, c, h, _) = pixel_values.dims4()?;
        let (p, grid) = (self.patch_size, h / self.patch_size);
        let rows = (pixel_values.reshape(vec![b, c, grid, p, grid, p])?)
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((b, grid * grid, c * p * p))?;
        let patches = self.patch_embedding.forward(&rows)?;
        let class = self.class_embedding.expand((b, 1, self.class_embedding.dim(0)?))?;
        Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.position_embedding)
    }
}
