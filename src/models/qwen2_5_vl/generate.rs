//! Generation: prefill in chunks, then one token per sequence and step, for batches of any lengths and for groups of
//! continuations of one prompt.

use std::ops::ControlFlow;

use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use super::sampling::{Sampling, Seen, next_token};
use super::text::Context;
use super::{Prompt, Qwen2_5Vl};
use crate::error::{Error, Result};
use crate::nn::kv_cache::KvCache;

/// How long and how to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Most tokens to generate per sequence.
    pub max_new_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Tokens that end a sequence; the one that did is kept.
    pub stop_tokens: Vec<u32>,
    /// Prompt tokens that go through the model at once; bounds memory, not results.
    pub prefill_chunk: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), stop_tokens: vec![], prefill_chunk: 2048 }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// A stop token.
    Stop,
    /// `max_new_tokens`, or the end of the model's context.
    Length,
}

/// What was generated for one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Generated ids, with the stop token if there was one.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Called with (sequence, token) as tokens are generated; `Break` ends the call with [`Error::Interrupted`].
pub type OnToken<'a> = &'a mut dyn FnMut(usize, u32) -> ControlFlow<()>;

/// A sequence that is still being decoded.
struct Active {
    index: usize,
    tokens: Vec<u32>,
    seen: Seen,
    rng: StdRng,
    next: i64,
    room: usize,
}

/// A prompt after its prefill.
struct Prefilled {
    cache: KvCache,
    /// Logits (V,) after the last token.
    logits: Vec<f32>,
    /// Position of the next token.
    next: i64,
}

impl Qwen2_5Vl {
    /// One completion per prompt.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context, settings out of range, or an interruption.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        options: &Options,
        on_token: OnToken,
    ) -> Result<Vec<Completion>> {
        options.sampling.validate()?;
        prompts.iter().try_for_each(|prompt| self.fits(prompt))?;
        let (mut cache, mut logits, mut active) = (self.text.cache(0), vec![], vec![]);
        for (index, prompt) in prompts.iter().enumerate() {
            let prefilled = self.prefill(prompt, options)?;
            cache.extend(prefilled.cache);
            logits.push(prefilled.logits);
            active.push(self.active(index, prompt, prefilled.next, options));
        }
        self.decode(cache, logits, active, options, on_token)
    }

    /// `count` completions of one prompt, which is prefilled once and shared.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_group(
        &self,
        prompt: &Prompt,
        count: usize,
        options: &Options,
        on_token: OnToken,
    ) -> Result<Vec<Completion>> {
        options.sampling.validate()?;
        self.fits(prompt)?;
        if count == 0 {
            return Ok(vec![]);
        }
        let prefilled = self.prefill(prompt, options)?;
        let active = (0..count).map(|index| self.active(index, prompt, prefilled.next, options)).collect();
        let logits = vec![prefilled.logits; count];
        self.decode(prefilled.cache.fork(count)?, logits, active, options, on_token)
    }

    fn fits(&self, prompt: &Prompt) -> Result<()> {
        let (len, most) = (prompt.input_ids.len(), self.config.text.max_position_embeddings);
        if len == 0 {
            return Err(Error::Input("the prompt is empty".into()));
        }
        if len >= most {
            return Err(Error::Input(format!(
                "the prompt has {len} tokens, the model's context {most}: show fewer or smaller frames, or shorten the text"
            )));
        }
        Ok(())
    }

    fn active(&self, index: usize, prompt: &Prompt, next: i64, options: &Options) -> Active {
        let room = self.config.text.max_position_embeddings - prompt.input_ids.len();
        let mut hash = Sha256::new();
        hash.update(options.sampling.seed.to_le_bytes());
        hash.update((index as u64).to_le_bytes());
        Active {
            index,
            tokens: vec![],
            seen: prompt.input_ids.iter().copied().collect(),
            rng: StdRng::from_seed(hash.finalize().into()),
            next,
            room: options.max_new_tokens.min(room),
        }
    }

    fn prefill(&self, prompt: &Prompt, options: &Options) -> Result<Prefilled> {
        let positions = self.positions(prompt)?;
        let embeds = self.embed(prompt)?;
        let mut cache = self.text.cache(1);
        let len = prompt.input_ids.len();
        let chunk = options.prefill_chunk.max(1);
        let mut last = None;
        for start in (0..len).step_by(chunk) {
            let rows = chunk.min(len - start);
            let context = Context::Cached { cache: &mut cache, rows: &[rows] };
            let embeds = embeds.narrow(0, start, rows)?;
            let hidden = self.text.hidden(&embeds, &positions.ids[start..start + rows], context)?;
            last = Some(hidden.narrow(0, rows - 1, 1)?);
        }
        let Some(last) = last else { return Err(Error::Input("the prompt is empty".into())) };
        let logits = self.text.logits(&last)?.squeeze(0)?.to_vec1()?;
        Ok(Prefilled { cache, logits, next: len as i64 + positions.delta })
    }

    fn decode(
        &self,
        mut cache: KvCache,
        mut logits: Vec<Vec<f32>>,
        mut active: Vec<Active>,
        options: &Options,
        on_token: OnToken,
    ) -> Result<Vec<Completion>> {
        let mut done: Vec<(usize, Completion)> = vec![];
        loop {
            let mut keep = Vec::with_capacity(active.len());
            for (sequence, logits) in active.iter_mut().zip(logits) {
                let finish = sequence.step(logits, options, on_token)?;
                keep.push(finish.is_none());
                if let Some(finish) = finish {
                    let tokens = std::mem::take(&mut sequence.tokens);
                    done.push((sequence.index, Completion { tokens, finish }));
                }
            }
            let mut flags = keep.iter();
            active.retain(|_| flags.next().copied().unwrap_or(false));
            cache.retain(&keep);
            if active.is_empty() {
                break;
            }
            logits = self.advance(&mut cache, &mut active)?;
        }
        done.sort_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, completion)| completion).collect())
    }

    /// One step of every active sequence: the logits after its newest token.
    fn advance(&self, cache: &mut KvCache, active: &mut [Active]) -> Result<Vec<Vec<f32>>> {
        let ids: Vec<u32> = active.iter().filter_map(|s| s.tokens.last().copied()).collect();
        let positions: Vec<[i64; 3]> = active.iter().map(|s| [s.next; 3]).collect();
        let rows = vec![1; active.len()];
        let context = Context::Cached { cache, rows: &rows };
        let hidden = self.text.hidden(&self.text.embed(&ids)?, &positions, context)?;
        active.iter_mut().for_each(|s| s.next += 1);
        Ok(self.text.logits(&hidden)?.to_vec2()?)
    }
}

impl Active {
    /// Chooses the next token; `Some` when the sequence ends with it.
    fn step(
        &mut self,
        logits: Vec<f32>,
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Option<Finish>> {
        if self.room == 0 {
            return Ok(Some(Finish::Length));
        }
        let token = next_token(logits, &options.sampling, &self.seen, &mut self.rng)?;
        self.tokens.push(token);
        self.seen.insert(token);
        self.room -= 1;
        if on_token(self.index, token).is_break() {
            return Err(Error::Interrupted);
        }
        Ok(if options.stop_tokens.contains(&token) {
            Some(Finish::Stop)
        } else {
            (self.room == 0).then_some(Finish::Length)
        })
    }
}
