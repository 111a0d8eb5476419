//! Gradients of one optimizer step from scored trajectories: GRPO for the language model, REINFORCE for the sampler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::config::{ModelConfig, SamplerConfig};
use super::grpo::{Completions, Totals, grpo_loss};
use super::reinforce::{Drawn, reinforce_loss};
use super::tally::Tally;
use super::trajectory::{Spoken, Trajectory};
use crate::error::{Error, Result};
use crate::models::qwen2_5_vl::packed::{Group, PackedBatch, Sharing};
use crate::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use crate::models::sampler::{Sampler, Sight};
use crate::ops::log_prob::{TokenLogProbs, log_probs};
use crate::optim::{Parameters, add_gradients};
use crate::select::{Apart, Features};

/// Gradients by parameter.
pub type Gradients = BTreeMap<String, Tensor>;

/// Matrices that go through the sampler together.
const MATRICES: usize = 16;

/// A trajectory with what it was worth to the language model.
#[derive(Debug, Clone, Copy)]
pub struct Weighed<'a> {
    /// The trajectory.
    pub trajectory: &'a Trajectory,
    /// Its advantage.
    pub advantage: f64,
    /// Log-probabilities of its tokens when it was written; `None` in the first iteration.
    pub old: Option<&'a [f32]>,
}

impl<'a> Weighed<'a> {
    fn turns(&self) -> impl Iterator<Item = &'a Spoken> {
        self.trajectory.asked.iter().chain([&self.trajectory.answered])
    }

    /// Generated tokens of both turns.
    fn tokens(&self) -> usize {
        self.turns().map(|turn| turn.completion.tokens.len()).sum()
    }

    /// Tokens that go through the model for it, behind `before` in the same micro-batch.
    fn length(&self, before: Option<&Self>) -> usize {
        let shared = |turn: &Spoken| {
            before.is_some_and(|before| before.turns().any(|other| Arc::ptr_eq(&other.prompt, &turn.prompt)))
        };
        let prompts = self.turns().filter(|turn| !shared(turn)).map(|turn| turn.prompt.input_ids.len());
        prompts.sum::<usize>() + self.tokens()
    }

    fn truncated(&self) -> bool {
        self.turns().any(Spoken::truncated)
    }
}

/// The language model in training.
#[derive(Clone, Copy)]
pub struct Pupil<'a> {
    /// Tracked.
    pub model: &'a Qwen2_5Vl,
    /// What the divergence is measured from.
    pub reference: Option<&'a Qwen2_5Vl>,
    /// What learns.
    pub parameters: &'a Parameters,
    /// Sampling temperature, which shapes the trained distribution too.
    pub temperature: f64,
    /// Tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Micro-batches computed side by side.
    pub micro_batches_at_once: usize,
}

/// Runs of trajectories of at most `limit` tokens; a longer one is alone.
fn micro_batches<'a, 'b>(weighed: &'b [Weighed<'a>], limit: usize) -> Vec<&'b [Weighed<'a>]> {
    let (mut batches, mut start, mut tokens) = (vec![], 0, 0);
    for (i, one) in weighed.iter().enumerate() {
        let before = (i > start).then(|| &weighed[i - 1]);
        let length = one.length(before);
        if before.is_some() && tokens + length > limit {
            batches.push(&weighed[start..i]);
            (start, tokens) = (i, one.length(None));
        } else {
            tokens += length;
        }
    }
    if start < weighed.len() {
        batches.push(&weighed[start..]);
    }
    batches
}

/// A micro-batch as one row of tokens.
struct Packed {
    batch: PackedBatch,
    /// Rows of the hidden states that predict the generated tokens, trajectory by trajectory.
    rows: Vec<u32>,
    targets: Vec<u32>,
}

/// Packs the turns of a micro-batch; those that follow the same prompt share it.
fn packed(model: &Qwen2_5Vl, batch: &[Weighed]) -> Result<Packed> {
    let turns: Vec<&Spoken> = batch.iter().flat_map(Weighed::turns).collect();
    let mut shared: Vec<(&Arc<Prompt>, Vec<usize>)> = vec![];
    for (at, turn) in turns.iter().enumerate() {
        match shared.iter_mut().find(|(prompt, _)| Arc::ptr_eq(prompt, &turn.prompt)) {
            Some((_, followers)) => followers.push(at),
            None => shared.push((&turn.prompt, vec![at])),
        }
    }
    let tokens = |followers: &[usize]| -> Vec<Vec<u32>> {
        followers.iter().map(|&at| turns[at].completion.tokens.clone()).collect()
    };
    let completions: Vec<Vec<Vec<u32>>> = shared.iter().map(|(_, followers)| tokens(followers)).collect();
    let groups: Vec<Group> = (shared.iter().zip(&completions))
        .map(|((prompt, _), completions)| Group { prompt: prompt.as_ref(), completions })
        .collect();
    let packed = model.pack_completions(&groups, Sharing::Shared)?;
    let mut places = vec![0; turns.len()];
    for (place, &at) in shared.iter().flat_map(|(_, followers)| followers).enumerate() {
        places[at] = place;
    }
    let in_order = |of: &[Vec<u32>]| places.iter().flat_map(|&place| of[place].clone()).collect();
    Ok(Packed { rows: in_order(&packed.rows), targets: in_order(&packed.targets), batch: packed.batch })
}

/// Log-probabilities of each trajectory's tokens under an untracked `model`.
///
/// # Errors
/// As the model.
pub fn log_probs_of(model: &Qwen2_5Vl, weighed: &[Weighed], pupil: &Pupil) -> Result<Vec<Vec<f32>>> {
    let mut all = vec![];
    for batch in micro_batches(weighed, pupil.micro_batch_tokens) {
        let packed = packed(model, batch)?;
        let hidden = model.hidden_packed(&packed.batch)?;
        let chosen = chosen(model, &hidden, &packed, pupil.temperature)?.log_probs.to_vec1::<f32>()?;
        let mut rest = chosen.as_slice();
        for one in batch {
            let (head, tail) = rest.split_at(one.tokens());
            all.push(head.to_vec());
            rest = tail;
        }
    }
    Ok(all)
}

fn chosen(
    model: &Qwen2_5Vl,
    hidden: &Tensor,
    packed: &Packed,
    temperature: f64,
) -> candle_core::Result<TokenLogProbs> {
    let rows = Tensor::new(packed.rows.as_slice(), hidden.device())?;
    log_probs(&hidden.index_select(&rows, 0)?, model.text().head(), &packed.targets, temperature)
}

/// GRPO: the gradients of the parameters, `None` when no trajectory carries a signal.
///
/// A trajectory is one completion: the tokens of both turns. Those of advantage 0 are not computed where nothing but the
/// advantage could move the model, nor are those that are masked because they were cut; they count in what the loss is divided by.
///
/// # Errors
/// A parameter without a gradient, a loss that is not finite, as the model.
pub fn model_gradients(
    pupil: &Pupil,
    weighed: &[Weighed],
    config: &ModelConfig,
    tally: &mut Tally,
) -> Result<Option<Gradients>> {
    let rows: Vec<usize> = weighed.iter().map(Weighed::tokens).collect();
    let mask = vec![true; rows.iter().sum()];
    let truncated: Vec<bool> = weighed.iter().map(Weighed::truncated).collect();
    let advantages: Vec<f64> = weighed.iter().map(|one| one.advantage).collect();
    let grpo = &config.grpo;
    let all = Completions {
        rows: &rows,
        mask: &mask,
        truncated: &truncated,
        advantages: &advantages,
        old_log_probs: None,
        ref_log_probs: None,
        entropies: None,
    };
    // Counting needs neither a reference nor entropies.
    let counting = super::grpo::GrpoConfig { beta: 0.0, entropy_bonus: 0.0, ..*grpo };
    let totals = Totals::over(&[all], &counting)?;
    let advantage_alone = grpo.beta == 0.0 && grpo.entropy_bonus == 0.0;
    let masked = |one: &Weighed| grpo.mask_truncated && one.truncated();
    let moves = |one: &Weighed| (one.advantage != 0.0 || !advantage_alone) && !masked(one);
    let moving: Vec<Weighed> = weighed.iter().copied().filter(moves).collect();
    let batches = micro_batches(&moving, pupil.micro_batch_tokens);
    let one = |batch: &&[Weighed], tally: &mut Tally| batch_gradients(pupil, batch, &totals, config, tally);
    summed(&batches, pupil.micro_batches_at_once, one, tally)
}

/// The sum of the gradients of `parts`, `None` without any. So many at once are computed side by side; they are added in
/// order, so that the sum does not depend on it.
fn summed<P: Sync>(
    parts: &[P],
    at_once: usize,
    of_part: impl Fn(&P, &mut Tally) -> Result<Gradients> + Sync,
    tally: &mut Tally,
) -> Result<Option<Gradients>> {
    let one = |part: &P| {
        let mut tally = Tally::default();
        of_part(part, &mut tally).map(|gradients| (gradients, tally))
    };
    let mut sum: Option<Gradients> = None;
    for parts in parts.chunks(at_once.max(1)) {
        for (gradients, of_part) in parts.par_iter().map(one).collect::<Result<Vec<_>>>()? {
            tally.merge(&of_part);
            add_gradients(sum.get_or_insert_default(), gradients)?;
        }
    }
    Ok(sum)
}

fn batch_gradients(
    pupil: &Pupil,
    batch: &[Weighed],
    totals: &Totals,
    config: &ModelConfig,
    tally: &mut Tally,
) -> Result<Gradients> {
    let packed = packed(pupil.model, batch)?;
    let rows: Vec<usize> = batch.iter().map(Weighed::tokens).collect();
    let mask = vec![true; packed.targets.len()];
    let truncated: Vec<bool> = batch.iter().map(Weighed::truncated).collect();
    let advantages: Vec<f64> = batch.iter().map(|one| one.advantage).collect();
    let input = &packed.batch;
    let reference = pupil.reference.filter(|_| config.grpo.beta != 0.0);
    let reference = reference
        .map(|model| chosen(model, &model.hidden_packed(input)?, &packed, pupil.temperature))
        .transpose()?
        .map(|chosen| chosen.log_probs);
    let old = old_log_probs(batch, pupil.model.text().device())?;
    let at = Instant::now();
    let mut outcome = None;
    let mut loss_of = |hidden: &Tensor| -> Result<Tensor> {
        let chosen = chosen(pupil.model, hidden, &packed, pupil.temperature)?;
        let completions = Completions {
            rows: &rows,
            mask: &mask,
            truncated: &truncated,
            advantages: &advantages,
            old_log_probs: old.as_ref(),
            ref_log_probs: reference.as_ref(),
            entropies: Some(&chosen.entropies),
        };
        let loss = grpo_loss(&chosen.log_probs, &completions, totals, &config.grpo)?;
        outcome = Some((loss.metrics, chosen.log_probs.detach(), Instant::now()));
        Ok(loss.loss)
    };
    let (loss, store) = if config.checkpointing {
        pupil
            .model
            .backward_checkpointed(input, |hidden| loss_of(hidden).map_err(candle_core::Error::wrap))?
    } else {
        let loss = loss_of(&pupil.model.hidden_packed(input)?)?;
        (loss.clone(), loss.backward()?)
    };
    let loss: f64 = loss.to_dtype(candle_core::DType::F64)?.to_scalar()?;
    if !loss.is_finite() {
        return Err(Error::Input(format!("the loss of the language model is {loss}")));
    }
    tally.sum("loss", loss);
    if let Some((metrics, log_probs, forward)) = outcome {
        tally.merge(&metrics);
        tally.sum("time/log_probs", forward.duration_since(at).as_secs_f64());
        tally.time("time/backward", forward);
        if old.is_none() {
            difference(&log_probs.to_vec1()?, batch, tally);
        }
    }
    Ok(pupil.parameters.gradients(&store)?)
}

/// The log-probabilities before the first update of a step, `None` where there was none.
fn old_log_probs(batch: &[Weighed], device: &Device) -> Result<Option<Tensor>> {
    let old = batch.iter().map(|one| one.old).collect::<Option<Vec<_>>>();
    Ok(old.map(|old| Tensor::new(old.concat(), device)).transpose()?)
}

/// How far the log-probabilities of the rollout are from those of the trainer.
fn difference(trained: &[f32], batch: &[Weighed], tally: &mut Tally) {
    let written = batch.iter().flat_map(Weighed::turns).flat_map(|turn| &turn.completion.log_probs);
    for (a, b) in trained.iter().zip(written) {
        let difference = f64::from((a - b).abs());
        tally.mean("sampling/sampling_logp_difference/mean", difference, 1.0);
        tally.max("sampling/sampling_logp_difference/max", difference);
    }
}

/// REINFORCE: the gradients of the sampler's parameters, `None` when no draw carries a signal. So many chunks of matrices
/// are computed side by side.
///
/// # Errors
/// A parameter without a gradient, trajectories without a similarity matrix.
pub fn sampler_gradients(
    sampler: &Sampler,
    parameters: &Parameters,
    drawn: &[(&Trajectory, f64)],
    config: &SamplerConfig,
    at_once: usize,
    tally: &mut Tally,
) -> Result<Option<Gradients>> {
    // Generations with the same queries share their matrix, and so one pass.
    let mut by_matrix: Vec<(&Sight, Vec<(&Trajectory, f64)>)> = vec![];
    for &(trajectory, advantage) in drawn {
        let Some(sight) = &trajectory.sight else {
            return Err(Error::Input("sampler update: a trajectory without similarities".to_owned()));
        };
        match by_matrix.iter_mut().find(|(known, _)| known.similarity.id() == sight.similarity.id()) {
            Some((_, draws)) => draws.push((trajectory, advantage)),
            None => by_matrix.push((sight, vec![(trajectory, advantage)])),
        }
    }
    if config.reinforce.entropy_bonus == 0.0 {
        by_matrix.retain(|(_, draws)| draws.iter().any(|(_, advantage)| *advantage != 0.0));
    }
    // Videos of like length together: less padding.
    by_matrix.sort_by_key(|(sight, _)| sight.similarity.dims().last().copied());
    let chunks: Vec<_> = by_matrix.chunks(MATRICES).collect();
    let of_chunk = |matrices: &&[(&Sight, Vec<(&Trajectory, f64)>)], tally: &mut Tally| {
        let inputs: Vec<&Sight> = matrices.iter().map(|(sight, _)| *sight).collect();
        let (logits, strength) = (sampler.forward_batch(&inputs)?, sampler.apart());
        let keeps_apart = inputs.iter().filter(|_| strength != 0.0);
        let features = keeps_apart.map(|sight| Features::of(&sight.frames)).collect::<Result<Vec<_>>>()?;
        let draws: Vec<Drawn> = (logits.iter().zip(*matrices).enumerate())
            .flat_map(|(at, (logits, (_, draws)))| {
                let apart = features.get(at).map(|features| Apart { features, strength });
                draws.iter().map(move |(trajectory, advantage)| Drawn {
                    logits,
                    picks: &trajectory.selection.draw_order,
                    advantage: *advantage,
                    apart,
                })
            })
            .collect();
        let loss = reinforce_loss(&draws, drawn.len(), &config.reinforce)?;
        tally.merge(&loss.metrics);
        Ok(parameters.gradients(&loss.loss.backward()?)?)
    };
    summed(&chunks, at_once, of_chunk, tally)
}
