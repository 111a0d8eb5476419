//! Contrastive training of a CLIP (arXiv 2103.00020) where it is known which texts are true of which images.
//!
//! Captions are short, so a text drawn for one image is often true of others in the batch. Such pairs are left out of
//! the softmax instead of being pushed apart.

use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor, bail};
use image::RgbImage;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::models::clip::Clip;
use crate::optim::{AdamW, AdamWConfig, Parameters, clip_grad_norm};

/// The published upper bound of the scale: logits are at most 100 times a cosine.
const MAX_SCALE: f64 = 100.0;
const SCALE: &str = "logit_scale";

/// Images with texts. Text `i` was written for image `i`; further texts belong to none (hard negatives).
#[derive(Debug, Clone)]
pub struct Batch {
    /// N images of the tower's size.
    pub images: Vec<RgbImage>,
    /// M >= N texts.
    pub texts: Vec<String>,
    /// Whether a text is true of an image: `truths[image][text]`, (N, M).
    pub truths: Vec<Vec<bool>>,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean of the two directions' cross-entropies.
    pub loss: f64,
    /// Share of images whose own text scores highest among the texts that are not true of it.
    pub accuracy: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// A CLIP in training.
pub struct ContrastiveTrainer {
    /// The model; its weights follow every step.
    pub clip: Clip,
    /// All parameters by their published names.
    pub parameters: Parameters,
    /// Moments of the optimizer.
    pub optimizer: AdamW,
    max_grad_norm: f64,
}

impl ContrastiveTrainer {
    /// Every parameter of the checkpoint in `dir` is trained, in f32.
    ///
    /// # Errors
    /// As [`Clip::load`].
    pub fn new(dir: &Path, device: &Device, optimizer: AdamWConfig) -> Result<Self> {
        let tensors = Checkpoint::open(dir)?.tensors(DType::F32, device)?;
        let parameters = Parameters::new(tensors)?;
        let clip = Clip::load(dir, DType::F32, device)?.rebuilt(parameters.builder(DType::F32, device))?;
        Ok(Self { clip, parameters, optimizer: AdamW::new(optimizer), max_grad_norm: 1.0 })
    }

    /// One optimizer step.
    ///
    /// # Errors
    /// A batch whose numbers do not fit, a parameter without a gradient, a gradient that is not finite.
    pub fn step(&mut self, batch: &Batch, learning_rate: f64) -> Result<Step> {
        let images = self.clip.encode_images(&batch.images)?;
        let texts = self.clip.encode_texts(&batch.texts)?;
        let Some(scale) = self.parameters.get(SCALE) else {
            return Err(crate::Error::Input(format!("contrastive training: the checkpoint has no {SCALE}")));
        };
        let logits = (cosines(&images, &texts)?.broadcast_mul(&scale.as_tensor().exp()?))?;
        let loss = contrastive_loss(&logits, &batch.truths)?;
        let accuracy = accuracy(&logits.to_vec2()?, &batch.truths);
        let mut gradients = self.parameters.gradients(&loss.backward()?)?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        drop((images, texts, logits));
        let grad_norm = clip_grad_norm(&mut gradients, self.max_grad_norm)?;
        self.optimizer.step(&self.parameters, &gradients, learning_rate)?;
        scale.set(&scale.as_tensor().minimum(MAX_SCALE.ln())?)?;
        Ok(Step { loss, accuracy, grad_norm })
    }
}

/// Cosines of every row of `a` (N, D) with every row of `b` (M, D) -> (N, M); differentiable.
fn cosines(a: &Tensor, b: &Tensor) -> CandleResult<Tensor> {
    let unit = |x: &Tensor| x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?);
    unit(a)?.matmul(&unit(b)?.t()?.contiguous()?)
}

/// Mean of image-to-text and text-to-image cross-entropy over scaled cosines (N, M), M >= N; a pair that is true by
/// chance takes no part.
///
/// # Errors
/// `truths` of another shape.
pub fn contrastive_loss(logits: &Tensor, truths: &[Vec<bool>]) -> CandleResult<Tensor> {
    let (n, m) = logits.dims2()?;
    if n == 0 || m < n || truths.len() != n || truths.iter().any(|row| row.len() != m) {
        bail!("contrastive loss: logits ({n}, {m}) need at least as many texts as images and (N, M) truths")
    }
    let left_out = |(i, row): (usize, &Vec<bool>)| -> Vec<f32> {
        row.iter().enumerate().map(|(j, &t)| if t && i != j { -1e4 } else { 0.0 }).collect()
    };
    let mask: Vec<f32> = truths.iter().enumerate().flat_map(left_out).collect();
    let masked = (logits + Tensor::from_vec(mask, (n, m), logits.device())?.to_dtype(logits.dtype())?)?;
    let own: Vec<u32> = (0..n as u32).collect();
    let own = Tensor::from_vec(own, (n, 1), logits.device())?;
    let positives = masked.gather(&own, 1)?.squeeze(1)?;
    let to_text = (masked.log_sum_exp(1)? - &positives)?.mean_all()?;
    let to_image = (masked.narrow(1, 0, n)?.log_sum_exp(0)? - &positives)?.mean_all()?;
    (to_text + to_image)? * 0.5
}

fn accuracy(logits: &[Vec<f32>], truths: &[Vec<bool>]) -> f64 {
    let right = |(i, row): (usize, &Vec<f32>)| {
        row.iter().zip(&truths[i]).enumerate().all(|(j, (logit, &t))| j == i || t || *logit < row[i])
    };
    let count = logits.iter().enumerate().filter(|pair| right(*pair)).count();
    count as f64 / logits.len().max(1) as f64
}
