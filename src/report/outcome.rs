//! From what the pipeline gives to what a page shows.

use std::path::Path;

use super::answered::{Answered, Cost, Frame, Said};
use super::picture::Picture;
use crate::error::Result;
use crate::models::language::Reply;
use crate::pipeline::{Options, Outcome, Step};
use crate::text::Question;

impl Answered {
    /// An outcome of the pipeline. The video is named by its file, without the folder.
    ///
    /// # Errors
    /// A key frame that cannot be encoded.
    pub fn of(
        video: impl AsRef<Path>,
        question: &Question,
        options: &Options,
        outcome: &Outcome,
    ) -> Result<Self> {
        let name = video.as_ref().file_name().map(|name| name.to_string_lossy().into_owned());
        let mut frames = vec![];
        for (at, frame) in outcome.key_frames.iter().enumerate() {
            let picture = outcome.images.get(at).map(Picture::of).transpose()?;
            frames.push(Frame { index: frame.index, seconds: frame.seconds, weight: frame.weight, picture });
        }
        let cached = if outcome.features_cached { "yes" } else { "no" };
        Ok(Self {
            video: name.unwrap_or_default(),
            duration: outcome.duration,
            question: question.text().to_owned(),
            options: question.options().to_vec(),
            facts: vec![
                ("Strategy".to_owned(), options.strategy.to_string()),
                ("Candidates per second".to_owned(), options.fps.to_string()),
                ("Features from the cache".to_owned(), cached.to_owned()),
            ],
            queries: outcome.queries.as_ref().map_or(vec![], |queries| queries.queries.clone()),
            candidates: outcome.candidates.clone(),
            similarity: outcome.similarity.clone(),
            weights: outcome.weights.clone(),
            frames,
            evidence: vec![],
            asked: outcome.query_reply.as_ref().map(said),
            answered: outcome.reply.as_ref().map(said),
            answer: outcome.answer.as_ref().map(|answer| answer.text.clone()),
            choice: outcome.answer.as_ref().and_then(|answer| answer.choice),
            right: None,
            steps: outcome.steps.iter().map(cost).collect(),
            warnings: outcome.warnings.clone(),
        })
    }
}

fn said(reply: &Reply) -> Said {
    let inside =
        reply.text.split_once("<think>").map(|(_, rest)| rest.split_once("</think>").map_or(rest, |p| p.0));
    Said { reasoning: inside.unwrap_or_default().trim().to_owned(), reply: reply.text.clone() }
}

fn cost(report: &crate::pipeline::StepReport) -> Cost {
    let step = match report.step {
        Step::Watch => "watch the video",
        Step::Ask => "ask for queries",
        Step::Compare => "compare",
        Step::Sample => "sample",
        Step::Fetch => "fetch key frames",
        Step::Answer => "answer",
    };
    let tokens = match (report.prompt_tokens, report.visual_tokens, report.new_tokens) {
        (Some(prompt), Some(visual), Some(new)) => Some([prompt, visual, new]),
        _ => None,
    };
    Cost { step: step.to_owned(), seconds: report.seconds, tokens }
}
