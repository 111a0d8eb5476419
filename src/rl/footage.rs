//! A video as training knows it: its candidates' CLIP features, and a source of pixels for the frames that are shown.

use std::path::Path;
use std::sync::Arc;

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
    File(Video),
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
    /// CLIP features (T, D).
    pub features: Tensor,
    /// Width and height of a frame.
    pub dimensions: (u32, u32),
    source: Source,
}

impl Footage {
    /// A video of the toy world, rendered in memory, one candidate per second.
    ///
    /// # Errors
    /// As [`Clip::encode_images`].
    pub fn of_world(script: Script, clip: &Clip) -> Result<Self> {
        let side = clip.image_size();
        let seconds: Vec<f64> = (0..script.seconds).map(|s| s as f64).collect();
        let frames: Vec<RgbImage> = (0..script.seconds)
            .into_par_iter()
            .map(|second| fit(&script.frame(second), Fit::ShortEdgeCrop(side)))
            .collect::<Result<_>>()?;
        Ok(Self {
            id: script.id.as_str().into(),
            duration: script.seconds as f64,
            features: clip.encode_images(&frames)?,
            dimensions: script.frame(0).dimensions(),
            seconds,
            source: Source::World(script),
        })
    }

    /// A video file or a folder of images at `fps` candidates per second.
    ///
    /// # Errors
    /// A file that cannot be decoded.
    pub fn of_file(path: &Path, fps: f64, clip: &Clip, cache: Option<&FeatureCache>) -> Result<Self> {
        let video = Video::open(path)?;
        let encode = || encode(&video, fps, clip);
        let features = match cache {
            None => encode()?,
            Some(cache) => {
                let key = Key {
                    video: video.content_hash()?,
                    model: clip.revision().to_owned(),
                    fps,
                    preprocessing: clip.processor().description().to_owned(),
                };
                cache.get_or_compute(&key, encode)?.features
            }
        };
        Ok(Self {
            id: path.to_string_lossy().as_ref().into(),
            seconds: features.seconds,
            duration: video.info.duration,
            features: features.embeds,
            dimensions: (video.info.width, video.info.height),
            source: Source::File(video),
        })
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
            Source::File(video) => {
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
