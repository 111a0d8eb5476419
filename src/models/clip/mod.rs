//! CLIP: images and texts to features of one width, comparable by cosine (arXiv 2103.00020).
//!
//! Any ViT checkpoint in Hugging Face layout, as transformers 4.51.3 (`modeling_clip.py`) computes it. Texts are not
//! padded: each is packed at its true length and cut behind its end-of-text token, which changes nothing because the
//! text tower is causal and only that token is read.

mod config;
mod encoder;
mod processor;
mod revision;
mod stream;
mod text;
mod tokenizer;
mod vision;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;

pub use config::{Activation, Config, TextConfig, VisionConfig};
pub use processor::Processor;
pub use stream::ImageStream;
pub use text::TextModel;
pub use tokenizer::ClipTokenizer;
pub use vision::VisionModel;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Tokens that go through the image tower together: enough for the matrix products, little enough for the caches.
const IMAGE_TOKENS: usize = 1028;

/// Texts that go through the tower together.
const TEXT_BATCH: usize = 64;

/// Raised when the same checkpoint begins to give other features, so that cached ones are not used again.
const FEATURES: u32 = 1;

/// Buffers that old files carry although they are no parameters.
const BUFFERS: [&str; 2] = ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"];

/// Both towers with their tokenizer and image processor.
#[derive(Debug, Clone)]
pub struct Clip {
    dir: PathBuf,
    config: Config,
    vision: VisionModel,
    text: TextModel,
    tokenizer: Option<ClipTokenizer>,
    processor: Processor,
    revision: String,
    dtype: DType,
    device: Device,
}

impl Clip {
    /// Loads a folder in Hugging Face layout: `config.json` and safetensors; `preprocessor_config.json` where there is
    /// one; `tokenizer.json`, or `vocab.json` with `merges.txt`, needed by [`Self::encode_texts`] alone.
    ///
    /// # Errors
    /// A config that contradicts itself, the processor or the weights; tensors that are missing, of another shape, not
    /// finite, or that nothing in the model asks for; damaged tokenizer files.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let config: Config = checkpoint.config()?;
        config.check().map_err(|cause| Error::checkpoint(dir, cause))?;
        let processor = Processor::load(dir, config.vision_config.image_size)?;
        let tokenizer = ClipTokenizer::load(dir, config.text_config.max_position_embeddings)?;
        let identity = format!("features {FEATURES}, {dtype:?}, {}", processor.description());
        let build = || -> Result<_> {
            let towers = towers(&config, checkpoint.var_builder(dtype, device));
            let towers = towers.map_err(|e| Error::checkpoint(dir, e))?;
            checkpoint.finish(&BUFFERS)?;
            Ok(towers)
        };
        let (towers, revision) = rayon::join(build, || revision::revision(dir, &identity));
        let ((vision, text), revision) = (towers?, revision?);
        let (dir, device) = (dir.to_owned(), device.clone());
        Ok(Self { dir, config, vision, text, tokenizer, processor, revision, dtype, device })
    }

    /// Features (B, D) in f32, projected, not normalised, of images that are already resized and cropped to
    /// [`Self::image_size`]. Runs in batches of [`Self::image_batch`].
    ///
    /// # Errors
    /// An image of another size.
    pub fn encode_images(&self, images: &[RgbImage]) -> Result<Tensor> {
        let batches = images.chunks(self.image_batch()).map(|batch| {
            let side = self.image_size() as usize;
            let pixels = self.processor.pixel_values(batch)?;
            self.encode_batch(&Tensor::from_vec(pixels, (batch.len(), 3, side, side), &Device::Cpu)?)
        });
        self.rows(batches.collect::<Result<_>>()?)
    }

    /// A stream that images are pushed into one by one and that encodes them in batches as they arrive.
    pub fn stream(&self) -> ImageStream<'_> {
        ImageStream::new(self)
    }

    /// Features (Q, D) in f32, projected, not normalised. Long texts are cut to the tower's positions.
    ///
    /// # Errors
    /// A folder without tokenizer files; a tokenizer that belongs to another model.
    pub fn encode_texts(&self, texts: &[String]) -> Result<Tensor> {
        let rows: Vec<Vec<u32>> = texts.iter().map(|text| self.tokenize(text)).collect::<Result<_>>()?;
        self.text_embeds(&rows)
    }

    /// Token ids of one text, from start of text to end of text, without padding.
    ///
    /// # Errors
    /// As [`Self::encode_texts`].
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let Some(tokenizer) = &self.tokenizer else {
            let cause = "holds neither tokenizer.json nor vocab.json with merges.txt, which texts need";
            return Err(Error::checkpoint(&self.dir, cause));
        };
        let ids = tokenizer.encode(text)?;
        let vocab = self.config.text_config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            let cause = format!("gives token {id}, but text_config.vocab_size in config.json is {vocab}");
            return Err(Error::checkpoint(tokenizer.path(), cause));
        }
        if self.config.text_config.pooled(&ids).is_none() {
            let eos = self.config.text_config.eos_token_id;
            let cause = format!("does not end texts with text_config.eos_token_id {eos} of config.json");
            return Err(Error::checkpoint(tokenizer.path(), cause));
        }
        Ok(ids)
    }

    /// Features (B, D) in f32 of normalised pixels (B, 3, S, S) of any float type.
    ///
    /// # Errors
    /// Pixels of another size.
    pub fn image_embeds(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = pixel_values.dims4()?;
        let side = self.image_size() as usize;
        if (c, h, w) != (3, side, side) {
            return Err(Error::Input(format!(
                "clip: pixel_values {:?}, expected (B, 3, {side}, {side})",
                pixel_values.dims()
            )));
        }
        let size = self.image_batch();
        let batches = (0..b).step_by(size);
        let batches = batches
            .map(|at| self.encode_batch(&pixel_values.narrow(0, at, size.min(b - at))?))
            .collect::<Result<_>>()?;
        self.rows(batches)
    }

    /// Features (Q, D) in f32 of rows of token ids, padded or not. A row without an end-of-text token is read at its
    /// first position, as the reference does it, with a warning.
    ///
    /// # Errors
    /// An empty row, more tokens than the tower has positions, an id beyond the vocabulary.
    pub fn text_embeds(&self, input_ids: &[Vec<u32>]) -> Result<Tensor> {
        let cfg = &self.config.text_config;
        let mut rows: Vec<&[u32]> = vec![];
        for (i, ids) in input_ids.iter().enumerate() {
            if ids.is_empty() || ids.len() > cfg.max_position_embeddings {
                return Err(Error::Input(format!(
                    "clip: row {i} of input_ids has {} tokens, expected 1 to {} (max_position_embeddings)",
                    ids.len(),
                    cfg.max_position_embeddings
                )));
            }
            if let Some(id) = ids.iter().find(|id| **id as usize >= cfg.vocab_size) {
                return Err(Error::Input(format!(
                    "clip: row {i} of input_ids holds {id}, expected ids below {} (vocab_size)",
                    cfg.vocab_size
                )));
            }
            let end = cfg.pooled(ids).unwrap_or_else(|| {
                tracing::warn!(
                    row = i,
                    eos = cfg.eos_token_id,
                    "no end-of-text token; the first token is read"
                );
                0
            });
            rows.push(&ids[..=end]);
        }
        let batches =
            rows.chunks(TEXT_BATCH).map(|rows| Ok(self.text.forward(rows)?.to_dtype(DType::F32)?));
        self.rows(batches.collect::<Result<_>>()?)
    }

    /// What the image tower knows of each patch (B * N, hidden), image by image and row by row, of images as
    /// [`Self::encode_images`] takes them; all in one batch.
    ///
    /// # Errors
    /// An image of another size.
    pub fn patch_states(&self, images: &[RgbImage]) -> Result<Tensor> {
        let side = self.image_size() as usize;
        let pixels = self.processor.pixel_values(images)?;
        let pixels = Tensor::from_vec(pixels, (images.len(), 3, side, side), &Device::Cpu)?;
        Ok(self.vision.patch_states(&pixels.to_device(&self.device)?.to_dtype(self.dtype)?)?)
    }

    /// Where its tensors are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Side, in pixels, of the images that [`Self::encode_images`] takes.
    pub fn image_size(&self) -> u32 {
        self.processor.size()
    }

    /// Images that go through the tower together.
    pub fn image_batch(&self) -> usize {
        let vision = &self.config.vision_config;
        let tokens = (vision.image_size / vision.patch_size).pow(2) + 1;
        (IMAGE_TOKENS / tokens).max(1)
    }

    /// The same CLIP over other tensors of the same names and shapes; on the CPU it copies those of the image tower that are not
    /// tracked.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn rebuilt(&self, vb: VarBuilder) -> Result<Self> {
        let (vision, text) = towers(&self.config, vb)?;
        Ok(Self { vision, text, ..self.clone() })
    }

    /// Identifies everything that decides the features of a frame: all bytes of weights and config, the processor's
    /// settings, the dtype.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The image processor.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn encode_batch(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixel_values = pixel_values.to_device(&self.device)?.to_dtype(self.dtype)?;
        Ok(self.vision.forward(&pixel_values)?.to_dtype(DType::F32)?)
    }

    /// Batches of features one below the other; (0, D) when there are none.
    fn rows(&self, batches: Vec<Tensor>) -> Result<Tensor> {
        Ok(match batches.as_slice() {
            [] => Tensor::zeros((0, self.config.projection_dim), DType::F32, &self.device)?,
            [one] => one.clone(),
            more => Tensor::cat(more, 0)?,
        })
    }
}

fn towers(config: &Config, vb: VarBuilder) -> candle_core::Result<(VisionModel, TextModel)> {
    // Only the contrastive loss uses the scale, but a checkpoint without it is no CLIP checkpoint.
    vb.get((), "logit_scale")?;
    let vision = VisionModel::new(&config.vision_config, config.projection_dim, vb.clone())?;
    let text = TextModel::new(&config.text_config, config.projection_dim, vb)?;
    Ok((vision, text))
}
