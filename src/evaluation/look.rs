//! From a video to chosen frames: queries, similarities and selections of some questions, each made once for all methods.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use candle_core::DType;
use sha2::{Digest, Sha256};

use super::item::Item;
use super::method::{Choosing, Column, Source};
use super::run::Models;
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::models::language::VideoLanguageModel;
use crate::models::qwen2_5_vl::Prompt;
use crate::models::qwen2_5_vl::generate::{Completion, Options, Request};
use crate::models::qwen2_5_vl::processor::Budget;
use crate::models::qwen2_5_vl::sampling::Sampling;
use crate::models::sampler::{Sampler, Sight};
use crate::pipeline::{ShowKeyFrames, Step, StepReport};
use crate::rl::footage::Footage;
use crate::rl::gallery::{Gallery, Showing};
use crate::rl::rollout::evidence_frames;
use crate::select::{
    Draw, Features, Focus, Resolution, Scores, Selection, Settings as Selecting, Strategy, select, uniform,
};
use crate::text::{Queries, query};

/// Called as tokens are written; `Break` ends the work with [`Error::Interrupted`].
pub(super) type OnToken<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

/// A question with its video.
pub(super) struct Viewed<'a> {
    pub item: &'a Item,
    pub footage: Arc<Footage>,
    /// Decoding and features of the video.
    pub watched: StepReport,
}

/// What was looked for in a video, and where it is.
pub(super) struct Looked {
    pub queries: Vec<String>,
    sight: Sight,
    /// The query turn and the comparison.
    pub steps: Vec<StepReport>,
}

/// Some questions, and everything that their methods share.
pub(super) struct Chunk<'a> {
    pub viewed: Vec<Viewed<'a>>,
    /// By source, one per question.
    looked: BTreeMap<Source, Vec<Looked>>,
    /// By video.
    features: BTreeMap<Arc<str>, Features>,
}

/// What a turn took that was generated together with others.
pub(super) fn took_turn(
    step: Step,
    seconds: f64,
    prompt: &Prompt,
    completion: &Completion,
) -> Result<StepReport> {
    let visual = prompt.features.iter().map(|f| f.dim(0)).sum::<candle_core::Result<usize>>()?;
    let tokens = [prompt.input_ids.len(), visual, completion.tokens.len()];
    Ok(StepReport::new(step, seconds).with_tokens(tokens))
}

/// Greedy replies to prompts, written together.
pub(super) fn generate(
    models: &Models,
    prompts: &[Prompt],
    settings: &Settings,
    max_new_tokens: usize,
    on_token: OnToken,
) -> Result<Vec<(Completion, String)>> {
    let chat = &models.chat;
    let options = Options {
        max_new_tokens,
        sampling: Sampling { repetition_penalty: settings.repetition_penalty, ..Sampling::default() },
        stop_tokens: chat.stop_tokens.clone(),
        ..Options::default()
    };
    let request = |prompt| Request { prompt, generations: 0..1, seed: 0 };
    let requests: Vec<Request> = prompts.iter().map(request).collect();
    let completions = chat.model.generate_requests(&requests, &options, &mut |_, _| on_token())?;
    let read = |completion: Completion| {
        let text = chat.tokenizer.decode(&completion.tokens)?;
        Ok((completion, text))
    };
    completions.into_iter().flatten().map(read).collect()
}

impl<'a> Chunk<'a> {
    /// Looks for what the methods of `columns` need, `together` query turns at a time.
    pub fn new(
        models: &Models,
        settings: &Settings,
        viewed: Vec<Viewed<'a>>,
        (columns, together): (&[Column], usize),
        gallery: &mut Gallery,
        on_token: OnToken,
    ) -> Result<Self> {
        let mut chunk = Self { viewed, looked: BTreeMap::new(), features: BTreeMap::new() };
        let sources: Vec<Source> =
            Source::ALL.into_iter().filter(|&s| columns.iter().any(|c| c.method.source == Some(s))).collect();
        let asks = sources.iter().any(|&source| source != Source::Question);
        let written = match asks {
            true => chunk.ask(models, settings, together, gallery, on_token)?,
            false => vec![],
        };
        for source in sources {
            let looked = chunk.look(models, source, &written)?;
            chunk.looked.insert(source, looked);
        }
        chunk.embed(models, columns)?;
        Ok(chunk)
    }

    /// The query turns.
    fn ask(
        &self,
        models: &Models,
        settings: &Settings,
        together: usize,
        gallery: &mut Gallery,
        on_token: OnToken,
    ) -> Result<Vec<(Queries, StepReport)>> {
        let chat = &models.chat;
        let budget = Budget::Slice { tokens: settings.preview_tokens };
        let mut written = vec![];
        for viewed in self.viewed.chunks(together) {
            let start = Instant::now();
            let mut showings = vec![];
            for Viewed { footage, .. } in viewed {
                let (width, height) = footage.dimensions;
                let frames = uniform(footage.len(), settings.previews.min(footage.len()));
                let size = chat.plan(width, height, &budget)?;
                showings.push(Showing {
                    footage: footage.clone(),
                    frames,
                    size,
                    show: ShowKeyFrames::Images,
                });
            }
            let shown = gallery.show(chat, &showings)?;
            let mut prompts = vec![];
            for ((one, showing), (media, features)) in viewed.iter().zip(&showings).zip(shown) {
                let (question, previews) = (&one.item.question, showing.frames.len());
                let text = chat.dialogue.ask(question, previews, one.footage.duration, settings.max_queries);
                prompts.push(Prompt { input_ids: chat.input_ids(&text, &media)?, media, features });
            }
            let replies = generate(models, &prompts, settings, settings.query_tokens, on_token)?;
            let seconds = start.elapsed().as_secs_f64() / viewed.len() as f64;
            for ((one, prompt), (completion, text)) in viewed.iter().zip(&prompts).zip(replies) {
                let queries = query::parse(&text, &one.item.question, settings.max_queries);
                written.push((queries, took_turn(Step::Ask, seconds, prompt, &completion)?));
            }
        }
        Ok(written)
    }

    /// Similarities of every video with the queries of a source.
    fn look(
        &self,
        models: &Models,
        source: Source,
        written: &[(Queries, StepReport)],
    ) -> Result<Vec<Looked>> {
        let clip = models.clip()?;
        let mut all = vec![];
        for (at, Viewed { item, footage, .. }) in self.viewed.iter().enumerate() {
            let mut queries = vec![];
            let mut steps = vec![];
            if let Some((of_model, step)) = written.get(at).filter(|_| source != Source::Question) {
                queries.extend(of_model.queries.iter().cloned());
                steps.push(step.clone());
            }
            if source != Source::Model {
                let of_question = query::of_question(&item.question).queries;
                queries.extend(
                    of_question.into_iter().filter(|query| !queries.contains(query)).collect::<Vec<_>>(),
                );
            }
            let start = Instant::now();
            let texts = clip.encode_texts(&queries)?;
            let sight =
                Sight::new(texts.to_dtype(DType::F32)?, footage.features(clip)?.to_dtype(DType::F32)?)?;
            steps.push(StepReport::new(Step::Compare, start.elapsed().as_secs_f64()));
            all.push(Looked { queries, sight, steps });
        }
        Ok(all)
    }

    /// Features of the videos on the host, for methods that compare frames with each other.
    fn embed(&mut self, models: &Models, columns: &[Column]) -> Result<()> {
        let reads = |column: &Column| column.method.choosing.strategy().is_some_and(Strategy::reads_features);
        if !columns.iter().any(reads) {
            return Ok(());
        }
        for Viewed { footage, .. } in &self.viewed {
            if !self.features.contains_key(&footage.id) {
                let features = Features::of(&footage.features(models.clip()?)?)?;
                self.features.insert(footage.id.clone(), features);
            }
        }
        Ok(())
    }

    /// What was looked for in question `at`; `None` for methods without queries.
    pub fn looked(&self, at: usize, column: Column) -> Option<&Looked> {
        self.looked.get(&column.method.source?)?.get(at)
    }

    /// The frames of question `at`: K of them, or all where there are fewer.
    pub fn choose(
        &self,
        models: &Models,
        settings: &Settings,
        at: usize,
        column: Column,
    ) -> Result<Selection> {
        let Viewed { item, footage, .. } = &self.viewed[at];
        let k = column.frames.min(footage.len());
        let Some(strategy) = column.method.choosing.strategy() else { return self.evidence(at, k) };
        let adaptive = matches!(column.method.choosing, Choosing::Adaptive(_));
        let mut scores = Scores {
            frames: footage.len(),
            seed: seed(column.seed, &item.id),
            settings: Selecting {
                resolution: if adaptive { Resolution::Adaptive } else { Resolution::Full },
                focus: Focus { fps: settings.fps, ..Focus::default() },
                ..Selecting::default()
            },
            ..Scores::default()
        };
        if strategy.reads_features() {
            scores.features = self.features.get(&footage.id).cloned();
        }
        if let Some(looked) = self.looked(at, column) {
            scores.similarity = Some(looked.sight.similarity.to_vec2()?);
            if let Some(network) = models.network(column) {
                network.score(&looked.sight, &mut scores)?;
            }
        }
        select(strategy, &scores, k, Draw::Spread)
    }

    /// Frames from where the evidence is, evenly where that is not known.
    fn evidence(&self, at: usize, k: usize) -> Result<Selection> {
        let Viewed { item, footage, .. } = &self.viewed[at];
        let scores = Scores { frames: footage.len(), ..Scores::default() };
        let mut selection = select(Strategy::Uniform, &scores, k, Draw::Spread)?;
        let candidates = |window: &Range<f64>| {
            let start = footage.seconds.partition_point(|&at| at < window.start);
            start..footage.seconds.partition_point(|&at| at <= window.end)
        };
        let windows = item.windows(footage.frame_rate, footage.duration);
        let ranges: Vec<Range<usize>> =
            windows.iter().map(candidates).filter(|range| !range.is_empty()).collect();
        if !ranges.is_empty() {
            selection.frames = evidence_frames(&ranges, k, footage.len());
            selection.draw_order = selection.frames.clone();
        }
        Ok(selection)
    }
}

/// A seed of its own for each question.
fn seed(seed: u64, id: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(id);
    hash.finalize().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

impl Models {
    fn clip(&self) -> Result<&crate::models::clip::Clip> {
        let missing = || Error::Input("evaluation: methods that look at frames need CLIP weights".to_owned());
        self.clip.as_ref().ok_or_else(missing)
    }

    /// The network of a column that asks one.
    fn network(&self, column: Column) -> Option<&Sampler> {
        let networks = match column.method.choosing.strategy() {
            Some(Strategy::Msjoe) => &self.samplers,
            Some(Strategy::Tspo) => &self.agents,
            _ => return None,
        };
        networks.get(column.seed as usize)
    }
}
