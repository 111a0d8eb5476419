//! Advantages: what a reward is worth beside the others of its group.
//!
//! Rewards come in consecutive groups of `group` (a last shorter group counts as one); `None` is a completion that could not be
//! scored, which enters no mean and gets advantage 0. Statistics are f64.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Added to every standard deviation before dividing, as TRL does.
const EPSILON: f64 = 1e-4;
/// The advantage of an answer that the base never gives (arXiv 2602.22932 has it for right answers).
const RARE: f64 = 10.;

/// By what a centred reward is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// The standard deviation of its group.
    Group,
    /// The standard deviation of all rewards.
    Batch,
    /// Nothing.
    None,
}

/// What is taken off a reward that is not scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Nothing: the printed form of MSJoE.
    None,
    /// The mean of the group.
    GroupMean,
    /// The mean of the others of the group (RLOO, arXiv 2402.14740), which leaves the gradient unbiased.
    LeaveOneOut,
}

/// GRPO's advantages: each reward less the mean of its group, over a standard deviation (n - 1) plus 1e-4, as TRL computes them.
/// A group of equal rewards gives exactly 0.
pub fn group_relative(rewards: &[Option<f32>], group: usize, scale: Scale) -> Vec<f32> {
    let whole = spread(rewards);
    let advantages = groups(rewards, group).flat_map(|members| {
        let mean = mean(members);
        let divisor = match scale {
            Scale::Group => spread(members) + EPSILON,
            Scale::Batch => whole + EPSILON,
            Scale::None => 1.,
        };
        members.iter().map(move |reward| reward.map_or(0., |reward| (f64::from(reward) - mean) / divisor))
    });
    advantages.map(|advantage| advantage as f32).collect()
}

/// Rewards less a baseline, for REINFORCE. A reward without any other in its group has leave-one-out advantage 0.
pub fn baselined(rewards: &[Option<f32>], group: usize, baseline: Baseline) -> Vec<f32> {
    let advantages = groups(rewards, group).flat_map(|members| {
        let (mean, count) = (mean(members), scored(members).count() as f64);
        members.iter().map(move |reward| {
            let Some(reward) = reward.map(f64::from) else { return 0. };
            match baseline {
                Baseline::None => reward,
                Baseline::GroupMean => reward - mean,
                // reward - (mean * count - reward) / (count - 1)
                Baseline::LeaveOneOut if count > 1. => (reward - mean) * count / (count - 1.),
                Baseline::LeaveOneOut => 0.,
            }
        })
    });
    advantages.map(|advantage| advantage as f32).collect()
}

/// One reward per completion from several reward functions: their weighted sum over those that gave a score, `None` when none did.
/// `rewards`: a row per completion, a column per function.
///
/// # Errors
/// A row that has not one entry per weight.
pub fn weighted_sum(rewards: &[Vec<Option<f32>>], weights: &[f32]) -> Result<Vec<Option<f32>>> {
    check_columns(rewards, weights)?;
    let sum = |row: &Vec<Option<f32>>| {
        let terms =
            row.iter().zip(weights).filter_map(|(reward, &weight)| Some(f64::from((*reward)? * weight)));
        row.iter().any(Option::is_some).then(|| terms.sum::<f64>() as f32)
    };
    Ok(rewards.iter().map(sum).collect())
}

/// TRL's `normalize_then_sum` (GDPO): every reward function is standardised within its group first, then the weighted sums are
/// standardised over the batch.
///
/// # Errors
/// A row that has not one entry per weight.
pub fn normalize_then_sum(rewards: &[Vec<Option<f32>>], weights: &[f32], group: usize) -> Result<Vec<f32>> {
    check_columns(rewards, weights)?;
    let mut sums: Vec<Option<f64>> =
        rewards.iter().map(|row| row.iter().any(Option::is_some).then_some(0.)).collect();
    for (column, &weight) in weights.iter().enumerate() {
        let of_one: Vec<Option<f32>> = rewards.iter().map(|row| row[column]).collect();
        let scaled = groups(&of_one, group).flat_map(|members| {
            let (mean, divisor) = (mean(members), spread(members) + EPSILON);
            members.iter().map(move |reward| reward.map_or(0., |reward| (f64::from(reward) - mean) / divisor))
        });
        for (sum, scaled) in sums.iter_mut().zip(scaled) {
            *sum = sum.map(|sum| sum + f64::from(weight) * scaled);
        }
    }
    let known: Vec<f64> = sums.iter().copied().flatten().collect();
    let (mean, divisor) = (mean_of(known.iter().copied()), spread_of(known.iter().copied()) + EPSILON);
    Ok(sums.iter().map(|sum| sum.map_or(0., |sum| ((sum - mean) / divisor) as f32)).collect())
}

/// Difficulty-aware advantage (arXiv 2602.22932): `1 / c` for a right answer, `-1 / (1 - c)` for a wrong one, with `c` the base
/// model's pass rate on the question, so that the base expects 0 and rare answers weigh most. At `c` = 0 a right answer gets 10,
/// at `c` = 1 a wrong one -10 (the latter is ours).
///
/// # Errors
/// A pass rate outside [0, 1].
pub fn difficulty_aware(right: bool, pass_rate: f64) -> Result<f64> {
    if !(0. ..=1.).contains(&pass_rate) {
        return Err(Error::Input(format!("difficulty: a pass rate must be from 0 to 1, got {pass_rate}")));
    }
    Ok(match right {
        true if pass_rate == 0. => RARE,
        true => pass_rate.recip(),
        false if pass_rate == 1. => -RARE,
        false => -(1. - pass_rate).recip(),
    })
}

/// Standard deviation (n - 1) of the rewards of each group; 0 for fewer than two.
pub fn group_std(rewards: &[Option<f32>], group: usize) -> Vec<f64> {
    groups(rewards, group).map(spread).collect()
}

/// Whether a group teaches anything: two of its rewards differ.
pub fn has_signal(rewards: &[Option<f32>]) -> bool {
    let mut scored = scored(rewards);
    scored.next().is_some_and(|first| scored.any(|reward| reward != first))
}

/// How many groups of a batch teach nothing, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// All groups.
    pub groups: usize,
    /// Groups whose rewards do not differ: their advantages are 0.
    pub zero_std: usize,
    /// Groups in which every scored answer is right.
    pub all_right: usize,
    /// Groups in which every scored answer is wrong.
    pub all_wrong: usize,
    /// Groups without a score.
    pub unscorable: usize,
}

impl Signal {
    /// Counts the groups of a batch; `accuracies` are 1 for right and 0 for wrong.
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn count(rewards: &[Option<f32>], accuracies: &[Option<f32>], group: usize) -> Result<Self> {
        if rewards.len() != accuracies.len() {
            return Err(Error::Input(format!(
                "signal: {} rewards and {} accuracies",
                rewards.len(),
                accuracies.len()
            )));
        }
        let mut signal = Self::default();
        for (rewards, accuracies) in groups(rewards, group).zip(groups(accuracies, group)) {
            let any = scored(accuracies).next().is_some();
            signal.groups += 1;
            signal.zero_std += usize::from(!has_signal(rewards));
            signal.all_right += usize::from(any && scored(accuracies).all(|accuracy| accuracy >= 1.));
            signal.all_wrong += usize::from(any && scored(accuracies).all(|accuracy| accuracy <= 0.));
            signal.unscorable += usize::from(scored(rewards).next().is_none());
        }
        Ok(signal)
    }

    /// Adds the counts of another batch.
    pub fn merge(&mut self, other: Self) {
        self.groups += other.groups;
        self.zero_std += other.zero_std;
        self.all_right += other.all_right;
        self.all_wrong += other.all_wrong;
        self.unscorable += other.unscorable;
    }

    /// `frac_reward_zero_std`: the true share of groups, whatever the scale; 0 without groups.
    pub fn zero_std_share(&self) -> f64 {
        self.zero_std as f64 / self.groups.max(1) as f64
    }
}

fn groups<T>(values: &[T], group: usize) -> std::slice::Chunks<'_, T> {
    values.chunks(group.max(1))
}

fn scored(rewards: &[Option<f32>]) -> impl Iterator<Item = f64> + Clone {
    rewards.iter().flatten().map(|&reward| f64::from(reward))
}

fn mean(rewards: &[Option<f32>]) -> f64 {
    mean_of(scored(rewards))
}

fn spread(rewards: &[Option<f32>]) -> f64 {
    spread_of(scored(rewards))
}

fn mean_of(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1);
    values.sum::<f64>() / count as f64
}

fn spread_of(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let (mean, count) = (mean_of(values.clone()), values.clone().count());
    if count < 2 {
        return 0.;
    }
    (values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1) as f64).sqrt()
}

fn check_columns(rewards: &[Vec<Option<f32>>], weights: &[f32]) -> Result<()> {
    match rewards.iter().position(|row| row.len() != weights.len()) {
        None => Ok(()),
        Some(at) => Err(Error::Input(format!(
            "rewards: completion {at} has {} scores for {} weights",
            rewards[at].len(),
            weights.len()
        ))),
    }
}
