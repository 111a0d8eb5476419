//! Frames of a video at given times: any file FFmpeg reads, or a folder of images.
//!
//! A frame is "on display" from its presentation timestamp until that of the next; times count from the first displayed
//! frame. This holds for variable frame rates, B-frames, non-zero starts, edit lists and unknown durations alike, because
//! it is read from a packet index made when the file is opened, not from the container's average rate.
//!
//! [`Video::samples`] decodes in one pass: only wanted frames are converted and resized, stretches between keyframes without
//! a wanted frame are not decoded, and with several threads the stretches are decoded side by side. The frames are the same
//! to the bit for any number of threads. Memory is bounded by a window, never by the length of the video.
//!
//! ```no_run
//! use msjoe::video::{Fit, Request, Times, Video};
//!
//! let video = Video::open("holiday.mp4")?;
//! let request = Request { times: Times::Fps(1.0), fits: vec![Fit::ShortEdgeCrop(224)], threads: 0 };
//! for sample in video.samples(&request)? {
//!     let sample = sample?;
//!     let frame: &image::RgbImage = &sample.images[0]; // on display at sample.index / 1.0 seconds
//! }
//! # Ok::<(), msjoe::Error>(())
//! ```
//!
//! Colour: see the choices written down in `convert.rs`. Frames of another size than the first are resized to it. FFmpeg's
//! own log is switched off for the process; what matters of it comes back as errors and [`Samples::warning`].

mod bitstream;
mod convert;
mod decode;
mod demux;
mod images;
mod index;
mod orientation;
mod plan;
mod resample;
mod resize;
mod samples;
mod timeline;
mod times;
mod window;
mod worker;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use sha2::{Digest, Sha256};

pub use resize::{fit, resize, resize_float};
pub use samples::Samples;
pub use times::{QwenSampling, Times};
/// A frame rate as a fraction: numerator, denominator.
pub use video_rs::ffmpeg::Rational;
pub use writer::H264Writer;

use crate::{Error, Result};
use index::Index;
use orientation::Orientation;
use timeline::Timeline;
use worker::Source;

/// An opened video: facts and packet index, no pixels.
#[derive(Clone, Debug)]
pub struct Video {
    /// The file or folder.
    pub path: PathBuf,
    /// What is known without decoding.
    pub info: VideoInfo,
    source: Source,
    timeline: Arc<Timeline>,
    warning: Option<String>,
}

/// Facts about a video.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoInfo {
    /// Pixels across, after rotation.
    pub width: u32,
    /// Pixels down, after rotation.
    pub height: u32,
    /// Seconds from the first displayed frame to the end of display of the last.
    pub duration: f64,
    /// Frames per second: the container's average, or counted where it has none.
    pub frame_rate: f64,
    /// Displayed frames.
    pub frames: usize,
    /// FFmpeg's name of the codec; `images` for a folder.
    pub codec: String,
}

/// A size to deliver frames in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As displayed.
    Native,
    /// Exactly this size, by [`resize`].
    Exact {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// Exactly this size, by [`resize_float`]: what Qwen's video reader does.
    ExactFloat {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// CLIP's: shortest edge to this many pixels, then the centre square of that side.
    ShortEdgeCrop(u32),
}

/// Which frames, in which sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// When.
    pub times: Times,
    /// Sizes that each sample comes in; nothing is decoded twice for a second one.
    pub fits: Vec<Fit>,
    /// Decoding threads: 0 for one per core, 1 for one sequential pass.
    pub threads: usize,
}

/// A wanted frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Place in the request: k of the frame at k / fps, or position in the list asked for.
    pub index: usize,
    /// Presentation time of the frame shown, in seconds from the first displayed frame.
    pub seconds: f64,
    /// One image per [`Fit`] of the request.
    pub images: Vec<RgbImage>,
}

impl Video {
    /// Opens a file that FFmpeg reads, or a folder of images shown for one second each in natural order of their names.
    ///
    /// Reads the packets of a file once without decoding more than the first frame (unless the container leaves out
    /// timestamps). The stream is the one `av_find_best_stream` chooses.
    ///
    /// # Errors
    /// [`Error::Video`] naming path and cause: missing, empty, no video in it, nothing that decodes, no images.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|error| Error::video(path, error))?;
        if meta.is_dir() {
            return Self::open_images(path, 1.0);
        }
        if meta.len() == 0 {
            return Err(Error::video(path, "the file is empty"));
        }
        let index = Index::build(path)?;
        let warning = index.warning.clone();
        if let Some(warning) = &warning {
            tracing::warn!(path = %path.display(), "{warning}");
        }
        let orientation = index.matrix.as_ref().and_then(Orientation::from_matrix);
        if orientation.is_none() && index.matrix.is_some() {
            tracing::warn!(path = %path.display(), "rotation by an odd angle is left out");
        }
        let (width, height) = orientation.unwrap_or(Orientation::UPRIGHT).size(index.size);
        let timeline = Arc::new(index.timeline.clone());
        let info = VideoInfo {
            width,
            height,
            duration: timeline.seconds(timeline.end),
            frame_rate: index.frame_rate,
            frames: timeline.frames.len(),
            codec: index.codec.clone(),
        };
        Ok(Self { path: path.to_owned(), info, source: Source::File(Arc::new(index)), timeline, warning })
    }

    /// Opens a folder of images, each shown for `seconds`.
    ///
    /// # Errors
    /// [`Error::Input`] unless `seconds` is finite and above 0; [`Error::Video`] when there are no images or the first is
    /// not readable.
    pub fn open_images(folder: impl AsRef<Path>, seconds: f64) -> Result<Self> {
        let folder = folder.as_ref();
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err(Error::Input(format!("seconds per image: expected above 0, got {seconds}")));
        }
        let files = images::list(folder)?;
        let (width, height) = images::load(&files[0])?.dimensions();
        let (num, den) = timeline::simplest_ratio(seconds);
        let tick = (i64::try_from(num).unwrap_or(i64::MAX), i64::try_from(den).unwrap_or(i64::MAX));
        let count = files.len() as i64;
        let timeline = Arc::new(Timeline { tick, frames: (0..count).collect(), end: count });
        let info = VideoInfo {
            width,
            height,
            duration: timeline.seconds(count),
            frame_rate: 1.0 / seconds,
            frames: files.len(),
            codec: "images".to_owned(),
        };
        let source = Source::Folder(Arc::new(files));
        Ok(Self { path: folder.to_owned(), info, source, timeline, warning: None })
    }

    /// SHA-256 of the bytes in hexadecimal; for a folder, of the names and bytes of its images in order.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn content_hash(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.source {
            Source::File(_) => hash_file(&self.path, &mut hash)?,
            Source::Folder(files) => {
                for file in files.iter() {
                    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
                    let size = std::fs::metadata(file).map_err(|error| Error::io(file, error))?.len();
                    hash.update((name.len() as u64).to_le_bytes());
                    hash.update(name);
                    hash.update(size.to_le_bytes());
                    hash_file(file, &mut hash)?;
                }
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Presentation times in seconds of the frames that [`samples`](Self::samples) will deliver, in its order.
    ///
    /// # Errors
    /// [`Error::Input`] for a rate that is not above 0 or a moment outside the video.
    pub fn sample_times(&self, times: &Times) -> Result<Vec<f64>> {
        let picks = times.picks(&self.timeline, self.info.frame_rate)?;
        Ok(picks.iter().map(|pick| self.timeline.seconds(self.timeline.frames[pick.frame])).collect())
    }

    /// Starts decoding and gives the wanted frames in order of time.
    ///
    /// # Errors
    /// As [`sample_times`](Self::sample_times), and [`Error::Input`] without a fit. Errors of decoding come as items.
    pub fn samples(&self, request: &Request) -> Result<Samples> {
        Samples::start(self, request)
    }

    /// What is wrong with the file although it opens, such as an early end.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

fn hash_file(path: &Path, hash: &mut Sha256) -> Result<()> {
    let mut file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
    std::io::copy(&mut file, hash).map_err(|error| Error::io(path, error))?;
    Ok(())
}
