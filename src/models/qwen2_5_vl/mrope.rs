//! Three-axis rotary positions (t, h, w) of a prompt with images and videos; tensor-free.
//!
//! Text advances all three axes together. A medium keeps its start on every axis and adds the temporal id of the slice,
//! the row, and the column of each merged token. Where text goes on after a medium differs between releases of
//! transformers, see [`PositionRule`].
//!
//! Departure from the reference: [`Timing::Slices`] gives every temporal slice its own time, for key frames that are not
//! evenly spaced. On a video sampled evenly from 0 it agrees with [`Timing::Uniform`], up to the f32 rounding that the
//! reference applies to its product.

use super::config::Config;
use crate::{Error, Result};

/// The temporal ids of one medium must stay below this, so that no sum of positions can overflow.
const MAX_TEMPORAL_ID: f64 = 1e9;

/// Where text goes on after an image or a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PositionRule {
    /// After the largest id of the medium on any axis: transformers 4.49 to 5.0, vLLM.
    #[default]
    Max,
    /// After the longer edge of the medium in merged tokens, however long the video lasts: transformers 5.23.0.
    Extent,
}

/// One image or video of the prompt. Grids are `[t, h, w]`: temporal slices, patch rows, patch columns.
#[derive(Debug, Clone, PartialEq)]
pub enum Media {
    /// A still image; all its slices lie at time 0.
    Image {
        /// Patch grid `[t, h, w]`.
        grid: [usize; 3],
    },
    /// A video.
    Video {
        /// Patch grid `[t, h, w]`.
        grid: [usize; 3],
        /// When the temporal slices are shown.
        timing: Timing,
    },
}

/// When the temporal slices of a video (two frames each) are shown.
#[derive(Debug, Clone, PartialEq)]
pub enum Timing {
    /// Seconds from one slice to the next (`second_per_grid_ts`: temporal patch size / sampled fps; 1.0 when the
    /// processor is not told the rate). Slice i has temporal id `trunc((i * seconds) * tokens_per_second)`, in f32.
    Uniform(f32),
    /// Seconds of the first frame of every slice, not decreasing. Slice i has temporal id
    /// `floor(seconds[i] * tokens_per_second)`, in f64.
    Slices(Vec<f64>),
}

impl Timing {
    /// Of slices of two frames each, of frames at `seconds`; counted from `since`, when the last frame before them is shown.
    pub fn since(since: f64, seconds: &[f64]) -> Self {
        Self::Slices(seconds.iter().step_by(2).map(|at| (at - since).max(0.0)).collect())
    }
}

/// Positions of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// `[t, h, w]` of every token.
    pub ids: Vec<[i64; 3]>,
    /// Largest id + 1 - length. The token decoded after L cached ones takes position `L + delta` on all axes.
    pub delta: i64,
}

impl Media {
    /// Patch grid `[t, h, w]`.
    pub fn grid(&self) -> [usize; 3] {
        match self {
            Self::Image { grid } | Self::Video { grid, .. } => *grid,
        }
    }

    /// Pad tokens that stand for it in the prompt: `t * (h / merge) * (w / merge)`; `merge` is the vision tower's
    /// `spatial_merge_size`.
    ///
    /// # Errors
    /// [`Error::Input`] when the grid is empty, not a multiple of `merge`, or beyond any memory.
    pub fn tokens(&self, merge: usize) -> Result<usize> {
        let [t, h, w] = self.grid();
        if t == 0 || h == 0 || w == 0 || merge == 0 || !h.is_multiple_of(merge) || !w.is_multiple_of(merge) {
            return Err(Error::Input(format!(
                "{} grid [{t}, {h}, {w}]: expected at least one slice, and rows and columns in multiples of {merge}",
                self.kind()
            )));
        }
        t.checked_mul(h / merge)
            .and_then(|n| n.checked_mul(w / merge))
            .ok_or_else(|| Error::Input(format!("{} grid [{t}, {h}, {w}] is too large", self.kind())))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Image { .. } => "image",
            Self::Video { .. } => "video",
        }
    }

    /// The temporal id of each slice, before the start of the medium is added.
    fn temporal_ids(&self, tokens_per_second: f64, rule: PositionRule) -> Result<Vec<i64>> {
        let slices = self.grid()[0];
        let Self::Video { timing, .. } = self else { return Ok(vec![0; slices]) };
        let check = |id: f64, seconds: f64| {
            if (0.0..MAX_TEMPORAL_ID).contains(&id) {
                return Ok(id as i64);
            }
            Err(Error::Input(format!(
                "video time {seconds} s: expected a finite, non-negative number of seconds"
            )))
        };
        match timing {
            Timing::Uniform(seconds) => {
                let rate = tokens_per_second as f32;
                let id = |i: usize| match rule {
                    PositionRule::Max => ((i as f32) * seconds) * rate,
                    PositionRule::Extent => (i as f32) * (rate * seconds),
                };
                (0..slices).map(|i| check(f64::from(id(i)), f64::from(*seconds))).collect()
            }
            Timing::Slices(times) if times.len() != slices => Err(Error::Input(format!(
                "{} slice times for a video of {slices} temporal slices: expected one per slice",
                times.len()
            ))),
            Timing::Slices(times) => {
                if let Some(pair) = times.windows(2).find(|pair| pair[1] < pair[0]) {
                    return Err(Error::Input(format!(
                        "slice times go back from {} s to {} s: expected frames in the order of the video",
                        pair[0], pair[1]
                    )));
                }
                times.iter().map(|seconds| check((seconds * tokens_per_second).floor(), *seconds)).collect()
            }
        }
    }
}

/// Positions of `input_ids`, where every run of image or video pad tokens stands for one entry of `media`.
///
/// Images and videos are each taken in their own order, so `media` may list all images before all videos.
///
/// # Errors
/// [`Error::Input`] when a run of pad tokens does not follow `vision_start_token_id`, or has another length than its
/// medium; when media and runs differ in number; when a grid or a time makes no sense.
pub fn positions(
    input_ids: &[u32],
    media: &[Media],
    config: &Config,
    rule: PositionRule,
) -> Result<Positions> {
    let merge = config.vision.spatial_merge_size;
    let (mut images, mut videos): (Vec<_>, Vec<_>) =
        media.iter().partition(|m| matches!(m, Media::Image { .. }));
    images.reverse();
    videos.reverse();
    let mut ids: Vec<[i64; 3]> = Vec::with_capacity(input_ids.len());
    let mut next = 0i64;
    while let Some(token) = input_ids.get(ids.len()) {
        let at = ids.len();
        let (kind, queue) = if *token == config.image_token_id {
            ("image", &mut images)
        } else if *token == config.video_token_id {
            ("video", &mut videos)
        } else {
            ids.push([next; 3]);
            next += 1;
            continue;
        };
        if at == 0 || input_ids[at - 1] != config.vision_start_token_id {
            return Err(Error::Input(format!(
                "{kind} pad token at {at} does not follow the vision start token {}",
                config.vision_start_token_id
            )));
        }
        let medium = queue.pop().ok_or_else(|| {
            Error::Input(format!("the prompt has a {kind} at token {at} for which no {kind} was given"))
        })?;
        let run = input_ids[at..].iter().take_while(|id| *id == token).count();
        let wanted = medium.tokens(merge)?;
        if run != wanted {
            return Err(Error::Input(format!(
                "{kind} at token {at}: {run} pad tokens, expected {wanted} for the patch grid {:?}",
                medium.grid()
            )));
        }
        let times = medium.temporal_ids(config.vision.tokens_per_second, rule)?;
        next = place(&mut ids, next, medium.grid().map(|edge| edge / merge), &times, rule);
    }
    if let Some(left) = images.last().or(videos.last()) {
        return Err(Error::Input(format!(
            "{} images and {} videos were given that the prompt has no pad tokens for; the first has the patch grid {:?}",
            images.len(),
            videos.len(),
            left.grid()
        )));
    }
    let highest = ids.iter().flatten().copied().max().unwrap_or(-1);
    let delta = highest + 1 - ids.len() as i64;
    Ok(Positions { ids, delta })
}

/// Appends the positions of one medium that starts at `start`; returns where text goes on.
/// `merged` is its grid in merged tokens (the first entry is not used), `times` the temporal ids, not decreasing.
fn place(ids: &mut Vec<[i64; 3]>, start: i64, merged: [usize; 3], times: &[i64], rule: PositionRule) -> i64 {
    let (rows, columns) = (merged[1] as i64, merged[2] as i64);
    for t in times {
        ids.extend((0..rows).flat_map(|y| (0..columns).map(move |x| [start + t, start + y, start + x])));
    }
    let extent = rows.max(columns);
    match rule {
        PositionRule::Max => start + extent.max(times.last().map_or(0, |t| t + 1)),
        PositionRule::Extent => start + extent,
    }
}
