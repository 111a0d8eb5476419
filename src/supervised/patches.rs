//! Dense supervision of a vision tower: what is in each patch of a frame.
//!
//! One label per patch teaches outlines with far fewer frames than one caption per frame does. It is the first stage of
//! the toy world's towers; the classifier behind it is thrown away.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Init;
use image::RgbImage;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::ops::log_prob::log_probs;
use crate::optim::{AdamW, AdamWConfig, Parameters, clip_grad_norm};

/// Frames, and the labels of their patches, row by row: one of each kind.
#[derive(Debug, Clone)]
pub struct PatchBatch {
    /// N images of the tower's size.
    pub images: Vec<RgbImage>,
    /// `labels[image][patch]`.
    pub labels: Vec<Vec<[u32; 2]>>,
}

/// A tower that learns, over tracked parameters.
pub enum Tower {
    /// CLIP's image tower.
    Clip(Box<Clip>),
    /// Qwen2.5-VL's vision tower.
    Qwen(Box<Qwen2_5VlChat>),
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean negative log-probability of the labels of each kind, in nats.
    pub losses: [f64; 2],
}

/// A tower in dense training.
pub struct PatchTrainer {
    tower: Tower,
    /// The tower's parameters by their published names, and the two classifiers (`patches.0`, `patches.1`).
    pub parameters: Parameters,
    /// Moments of the optimizer.
    pub optimizer: AdamW,
}

impl PatchTrainer {
    /// Trains those of `parameters`, which `tower` is built over, that patches depend on; `labels` of each kind.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn new(
        tower: Tower,
        parameters: &Parameters,
        labels: [usize; 2],
        optimizer: AdamWConfig,
    ) -> Result<Self> {
        let (width, mut learned) = match &tower {
            Tower::Clip(clip) => (
                clip.config().vision_config.hidden_size,
                parameters.filtered(|name| name.starts_with("vision_model.")),
            ),
            Tower::Qwen(chat) => (
                chat.model.config.vision.hidden_size,
                parameters
                    .filtered(|name| name.starts_with("visual.") && !name.starts_with("visual.merger.mlp.")),
            ),
        };
        let init = Init::Const(0.0);
        let heads = labels.iter().enumerate().map(|(kind, &count)| {
            Ok((format!("patches.{kind}"), init.var((count, width), DType::F32, &Device::Cpu)?))
        });
        let heads: std::collections::BTreeMap<String, Var> = heads.collect::<candle_core::Result<_>>()?;
        learned.extend(&Parameters::from(heads))?;
        Ok(Self { tower, parameters: learned, optimizer: AdamW::new(optimizer) })
    }

    /// One optimizer step.
    ///
    /// # Errors
    /// Images of another size, labels that do not fit the patches, a parameter without a gradient.
    pub fn step(&mut self, batch: &PatchBatch, learning_rate: f64) -> Result<Step> {
        let (states, labels) = self.states(batch)?;
        if labels.len() != states.dim(0)? {
            return Err(Error::Input(format!(
                "patches: {} labels for {} patches",
                labels.len(),
                states.dim(0)?
            )));
        }
        let mut total: Option<Tensor> = None;
        let mut losses = [0.0; 2];
        for (kind, loss) in losses.iter_mut().enumerate() {
            let name = format!("patches.{kind}");
            let head =
                self.parameters.get(&name).ok_or_else(|| Error::Input(format!("{name} is missing")))?;
            let targets: Vec<u32> = labels.iter().map(|label| label[kind]).collect();
            let of_kind = log_probs(&states, head.as_tensor(), &targets, 1.0)?.log_probs.mean_all()?.neg()?;
            *loss = f64::from(of_kind.to_scalar::<f32>()?);
            total = Some(match total {
                Some(total) => (total + of_kind)?,
                None => of_kind,
            });
        }
        let total = total.ok_or_else(|| Error::Input("patches: no labels".to_owned()))?;
        let mut gradients = self.parameters.gradients(&total.backward()?)?;
        clip_grad_norm(&mut gradients, 1.0)?;
        self.optimizer.step(&self.parameters, &gradients, learning_rate)?;
        Ok(Step { losses })
    }

    /// States of all patches, and their labels in the same order.
    fn states(&self, batch: &PatchBatch) -> Result<(Tensor, Vec<[u32; 2]>)> {
        match &self.tower {
            Tower::Clip(clip) => {
                Ok((clip.patch_states(&batch.images)?, batch.labels.iter().flatten().copied().collect()))
            }
            Tower::Qwen(chat) => {
                let one = |image: &RgbImage| chat.processor.patches(std::slice::from_ref(image));
                let patches = batch.images.par_iter().map(one).collect::<Result<Vec<_>>>()?;
                let grids: Vec<[usize; 3]> = patches.iter().map(|p| p.grid).collect();
                let width = patches.first().map_or(0, |p| p.width);
                let rows: Vec<f32> = patches.into_iter().flat_map(|p| p.rows).collect();
                let pixels = Tensor::from_vec(rows, ((), width), &Device::Cpu)?;
                let (states, places) = chat.model.patch_states(&pixels, &grids)?;
                let mut places = places.into_iter();
                let mut labels = vec![];
                for (grid, of_image) in grids.iter().zip(&batch.labels) {
                    let [_, height, width] = *grid;
                    labels.extend(
                        places
                            .by_ref()
                            .take(height * width)
                            .filter_map(|[row, column]| of_image.get(row * width + column).copied()),
                    );
                }
                Ok((states, labels))
            }
        }
    }
}
