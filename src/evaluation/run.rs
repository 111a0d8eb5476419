//! The work: videos one after another, each decoded and encoded once, every question asked for queries once, and every
//! method's answer written down as it comes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::item::{Item, Origin, by_video, folders};
use super::journal::{Journal, Prediction};
use super::look::{Chunk, Viewed, generate, took_turn};
use super::method::{Choosing, Column};
use super::settings::Settings;
use super::shown::{Exhibit, apart, between_frames, exhibits, full_size, prompt};
use crate::benchmarks::found;
use crate::benchmarks::subtitles::{self, Line};
use crate::data::feature_cache::FeatureCache;
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::language::VideoLanguageModel;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::qwen2_5_vl::mrope::Media;
use crate::models::qwen2_5_vl::processor::{Budget, Size};
use crate::models::sampler::Sampler;
use crate::pipeline::{Step, StepReport};
use crate::rl::footage::{Footage, Watching};
use crate::rl::gallery::{Gallery, Showing};
use crate::select::{Selection, Strategy};
use crate::video::{Times, Video};

/// The models of an evaluation, loaded once.
pub struct Models {
    /// Writes queries and answers.
    pub chat: Qwen2_5VlChat,
    /// Compares; not needed for `uniform` and `evidence`.
    pub clip: Option<Clip>,
    /// One per seed of `msjoe`.
    pub samplers: Vec<Sampler>,
    /// One per seed of `tspo`: temporal agents.
    pub agents: Vec<Sampler>,
    /// Where CLIP features of video files are kept.
    pub cache: Option<FeatureCache>,
    /// Bytes of frames, and of their features, that are kept for the next method.
    pub memory: usize,
}

/// What is to be answered.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The questions.
    pub items: &'a [Item],
    /// The methods, each with K and a seed.
    pub columns: &'a [Column],
    /// Where the benchmark's files are: subtitles.
    pub data: Option<&'a std::path::Path>,
    /// Questions that go through the language model together. A batch is always made of the same questions, also in a run
    /// that goes on, so that its answers do not depend on where it was stopped.
    pub together: usize,
}

/// News from the work.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A video is being watched: candidates done, of.
    Watching(&'a str, usize, usize),
    /// Answers that are there, of all.
    Answered(usize, usize),
    /// A token was written.
    Writing,
}

/// Receives events; `Break` ends the work after what has been answered is written.
pub type Observer<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

/// Exact counts of what was done.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Counts {
    /// Answers asked for: questions times columns.
    pub wanted: usize,
    /// Those that were there before.
    pub before: usize,
    /// Those of this run.
    pub answered: usize,
    /// Those that could not be given; they are tried again the next time.
    pub failed: usize,
    /// The first reasons, by video or question.
    pub failures: BTreeMap<String, String>,
    /// Whether the run was stopped.
    pub interrupted: bool,
}

impl Counts {
    /// Answers that are still to be given.
    pub fn left(&self) -> usize {
        self.wanted - self.before - self.answered
    }
}

impl Models {
    /// Refuses columns that need models which are not there, before anything is decoded.
    fn suffice(&self, columns: &[Column]) -> Result<()> {
        if needs_clip(columns) && self.clip.is_none() {
            return Err(Error::Input(
                "evaluation: methods that look at frames need CLIP weights, got none".into(),
            ));
        }
        for (strategy, have) in [(Strategy::Msjoe, self.samplers.len()), (Strategy::Tspo, self.agents.len())]
        {
            let seeds = columns.iter().filter(|&&column| asks(&[column], strategy)).map(|c| c.seed + 1).max();
            if let Some(seeds) = seeds.filter(|&seeds| seeds > have as u64) {
                let text = format!("evaluation: {strategy} needs a network per seed ({seeds}), got {have}");
                return Err(Error::Input(text));
            }
        }
        let Some(clip) = &self.clip else { return Ok(()) };
        self.agents.iter().try_for_each(|agent| agent.check(clip.config().projection_dim))
    }
}

/// Answers everything of `work` that `journal` does not hold.
///
/// # Errors
/// Settings out of range, models that are missing, and a journal that cannot be written. What is wrong with a video or a question is counted in
/// [`Counts::failed`], and an interruption in [`Counts::interrupted`].
pub fn run(
    models: &Models,
    settings: &Settings,
    work: Work,
    journal: &mut Journal,
    observe: Observer,
) -> Result<Counts> {
    settings.check()?;
    models.suffice(work.columns)?;
    let wanted = work.items.len() * work.columns.len();
    let has = |item: &Item| work.columns.iter().filter(|&&column| journal.has(&item.id, column)).count();
    let before = work.items.iter().map(has).sum();
    let counts = Counts { wanted, before, ..Counts::default() };
    let together = work.together.max(1);
    let mut run = Run { models, settings, work: Work { together, ..work }, counts, speed: Speed::default() };
    for items in chunks(work.items, together) {
        match run.chunk(&items, journal, observe) {
            Ok(()) => {}
            Err(Error::Interrupted) => {
                run.counts.interrupted = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(run.counts)
}

/// Questions that are worked on together: those of one video file, or of some videos that are rendered in memory.
fn chunks(items: &[Item], together: usize) -> Vec<Vec<&Item>> {
    let mut chunks: Vec<Vec<&Item>> = vec![];
    for of_video in by_video(items) {
        let rendered = |items: &[&Item]| items.iter().all(|item| matches!(item.origin, Origin::World(_)));
        match chunks.last_mut() {
            Some(last)
                if rendered(last) && rendered(&of_video) && last.len() + of_video.len() <= together =>
            {
                last.extend(of_video);
            }
            _ => chunks.push(of_video),
        }
    }
    chunks
}

/// What showing frames has taken so far.
#[derive(Default)]
struct Speed {
    seconds: f64,
    pixels: f64,
}

struct Run<'a> {
    models: &'a Models,
    settings: &'a Settings,
    work: Work<'a>,
    counts: Counts,
    speed: Speed,
}

impl Run<'_> {
    fn chunk(&mut self, items: &[&Item], journal: &mut Journal, observe: Observer) -> Result<()> {
        let missing = |column: &&Column| items.iter().any(|item| !journal.has(&item.id, **column));
        let columns: Vec<Column> = self.work.columns.iter().filter(missing).copied().collect();
        if columns.is_empty() {
            return Ok(());
        }
        let lacking = |journal: &Journal, columns: &[Column]| -> usize {
            let of_column =
                |column: &Column| items.iter().filter(|item| !journal.has(&item.id, *column)).count();
            columns.iter().map(of_column).sum()
        };
        let mut gallery = Gallery::new(self.models.memory);
        let viewed = match self.view(items, &columns, observe) {
            Ok(viewed) => viewed,
            Err(error) => return self.failed(&items[0].video(), error, lacking(journal, &columns)),
        };
        let mut tick = || observe(Event::Writing);
        let asked = (columns.as_slice(), self.work.together);
        let chunk = match Chunk::new(self.models, self.settings, viewed, asked, &mut gallery, &mut tick) {
            Ok(chunk) => chunk,
            Err(error) => return self.failed(&items[0].id, error, lacking(journal, &columns)),
        };
        for &column in &columns {
            let all: Vec<usize> = (0..items.len()).collect();
            for batch in all.chunks(self.work.together) {
                if batch.iter().all(|&at| journal.has(&items[at].id, column)) {
                    continue;
                }
                match self.answer(&chunk, batch, column, &mut gallery, observe) {
                    Ok(predictions) => self.counts.answered += journal.add(predictions)?,
                    Err(error) => {
                        let count = batch.iter().filter(|&&at| !journal.has(&items[at].id, column)).count();
                        self.failed(&items[batch[0]].id, error, count)?;
                    }
                }
                let done = self.counts.before + self.counts.answered;
                if observe(Event::Answered(done, self.counts.wanted)).is_break() {
                    return Err(Error::Interrupted);
                }
            }
        }
        Ok(())
    }

    /// Counts what could not be done; an interruption goes on.
    fn failed(&mut self, what: &str, error: Error, count: usize) -> Result<()> {
        const TOLD: usize = 20;
        if matches!(error, Error::Interrupted) {
            return Err(error);
        }
        tracing::warn!("{what}: {error}");
        self.counts.failed += count;
        if self.counts.failures.len() < TOLD {
            self.counts.failures.entry(what.to_owned()).or_insert_with(|| error.to_string());
        }
        Ok(())
    }

    /// Opens the videos of a chunk, each once.
    fn view<'i>(&self, items: &[&'i Item], columns: &[Column], observe: Observer) -> Result<Vec<Viewed<'i>>> {
        let looks = columns.iter().any(|column| column.method.choosing.looks());
        let clip = self.models.clip.as_ref().filter(|_| looks);
        let mut known: BTreeMap<String, (Arc<Footage>, StepReport)> = BTreeMap::new();
        let mut viewed = vec![];
        for &item in items {
            let name = item.video();
            if !known.contains_key(&name) {
                let start = Instant::now();
                let footage = match &item.origin {
                    Origin::World(task) => task.footage.clone(),
                    Origin::File { video, .. } | Origin::Benchmark { video, .. } => {
                        let video = Video::open(video)?;
                        let sizes =
                            self.sizes(&video, self.settings.subtitles && between_frames(item), columns)?;
                        let watching = Watching {
                            fps: self.settings.fps,
                            clip,
                            cache: self.models.cache.as_ref(),
                            sizes: &sizes,
                            memory: self.models.memory,
                        };
                        let mut told = |done, of| observe(Event::Watching(&name, done, of));
                        Arc::new(Footage::of_video(video, watching, &mut told)?)
                    }
                };
                if let Some(clip) = clip {
                    footage.features(clip)?;
                }
                let report = StepReport::new(Step::Watch, start.elapsed().as_secs_f64());
                known.insert(name.clone(), (footage, report));
            }
            if let Some((footage, watched)) = known.get(&name) {
                viewed.push(Viewed { item, footage: footage.clone(), watched: watched.clone() });
            }
        }
        Ok(viewed)
    }

    /// Every full size in which frames of a video will be shown.
    fn sizes(&self, video: &Video, separate: bool, columns: &[Column]) -> Result<Vec<Size>> {
        let (chat, dimensions) = (&self.models.chat, (video.info.width, video.info.height));
        let budget = Budget::Slice { tokens: self.settings.preview_tokens };
        let mut sizes = vec![chat.plan(dimensions.0, dimensions.1, &budget)?];
        let candidates = video.sample_times(&Times::Fps(self.settings.fps))?.len();
        for column in columns {
            let apart = apart(column.method.choosing, separate, self.settings);
            let size = full_size(chat, dimensions, column.frames.min(candidates), apart, self.settings)?;
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        Ok(sizes)
    }

    /// The answers to some questions of a chunk by one method.
    fn answer(
        &mut self,
        chunk: &Chunk,
        batch: &[usize],
        column: Column,
        gallery: &mut Gallery,
        observe: Observer,
    ) -> Result<Vec<Prediction>> {
        let (models, settings) = (self.models, self.settings);
        let mut chosen = vec![];
        for &at in batch {
            let start = Instant::now();
            let selection = chunk.choose(models, settings, at, column)?;
            let sampled = StepReport::new(Step::Sample, start.elapsed().as_secs_f64());
            let Viewed { item, footage, .. } = &chunk.viewed[at];
            let k = column.frames.min(footage.len());
            let separate = settings.subtitles && between_frames(item);
            let apart = apart(column.method.choosing, separate, settings);
            let full = full_size(&models.chat, footage.dimensions, k, apart, settings)?;
            let shown = exhibits(&models.chat, footage, &selection, full, settings, separate)?;
            chosen.push(Chosen { at, selection, sampled, exhibits: shown });
        }
        let (media, fetched) = self.show(&chosen, gallery)?;
        let mut prompts = vec![];
        for (one, shown) in chosen.iter().zip(media) {
            let Viewed { item, footage, .. } = &chunk.viewed[one.at];
            let seconds = one.seconds(footage);
            let lines = if settings.subtitles { self.subtitles(item, footage)? } else { None };
            prompts.push(prompt(&models.chat, item, shown, lines.as_deref(), &seconds, settings.form)?);
        }
        let start = Instant::now();
        let mut tick = || observe(Event::Writing);
        let replies = generate(models, &prompts, settings, settings.answer_tokens, &mut tick)?;
        let seconds = start.elapsed().as_secs_f64() / batch.len() as f64;
        let mut predictions = vec![];
        for (((one, prompt), (completion, reply)), fetched) in
            chosen.into_iter().zip(&prompts).zip(replies).zip(fetched)
        {
            let answered = took_turn(Step::Answer, seconds, prompt, &completion)?;
            predictions.push(self.prediction(chunk, one, column, reply, [fetched, answered]));
        }
        Ok(predictions)
    }

    /// Features of everything that is shown, and what they take: frames that an earlier method showed as well are counted
    /// as if they were encoded again.
    #[allow(clippy::type_complexity)]
    fn show(
        &mut self,
        chosen: &[Chosen],
        gallery: &mut Gallery,
    ) -> Result<(Vec<(Vec<Media>, Vec<candle_core::Tensor>)>, Vec<StepReport>)> {
        let showings: Vec<Showing> =
            chosen.iter().flat_map(|one| &one.exhibits).map(|exhibit| exhibit.showing.clone()).collect();
        let (start, encoded) = (Instant::now(), gallery.encoded);
        let mut shown = gallery.show(&self.models.chat, &showings)?.into_iter();
        let pixels: Vec<f64> = chosen.iter().map(Chosen::pixels).collect();
        let slices: usize = chosen.iter().flat_map(|one| &one.exhibits).map(Exhibit::slices).sum();
        let share = (gallery.encoded - encoded) as f64 / slices.max(1) as f64;
        self.speed.seconds += start.elapsed().as_secs_f64();
        self.speed.pixels += share * pixels.iter().sum::<f64>();
        let rate = if self.speed.pixels > 0. { self.speed.seconds / self.speed.pixels } else { 0. };
        let mut all = vec![];
        for one in chosen {
            let (mut media, mut features) = (vec![], vec![]);
            for (exhibit, (more, tensors)) in one.exhibits.iter().zip(shown.by_ref()) {
                media.extend(exhibit.timed(more));
                features.extend(tensors);
            }
            all.push((media, features));
        }
        Ok((all, pixels.into_iter().map(|pixels| StepReport::new(Step::Fetch, rate * pixels)).collect()))
    }

    /// The subtitles of a question's video in its clock; `None` where it has none.
    fn subtitles(&self, item: &Item, footage: &Footage) -> Result<Option<Vec<Line>>> {
        let (Some(entry), Some(data)) = (item.entry(), self.work.data) else { return Ok(None) };
        let Some(path) = folders(data).iter().find_map(|folder| entry.find_subtitles(folder)) else {
            return Ok(None);
        };
        let offset = entry.subtitles.as_ref().map_or(0., |file| file.offset);
        Ok(Some(subtitles::read(path)?.in_video(offset, footage.duration)))
    }

    fn prediction(
        &self,
        chunk: &Chunk,
        one: Chosen,
        column: Column,
        reply: String,
        turn: [StepReport; 2],
    ) -> Prediction {
        let Viewed { item, footage, watched } = &chunk.viewed[one.at];
        let looked = chunk.looked(one.at, column);
        let choice = item.choice(&reply, self.settings.form, self.models.chat.dialogue);
        let seconds = one.seconds(footage);
        let mut steps = vec![];
        if column.method.choosing.looks() {
            steps.push(watched.clone());
        }
        steps.extend(looked.iter().flat_map(|looked| looked.steps.iter().cloned()));
        steps.push(one.sampled);
        steps.extend(turn);
        Prediction {
            id: item.id.clone(),
            method: column.method.choosing.name(),
            queries_from: column.method.source,
            frames: column.frames,
            seed: column.seed,
            right: item.is_right(choice),
            choice,
            reply,
            queries: looked.map(|looked| looked.queries.clone()).unwrap_or_default(),
            evidence_recall: found(&item.windows(footage.frame_rate, footage.duration), &seconds),
            key_frames: one.selection.frames,
            seconds,
            steps,
        }
    }
}

/// The frames of one question.
struct Chosen {
    /// Place in the chunk.
    at: usize,
    selection: Selection,
    sampled: StepReport,
    exhibits: Vec<Exhibit>,
}

impl Chosen {
    fn seconds(&self, footage: &Footage) -> Vec<f64> {
        self.selection.frames.iter().filter_map(|&frame| footage.seconds.get(frame).copied()).collect()
    }

    fn pixels(&self) -> f64 {
        let pixels = |exhibit: &Exhibit| {
            let size = exhibit.showing.size;
            exhibit.slices() as f64 * f64::from(size.width) * f64::from(size.height)
        };
        self.exhibits.iter().map(pixels).sum()
    }
}

/// Whether a method of `columns` looks at frames with CLIP.
pub fn needs_clip(columns: &[Column]) -> bool {
    columns.iter().any(|column| column.method.choosing.looks())
}

/// Whether a method of `columns` chooses by this strategy, with every frame at full size.
pub fn asks(columns: &[Column], strategy: Strategy) -> bool {
    columns.iter().any(|column| column.method.choosing == Choosing::By(strategy))
}
