//! The decoding passes: candidates for CLIP, previews and key frames for the model.

use std::collections::BTreeMap;
use std::ops::Range;

use image::RgbImage;

use super::{Event, KeyFrame, Observer, Options, Pipeline, ShowKeyFrames, Step};
use crate::data::feature_cache::{Features, Key};
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::language::VideoLanguageModel;
use crate::models::qwen2_5_vl::processor::{Budget, Size};
use crate::select::{Resolution, Strategy, uniform};
use crate::video::{Fit, Request, Times, Video};

/// The candidate frames of a video and the sizes they are needed in, known before anything is decoded.
pub(super) struct Candidates {
    /// Presentation times, by the packet index.
    pub seconds: Vec<f64>,
    /// Length of the video in seconds.
    pub duration: f64,
    /// Candidates to preview, ascending.
    pub previews: Vec<usize>,
    /// Size of previews and of key frames; `None` without a model to show them to.
    sizes: Option<[Size; 2]>,
    /// Whether all candidates fit into the memory set aside for them.
    keep: bool,
}

/// What the answer turn still needs of the steps before it.
pub(super) struct Seen {
    pub video: Video,
    pub candidates: Candidates,
    /// All candidates at the key frames' size, where they were kept.
    pub kept: Option<Vec<RgbImage>>,
    /// Key frames that are shown together.
    pub runs: Vec<Range<usize>>,
}

/// What the first pass brought.
pub(super) struct Watched {
    /// Presentation times of the candidates that were decoded.
    pub seconds: Vec<f64>,
    /// Length of the video in seconds.
    pub duration: f64,
    pub previews: Vec<RgbImage>,
    pub features: Option<Features>,
    /// All candidates at the key frames' size, where they were kept.
    pub kept: Option<Vec<RgbImage>>,
    pub cached: bool,
    pub warnings: Vec<String>,
}

impl Candidates {
    pub fn new(video: &Video, options: &Options, model: Option<&dyn VideoLanguageModel>) -> Result<Self> {
        let (seconds, k) = (video.sample_times(&Times::Fps(options.fps))?, options.key_frames);
        if k > seconds.len() {
            return Err(Error::Input(format!(
                "key frames: {k} were asked for, but {} has {} candidate frames at {} fps; ask for fewer or raise the rate",
                video.path.display(),
                seconds.len(),
                options.fps
            )));
        }
        let sizes = model.map(|model| sizes(video, options, model)).transpose()?;
        let bytes = |[_, key]: [Size; 2]| 3 * key.width as usize * key.height as usize;
        let keep = options.selection.resolution == Resolution::Full
            && sizes.is_some_and(|sizes| seconds.len().saturating_mul(bytes(sizes)) <= options.frame_memory);
        let previews = uniform(seconds.len(), options.preview_count());
        Ok(Self { previews, duration: video.info.duration, seconds, sizes, keep })
    }

    fn size(&self, which: usize) -> Result<Size> {
        self.sizes.map(|sizes| sizes[which]).ok_or_else(|| {
            Error::Input("frames for the model: this pipeline was loaded without a language model".into())
        })
    }

    fn fit(&self, which: usize) -> Result<Fit> {
        self.size(which).map(exactly)
    }
}

fn exactly(Size { width, height }: Size) -> Fit {
    Fit::Exact { width, height }
}

const PREVIEW: usize = 0;
const KEY_FRAME: usize = 1;

/// Sizes of previews and key frames.
fn sizes(video: &Video, options: &Options, model: &dyn VideoLanguageModel) -> Result<[Size; 2]> {
    let (width, height) = (video.info.width, video.info.height);
    let apart = options.show == ShowKeyFrames::Images || options.selection.resolution == Resolution::Adaptive;
    let preview = model.plan(width, height, &Budget::Slice { tokens: options.preview_tokens })?;
    let total = Budget::of_key_frames(options.key_frames, options.key_frame_tokens, apart);
    Ok([preview, model.plan(width, height, &total)?])
}

impl Pipeline {
    /// Previews and CLIP features: one pass over the video, or the cache and a few seeks.
    pub(super) fn watch(
        &self,
        video: &Video,
        candidates: &Candidates,
        options: &Options,
        observe: Observer,
    ) -> Result<Watched> {
        let clip = match (&self.clip, options.strategy) {
            (Some(clip), strategy) if strategy != Strategy::Uniform => clip,
            _ => return Ok(Watched::without_features(candidates)),
        };
        let Some(cache) = &self.cache else {
            return first_pass(clip, video, candidates, options, observe);
        };
        let mut computed = None;
        let cached = cache.get_or_compute(&Key::of(video, clip, options.fps)?, || {
            let mut watched = first_pass(clip, video, candidates, options, observe)?;
            let features = watched.features.take();
            computed = Some(watched);
            features.ok_or_else(|| Error::Input("CLIP features: the first pass gave none".into()))
        })?;
        let mut watched = match computed {
            Some(watched) => watched,
            None => remembered(video, candidates, &cached.features, options, observe)?,
        };
        watched.features = Some(cached.features);
        watched.warnings.extend(cached.warning);
        Ok(watched)
    }

    /// The key frames at the model's sizes: from the first pass where they were kept, else by seeking, a pass for each size.
    pub(super) fn fetch(
        &self,
        Seen { video, candidates, kept, .. }: Seen,
        key_frames: &[KeyFrame],
        options: &Options,
        observe: Observer,
    ) -> Result<Vec<RgbImage>> {
        if let Some(kept) = kept {
            let mut frames: Vec<Option<RgbImage>> = kept.into_iter().map(Some).collect();
            return Ok(key_frames.iter().filter_map(|f| frames.get_mut(f.index)?.take()).collect());
        }
        let (model, full) = (self.language_model("key frames")?, candidates.size(KEY_FRAME)?);
        let mut scales: Vec<f32> = key_frames.iter().map(|frame| frame.scale).collect();
        scales.sort_by(f32::total_cmp);
        scales.dedup();
        let mut images = BTreeMap::new();
        for scale in scales {
            let fit = model.plan(full.width, full.height, &Budget::Scaled { scale }).map(exactly);
            let of_scale: Vec<&KeyFrame> = key_frames.iter().filter(|frame| frame.scale == scale).collect();
            let times = of_scale.iter().map(|frame| frame.seconds).collect();
            let fetched = frames_at(&video, times, fit, (options, Step::Fetch), observe)?;
            images.extend(of_scale.iter().map(|frame| frame.index).zip(fetched));
        }
        Ok(images.into_values().collect())
    }
}

impl Watched {
    fn without_features(candidates: &Candidates) -> Self {
        let seconds = candidates.seconds.clone();
        let duration = candidates.duration;
        Self {
            seconds,
            duration,
            previews: vec![],
            features: None,
            kept: None,
            cached: false,
            warnings: vec![],
        }
    }
}

/// What the first pass would bring besides the features, which are known.
fn remembered(
    video: &Video,
    candidates: &Candidates,
    features: &Features,
    options: &Options,
    observe: Observer,
) -> Result<Watched> {
    let times = candidates.previews.iter().filter_map(|&i| features.seconds.get(i).copied()).collect();
    let previews = frames_at(video, times, candidates.fit(PREVIEW), (options, Step::Watch), observe)?;
    Ok(Watched {
        seconds: features.seconds.clone(),
        previews,
        cached: true,
        warnings: warnings(video, features.warning.as_deref()),
        ..Watched::without_features(candidates)
    })
}

/// Every candidate is decoded once and delivered in all sizes that may be needed.
fn first_pass(
    clip: &Clip,
    video: &Video,
    candidates: &Candidates,
    options: &Options,
    observe: Observer,
) -> Result<Watched> {
    let mut fits = vec![Fit::ShortEdgeCrop(clip.image_size())];
    let with_previews = !candidates.previews.is_empty();
    if with_previews {
        fits.push(candidates.fit(PREVIEW)?);
    }
    if candidates.keep {
        fits.push(candidates.fit(KEY_FRAME)?);
    }
    let mut samples =
        video.samples(&Request { times: Times::Fps(options.fps), fits, threads: options.threads })?;
    let (mut stream, mut previews, mut kept, mut seconds) = (clip.stream(), vec![], vec![], vec![]);
    let total = candidates.seconds.len();
    for sample in samples.by_ref() {
        let sample = sample?;
        let mut images = sample.images.into_iter();
        if let Some(image) = images.next() {
            stream.push(image)?;
        }
        if with_previews {
            let preview = images.next();
            previews.extend(preview.filter(|_| candidates.previews.binary_search(&sample.index).is_ok()));
        }
        kept.extend(images.next());
        seconds.push(sample.seconds);
        step(observe, Step::Watch, seconds.len(), total)?;
    }
    let warning = samples.warning().map(str::to_owned);
    let warnings = warnings(video, warning.as_deref());
    let features = Features { embeds: stream.finish()?, seconds: seconds.clone(), warning };
    let kept = candidates.keep.then_some(kept);
    let duration = candidates.duration;
    Ok(Watched { seconds, duration, previews, features: Some(features), kept, cached: false, warnings })
}

/// What is wrong with the video by its header and by its first pass.
fn warnings(video: &Video, of_pass: Option<&str>) -> Vec<String> {
    let mut warnings: Vec<String> =
        [video.warning(), of_pass].into_iter().flatten().map(str::to_owned).collect();
    warnings.dedup();
    warnings
}

/// The frames on display at `times`, in one size.
fn frames_at(
    video: &Video,
    times: Vec<f64>,
    fit: Result<Fit>,
    (options, name): (&Options, Step),
    observe: Observer,
) -> Result<Vec<RgbImage>> {
    if times.is_empty() {
        return Ok(vec![]);
    }
    let total = times.len();
    let request = Request { times: Times::Seconds(times), fits: vec![fit?], threads: options.threads };
    let mut images = Vec::with_capacity(total);
    for sample in video.samples(&request)? {
        images.extend(sample?.images);
        step(observe, name, images.len(), total)?;
    }
    if images.len() != total {
        let cause = format!("{} of {total} frames could be decoded; the file is damaged there", images.len());
        return Err(Error::video(&video.path, cause));
    }
    Ok(images)
}

fn step(observe: Observer, step: Step, done: usize, total: usize) -> Result<()> {
    if observe(Event::Progress { step, done, total }).is_break() { Err(Error::Interrupted) } else { Ok(()) }
}
