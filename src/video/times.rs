//! Which frames a request asks for.

use super::timeline::Timeline;
use crate::{Error, Result};

/// The moments of a video that a [`Request`](super::Request) asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Times {
    /// The frame on display at k / fps seconds, k = 0, 1, 2, ... until the last frame's display ends.
    Fps(f64),
    /// The frame on display at each of these seconds, counted from the first displayed frame.
    ///
    /// Any order; samples come in order of time, their `index` is the position in this list.
    Seconds(Vec<f64>),
    /// Qwen's own sampling.
    Qwen(QwenSampling),
    /// Frames by their number in presentation order, from 0. Any order, as for `Seconds`.
    Frames(Vec<usize>),
}

/// The sampling of qwen-vl-utils 0.0.14 (`smart_nframes` and its float32 `linspace`).
#[derive(Clone, Debug, PartialEq)]
pub struct QwenSampling {
    /// Wanted frames per second (2 in the reference); ignored when `nframes` is given.
    pub fps: f64,
    /// A fixed number of frames instead of a rate; brought to an even number, ties to even.
    pub nframes: Option<usize>,
    /// Fewest frames with a rate (4 in the reference).
    pub min_frames: usize,
    /// Most frames with a rate (768 in the reference), and never more than the video has.
    pub max_frames: usize,
}

impl Default for QwenSampling {
    fn default() -> Self {
        Self { fps: 2.0, nframes: None, min_frames: 4, max_frames: 768 }
    }
}

impl QwenSampling {
    /// Number of frames for a video of `total` frames at `video_fps`: even, at least 2, at most `total`.
    ///
    /// # Errors
    /// [`Error::Input`] for a rate that is not above 0, or when the rule gives a number outside `2..=total`.
    pub fn nframes(&self, total: usize, video_fps: f64) -> Result<usize> {
        let n = match self.nframes {
            Some(n) => (n as f64 / 2.0).round_ties_even() * 2.0,
            None => {
                if !(self.fps.is_finite() && self.fps > 0.0 && video_fps.is_finite() && video_fps > 0.0) {
                    return Err(Error::Input(format!(
                        "Qwen sampling: expected rates above 0, got fps {} of a video with {video_fps} frames/s",
                        self.fps
                    )));
                }
                let fewest = self.min_frames.div_ceil(2) * 2;
                let most = self.max_frames.min(total) / 2 * 2;
                let n = total as f64 / video_fps * self.fps;
                (n.max(fewest as f64).min(most as f64).min(total as f64) / 2.0).floor() * 2.0
            }
        };
        if !(2.0..=total as f64).contains(&n) {
            return Err(Error::Input(format!(
                "Qwen sampling: expected 2 to {total} frames (what the video has), got {n}"
            )));
        }
        Ok(n as usize)
    }

    /// Numbers of the frames, ascending, bit for bit those of `torch.linspace(0, total - 1, n).round()`.
    ///
    /// # Errors
    /// As [`nframes`](Self::nframes).
    pub fn indices(&self, total: usize, video_fps: f64) -> Result<Vec<usize>> {
        let n = self.nframes(total, video_fps)?;
        let end = (total - 1) as f32;
        let step = end / (n - 1) as f32;
        // torch runs both halves from their own end, in float32 with fused multiply-add
        let at = |i: usize| {
            if i < n / 2 { step.mul_add(i as f32, 0.0) } else { (-step).mul_add((n - 1 - i) as f32, end) }
        };
        Ok((0..n).map(|i| (at(i).round_ties_even() as usize).min(total - 1)).collect())
    }
}

/// One wanted sample: its place in the request and the frame it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub index: usize,
    pub frame: usize,
}

impl Times {
    /// The samples asked for, in order of time.
    pub(super) fn picks(&self, timeline: &Timeline, video_fps: f64) -> Result<Vec<Pick>> {
        let total = timeline.frames.len();
        let frames = match self {
            Self::Fps(fps) => timeline.at_rate(*fps)?,
            Self::Seconds(seconds) => {
                seconds.iter().map(|&at| timeline.at_seconds(at)).collect::<Result<_>>()?
            }
            Self::Qwen(sampling) => sampling.indices(total, video_fps)?,
            Self::Frames(frames) => {
                if let Some(wrong) = frames.iter().find(|&&frame| frame >= total) {
                    return Err(Error::Input(format!("frames: expected numbers below {total}, got {wrong}")));
                }
                frames.clone()
            }
        };
        let mut picks: Vec<Pick> =
            frames.into_iter().enumerate().map(|(index, frame)| Pick { index, frame }).collect();
        picks.sort_by_key(|pick| pick.frame); // stable: equal frames keep the order of the request
        Ok(picks)
    }
}
