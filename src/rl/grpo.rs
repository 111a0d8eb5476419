//! The loss of the language model, from the log-probabilities of its tokens.
//!
//! Completions of different lengths are packed one after another without padding. The loss is computed on the host in f64, with
//! its gradient in closed form, which then enters the graph at the log-probabilities (and, with a bonus, at the entropies).
//! Everything is divided by totals of the whole optimizer step, so that the losses of its micro-batches add up to the loss of one
//! batch exactly, in every aggregation.
//!
//! MSJoE (arXiv 2602.22932) prints the clipped objective without a divergence term: `beta` is 0 by default.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::kl::Kl;
use super::objective::{Clip, LossType, Ratio, Sapo, Term, Vespo, check_settings, quantile};
use super::tally::Tally;
use crate::error::{Error, Result};

/// Settings of the loss; TRL's names and, but for `max_completion_length`, its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoConfig {
    /// Term and aggregation.
    pub loss: LossType,
    /// Importance ratio of tokens or of completions.
    pub ratio: Ratio,
    /// The ratio is clipped below at `1 - epsilon` ...
    pub epsilon: f64,
    /// ... and above at `1 + epsilon_high`; for [`LossType::Cispo`] the cap itself (such as 5).
    pub epsilon_high: f64,
    /// Upper bound of the unclipped branch, which bounds the loss at negative advantages (dual clip).
    pub delta: Option<f64>,
    /// Estimator of the divergence from the reference.
    pub kl: Kl,
    /// Weight of the divergence; 0 needs no reference.
    pub beta: f64,
    /// Multiplies the divergence by the importance ratio.
    pub bias_corrected_kl: bool,
    /// Share of the tokens, those of largest entropy, that the policy term counts; 1 for all (arXiv 2506.01939).
    pub top_entropy: f64,
    /// Completions with a negative advantage whose mean `old - log_prob` exceeds this are left out of the policy term.
    pub off_policy: Option<f64>,
    /// Weight of the mean entropy that is taken off the loss.
    pub entropy_bonus: f64,
    /// Leaves out completions that were cut at the largest length.
    pub mask_truncated: bool,
    /// The constant of [`LossType::DrGrpo`].
    pub max_completion_length: usize,
    /// Temperatures of [`LossType::Sapo`].
    pub sapo: Sapo,
    /// Weights of [`LossType::Vespo`].
    pub vespo: Vespo,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            loss: LossType::Dapo,
            ratio: Ratio::Token,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            kl: Kl::K3,
            beta: 0.,
            bias_corrected_kl: false,
            top_entropy: 1.,
            off_policy: None,
            entropy_bonus: 0.,
            mask_truncated: false,
            max_completion_length: 512,
            sapo: Sapo::default(),
            vespo: Vespo::default(),
        }
    }
}

impl GrpoConfig {
    /// Whether the settings fit each other.
    ///
    /// # Errors
    /// A value out of range; [`LossType::Luspo`] without the sequence ratio, [`LossType::Vespo`] with it.
    pub fn check(&self) -> Result<()> {
        check_settings(&[
            ("grpo: epsilon", self.epsilon, 0. ..=1.),
            ("grpo: epsilon_high", self.epsilon_high, 0. ..=f64::MAX),
            ("grpo: delta", self.delta.unwrap_or(1.), f64::MIN_POSITIVE..=f64::MAX),
            ("grpo: beta", self.beta, 0. ..=f64::MAX),
            ("grpo: top_entropy", self.top_entropy, f64::MIN_POSITIVE..=1.),
            ("grpo: off_policy", self.off_policy.unwrap_or(0.), f64::MIN..=f64::MAX),
            ("grpo: entropy_bonus", self.entropy_bonus, f64::MIN..=f64::MAX),
            ("grpo: max_completion_length", self.max_completion_length as f64, 1. ..=f64::MAX),
            ("grpo: sapo.positive", self.sapo.positive, f64::MIN_POSITIVE..=f64::MAX),
            ("grpo: sapo.negative", self.sapo.negative, f64::MIN_POSITIVE..=f64::MAX),
        ])?;
        match (self.loss, self.ratio) {
            (LossType::Luspo, Ratio::Token) => Err(Error::Input(
                "grpo: the loss luspo needs the ratio of sequences, got that of tokens".into(),
            )),
            (LossType::Vespo, Ratio::Sequence) => Err(Error::Input(
                "grpo: the loss vespo needs the ratio of tokens, got that of sequences".into(),
            )),
            _ => Ok(()),
        }
    }

    fn clip(&self) -> Clip {
        let delta = self.delta.unwrap_or(f64::INFINITY);
        Clip { low: 1. - self.epsilon, high: 1. + self.epsilon_high, delta }
    }
}

/// A micro-batch: completions packed one after another. N are all their tokens.
#[derive(Debug, Clone, Copy)]
pub struct Completions<'a> {
    /// Tokens of each completion; they sum to N.
    pub rows: &'a [usize],
    /// (N,) which tokens the loss counts.
    pub mask: &'a [bool],
    /// Which completions were cut at the largest length; empty for none.
    pub truncated: &'a [bool],
    /// The advantage of each completion.
    pub advantages: &'a [f64],
    /// (N,) log-probabilities under the policy that wrote the tokens; `None`: the policy is still that one.
    pub old_log_probs: Option<&'a Tensor>,
    /// (N,) log-probabilities under the reference.
    pub ref_log_probs: Option<&'a Tensor>,
    /// (N,) entropies of the policy; tracked when there is a bonus.
    pub entropies: Option<&'a Tensor>,
}

impl Completions<'_> {
    /// Whether token `at` of completion `row` counts.
    fn counts(&self, config: &GrpoConfig, row: usize, at: usize) -> bool {
        let cut = config.mask_truncated && self.truncated.get(row).copied().unwrap_or(false);
        self.mask[at] && !cut
    }

    /// The range of tokens of each completion.
    fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.rows.iter().scan(0, |end, &len| {
            *end += len;
            Some(*end - len..*end)
        })
    }

    fn check(&self, config: &GrpoConfig) -> Result<()> {
        let (rows, tokens) = (self.rows.len(), self.rows.iter().sum::<usize>());
        let lengths = [
            ("mask", self.mask.len(), tokens),
            ("advantages", self.advantages.len(), rows),
            ("truncated", self.truncated.len(), if self.truncated.is_empty() { 0 } else { rows }),
        ];
        if let Some((name, got, expected)) = lengths.into_iter().find(|(_, got, expected)| got != expected) {
            return Err(Error::Input(format!(
                "grpo: {rows} completions of {tokens} tokens need {expected} entries in {name}, got {got}"
            )));
        }
        if let Some(at) = self.advantages.iter().position(|advantage| !advantage.is_finite()) {
            return Err(Error::Input(format!(
                "grpo: the advantage of completion {at} is {}",
                self.advantages[at]
            )));
        }
        let needed = [
            ("ref_log_probs", config.beta != 0., self.ref_log_probs.is_some(), "beta is not 0"),
            ("entropies", config.entropy_bonus != 0., self.entropies.is_some(), "there is an entropy bonus"),
            ("entropies", config.top_entropy < 1., self.entropies.is_some(), "top_entropy is below 1"),
        ];
        match needed.into_iter().find(|(_, wanted, there, _)| *wanted && !there) {
            Some((name, .., why)) => Err(Error::Input(format!("grpo: {why}, but there are no {name}"))),
            None => Ok(()),
        }
    }
}

/// What the losses of one optimizer step are divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    /// Completions of the step, also those that are masked.
    pub completions: usize,
    /// Tokens that the loss counts.
    pub tokens: usize,
    /// Those of them that reach the entropy threshold.
    pub selected: usize,
    /// Smallest entropy that the policy term counts; only with `top_entropy` below 1.
    pub entropy_threshold: Option<f32>,
}

impl Totals {
    /// Of all micro-batches of a step. With `top_entropy` below 1 their entropies are read (those of the rollout will do, where
    /// those of the policy are not known before the first micro-batch).
    ///
    /// # Errors
    /// As [`grpo_loss`].
    pub fn over(batches: &[Completions], config: &GrpoConfig) -> Result<Self> {
        config.check()?;
        let mut totals = Self { completions: 0, tokens: 0, selected: 0, entropy_threshold: None };
        let mut entropies = vec![];
        for batch in batches {
            batch.check(config)?;
            let values = match batch.entropies {
                Some(values) if config.top_entropy < 1. => Some(read("entropies", values, batch.mask.len())?),
                _ => None,
            };
            totals.completions += batch.rows.len();
            for (row, range) in batch.ranges().enumerate() {
                for at in range.filter(|&at| batch.counts(config, row, at)) {
                    totals.tokens += 1;
                    entropies.extend(values.iter().map(|values| values[at]));
                }
            }
        }
        totals.selected = totals.tokens;
        if config.top_entropy < 1. {
            let rounded = entropies.iter().map(|&entropy| entropy as f32).collect();
            totals.entropy_threshold = quantile(rounded, 1. - config.top_entropy);
            let reaches =
                |entropy: &&f64| totals.entropy_threshold.is_some_and(|t| **entropy >= f64::from(t));
            totals.selected = entropies.iter().filter(reaches).count();
        }
        Ok(totals)
    }
}

/// The loss of a micro-batch.
#[derive(Debug)]
pub struct GrpoLoss {
    /// Scalar in the dtype of the log-probabilities, tracked through them and, with a bonus, through the entropies.
    pub loss: Tensor,
    /// `kl`, `entropy`, `ratio`, `clip_ratio/{low_mean,high_mean,region_mean,low_min,high_max}`, `cispo_clip_ratio`,
    /// `vespo/phi_seq_mean`, `policy_loss`, those that apply; they add up over micro-batches as the losses do.
    pub metrics: Tally,
}

/// The loss of `completions`, whose tokens have `log_probs` (N,) under the policy, as their share of an optimizer step with `totals`.
///
/// Gradients flow to `log_probs` (and the entropies); old and reference log-probabilities are constants. The divergence is charged
/// to every loss token, also to those that the entropy threshold or the off-policy rule leaves out of the policy term.
///
/// # Errors
/// Settings out of range or at odds, lengths that do not fit, values that are needed and missing or not finite.
pub fn grpo_loss(
    log_probs: &Tensor,
    completions: &Completions,
    totals: &Totals,
    config: &GrpoConfig,
) -> Result<GrpoLoss> {
    config.check()?;
    completions.check(config)?;
    let tokens = completions.mask.len();
    if tokens == 0 || totals.completions == 0 {
        return Err(Error::Input(format!(
            "grpo: expected completions with tokens, got {tokens} tokens in {} completions",
            totals.completions
        )));
    }
    let values = Values::read(log_probs, completions)?;
    let mut sums = Sums::new(config, totals, tokens);
    for (row, range) in completions.ranges().enumerate() {
        sums.add(&Row::new(completions, &values, config, row, range), config);
    }
    let mut loss = carried(log_probs, sums.gradient, sums.loss)?;
    if let (Some(entropies), true) = (completions.entropies, config.entropy_bonus != 0.) {
        sums.metrics.sum("policy_loss", sums.loss);
        let bonus = config.entropy_bonus / sums.entropy_divisor;
        let slopes = sums.active.iter().map(|&active| if active { -bonus } else { 0. }).collect();
        let term = carried(entropies, slopes, -bonus * sums.active_entropy)?;
        loss = (loss + term.to_dtype(log_probs.dtype())?)?;
    }
    Ok(GrpoLoss { loss, metrics: sums.metrics })
}

/// A scalar of exactly that value and gradient.
fn carried(inputs: &Tensor, gradient: Vec<f64>, value: f64) -> Result<Tensor> {
    let gradient = Tensor::from_vec(gradient, inputs.dims(), inputs.device())?.to_dtype(inputs.dtype())?;
    let zero = (inputs - inputs.detach())?;
    Ok(((zero * gradient)?.sum_all()? + value)?)
}

fn read(name: &str, values: &Tensor, tokens: usize) -> Result<Vec<f64>> {
    if values.dims() != [tokens] {
        return Err(Error::Input(format!("grpo: expected {name} ({tokens},), got {:?}", values.dims())));
    }
    let values: Vec<f64> = values.to_dtype(DType::F64)?.to_vec1()?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::Input(format!("grpo: {name} of token {at} is {}", values[at]))),
        None => Ok(values),
    }
}

/// The tensors of a micro-batch as host numbers.
struct Values {
    log_probs: Vec<f64>,
    old: Option<Vec<f64>>,
    reference: Option<Vec<f64>>,
    entropies: Option<Vec<f64>>,
}

impl Values {
    fn read(log_probs: &Tensor, completions: &Completions) -> Result<Self> {
        let tokens = completions.mask.len();
        let some =
            |name, values: Option<&Tensor>| values.map(|values| read(name, values, tokens)).transpose();
        Ok(Self {
            log_probs: read("log_probs", log_probs, tokens)?,
            old: some("old_log_probs", completions.old_log_probs)?,
            reference: some("ref_log_probs", completions.ref_log_probs)?,
            entropies: some("entropies", completions.entropies)?,
        })
    }
}

/// One completion.
struct Row<'a> {
    values: &'a Values,
    /// Indices of the tokens that count.
    tokens: Vec<usize>,
    advantage: f64,
}

impl<'a> Row<'a> {
    fn new(
        completions: &Completions,
        values: &'a Values,
        config: &GrpoConfig,
        row: usize,
        range: std::ops::Range<usize>,
    ) -> Self {
        let tokens = range.filter(|&at| completions.counts(config, row, at)).collect();
        Self { values, tokens, advantage: completions.advantages[row] }
    }

    fn log_ratio(&self, at: usize) -> f64 {
        self.values.old.as_ref().map_or(0., |old| self.values.log_probs[at] - old[at])
    }

    fn mean_log_ratio(&self) -> f64 {
        let sum: f64 = self.tokens.iter().map(|&at| self.log_ratio(at)).sum();
        sum / self.tokens.len().max(1) as f64
    }

    /// Whether the off-policy rule leaves the completion in.
    fn kept(&self, config: &GrpoConfig) -> bool {
        let near = |threshold: f64| -self.mean_log_ratio() <= threshold;
        self.advantage >= 0. || config.off_policy.is_none_or(near)
    }
}

/// What the completions of a micro-batch add up to.
struct Sums {
    totals: Totals,
    entropy_divisor: f64,
    loss: f64,
    gradient: Vec<f64>,
    /// Tokens that the entropy bonus counts.
    active: Vec<bool>,
    active_entropy: f64,
    metrics: Tally,
}

impl Sums {
    fn new(config: &GrpoConfig, totals: &Totals, tokens: usize) -> Self {
        let divisor = if config.loss.per_token_of_step() { totals.tokens } else { totals.selected };
        Self {
            totals: *totals,
            entropy_divisor: divisor.max(1) as f64,
            loss: 0.,
            gradient: vec![0.; tokens],
            active: vec![false; tokens],
            active_entropy: 0.,
            metrics: Tally::default(),
        }
    }

    /// What a token of a completion with `n` loss tokens is multiplied by.
    fn weight(&self, config: &GrpoConfig, n: usize) -> f64 {
        let completions = self.totals.completions as f64;
        let divisor = match config.loss {
            LossType::Grpo | LossType::Sapo => n.max(1) as f64 * completions,
            LossType::DrGrpo => config.max_completion_length as f64 * completions,
            LossType::Luspo => completions,
            LossType::Bnpo | LossType::Dapo | LossType::Cispo | LossType::Vespo => {
                self.totals.tokens.max(1) as f64
            }
        };
        divisor.recip()
    }

    fn add(&mut self, row: &Row, config: &GrpoConfig) {
        let weight = self.weight(config, row.tokens.len());
        let of_sequence = row.mean_log_ratio().exp();
        let ratio = |at: usize| match config.ratio {
            Ratio::Token => row.log_ratio(at).exp(),
            Ratio::Sequence => of_sequence,
        };
        let clamped = row.tokens.iter().map(|&at| row.log_ratio(at).clamp(-20., 20.)).sum();
        let phi = config.vespo.weight(row.advantage, clamped);
        let kept = row.kept(config);
        let mut pooled = 0.;
        for &at in &row.tokens {
            let (c, log_prob) = (ratio(at), row.values.log_probs[at]);
            let entropy = row.values.entropies.as_ref().map_or(0., |values| values[at]);
            self.active[at] = self.totals.entropy_threshold.is_none_or(|least| entropy >= f64::from(least));
            let mut term = match config.loss {
                LossType::Cispo => Term::weighted(c.min(config.epsilon_high), row.advantage, log_prob),
                LossType::Vespo => Term::weighted(phi, row.advantage, log_prob),
                LossType::Sapo => Term::sapo(c, row.advantage, config.sapo),
                _ => Term::clipped(c, row.advantage, config.clip()),
            };
            term = term.scaled(if kept && self.active[at] { weight } else { 0. });
            if let (Some(reference), true) = (&row.values.reference, config.beta != 0.) {
                let charge = divergence(config, log_prob, reference[at], c);
                term = term.plus(charge.scaled(config.beta * weight));
                self.metrics.mean("kl", charge.value, 1.);
            }
            self.loss += term.value;
            self.gradient[at] += term.by_log_prob;
            match config.ratio {
                Ratio::Token => self.gradient[at] += term.by_ratio * c,
                Ratio::Sequence => pooled += term.by_ratio * c,
            }
            if row.values.entropies.is_some() {
                self.metrics.mean("entropy", entropy, 1.);
                self.active_entropy += if self.active[at] { entropy } else { 0. };
            }
        }
        for &at in &row.tokens {
            self.gradient[at] += pooled / row.tokens.len() as f64;
        }
        self.watch(row, config, ratio, phi);
    }

    /// Ratios and clipping of one completion. Masked tokens are no part of any mean; with a ratio per completion, each completion
    /// counts once.
    fn watch(&mut self, row: &Row, config: &GrpoConfig, ratio: impl Fn(usize) -> f64, phi: f64) {
        let ratios: Vec<f64> = match config.ratio {
            Ratio::Token => row.tokens.iter().map(|&at| ratio(at)).collect(),
            Ratio::Sequence => vec![ratio(0)],
        };
        let (count, clip) = (ratios.len() as f64, config.clip());
        let share = |hit: &dyn Fn(f64) -> bool| ratios.iter().filter(|ratio| hit(**ratio)).count() as f64;
        self.metrics.mean("ratio", ratios.iter().sum(), count);
        if config.loss.clips() {
            let low = share(&|c| c.min(clip.delta) < clip.low && row.advantage < 0.);
            let high = share(&|c| c.min(clip.delta) > clip.high && row.advantage > 0.);
            self.metrics.mean("clip_ratio/low_mean", low, count);
            self.metrics.mean("clip_ratio/high_mean", high, count);
            self.metrics.mean("clip_ratio/region_mean", low + high, count);
            if count > 0. {
                self.metrics.min("clip_ratio/low_min", low / count);
                self.metrics.max("clip_ratio/high_max", high / count);
            }
        }
        match config.loss {
            LossType::Cispo => {
                let capped = share(&|c| c > config.epsilon_high && row.advantage > 0.);
                self.metrics.mean("cispo_clip_ratio", capped, count);
            }
            LossType::Vespo => self.metrics.mean("vespo/phi_seq_mean", phi, 1.),
            _ => {}
        }
    }
}

/// The divergence of one token, times the ratio where it is bias-corrected.
fn divergence(config: &GrpoConfig, log_prob: f64, reference: f64, ratio: f64) -> Term {
    let (value, slope) = config.kl.estimate(log_prob, reference);
    match config.bias_corrected_kl {
        true => Term { value: value * ratio, by_ratio: value, by_log_prob: slope * ratio },
        false => Term { value, by_ratio: 0., by_log_prob: slope },
    }
}
