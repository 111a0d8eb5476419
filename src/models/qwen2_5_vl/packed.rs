//! Several prompts as one row of tokens, for training: nothing is padded, and the layers see one long batch.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};

use super::text::Context;
use super::{Prompt, Qwen2_5Vl};
use crate::ops::attention::Segments;

/// Prompts packed one after another.
#[derive(Debug, Clone)]
pub struct PackedBatch {
    /// Token ids of all prompts (L of them).
    pub input_ids: Vec<u32>,
    /// Positions (t, h, w) of each token, counted from the start of its own prompt.
    pub positions: Vec<[i64; 3]>,
    /// Where each prompt begins and ends.
    pub segments: Segments,
    /// Features (n, hidden) of all media, in the order of their placeholders.
    pub features: Vec<Tensor>,
}

impl PackedBatch {
    /// Row of the first token of each prompt, empty ones included.
    pub fn starts(&self) -> Vec<usize> {
        self.segments.starts().to_vec()
    }
}

/// Completions of one prompt.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// What came before.
    pub prompt: &'a Prompt,
    /// Generated ids of each completion.
    pub completions: &'a [Vec<u32>],
}

/// How the completions of a prompt are packed. Both forms compute the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// The prompt once, followed by all its completions, which attend to it.
    #[default]
    Shared,
    /// Each completion behind a copy of the prompt.
    Separate,
}

/// Completions packed for their log-probabilities.
#[derive(Debug, Clone)]
pub struct PackedCompletions {
    /// All tokens.
    pub batch: PackedBatch,
    /// For each completion, group by group, the rows of the hidden states that predict its tokens.
    pub rows: Vec<Vec<u32>>,
    /// For each completion its tokens: the targets of those rows.
    pub targets: Vec<Vec<u32>>,
}

impl Qwen2_5Vl {
    /// Packs the completions of several prompts.
    ///
    /// # Errors
    /// As [`Self::positions`]; also an empty prompt, which predicts nothing.
    pub fn pack_completions(&self, groups: &[Group], sharing: Sharing) -> crate::Result<PackedCompletions> {
        let (mut input_ids, mut positions, mut features) = (vec![], vec![], vec![]);
        let (mut lengths, mut prefixes) = (vec![], vec![]);
        let (mut rows, mut targets) = (vec![], vec![]);
        for Group { prompt, completions } in groups {
            let len = prompt.input_ids.len();
            if len == 0 {
                return Err(crate::Error::Input("completions of an empty prompt cannot be scored".into()));
            }
            let known = self.positions(prompt)?;
            let mut add_prompt = |input_ids: &mut Vec<u32>, positions: &mut Vec<[i64; 3]>| {
                input_ids.extend(&prompt.input_ids);
                positions.extend(&known.ids);
                features.extend(prompt.features.iter().cloned());
                input_ids.len() - 1
            };
            let shared = (sharing == Sharing::Shared).then(|| {
                lengths.push(len);
                prefixes.push(None);
                (lengths.len() - 1, add_prompt(&mut input_ids, &mut positions))
            });
            for completion in *completions {
                let last = match shared {
                    Some((_, last)) => last,
                    None => add_prompt(&mut input_ids, &mut positions),
                };
                let start = input_ids.len();
                let own = (start..start + completion.len()).map(|row| row as u32);
                rows.push(std::iter::once(last as u32).chain(own).take(completion.len()).collect());
                targets.push(completion.clone());
                input_ids.extend(completion);
                let next = len as i64 + known.delta;
                positions.extend((0..completion.len() as i64).map(|i| [next + i; 3]));
                lengths.push(completion.len() + if shared.is_some() { 0 } else { len });
                prefixes.push(shared.map(|(segment, _)| segment));
            }
        }
        let segments = Segments::continuing(&lengths, &prefixes)?;
        Ok(PackedCompletions {
            batch: PackedBatch { input_ids, positions, segments, features },
            rows,
            targets,
        })
    }

    /// Packs prompts (with their completions, if any) for [`Self::hidden_packed`].
    ///
    /// # Errors
    /// As [`Self::positions`].
    pub fn pack(&self, prompts: &[Prompt]) -> crate::Result<PackedBatch> {
        let mut batch = PackedBatch {
            input_ids: vec![],
            positions: vec![],
            segments: Segments::new(&[]),
            features: vec![],
        };
        for prompt in prompts {
            batch.input_ids.extend(&prompt.input_ids);
            batch.positions.extend(self.positions(prompt)?.ids);
            batch.features.extend(prompt.features.iter().cloned());
        }
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.input_ids.len()).collect();
        batch.segments = Segments::new(&lengths);
        Ok(batch)
    }

    /// Hidden states (L, hidden) after the final norm; differentiable. Each prompt attends to itself alone.
    ///
    /// # Errors
    /// Placeholders and feature rows that do not match in number.
    pub fn hidden_packed(&self, batch: &PackedBatch) -> Result<Tensor> {
        let embeds = self.embed_tokens(&batch.input_ids, &batch.features)?;
        self.text().hidden(&embeds, &batch.positions, Context::Packed(&batch.segments))
    }

    /// The loss (detached) and its gradients, keeping only the input of each decoder layer in between. Gradients also
    /// reach the embeddings and the features when those are tracked.
    ///
    /// # Errors
    /// As [`Self::hidden_packed`] and `loss`.
    pub fn backward_checkpointed(
        &self,
        batch: &PackedBatch,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, GradStore)> {
        let embeds = self.embed_tokens(&batch.input_ids, &batch.features)?;
        self.text().backward_checkpointed(&embeds, &batch.positions, &batch.segments, loss)
    }

    /// Embeddings (L, hidden) of `input_ids` with the rows of `features` in the place of the placeholders.
    ///
    /// # Errors
    /// Placeholders and feature rows that do not match in number.
    pub fn embed_tokens(&self, input_ids: &[u32], features: &[Tensor]) -> Result<Tensor> {
        let is_pad = |id: &u32| *id == self.config.image_token_id || *id == self.config.video_token_id;
        let words: Vec<u32> = input_ids.iter().copied().filter(|id| !is_pad(id)).collect();
        let (pads, rows) =
            (input_ids.len() - words.len(), features.iter().map(|f| f.dim(0)).sum::<Result<usize>>()?);
        if pads != rows {
            bail!("prompt: {pads} visual placeholder tokens, but {rows} visual features")
        }
        let embeds = self.text().embed(&words)?;
        if pads == 0 {
            return Ok(embeds);
        }
        let features = match features {
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?,
        };
        let features = features.to_device(embeds.device())?.to_dtype(embeds.dtype())?;
        // One gather instead of a cut per medium: its backward costs the same for any number of media.
        let (mut word, mut feature) = (0, words.len() as u32);
        let places: Vec<u32> = (input_ids.iter())
            .map(|id| {
                let next = if is_pad(id) { &mut feature } else { &mut word };
                *next += 1;
                *next - 1
            })
            .collect();
        let all = if words.is_empty() { features } else { Tensor::cat(&[embeds, features], 0)? };
        all.index_select(&Tensor::new(places, all.device())?, 0)
    }
}
