//! Supervised training of a Qwen2.5-VL on conversations about frames: cross-entropy on the replies.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::qwen2_5_vl::mrope::Media;
use crate::models::qwen2_5_vl::packed::{Group, Sharing};
use crate::models::qwen2_5_vl::processor::Patches;
use crate::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use crate::ops::log_prob::log_probs;
use crate::optim::{AdamW, AdamWConfig, Parameters, add_gradients, clip_grad_norm};
use crate::text::{Message, Pad, Part, Role, expand_pads};

/// Frames, and what is said about them: each turn is a text of the user's and the reply to be learned. A turn sees the frames
/// and nothing of the other turns, as a question does that is asked alone; the frames go through the model once.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Shown as separate images before each text; planned sizes.
    pub images: Vec<RgbImage>,
    /// Texts and replies.
    pub turns: Vec<(String, String)>,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean negative log-probability of the learned tokens.
    pub loss: f64,
    /// Learned tokens.
    pub tokens: usize,
    /// Tokens that went through the model.
    pub length: usize,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Which part of the model learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// Everything.
    All,
    /// The text model; the vision tower stays as it is.
    Text,
}

/// A Qwen2.5-VL in supervised training.
pub struct TurnTrainer {
    /// The model with its tokenizer; its weights follow every step.
    pub chat: Qwen2_5VlChat,
    /// All parameters by their published names.
    pub parameters: Parameters,
    /// Moments of the optimizer.
    pub optimizer: AdamW,
    learned: Parameters,
    max_grad_norm: f64,
}

/// A conversation as token ids: what its turns begin with in common, and the rest of each with its reply.
struct Encoded {
    shared: Prompt,
    rests: Vec<Vec<u32>>,
    /// Tokens of each rest that come before the reply.
    asked: Vec<usize>,
    patches: Vec<Patches>,
}

impl Encoded {
    /// Tokens of its replies.
    fn learned(&self) -> usize {
        self.rests.iter().zip(&self.asked).map(|(rest, asked)| rest.len() - asked).sum()
    }
}

/// Conversations that go through the model together. More would not be faster on a CPU: their activations leave the cache.
const TOGETHER: usize = 4;

impl TurnTrainer {
    /// Starts from the checkpoint in `dir`, in f32.
    ///
    /// # Errors
    /// As [`Qwen2_5VlChat::load`].
    pub fn new(dir: &Path, device: &Device, learn: Learn, optimizer: AdamWConfig) -> Result<Self> {
        let mut chat = Qwen2_5VlChat::load(dir, DType::F32, device)?;
        let tensors = Qwen2_5Vl::weights(dir)?.tensors(DType::F32, device)?;
        let parameters = Parameters::new(tensors)?;
        let learns = |name: &str| learn == Learn::All || !name.starts_with("visual.");
        let detached = parameters.detached();
        let tensors: HashMap<String, Tensor> = (parameters.tracked().into_iter())
            .map(|(name, tracked)| match detached.get(&name) {
                Some(frozen) if !learns(&name) => (name, frozen.clone()),
                _ => (name, tracked),
            })
            .collect();
        chat.model =
            Qwen2_5Vl::new(&chat.model.config, VarBuilder::from_tensors(tensors, DType::F32, device))?;
        let learned = parameters.filtered(learns);
        Ok(Self { chat, parameters, optimizer: AdamW::new(optimizer), learned, max_grad_norm: 1.0 })
    }

    /// One optimizer step on a batch. Its gradient is the sum over parts of a few conversations, computed side by side
    /// and added in order, so that it does not depend on the number of threads.
    ///
    /// # Errors
    /// Images of a wrong size, an empty batch, a parameter without a gradient.
    pub fn step(&mut self, batch: &[Conversation], learning_rate: f64) -> Result<Step> {
        let encoded: Vec<Encoded> = batch.par_iter().map(|c| self.encode(c)).collect::<Result<_>>()?;
        let tokens: usize = encoded.iter().map(Encoded::learned).sum();
        if tokens == 0 {
            return Err(Error::Input("supervised step: expected replies to learn, got none".into()));
        }
        let one = |part: &[Encoded]| {
            let (sum, length) = self.loss(part)?;
            let loss = (sum / tokens as f64)?;
            let gradients = self.learned.received(&loss.backward()?);
            Ok((f64::from(loss.to_scalar::<f32>()?), length, gradients))
        };
        let parts = encoded.par_chunks(TOGETHER).map(one).collect::<Result<Vec<_>>>()?;
        let (mut loss, mut length, mut gradients) = (0.0, 0, BTreeMap::new());
        for (of_part, tokens, received) in parts {
            (loss, length) = (loss + of_part, length + tokens);
            add_gradients(&mut gradients, received)?;
        }
        let mut gradients = self.learned.complete(gradients)?;
        let grad_norm = clip_grad_norm(&mut gradients, self.max_grad_norm)?;
        self.optimizer.step(&self.learned, &gradients, learning_rate)?;
        Ok(Step { loss, tokens, length, grad_norm })
    }

    /// Negative log-probability of the replies' tokens (a scalar, summed), and the number of all tokens.
    fn loss(&self, encoded: &[Encoded]) -> Result<(Tensor, usize)> {
        let model = &self.chat.model;
        let groups: Vec<Group> =
            encoded.iter().map(|part| Group { prompt: &part.shared, completions: &part.rests }).collect();
        let mut packed = model.pack_completions(&groups, Sharing::Shared)?;
        packed.batch.features.extend(self.features(encoded)?);
        let hidden = model.hidden_packed(&packed.batch)?;

        let asked: Vec<usize> = encoded.iter().flat_map(|part| part.asked.iter().copied()).collect();
        let replies = |of: &[Vec<u32>]| -> Vec<u32> {
            of.iter().zip(&asked).flat_map(|(one, &asked)| one[asked..].iter().copied()).collect()
        };
        let (rows, targets) = (replies(&packed.rows), replies(&packed.targets));
        let rows = Tensor::new(rows, hidden.device())?;
        let chosen = log_probs(&hidden.index_select(&rows, 0)?, model.text().head(), &targets, 1.0)?;
        Ok((chosen.log_probs.sum_all()?.neg()?, packed.batch.input_ids.len()))
    }

    /// Features of all images, in order; `None` without images.
    fn features(&self, encoded: &[Encoded]) -> Result<Option<Tensor>> {
        let patches: Vec<&Patches> = encoded.iter().flat_map(|part| &part.patches).collect();
        let Some(first) = patches.first() else { return Ok(None) };
        let grids: Vec<[usize; 3]> = patches.iter().map(|p| p.grid).collect();
        let values: Vec<f32> = patches.iter().flat_map(|p| p.rows.iter().copied()).collect();
        let shape = (values.len() / first.width, first.width);
        let pixels = Tensor::from_vec(values, shape, &Device::Cpu)?;
        Ok(Some(self.chat.model.vision(&pixels, &grids)?))
    }

    fn encode(&self, conversation: &Conversation) -> Result<Encoded> {
        let chat = &self.chat;
        let one = |image: &RgbImage| chat.processor.patches(std::slice::from_ref(image));
        let patches: Vec<Patches> = conversation.images.iter().map(one).collect::<Result<_>>()?;
        let media: Vec<Media> = patches.iter().map(|p| Media::Image { grid: p.grid }).collect();
        let merge = chat.processor.merge_size;
        let counts: Vec<usize> = media.iter().map(|m| m.tokens(merge)).collect::<Result<_>>()?;
        let Some(&end) = chat.stop_tokens.first() else {
            return Err(Error::Input(
                "supervised training: the checkpoint names no token that ends a reply".into(),
            ));
        };
        let (mut turns, mut asked) = (vec![], vec![]);
        for (text, reply) in &conversation.turns {
            let content =
                std::iter::repeat_n(Part::Image, media.len()).chain([Part::text(text.as_str())]).collect();
            let rendered = chat.template.prompt(&[Message::new(Role::User, content)])?;
            let pads = [Pad { id: chat.model.config.image_token_id, counts: &counts }];
            let mut ids = expand_pads(&chat.tokenizer.encode(&rendered)?, &pads)?;
            asked.push(ids.len());
            ids.extend(chat.tokenizer.encode(reply)?);
            ids.push(end);
            turns.push(ids);
        }
        let asked_least = asked.iter().copied().min().unwrap_or_default();
        let shared = turns.iter().fold(asked_least, |most, ids| {
            ids.iter().zip(&turns[0]).take(most).take_while(|(a, b)| a == b).count()
        });
        let head = turns.first().map_or(vec![], |ids| ids[..shared].to_vec());
        Ok(Encoded {
            shared: Prompt { input_ids: head, media, features: vec![] },
            rests: turns.into_iter().map(|mut ids| ids.split_off(shared)).collect(),
            asked: asked.into_iter().map(|tokens| tokens - shared).collect(),
            patches,
        })
    }
}
