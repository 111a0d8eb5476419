//! One generation for one question, as the rollout leaves it for the update.

use std::ops::Range;
use std::sync::Arc;

use super::footage::Footage;
use crate::models::qwen2_5_vl::Prompt;
use crate::models::qwen2_5_vl::generate::{Completion, Finish};
use crate::models::sampler::Sight;
use crate::select::Selection;
use crate::text::{Answer, Form, Queries, Question};

/// One question about one video, with its answer.
#[derive(Debug, Clone)]
pub struct Task {
    /// Tells questions apart; part of every seed.
    pub id: Arc<str>,
    /// The question.
    pub question: Question,
    /// The right option.
    pub answer: usize,
    /// Pass rate of the base model in [0, 1], where it is known.
    pub pass_rate: Option<f32>,
    /// What kind of question it is, for the report.
    pub family: Arc<str>,
    /// Where the evidence is, as ranges of candidate frames; empty when it is not known.
    pub evidence: Vec<Range<usize>>,
    /// The video.
    pub footage: Arc<Footage>,
}

/// A prompt and what was generated after it.
#[derive(Debug, Clone)]
pub struct Spoken {
    /// Shared by the group where it is the same.
    pub prompt: Arc<Prompt>,
    /// Tokens with their log-probabilities.
    pub completion: Completion,
    /// The text.
    pub text: String,
}

impl Spoken {
    /// Whether the reply was cut off.
    pub fn truncated(&self) -> bool {
        self.completion.finish == Finish::Length
    }
}

/// One generation for one question.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// The query turn; `None` when the model was not asked.
    pub asked: Option<Spoken>,
    /// What was looked for; `None` for uniform frames.
    pub queries: Option<Queries>,
    /// How queries and candidates compare, with the features of both; `None` for uniform frames.
    pub sight: Option<Sight>,
    /// Chosen frames and the distribution they came from.
    pub selection: Selection,
    /// The answer turn.
    pub answered: Spoken,
    /// What was answered.
    pub answer: Answer,
    /// Whether the answer is right.
    pub right: bool,
}

impl Trajectory {
    /// Whether every turn kept to the asked form.
    pub fn well_formed(&self) -> bool {
        let asked = self.asked.is_none() || self.queries.as_ref().is_some_and(|q| q.form == Form::Exact);
        asked && self.answer.well_formed
    }

    /// Whether the question had to stand in for queries that the model was asked for and that could not be read.
    pub fn fell_back(&self) -> bool {
        self.asked.is_some() && self.queries.as_ref().is_some_and(|q| q.form == Form::Fallback)
    }

    /// Share of the evidence ranges that hold a key frame; `None` without evidence.
    pub fn evidence_recall(&self, evidence: &[Range<usize>]) -> Option<f64> {
        let hit = |range: &&Range<usize>| self.selection.frames.iter().any(|frame| range.contains(frame));
        let hits = evidence.iter().filter(hit).count();
        (!evidence.is_empty()).then(|| hits as f64 / evidence.len() as f64)
    }
}
