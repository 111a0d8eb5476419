//! A video as training knows it: its candidates' CLIP features, and a source of pixels for the frames that are shown.

use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::Tensor;
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
    source: Source,
    features: Mutex<Option<Tensor>>,
}

impl Footage {
    /// A video of the toy world, rendered in memory, one candidate per second.
    pub fn of_world(script: Script) -> Self {
        Self {
            id: script.id.as_str().into(),
            duration: script.seconds as f64,
            dimensions: script.frame(0).dimensions(),
            seconds: (0..script.seconds).map(|s| s as f64).collect(),
            source: Source::World(script),
            features: Mutex::default(),
        }
    }

    /// A video file or a folder of images at `fps` candidates per second; its features are computed when they are asked for.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path, fps: f64) -> Result<Self> {
        let video = Video::open(path)?;
        Ok(Self {
            id: path.to_string_lossy().as_ref().into(),
            seconds: video.sample_times(&Times::Fps(fps))?,
            duration: video.info.duration,
            dimensions: (video.info.width, video.info.height),
            source: Source::File(video, fps),
            features: Mutex::default(),
        })
    }

    /// A video file or a folder of images at `fps` candidates per second; its features are computed now.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub fn of_file(path: &Path, fps: f64, clip: &Clip, cache: Option<&FeatureCache>) -> Result<Self> {
        let video = Video::open(path)?;
        let compute = || encode(&video, fps, clip);
        let features = match cache {
            None => compute()?,
            Some(cache) => {
                let key = Key {
                    video: video.content_hash()?,
                    model: clip.revision().to_owned(),
                    fps,
                    preprocessing: clip.processor().description().to_owned(),
                };
                cache.get_or_compute(&key, compute)?.features
            }
        };
        Ok(Self {
            id: path.to_string_lossy().as_ref().into(),
            seconds: features.seconds,
            duration: video.info.duration,
            dimensions: (video.info.width, video.info.height),
            source: Source::File(video, fps),
            features: Mutex::new(Some(features.embeds)),
        })
    }

    /// CLIP features (T, D) of all candidates; computed at the first call.
    ///
    /// # Errors
    /// As [`Clip::encode_images`].
    pub fn features(&self, clip: &Clip) -> Result<Tensor> {
        let mut known = self.features.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(features) = known.as_ref() {
            return Ok(features.clone());
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
                let features = encode(video, *fps, clip)?;
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
        *known = Some(features.clone());
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

fn encode(video: &Video, fps: f64, clip: &Clip) -> Result<Features> {
    let fits = vec![Fit::ShortEdgeCrop(clip.image_size())];
    let (mut stream, mut seconds) = (clip.stream(), vec![]);
    for sample in video.samples(&Request { times: Times::Fps(fps), fits, threads: 0 })? {
        let sample = sample?;
        sample.images.into_iter().try_for_each(|image| stream.push(image))?;
        seconds.push(sample.seconds);
    }
    Ok(Features { embeds: stream.finish()?, seconds })
}
