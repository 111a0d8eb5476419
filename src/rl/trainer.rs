//! Joint evolution: the language model and the sampler learn from the same trajectories and the same reward.
//!
//! [`Trainer::step`] is one step from rollout to update, and the page to read first.

use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::advantage::{Signal, baselined, difficulty_aware, group_relative, group_std, has_signal};
use super::alarm::Alarm;
use super::config::{EvolveConfig, Learn, Worth};
use super::difficulty::{Estimation, pass_rates};
use super::gallery::Gallery;
use super::learner::Learner;
use super::rates::Record;
use super::reward::{Outcome, Reward};
use super::rollout::timed;
use super::tally::Tally;
use super::tasks::enough;
use super::trajectory::{Task, Trajectory};
use super::update::{Weighed, log_probs_of, model_gradients, sampler_gradients};
use crate::error::{Error, Result};

/// Bytes of frame features kept between steps.
pub(super) const GALLERY: usize = 1 << 30;

/// Where a run stands; with the learner's files it is all that a resumed run needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Questions taken from the training set so far.
    pub taken: u64,
    /// What was seen of it.
    #[serde(default)]
    pub alarm: Alarm,
}

/// The trajectories of one question with their rewards.
struct Group {
    task: Arc<Task>,
    trajectories: Vec<Trajectory>,
    rewards: Vec<Reward>,
}

/// A run.
pub struct Trainer {
    /// Its settings.
    pub config: EvolveConfig,
    /// Its models.
    pub learner: Learner,
    /// Where it stands.
    pub progress: Progress,
    tasks: Vec<Arc<Task>>,
    gallery: Gallery,
}

impl Trainer {
    /// A run over `tasks`, from its beginning.
    ///
    /// # Errors
    /// Settings at odds, no tasks.
    pub fn new(config: EvolveConfig, learner: Learner, tasks: Vec<Task>) -> Result<Self> {
        config.check()?;
        if tasks.is_empty() {
            return Err(Error::Input("training: expected questions, got none".to_owned()));
        }
        enough(&tasks, config.questions)?;
        Ok(Self {
            config,
            learner,
            progress: Progress::default(),
            tasks: tasks.into_iter().map(Arc::new).collect(),
            gallery: Gallery::new(GALLERY),
        })
    }

    /// Estimates the pass rates that the questions lack, with the models as they are; see [`super::difficulty::pass_rates`].
    ///
    /// # Errors
    /// As there.
    pub fn rate(
        &mut self,
        estimation: &Estimation,
        record: &mut Record,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<()> {
        let mut tasks: Vec<Task> = self.tasks.iter().map(|task| Task::clone(task)).collect();
        pass_rates(self.learner.policy(), &mut tasks, estimation, record, progress)?;
        self.tasks = tasks.into_iter().map(Arc::new).collect();
        Ok(())
    }

    /// Rollout, reward, update of both models. Returns the step's metrics under the field's names. Those under `time/` are
    /// seconds: `rollout` holds `queries`, `similarity`, `frames` and `answers`; `model` and `sampler` hold `optimizer`;
    /// `log_probs` and `backward` are the model's, summed over the threads that work side by side.
    ///
    /// # Errors
    /// A question without a pass rate where the advantage needs one; frames that cannot be decoded; a loss or gradient that is
    /// not finite, before anything was changed by it.
    pub fn step(&mut self) -> Result<Tally> {
        self.rated()?;
        let (start, mut tally) = (Instant::now(), Tally::default());
        let groups = self.collect(&mut tally)?;
        tally.time("time/rollout", start);
        let advantages = self.advantages(&groups)?;

        let at = Instant::now();
        self.update_model(&groups, &advantages.model, &mut tally)?;
        tally.time("time/model", at);
        let at = Instant::now();
        self.update_sampler(&groups, &advantages.sampler, &mut tally)?;
        tally.time("time/sampler", at);
        self.progress.step += 1;
        tally.time("step_time", start);
        tally.rate("tokens_per_second", "num_tokens", "step_time");
        Ok(tally)
    }

    /// Looks at what [`Self::step`] returned; to be called after it, and after it was written down.
    ///
    /// # Errors
    /// What [`super::alarm`] stops.
    pub fn watch(&mut self, tally: &Tally) -> Result<()> {
        self.progress.alarm.look(tally, &self.config.alarm)
    }

    /// GRPO, as many updates as the settings say. Entropy, ratio and the like are those of the trajectories that move the model.
    fn update_model(&mut self, groups: &[Group], advantages: &[f32], tally: &mut Tally) -> Result<()> {
        let rate = self.config.model.rate.schedule(self.config.steps).rate(self.progress.step);
        let mut old: Option<Vec<Vec<f32>>> = None;
        for iteration in 0..self.config.iterations {
            let Some(pupil) = self.learner.pupil(&self.config) else { break };
            let mut weighed: Vec<Weighed> = (groups.iter().flat_map(|group| &group.trajectories))
                .zip(advantages)
                .map(|(trajectory, advantage)| Weighed {
                    trajectory,
                    advantage: f64::from(*advantage),
                    old: None,
                })
                .collect();
            if self.config.iterations > 1 && iteration == 0 {
                old = Some(log_probs_of(&self.learner.chat.model, &weighed, &pupil)?);
            }
            if let Some(old) = old.as_ref().filter(|_| iteration > 0) {
                weighed.iter_mut().zip(old).for_each(|(one, old)| one.old = Some(old));
            }
            if let Some(gradients) = model_gradients(&pupil, &weighed, &self.config.model, tally)? {
                let at = Instant::now();
                let norm = self.learner.step_model(gradients, rate, self.config.model.rate.max_grad_norm)?;
                tally.time("time/optimizer", at);
                tally.mean("grad_norm", norm, 1.0);
                tally.max("learning_rate", rate);
            }
        }
        // Each update has a loss of its own.
        ["loss", "policy_loss"]
            .iter()
            .for_each(|name| tally.scale(name, 1.0 / self.config.iterations as f64));
        Ok(())
    }

    /// REINFORCE.
    fn update_sampler(&mut self, groups: &[Group], advantages: &[f32], tally: &mut Tally) -> Result<()> {
        let Some((sampler, parameters)) = self.learner.student() else { return Ok(()) };
        let drawn: Vec<(&Trajectory, f64)> = (groups.iter().flat_map(|group| &group.trajectories))
            .zip(advantages.iter().map(|advantage| f64::from(*advantage)))
            .collect();
        let (config, at_once) = (&self.config.sampler, self.config.micro_batches_at_once);
        let gradients = sampler_gradients(sampler, parameters, &drawn, config, at_once, tally)?;
        let Some(gradients) = gradients else { return Ok(()) };
        let rate = config.rate.schedule(self.config.steps).rate(self.progress.step);
        let at = Instant::now();
        let norm = self.learner.step_sampler(gradients, rate, self.config.sampler.rate.max_grad_norm)?;
        tally.time("time/optimizer", at);
        tally.mean("sampler/grad_norm", norm, 1.0);
        tally.max("sampler/learning_rate", rate);
        Ok(())
    }

    fn rated(&self) -> Result<()> {
        let needed = self.config.sampler.learn && self.config.sampler.worth == Worth::Difficulty;
        match self.tasks.iter().find(|task| needed && task.pass_rate.is_none()) {
            None => Ok(()),
            Some(task) => Err(Error::Input(format!(
                "question {}: sampler.worth \"difficulty\" needs a pass rate, and it has none; estimate them first",
                task.id
            ))),
        }
    }

    /// Trajectories of the step's questions. Questions without a signal are replaced as often as the settings allow.
    fn collect(&mut self, tally: &mut Tally) -> Result<Vec<Group>> {
        let mut groups: Vec<Group> = vec![];
        let wanted = self.config.questions;
        for round in 0..=self.config.resample {
            let known = groups.iter().map(|group| group.task.clone()).collect();
            let tasks = self.next_tasks(wanted - groups.len(), known);
            let scored = self.scored(&tasks, tally)?;
            self.report(&scored, tally)?;
            let last = round == self.config.resample;
            groups.extend(scored.into_iter().filter(|group| {
                let rewards: Vec<Option<f32>> = group.rewards.iter().map(|r| Some(r.total)).collect();
                last || has_signal(&rewards)
            }));
            if groups.len() >= wanted {
                break;
            }
        }
        Ok(groups)
    }

    /// The next questions, each once and none that is `known`, as long as there are others; every pass over the training set is in an order of its own.
    fn next_tasks(&mut self, count: usize, known: Vec<Arc<Task>>) -> Vec<Arc<Task>> {
        let total = self.tasks.len() as u64;
        let mut picked: Vec<Arc<Task>> = Vec::with_capacity(count);
        let mut order: Option<(u64, Vec<usize>)> = None;
        while picked.len() < count {
            let (pass, place) = (self.progress.taken / total, self.progress.taken % total);
            if order.as_ref().is_none_or(|(of, _)| *of != pass) {
                let mut shuffled: Vec<usize> = (0..self.tasks.len()).collect();
                shuffled.shuffle(&mut StdRng::seed_from_u64(self.seed() ^ pass.wrapping_mul(0x9E37_79B9)));
                order = Some((pass, shuffled));
            }
            if let Some((_, order)) = &order {
                let task = &self.tasks[order[place as usize]];
                // The end of a pass and the begin of the next may hold the same.
                let taken = |of: &[Arc<Task>]| of.iter().any(|other| Arc::ptr_eq(other, task));
                let exhausted = known.len() + picked.len() >= self.tasks.len();
                if !taken(&picked) && (exhausted || !taken(&known)) {
                    picked.push(task.clone());
                }
            }
            self.progress.taken += 1;
        }
        picked
    }

    /// Of the questions' order and of all draws. A stage in which the model learns has its own: it may begin with a sampler that
    /// has learned from the draws of this seed, and REINFORCE needs draws that the weights do not know.
    fn seed(&self) -> u64 {
        match self.config.model.learn {
            Learn::Nothing => self.config.seed,
            _ => self.config.seed ^ 0x6A6F_696E_7400_0000,
        }
    }

    fn scored(&mut self, tasks: &[Arc<Task>], tally: &mut Tally) -> Result<Vec<Group>> {
        // `taken` also tells the rounds of a step apart.
        let seed = self.seed().wrapping_mul(0x0100_0000_01B3) ^ self.progress.taken;
        let plain: Vec<Task> = tasks.iter().map(|task| Task::clone(task)).collect();
        let policy = self.learner.policy();
        let (plan, generations) = (&self.config.plan, self.config.generations);
        let (trajectories, times) = timed(policy, &mut self.gallery, &plain, plan, generations, seed)?;
        tally.merge(&times);
        let mut groups = vec![];
        for (task, trajectories) in tasks.iter().zip(trajectories) {
            let rewards =
                trajectories.iter().map(|trajectory| self.reward(trajectory)).collect::<Result<_>>()?;
            groups.push(Group { task: task.clone(), trajectories, rewards });
        }
        if self.config.shuffle_rewards {
            let mut all: Vec<Reward> = groups.iter().flat_map(|group| group.rewards.clone()).collect();
            all.shuffle(&mut StdRng::seed_from_u64(seed));
            let mut dealt = all.into_iter();
            groups
                .iter_mut()
                .flat_map(|group| &mut group.rewards)
                .zip(dealt.by_ref())
                .for_each(|(r, new)| *r = new);
        }
        Ok(groups)
    }

    fn reward(&self, trajectory: &Trajectory) -> Result<Reward> {
        let similarity: Vec<Vec<f32>> = match &trajectory.sight {
            Some(sight) if !trajectory.fell_back() => {
                sight.similarity.to_dtype(candle_core::DType::F32)?.to_vec2()?
            }
            _ => vec![],
        };
        let outcome = Outcome {
            right: trajectory.right,
            well_formed: trajectory.well_formed(),
            similarity: &similarity,
        };
        Reward::of(&outcome, &self.config.reward)
    }

    fn advantages(&self, groups: &[Group]) -> Result<Advantages> {
        let size = self.config.generations as usize;
        let rewards: Vec<Option<f32>> =
            groups.iter().flat_map(|group| group.rewards.iter().map(|r| Some(r.total))).collect();
        let sampler = match self.config.sampler.worth {
            Worth::Reward(baseline) => baselined(&rewards, size, baseline),
            Worth::Difficulty => {
                let mut all = vec![];
                for group in groups {
                    let pass_rate = f64::from(group.task.pass_rate.unwrap_or_default());
                    for reward in &group.rewards {
                        all.push(difficulty_aware(reward.accuracy > 0.5, pass_rate)? as f32);
                    }
                }
                all
            }
        };
        Ok(Advantages { model: group_relative(&rewards, size, self.config.model.scale), sampler })
    }

    fn report(&self, groups: &[Group], tally: &mut Tally) -> Result<()> {
        let (mut rewards, mut right) = (vec![], vec![]);
        for group in groups {
            for (trajectory, reward) in group.trajectories.iter().zip(&group.rewards) {
                reward.parts().into_iter().for_each(|(name, value)| tally.mean(name, f64::from(value), 1.0));
                rewards.push(Some(reward.total));
                right.push(Some(reward.accuracy));
                let turns = trajectory.asked.iter().chain([&trajectory.answered]);
                let tokens: usize = turns.clone().map(|turn| turn.completion.tokens.len()).sum();
                tally.mean("completions/mean_length", tokens as f64, 1.0);
                tally.sum("num_tokens", tokens as f64);
                let cut = turns.clone().any(|turn| turn.truncated());
                tally.mean("completions/clipped_ratio", f64::from(u8::from(cut)), 1.0);
                if let Some(queries) = &trajectory.queries {
                    tally.mean("queries/count", queries.queries.len() as f64, 1.0);
                    let fallback = f64::from(u8::from(trajectory.fell_back()));
                    tally.mean("queries/fallback", fallback, 1.0);
                }
                if let Some(recall) = trajectory.evidence_recall(&group.task.evidence) {
                    tally.mean("evidence_recall", recall, 1.0);
                }
            }
        }
        group_std(&rewards, self.config.generations as usize)
            .into_iter()
            .for_each(|deviation| tally.mean("reward_std", deviation, 1.0));
        let means: Vec<f64> = (groups.iter())
            .map(|group| {
                group.rewards.iter().map(|reward| f64::from(reward.total)).sum::<f64>()
                    / group.rewards.len() as f64
            })
            .collect();
        tally.max("reward_standard_error", standard_error(&means));
        let signal = Signal::count(&rewards, &right, self.config.generations as usize)?;
        tally.mean(
            "frac_reward_zero_std",
            signal.zero_std_share() * groups.len() as f64,
            groups.len() as f64,
        );
        tally.sum("groups_all_right", signal.all_right as f64);
        tally.sum("groups_all_wrong", signal.all_wrong as f64);
        Ok(())
    }
}

/// Of the mean reward of a step, from the means of its questions; never less than few questions can tell.
fn standard_error(means: &[f64]) -> f64 {
    let count = means.len() as f64;
    let mean = means.iter().sum::<f64>() / count;
    let spread = means.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let least = if means.len() < 4 { 0.5 } else { 0.25 };
    spread.sqrt().max(least) / count.sqrt()
}

/// What each trajectory was worth to either model.
struct Advantages {
    model: Vec<f32>,
    sampler: Vec<f32>,
}
