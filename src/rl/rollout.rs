//! Trajectories: query turn, draw of key frames, answer turn, for several questions and G generations of each.
//!
//! The same four steps as [`crate::pipeline`], in batches, on models that build no graph. Every random number is
//! derived from (run seed, step, question, generation), so that a trajectory does not depend on its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use sha2::{Digest, Sha256};

use super::gallery::{Gallery, Showing};
use super::plan::{Asking, Choosing, Plan, Shown};
use super::tally::Tally;
use super::tasks::long_enough;
use super::trajectory::{Spoken, Task, Trajectory};
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::language::VideoLanguageModel;
use crate::models::qwen2_5_vl::Prompt;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::qwen2_5_vl::generate::{Completion, Options, Request};
use crate::models::qwen2_5_vl::processor::Budget;
use crate::models::qwen2_5_vl::sampling::Sampling;
use crate::models::sampler::{Sampler, Sight};
use crate::pipeline::ShowKeyFrames;
use crate::select::{Draw, Features, Scores, Selection, Strategy, select, uniform};
use crate::text::{Queries, query};

/// The models of a rollout; none of them tracked.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// Asks and answers.
    pub chat: &'a Qwen2_5VlChat,
    /// Compares; needed where frames are chosen by queries.
    pub clip: Option<&'a Clip>,
    /// Weighs; needed where its distribution chooses.
    pub sampler: Option<&'a Sampler>,
}

/// `generations` trajectories of each task, in order.
///
/// # Errors
/// Fewer candidates than key frames, prompts beyond the context, frames that cannot be decoded.
pub fn rollout(
    policy: Policy,
    gallery: &mut Gallery,
    tasks: &[Task],
    plan: &Plan,
    generations: u64,
    seed: u64,
) -> Result<Vec<Vec<Trajectory>>> {
    Ok(timed(policy, gallery, tasks, plan, generations, seed)?.0)
}

/// [`rollout`] with the seconds of its four steps: `time/queries`, `time/similarity` (CLIP, the sampler and the
/// draw), `time/frames` (decoding and vision tower) and `time/answers`.
///
/// # Errors
/// As [`rollout`].
pub fn timed(
    policy: Policy,
    gallery: &mut Gallery,
    tasks: &[Task],
    plan: &Plan,
    generations: u64,
    seed: u64,
) -> Result<(Vec<Vec<Trajectory>>, Tally)> {
    let mut tally = Tally::default();
    let rollout = Rollout { policy, tasks, plan, generations, seed };
    rollout.fits()?;
    let at = Instant::now();
    let mut asked = rollout.ask(gallery)?;
    tally.time("time/queries", at);
    let at = Instant::now();
    let looked = rollout.look(&asked)?;
    tally.time("time/similarity", at);
    let at = Instant::now();
    let prompts = rollout.answer_prompts(gallery, &looked)?;
    tally.time("time/frames", at);
    let at = Instant::now();
    let answers = rollout.answers(&prompts)?;
    tally.time("time/answers", at);
    let mut groups = vec![];
    for (t, (looked, answers)) in looked.into_iter().zip(answers).enumerate() {
        let task = &tasks[t];
        let mut spoken = asked.get_mut(t).map(std::mem::take).unwrap_or_default().into_iter();
        let mut group = vec![];
        for (looked, answered) in looked.into_iter().zip(answers) {
            let answer = policy.chat.dialogue.read_answer(&answered.text, &task.question);
            group.push(Trajectory {
                asked: spoken.next(),
                queries: looked.queries,
                sight: looked.sight,
                selection: looked.selection,
                right: answer.choice == Some(task.answer),
                answered,
                answer,
            });
        }
        groups.push(group);
    }
    Ok((groups, tally))
}

/// `k` of `t` frames spread over the ranges in turn; topped up evenly from the rest where the ranges are too short.
pub(crate) fn evidence_frames(evidence: &[Range<usize>], k: usize, t: usize) -> Vec<usize> {
    let share = k.div_ceil(evidence.len());
    let mut frames = BTreeSet::new();
    for range in evidence {
        let range = range.start.min(t)..range.end.min(t);
        let inside = uniform(range.len(), share.min(range.len()));
        frames.extend(inside.into_iter().map(|at| range.start + at).take(k - frames.len().min(k)));
    }
    let rest: Vec<usize> = (0..t).filter(|frame| !frames.contains(frame)).collect();
    let missing = k.saturating_sub(frames.len()).min(rest.len());
    frames.extend(uniform(rest.len(), missing).into_iter().map(|at| rest[at]));
    frames.into_iter().collect()
}

/// What one trajectory looked for and found.
#[derive(Clone)]
struct Looked {
    queries: Option<Queries>,
    sight: Option<Sight>,
    selection: Selection,
}

struct Rollout<'a> {
    policy: Policy<'a>,
    tasks: &'a [Task],
    plan: &'a Plan,
    generations: u64,
    seed: u64,
}

impl Rollout<'_> {
    fn fits(&self) -> Result<()> {
        self.plan.check()?;
        match self.plan.choosing {
            Choosing::Nothing => Ok(()),
            _ => long_enough(self.tasks, (self.plan.key_frames, 0)),
        }
    }

    /// A seed of its own for each purpose and question.
    fn seed(&self, task: &Task, purpose: &str) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(task.id.as_bytes());
        hash.update(purpose.as_bytes());
        let digest = hash.finalize();
        digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }

    /// The query turns, by task and generation; empty when the model is not asked.
    fn ask(&self, gallery: &mut Gallery) -> Result<Vec<Vec<Spoken>>> {
        let (plan, chat) = (self.plan, self.policy.chat);
        if !plan.choosing.by_queries() || plan.asking == Asking::Question {
            return Ok(vec![]);
        }
        let budget = Budget::Slice { tokens: plan.preview_tokens };
        let mut showings = vec![];
        for task in self.tasks {
            let (width, height) = task.footage.dimensions;
            showings.push(Showing {
                footage: task.footage.clone(),
                frames: uniform(task.footage.len(), plan.preview_count()),
                size: chat.plan(width, height, &budget)?,
                show: ShowKeyFrames::Images,
            });
        }
        let shown = gallery.show(chat, &showings)?;
        let mut prompts = vec![];
        for ((task, showing), (media, features)) in self.tasks.iter().zip(&showings).zip(shown) {
            let count = showing.frames.len();
            let text = chat.dialogue.ask(&task.question, count, task.footage.duration, plan.max_queries);
            prompts.push(Arc::new(Prompt { input_ids: chat.input_ids(&text, &media)?, media, features }));
        }
        // Greedy replies to one prompt are the same: one is written.
        let different = if plan.temperature == 0.0 { self.generations.min(1) } else { self.generations };
        let requests = self.tasks.iter().zip(&prompts).map(|(task, prompt)| Request {
            prompt,
            generations: 0..different,
            seed: self.seed(task, "ask"),
        });
        let mut completions = self.generate(&requests.collect::<Vec<_>>(), plan.query_tokens)?;
        for group in completions.iter_mut().filter(|_| different < self.generations) {
            *group = vec![group[0].clone(); self.generations as usize];
        }
        let spoken = prompts.iter().zip(completions).map(|(prompt, group)| {
            group.into_iter().map(|completion| self.spoken(prompt.clone(), completion)).collect()
        });
        spoken.collect()
    }

    /// Queries, similarity and key frames of every trajectory.
    fn look(&self, asked: &[Vec<Spoken>]) -> Result<Vec<Vec<Looked>>> {
        let plan = self.plan;
        if !plan.choosing.by_queries() {
            let looked = |task: &Task| {
                let one = Looked { queries: None, sight: None, selection: self.blind(task)? };
                Ok((0..self.generations).map(|_| one.clone()).collect())
            };
            return self.tasks.iter().map(looked).collect();
        }
        let queries: Vec<Vec<Queries>> = (self.tasks.iter().enumerate())
            .map(|(t, task)| match asked.get(t) {
                Some(group) => {
                    let parse = |s: &Spoken| query::parse(&s.text, &task.question, plan.max_queries);
                    group.iter().map(parse).collect()
                }
                None => vec![query::of_question(&task.question); self.generations as usize],
            })
            .collect();
        let features = self.text_features(queries.iter().flatten().flat_map(|q| &q.queries))?;
        let mut all = vec![];
        for (task, group) in self.tasks.iter().zip(queries) {
            all.push(self.look_for(task, group, &features)?);
        }
        Ok(all)
    }

    /// A choice that no query takes part in.
    fn blind(&self, task: &Task) -> Result<Selection> {
        let (frames, k) = (task.footage.len(), self.plan.key_frames);
        if self.plan.choosing == Choosing::Nothing {
            return Ok(Selection::nothing(frames));
        }
        let scores = Scores { frames, ..Scores::default() };
        let mut selection = select(Strategy::Uniform, &scores, k, Draw::TopK)?;
        if self.plan.choosing == Choosing::Evidence && !task.evidence.is_empty() {
            selection.frames = evidence_frames(&task.evidence, k, frames);
            selection.draw_order = selection.frames.clone();
        }
        Ok(selection)
    }

    fn look_for(
        &self,
        task: &Task,
        group: Vec<Queries>,
        features: &BTreeMap<String, Tensor>,
    ) -> Result<Vec<Looked>> {
        // Generations that ask the same share one matrix and one pass of the sampler.
        let mut matrices: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        let mut sights = vec![];
        let frames = task.footage.features(self.clip()?)?;
        for queries in &group {
            if !matrices.contains_key(&queries.queries) {
                let rows: Option<Vec<Tensor>> =
                    queries.queries.iter().map(|query| features.get(query).cloned()).collect();
                let rows = rows.ok_or_else(|| Error::Input("rollout: a query was not encoded".to_owned()))?;
                matrices.insert(queries.queries.clone(), sights.len());
                sights.push(Sight::new(Tensor::stack(&rows, 0)?, frames.clone())?);
            }
        }
        let (mut logits, mut apart, mut features): (Vec<Vec<f32>>, _, _) = (vec![], 0.0, None);
        if let Choosing::Draw | Choosing::Largest | Choosing::Spread = self.plan.choosing {
            let missing = || Error::Input("rollout: drawing key frames needs a sampler".to_owned());
            let sampler = self.policy.sampler.ok_or_else(missing)?;
            let tensors = sampler.forward_batch(&sights.iter().collect::<Vec<_>>())?;
            logits = tensors.iter().map(|l| l.to_vec1()).collect::<candle_core::Result<_>>()?;
            apart = sampler.apart();
            let keeps_apart = sights.first().filter(|_| apart != 0.0);
            features = keeps_apart.map(|sight| Features::of(&sight.frames)).transpose()?;
        }
        let scores_of = |(at, sight): (usize, &Sight)| -> Result<Scores> {
            Ok(Scores {
                frames: task.footage.len(),
                similarity: Some(sight.similarity.to_dtype(DType::F32)?.to_vec2()?),
                logits: logits.get(at).cloned(),
                apart,
                features: features.clone(),
                ..Scores::default()
            })
        };
        let scores = sights.iter().enumerate().map(scores_of).collect::<Result<Vec<_>>>()?;
        let mut looked = vec![];
        for (generation, queries) in group.into_iter().enumerate() {
            let at = matrices.get(&queries.queries).copied().unwrap_or_default();
            let selection = self.select(task, generation, &scores[at])?;
            looked.push(Looked { queries: Some(queries), sight: Some(sights[at].clone()), selection });
        }
        Ok(looked)
    }

    fn select(&self, task: &Task, generation: usize, scores: &Scores) -> Result<Selection> {
        let (strategy, draw) = match self.plan.choosing {
            Choosing::Uniform | Choosing::Evidence | Choosing::Nothing => return self.blind(task),
            Choosing::TopK => (Strategy::TopK, Draw::TopK),
            Choosing::Largest => (Strategy::Msjoe, Draw::TopK),
            Choosing::Spread => (Strategy::Msjoe, Draw::Spread),
            Choosing::Draw => {
                let seed = self.seed(task, &format!("draw {generation}"));
                (Strategy::Msjoe, Draw::Gumbel { seed })
            }
        };
        select(strategy, scores, self.plan.key_frames, draw)
    }

    fn clip(&self) -> Result<&Clip> {
        let missing = || Error::Input("rollout: choosing key frames by queries needs a CLIP".to_owned());
        self.policy.clip.ok_or_else(missing)
    }

    /// CLIP features (D,) of every distinct query.
    fn text_features<'q>(
        &self,
        queries: impl Iterator<Item = &'q String>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut distinct: Vec<String> = queries.cloned().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let embeds = self.clip()?.encode_texts(&distinct)?;
        let rows = distinct.into_iter().enumerate().map(|(i, query)| Ok((query, embeds.get(i)?)));
        rows.collect::<candle_core::Result<_>>().map_err(Error::from)
    }

    fn answer_prompts(&self, gallery: &mut Gallery, looked: &[Vec<Looked>]) -> Result<Vec<Vec<Arc<Prompt>>>> {
        let (plan, chat) = (self.plan, self.policy.chat);
        let apart = plan.show == Shown::Images;
        let budget = Budget::of_key_frames(plan.key_frames, plan.key_frame_tokens, apart);
        let mut showings = vec![];
        for (task, group) in self.tasks.iter().zip(looked) {
            let (width, height) = task.footage.dimensions;
            let size = chat.plan(width, height, &budget)?;
            showings.extend(group.iter().map(|looked| Showing {
                footage: task.footage.clone(),
                frames: looked.selection.frames.clone(),
                size,
                show: plan.show,
            }));
        }
        let mut shown = gallery.show(chat, &showings)?.into_iter();
        let mut prompts = vec![];
        for (task, group) in self.tasks.iter().zip(looked) {
            let text = chat.dialogue.answer(&task.question);
            let of_group = shown.by_ref().take(group.len()).map(|(media, features)| {
                Ok(Arc::new(Prompt { input_ids: chat.input_ids(&text, &media)?, media, features }))
            });
            prompts.push(of_group.collect::<Result<Vec<_>>>()?);
        }
        Ok(prompts)
    }

    fn answers(&self, prompts: &[Vec<Arc<Prompt>>]) -> Result<Vec<Vec<Spoken>>> {
        let mut requests = vec![];
        for (task, group) in self.tasks.iter().zip(prompts) {
            let seed = self.seed(task, "answer");
            requests.extend((0..).zip(group).map(|(g, prompt)| Request {
                prompt,
                generations: g..g + 1,
                seed,
            }));
        }
        let completions = self.generate(&requests, self.plan.answer_tokens)?;
        let mut completions = completions.into_iter().flatten();
        let spoken = prompts.iter().map(|group| {
            let group = group.iter().zip(completions.by_ref());
            group.map(|(prompt, completion)| self.spoken(prompt.clone(), completion)).collect()
        });
        spoken.collect()
    }

    fn generate(&self, requests: &[Request], max_new_tokens: usize) -> Result<Vec<Vec<Completion>>> {
        let chat = self.policy.chat;
        // Penalties and cut-offs would make the rollout another distribution than the one that is trained.
        let sampling = Sampling { temperature: self.plan.temperature, ..Sampling::default() };
        let options = Options {
            max_new_tokens,
            sampling,
            stop_tokens: chat.stop_tokens.clone(),
            prefill_chunk: PREFILL,
            // A placeholder without an image behind it could not be trained on.
            banned: vec![chat.model.config.image_token_id, chat.model.config.video_token_id],
        };
        chat.model.generate_requests(requests, &options, &mut |_, _| ControlFlow::Continue(()))
    }

    fn spoken(&self, prompt: Arc<Prompt>, completion: Completion) -> Result<Spoken> {
        let text = self.policy.chat.tokenizer.decode(&completion.tokens)?;
        Ok(Spoken { prompt, completion, text })
    }
}

/// Prompt tokens that are prefilled together.
pub(super) const PREFILL: usize = 8192;
