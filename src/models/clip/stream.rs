//! Encoding frames while they arrive.

use candle_core::Tensor;
use image::RgbImage;

use super::Clip;
use crate::error::Result;

/// Collects images into batches and encodes each batch as soon as it is full; made by [`Clip::stream`].
#[derive(Debug)]
pub struct ImageStream<'a> {
    clip: &'a Clip,
    waiting: Vec<RgbImage>,
    encoded: Vec<Tensor>,
    images: usize,
}

impl<'a> ImageStream<'a> {
    pub(super) fn new(clip: &'a Clip) -> Self {
        Self { clip, waiting: Vec::with_capacity(clip.image_batch()), encoded: vec![], images: 0 }
    }

    /// Adds an image of the tower's size; encodes when that fills a batch.
    ///
    /// # Errors
    /// An image of another size, at the end of its batch.
    pub fn push(&mut self, image: RgbImage) -> Result<()> {
        self.waiting.push(image);
        self.images += 1;
        if self.waiting.len() == self.clip.image_batch() { self.encode() } else { Ok(()) }
    }

    /// Images pushed so far.
    pub fn len(&self) -> usize {
        self.images
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.images == 0
    }

    /// Features (T, D) of all images in the order in which they came; (0, D) without any.
    ///
    /// # Errors
    /// An image of another size in the last batch.
    pub fn finish(mut self) -> Result<Tensor> {
        if !self.waiting.is_empty() {
            self.encode()?;
        }
        self.clip.rows(self.encoded)
    }

    fn encode(&mut self) -> Result<()> {
        self.encoded.push(self.clip.encode_images(&self.waiting)?);
        self.waiting.clear();
        Ok(())
    }
}
