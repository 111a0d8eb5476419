//! The flow of the crate as one function: [`Pipeline::answer_observed`].
//!
//! ```text
//! video -> frames -> previews -> queries -> similarity -> sampling weights -> key frames -> answer
//! ```
//!
//! The four steps are those of MSJoE (arXiv 2602.22932, section 3): the model looks at K / 2 previews and writes visual
//! queries; CLIP compares them with every second of the video; the U-Net turns the similarities into weights, from which
//! K key frames are drawn; the model answers from the key frames alone, the previews are hidden from that turn.

mod load;
mod options;
mod outcome;
mod watch;

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::Instant;

pub use load::Weights;
pub use options::{FrameTiming, Options, QuerySource, ShowKeyFrames};
pub use outcome::{Event, KeyFrame, Observer, Outcome, Step, StepReport};

use image::RgbImage;

use crate::data::feature_cache::FeatureCache;
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::language::{Reply, Show, Turn, VideoLanguageModel};
use crate::models::qwen2_5_vl::mrope::Timing;
use crate::models::sampler::{Sampler, Sight};
use crate::select::{Features, Resolution, Selection, Strategy, select};
use crate::text::{Queries, Question, query};
use crate::video::Video;
use watch::{Candidates, Seen, Watched};

/// The models, loaded once and used for any number of questions.
pub struct Pipeline {
    /// Writes the queries and answers; not needed to choose frames by given queries.
    pub model: Option<Box<dyn VideoLanguageModel>>,
    /// Compares queries with frames; not needed for [`Strategy::Uniform`].
    pub clip: Option<Clip>,
    /// Turns similarities into weights; needed for [`Strategy::Msjoe`], and as a temporal agent for [`Strategy::Tspo`].
    pub sampler: Option<Sampler>,
    /// Where features of known videos are kept; `None` computes them every time.
    pub cache: Option<FeatureCache>,
    /// What a caller should know about the sampler; repeated in every outcome of [`Strategy::Msjoe`].
    pub warnings: Vec<String>,
}

/// The frames chosen for a question, and what they were chosen by.
struct Choice {
    queries: Option<Queries>,
    query_reply: Option<Reply>,
    /// (Q, T)
    similarity: Vec<Vec<f32>>,
    selection: Selection,
}

impl Pipeline {
    /// Answers a question about a video.
    ///
    /// # Errors
    /// What cannot be done is refused before work starts: options out of range, a video that cannot be read, more key
    /// frames than candidates, a prompt longer than the model's context.
    pub fn answer(&self, video: impl AsRef<Path>, question: &Question, options: &Options) -> Result<Outcome> {
        self.answer_observed(video, question, options, &mut |_| ControlFlow::Continue(()))
    }

    /// [`Self::answer`] that reports progress and text as it comes; `Break` from the observer ends the call with
    /// [`Error::Interrupted`].
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn answer_observed(
        &self,
        video: impl AsRef<Path>,
        question: &Question,
        options: &Options,
        observe: Observer,
    ) -> Result<Outcome> {
        let model = self.language_model("an answer")?;
        let (mut outcome, mut seen) = self.chosen(video.as_ref(), question, options, observe)?;
        let start = Instant::now();
        let runs = std::mem::take(&mut seen.runs);
        let images = self.fetch(seen, &outcome.key_frames, options, observe)?;
        outcome.steps.push(StepReport::of(Step::Fetch, start));

        let start = Instant::now();
        let turn = Turn {
            show: show(&images, &runs, &outcome, options),
            text: &model.dialogue().answer(question),
            max_new_tokens: options.answer_tokens,
            sampling: options.sampling.clone().unwrap_or_else(|| model.sampling()),
        };
        let reply = model.reply(&turn, &mut |piece| observe(Event::Text { step: Step::Answer, piece }))?;
        outcome.steps.push(StepReport::of_reply(Step::Answer, start, &reply));
        outcome.answer = Some(model.dialogue().read_answer(&reply.text, question));
        outcome.reply = Some(reply);
        outcome.images = images;
        Ok(outcome)
    }

    /// The key frames of a question without the answer: the first three steps. The outcome has no pixels.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn choose(
        &self,
        video: impl AsRef<Path>,
        question: &Question,
        options: &Options,
        observe: Observer,
    ) -> Result<Outcome> {
        Ok(self.chosen(video.as_ref(), question, options, observe)?.0)
    }

    fn chosen(
        &self,
        path: &Path,
        question: &Question,
        options: &Options,
        observe: Observer,
    ) -> Result<(Outcome, Seen)> {
        options.validate()?;
        self.check_models(options)?;
        let video = Video::open(path)?;
        let candidates = Candidates::new(&video, options, self.model.as_deref())?;
        let mut steps = vec![];
        let start = Instant::now();
        let watched = self.watch(&video, &candidates, options, observe)?;
        steps.push(StepReport::of(Step::Watch, start));
        let choice = self.choose_frames(&watched, question, options, &mut steps, observe)?;

        let mut warnings = if options.strategy == Strategy::Msjoe { self.warnings.clone() } else { vec![] };
        warnings.extend(watched.warnings);
        let runs = choice.selection.runs();
        let outcome = Outcome {
            answer: None,
            reply: None,
            queries: choice.queries,
            query_reply: choice.query_reply,
            key_frames: outcome::key_frames(&choice.selection, &watched.seconds),
            images: vec![],
            candidates: watched.seconds,
            similarity: choice.similarity,
            weights: choice.selection.weights,
            log_prob: choice.selection.log_prob,
            features_cached: watched.cached,
            duration: video.info.duration,
            steps,
            warnings,
        };
        Ok((outcome, Seen { video, candidates, kept: watched.kept, runs }))
    }

    /// Steps 1 to 3: queries, similarity, draw.
    fn choose_frames(
        &self,
        watched: &Watched,
        question: &Question,
        options: &Options,
        steps: &mut Vec<StepReport>,
        observe: Observer,
    ) -> Result<Choice> {
        let mut scores = options.scores(watched.seconds.len());
        let (mut queries, mut query_reply) = (None, None);
        let (looks, asks) = (options.strategy.reads_features(), options.strategy.reads_queries());
        if let Some(features) = watched.features.as_ref().filter(|_| looks) {
            scores.features = Some(Features::of(&features.embeds)?);
        }
        if let (Some(clip), Some(features), true) = (&self.clip, &watched.features, asks) {
            let start = Instant::now();
            let (asked, reply) = self.ask(watched, question, options, observe)?;
            if let Some(reply) = &reply {
                steps.push(StepReport::of_reply(Step::Ask, start, reply));
            }

            let start = Instant::now();
            let sight = Sight::new(clip.encode_texts(&asked.queries)?, features.embeds.clone())?;
            scores.similarity = Some(sight.similarity.to_vec2()?);
            steps.push(StepReport::of(Step::Compare, start));
            (queries, query_reply) = (Some(asked), reply);

            if let (true, Some(sampler)) = (options.strategy.reads_logits(), &self.sampler) {
                sampler.score(&sight, &mut scores)?;
            }
        }
        let start = Instant::now();
        // A truncated file may hold fewer frames than its index promised.
        let k = options.key_frames.min(scores.frames);
        let selection = select(options.strategy, &scores, k, options.draw)?;
        steps.push(StepReport::of(Step::Sample, start));
        Ok(Choice { queries, query_reply, similarity: scores.similarity.unwrap_or_default(), selection })
    }

    /// Step 1: what should be looked for?
    fn ask(
        &self,
        watched: &Watched,
        question: &Question,
        options: &Options,
        observe: Observer,
    ) -> Result<(Queries, Option<Reply>)> {
        match &options.queries {
            QuerySource::Model => {}
            QuerySource::Question => return Ok((query::of_question(question), None)),
            QuerySource::Given(queries) => return Ok((query::given(queries)?, None)),
        }
        let model = self.language_model("queries")?;
        let turn = Turn {
            show: vec![Show::Images(&watched.previews)],
            text: &model.dialogue().ask(
                question,
                watched.previews.len(),
                watched.duration,
                options.max_queries,
            ),
            max_new_tokens: options.query_tokens,
            sampling: options.sampling.clone().unwrap_or_else(|| model.sampling()),
        };
        let reply = model.reply(&turn, &mut |piece| observe(Event::Text { step: Step::Ask, piece }))?;
        Ok((query::parse(&reply.text, question, options.max_queries), Some(reply)))
    }

    fn language_model(&self, what: &str) -> Result<&dyn VideoLanguageModel> {
        self.model.as_deref().ok_or_else(|| {
            Error::Input(format!("{what}: needs a language model, which this pipeline was loaded without"))
        })
    }

    fn check_models(&self, options: &Options) -> Result<()> {
        let missing = match options.strategy {
            Strategy::Uniform => return Ok(()),
            _ if self.clip.is_none() => "CLIP weights",
            Strategy::Msjoe if self.sampler.is_none() => "a sampler",
            Strategy::Tspo if !matches!(self.sampler, Some(Sampler::TemporalAgent(_))) => {
                "the file of a temporal agent as its sampler"
            }
            strategy if !strategy.reads_queries() => return Ok(()),
            _ if options.queries == QuerySource::Model && self.model.is_none() => {
                "a language model for the queries"
            }
            _ => return Ok(()),
        };
        Err(Error::Input(format!(
            "strategy {}: needs {missing}, which this pipeline was loaded without",
            options.strategy
        )))
    }
}

/// The key frames as the model gets them: all together, or each of the `runs` by itself.
fn show<'a>(
    images: &'a [RgbImage],
    runs: &[Range<usize>],
    chosen: &Outcome,
    options: &Options,
) -> Vec<Show<'a>> {
    let seconds: Vec<f64> = chosen.key_frames.iter().map(|frame| frame.seconds).collect();
    let adaptive = options.selection.resolution == Resolution::Adaptive;
    let exact = adaptive || options.timing == FrameTiming::Exact;
    let of_run = |run: &Range<usize>| {
        let frames = &images[run.clone()];
        // The clock of a medium begins at the last frame before it: positions go on by the time that has passed.
        let since = run.start.checked_sub(1).map_or(0.0, |last| seconds[last]);
        let timing = match exact {
            // Two frames share a temporal slice.
            false => Timing::Uniform((2.0 * chosen.duration / frames.len().max(1) as f64) as f32),
            true => Timing::since(since, &seconds[run.clone()]),
        };
        Show::Video { frames, timing }
    };
    match options.show {
        ShowKeyFrames::Images => vec![Show::Images(images)],
        ShowKeyFrames::Video => runs.iter().map(of_run).collect(),
    }
}
