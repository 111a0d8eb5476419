//! Generation: prefill in chunks, then one token per sequence and step, for batches of any lengths and for groups of
//! continuations of one prompt.

use std::ops::{ControlFlow, Range};

use candle_core::Tensor;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use super::sampling::{Sampling, Seen, log_sum_exp, next_token};
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
    /// Tokens that are never chosen.
    pub banned: Vec<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: Sampling::default(),
            stop_tokens: vec![],
            prefill_chunk: 2048,
            banned: vec![],
        }
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
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Generated ids, with the stop token if there was one.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the model at the sampling temperature (1 when greedy), before top-k, top-p
    /// and penalty.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Called with (sequence, token) as tokens are generated; `Break` ends the call with [`Error::Interrupted`].
pub type OnToken<'a> = &'a mut dyn FnMut(usize, u32) -> ControlFlow<()>;

/// A sequence that is still being decoded.
struct Active {
    index: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    seen: Seen,
    rng: StdRng,
    next: i64,
    room: usize,
}

/// A prompt and the continuations wanted of it.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Prefilled once, whatever the number of continuations.
    pub prompt: &'a Prompt,
    /// Numbers of the continuations.
    pub generations: Range<u64>,
    /// Continuation `i` draws from a generator derived from (seed, i), so that it does not depend on what else is
    /// generated beside it.
    pub seed: u64,
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
        let seed = options.sampling.seed;
        let request = |(i, prompt)| Request { prompt, generations: i..i + 1, seed };
        let requests: Vec<Request> = (0..).zip(prompts).map(request).collect();
        Ok(self.generate_requests(&requests, options, on_token)?.into_iter().flatten().collect())
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
        let request = Request { prompt, generations: 0..count as u64, seed: options.sampling.seed };
        Ok(self.generate_requests(&[request], options, on_token)?.into_iter().flatten().collect())
    }

    /// The completions of each request, all decoded together.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_requests(
        &self,
        requests: &[Request],
        options: &Options,
        on_token: OnToken,
    ) -> Result<Vec<Vec<Completion>>> {
        options.sampling.validate()?;
        requests.iter().try_for_each(|request| self.fits(request.prompt))?;
        let (mut cache, mut logits, mut active) = (self.text.cache(0), vec![], vec![]);
        let counts: Vec<usize> = requests.iter().map(|r| r.generations.clone().count()).collect();
        for batch in prefill_batches(requests, options.prefill_chunk) {
            let of_batch = &requests[batch.clone()];
            let prefilled = self.prefill(of_batch, options)?;
            cache.extend(prefilled.cache.fork(&counts[batch.clone()])?);
            let starts = prefilled.logits.into_iter().zip(prefilled.next);
            for ((request, count), (row, next)) in of_batch.iter().zip(&counts[batch]).zip(starts) {
                logits.extend(std::iter::repeat_n(row, *count));
                for generation in request.generations.clone() {
                    active.push(self.active(active.len(), request, generation, next, options));
                }
            }
        }
        let mut completions = self.decode(cache, logits, active, options, on_token)?.into_iter();
        Ok(counts.iter().map(|count| completions.by_ref().take(*count).collect()).collect())
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

    fn active(
        &self,
        index: usize,
        request: &Request,
        generation: u64,
        next: i64,
        options: &Options,
    ) -> Active {
        let room = self.config.text.max_position_embeddings - request.prompt.input_ids.len();
        let mut hash = Sha256::new();
        hash.update(request.seed.to_le_bytes());
        hash.update(generation.to_le_bytes());
        Active {
            index,
            tokens: vec![],
            log_probs: vec![],
            seen: request.prompt.input_ids.iter().copied().collect(),
            rng: StdRng::from_seed(hash.finalize().into()),
            next,
            room: options.max_new_tokens.min(room),
        }
    }

    /// The prompts of one batch, packed; a single long one goes through in chunks.
    fn prefill(&self, requests: &[Request], options: &Options) -> Result<Prefilled> {
        let (mut embeds, mut positions, mut next) = (vec![], vec![], vec![]);
        for request in requests {
            let of_prompt = self.positions(request.prompt)?;
            next.push(request.prompt.input_ids.len() as i64 + of_prompt.delta);
            positions.extend(of_prompt.ids);
            embeds.push(self.embed(request.prompt)?);
        }
        let embeds = Tensor::cat(&embeds, 0)?;
        let mut cache = self.text.cache(requests.len());
        let rows: Vec<usize> = requests.iter().map(|request| request.prompt.input_ids.len()).collect();
        let last = match rows.as_slice() {
            &[len] => {
                let chunk = options.prefill_chunk.max(1);
                let mut last = None;
                for start in (0..len).step_by(chunk) {
                    let rows = chunk.min(len - start);
                    let context = Context::Cached { cache: &mut cache, rows: &[rows] };
                    let embeds = embeds.narrow(0, start, rows)?;
                    let hidden = self.text.hidden(&embeds, &positions[start..start + rows], context)?;
                    last = Some(hidden.narrow(0, rows - 1, 1)?);
                }
                last.ok_or_else(|| Error::Input("the prompt is empty".into()))?
            }
            rows => {
                let hidden =
                    self.text.hidden(&embeds, &positions, Context::Cached { cache: &mut cache, rows })?;
                let ends = rows.iter().scan(0, |end, len| {
                    *end += *len as u32;
                    Some(*end - 1)
                });
                hidden.index_select(&Tensor::new(ends.collect::<Vec<u32>>(), hidden.device())?, 0)?
            }
        };
        Ok(Prefilled { cache, logits: self.text.logits(&last)?.to_vec2()?, next })
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
                    let log_probs = std::mem::take(&mut sequence.log_probs);
                    done.push((sequence.index, Completion { tokens, log_probs, finish }));
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

/// Prompts after their prefill.
struct Prefilled {
    cache: KvCache,
    /// Logits (V,) after the last token of each.
    logits: Vec<Vec<f32>>,
    /// Position of the next token of each.
    next: Vec<i64>,
}

/// Runs of requests whose prompts together stay within `chunk` tokens; a longer prompt is alone.
fn prefill_batches(requests: &[Request], chunk: usize) -> Vec<Range<usize>> {
    let (mut batches, mut tokens): (Vec<Range<usize>>, usize) = (vec![], 0);
    for (i, request) in requests.iter().enumerate() {
        let len = request.prompt.input_ids.len();
        match batches.last_mut() {
            Some(batch) if tokens + len <= chunk => {
                batch.end = i + 1;
                tokens += len;
            }
            _ => {
                batches.push(i..i + 1);
                tokens = len;
            }
        }
    }
    batches
}

impl Active {
    /// Chooses the next token; `Some` when the sequence ends with it.
    fn step(
        &mut self,
        mut logits: Vec<f32>,
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Option<Finish>> {
        if self.room == 0 {
            return Ok(Some(Finish::Length));
        }
        let scale = if options.sampling.temperature > 0.0 { options.sampling.temperature } else { 1.0 };
        let normaliser = log_sum_exp(&logits, scale);
        for &id in &options.banned {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::MIN;
            }
        }
        let (token, logit) = next_token(logits, &options.sampling, &self.seen, &mut self.rng)?;
        self.tokens.push(token);
        self.log_probs.push(logit / scale - normaliser);
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
