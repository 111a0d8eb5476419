//! A video as training and evaluation know it: its candidates' CLIP features, and a source of pixels for the frames that are
//! shown.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

use crate::data::feature_cache::{FeatureCache, Features, Key};
use crate::data::world::Script;
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::qwen2_5_vl::processor::Size;
use crate::video::{Fit, Request, Times, Video, fit};

/// Where the pixels come from.
#[derive(Debug)]
enum Source {
    World(Script),
    /// With its candidates per second.
    File(Video, f64),
}

/// One video. The candidates are known by their index, `0..len`.
#[derive(Debug)]
pub struct Footage {
    /// Tells videos apart.
    pub id: Arc<str>,
    /// Presentation times of the candidates.
    pub seconds: Vec<f64>,
    /// Length in seconds.
    pub duration: f64,
    /// Width and height of a frame.
    pub dimensions: (u32, u32),
    /// Frames per second of the video itself.
    pub frame_rate: f64,
    source: Source,
    /// On the host: a device has no room for those of every video.
    features: Mutex<Option<Tensor>>,
    kept: Kept,
}

/// All candidates in the sizes that they were kept in.
type Kept = Vec<(Size, Vec<RgbImage>)>;

/// How a video file is watched.
#[derive(Clone, Copy, Default)]
pub struct Watching<'a> {
    /// Candidates per second.
    pub fps: f64,
    /// Whose features are wanted; `None` for none, and nothing is decoded yet.
    pub clip: Option<&'a Clip>,
    /// Where features of known videos are.
    pub cache: Option<&'a FeatureCache>,
    /// Sizes in which frames will be shown.
    pub sizes: &'a [Size],
    /// Bytes of candidates in those sizes to keep from the one decoding pass; what does not fit is decoded again by seeking.
    pub memory: usize,
}

/// Told (done, of) candidates as a video is watched; `Break` ends that with [`Error::Interrupted`].
pub type OnFrame<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

impl Footage {
    /// A video of the toy world, rendered in memory, one candidate per second.
    pub fn of_world(script: Script) -> Self {
        Self {
            id: script.id.as_str().into(),
            duration: script.seconds as f64,
            dimensions: script.frame(0).dimensions(),
            seconds: (0..script.seconds).map(|s| s as f64).collect(),
            frame_rate: 1.0,
            source: Source::World(script),
            features: Mutex::default(),
            kept: vec![],
        }
    }

    /// A video file or a folder of images at `fps` candidates per second; its features are computed when they are asked for.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path, fps: f64) -> Result<Self> {
        Self::of_video(Video::open(path)?, Watching { fps, ..Watching::default() }, &mut |_, _| {
            ControlFlow::Continue(())
        })
    }

    /// A video file or a folder of images at `fps` candidates per second; its features are computed now.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub fn of_file(path: &Path, fps: f64, clip: &Clip, cache: Option<&FeatureCache>) -> Result<Self> {
        let watching = Watching { fps, clip: Some(clip), cache, ..Watching::default() };
        Self::of_video(Video::open(path)?, watching, &mut |_, _| ControlFlow::Continue(()))
    }

    /// An opened video; it is decoded once, or not at all where its features are known or not wanted.
    ///
    /// # Errors
    /// A file that cannot be decoded, an interruption.
    pub fn of_video(video: Video, watching: Watching, observe: OnFrame) -> Result<Self> {
        let (mut kept, mut features) = (vec![], None);
        let seconds = match watching.clip {
            None => video.sample_times(&Times::Fps(watching.fps))?,
            Some(clip) => {
                let mut compute = || {
                    let (features, pictures) = encode(&video, clip, watching, observe)?;
                    kept = pictures;
                    Ok(features)
                };
                let known = match watching.cache {
                    None => compute()?,
                    Some(cache) => {
                        let key = Key::of(&video, clip, watching.fps)?;
                        let cached = cache.get_or_compute(&key, compute)?;
                        let warning = cached.features.warning.as_deref();
                        // Opening and decoding tell theirs themselves.
                        if let Some(warning) = warning.filter(|w| cached.hit && Some(*w) != video.warning()) {
                            tracing::warn!(path = %video.path.display(), "{warning}");
                        }
                        cached.features
                    }
                };
                features = Some(known.embeds.to_device(&Device::Cpu)?);
                known.seconds
            }
        };
        Ok(Self {
            id: video.path.to_string_lossy().as_ref().into(),
            seconds,
            duration: video.info.duration,
            dimensions: (video.info.width, video.info.height),
            frame_rate: video.info.frame_rate,
            source: Source::File(video, watching.fps),
            features: Mutex::new(features),
            kept,
        })
    }

    /// CLIP features (T, D) of all candidates, on the device of `clip`; computed at the first call.
    ///
    /// # Errors
    /// As [`Clip::encode_images`].
    pub fn features(&self, clip: &Clip) -> Result<Tensor> {
        let mut known = self.features.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(features) = known.as_ref() {
            return Ok(features.to_device(clip.device())?);
        }
        let fit_to = Fit::ShortEdgeCrop(clip.image_size());
        let features = match &self.source {
            Source::World(script) => {
                let frames = (0..script.seconds).into_par_iter();
                let frames: Vec<RgbImage> =
                    frames.map(|second| fit(&script.frame(second), fit_to)).collect::<Result<_>>()?;
                clip.encode_images(&frames)?
            }
            Source::File(video, fps) => {
                let watching = Watching { fps: *fps, ..Watching::default() };
                let (features, _) = encode(video, clip, watching, &mut |_, _| ControlFlow::Continue(()))?;
                if features.seconds.len() != self.seconds.len() {
                    let (got, of) = (features.seconds.len(), self.seconds.len());
                    return Err(Error::video(
                        &video.path,
                        format!("{got} of {of} candidates could be decoded"),
                    ));
                }
                features.embeds
            }
        };
        *known = Some(features.to_device(&Device::Cpu)?);
        Ok(features)
    }

    /// T, the number of candidates.
    pub fn len(&self) -> usize {
        self.seconds.len()
    }

    /// Whether there is no candidate.
    pub fn is_empty(&self) -> bool {
        self.seconds.is_empty()
    }

    /// The candidates `indices` (ascending) at `size`.
    ///
    /// # Errors
    /// A frame that cannot be decoded.
    pub fn frames(&self, indices: &[usize], size: Size) -> Result<Vec<RgbImage>> {
        if let Some((_, all)) = self.kept.iter().find(|(known, _)| *known == size) {
            let images: Option<Vec<RgbImage>> = indices.iter().map(|&at| all.get(at).cloned()).collect();
            return images.ok_or_else(|| {
                Error::Input(format!("{}: frames {indices:?} of {} candidates", self.id, all.len()))
            });
        }
        let exact = Fit::Exact { width: size.width, height: size.height };
        match &self.source {
            Source::World(script) => {
                indices.par_iter().map(|&second| fit(&script.frame(second), exact)).collect()
            }
            Source::File(video, _) => {
                let times = indices.iter().filter_map(|&i| self.seconds.get(i).copied()).collect();
                let request = Request { times: Times::Seconds(times), fits: vec![exact], threads: 0 };
                let mut images = vec![];
                for sample in video.samples(&request)? {
                    images.extend(sample?.images);
                }
                if images.len() != indices.len() {
                    let cause = format!("{} of {} frames could be decoded", images.len(), indices.len());
                    return Err(Error::video(&video.path, cause));
                }
                Ok(images)
            }
        }
    }
}

/// Features of every candidate and, where they fit into memory, its pixels in the sizes asked for.
fn encode(video: &Video, clip: &Clip, watching: Watching, observe: OnFrame) -> Result<(Features, Kept)> {
    let times = Times::Fps(watching.fps);
    let total = video.sample_times(&times)?.len();
    let bytes = |size: &Size| 3 * size.width as usize * size.height as usize;
    let needed = watching.sizes.iter().map(bytes).sum::<usize>().saturating_mul(total);
    let sizes = if needed <= watching.memory { watching.sizes } else { &[] };
    let exact = |size: &Size| Fit::Exact { width: size.width, height: size.height };
    let fits =
        std::iter::once(Fit::ShortEdgeCrop(clip.image_size())).chain(sizes.iter().map(exact)).collect();
    let (mut stream, mut seconds) = (clip.stream(), vec![]);
    let mut kept: Kept = sizes.iter().map(|&size| (size, vec![])).collect();
    let mut samples = video.samples(&Request { times, fits, threads: 0 })?;
    for sample in samples.by_ref() {
        let sample = sample?;
        let mut images = sample.images.into_iter();
        images.next().map_or(Ok(()), |image| stream.push(image))?;
        for ((_, all), image) in kept.iter_mut().zip(images) {
            all.push(image);
        }
        seconds.push(sample.seconds);
        if observe(seconds.len(), total).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let warning = samples.warning().map(str::to_owned);
    Ok((Features { embeds: stream.finish()?, seconds, warning }, kept))
}
