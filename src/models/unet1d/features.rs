//! What the sampler sees of a row of similarities, and of time.

use std::f64::consts::PI;

use candle_core::{DType, Device, Result, Tensor};

use super::padding::Padding;

/// Features per query and frame.
pub(super) const ROWS: usize = 5;
/// Features per frame that do not depend on the queries.
pub(super) const POSITIONS: usize = 2 * OCTAVES + 1;
/// Which of the features per query says how near a frame is to the best one.
pub(super) const NEARNESS: usize = 4;

const OCTAVES: usize = 4;
// CLIP cosines between a text and an image lie in about 0.1 to 0.35.
const LEVEL: f64 = 0.2;
const SPREAD: f64 = 0.1;
// A row that varies by much less than this (0.001) carries noise only, and must not be blown up to unit variance.
const MIN_VARIANCE: f64 = 1e-6;
// On the toy world's training videos, of 0.5 to 3: frames spread over this feature answer most, and it has no unit.
const REACH: f64 = 1.5;
// The logit scale CLIP was trained to.
const LOGIT_SCALE: f64 = 100.;

/// Similarities (B, Q, T) -> (B * Q, [`ROWS`], T), zero at padding:
/// the level (does the query match this video at all), the z-score within the row (where it matches best, whatever the
/// query's own offset and range), the probability ratio to the best frame under CLIP's own softmax (how sharp the peak is,
/// in (0, 1] for any T), the level of the best frame beside every frame (whether there is a match at all), and the nearness
/// to the best frame, which falls from 1 to 0 over [`REACH`] standard deviations of the row: near 1 for all frames that match,
/// be they few or half of the video, where a z-score is the larger the fewer they are.
pub(super) fn rows(similarity: &Tensor, padding: &Padding) -> Result<Tensor> {
    let (b, q, t) = similarity.dims3()?;
    let rows = similarity.reshape((b * q, 1, t))?;
    let level = padding.clear_rows(((&rows - LEVEL)? / SPREAD)?)?;
    let centred = padding.clear_rows(rows.broadcast_sub(&padding.row_mean(&rows)?)?)?;
    let std = (padding.row_mean(&centred.sqr()?)? + MIN_VARIANCE)?.sqrt()?;
    let z_score = centred.broadcast_div(&std)?;
    // Padding may lie above the real maximum: bounded before the exponential, not only cleared after it.
    let best = padding.row_max(&rows)?;
    let below = (rows.broadcast_sub(&best)? * LOGIT_SCALE)?.minimum(0.)?;
    let best = padding.clear_rows(((best - LEVEL)? / SPREAD)?.broadcast_as(rows.shape())?.contiguous()?)?;
    let nearness = (z_score.broadcast_sub(&padding.row_max(&z_score)?)? * (1. / REACH))?;
    let nearness = padding.clear_rows((nearness + 1.)?.maximum(0.)?)?;
    Tensor::cat(&[&level, &z_score, &padding.clear_rows(below.exp()?)?, &best, &nearness], 1)
}

/// (B, [`POSITIONS`], T): sine and cosine of the relative time in each video, from half a wave over the whole video to
/// four, and the logarithm of its length. Relative time is bounded for any T; neighbours are told apart by the convolutions.
pub(super) fn positions(padding: &Padding, dtype: DType, device: &Device) -> Result<Tensor> {
    let longest = padding.frames.iter().copied().max().unwrap_or(0);
    let mut values = Vec::with_capacity(padding.frames.len() * POSITIONS * longest);
    for &frames in &padding.frames {
        let mut channel = |f: &dyn Fn(f64) -> f64| {
            let at = |i: usize| if i < frames { f((i as f64 + 0.5) / frames as f64) as f32 } else { 0. };
            values.extend((0..longest).map(at));
        };
        for octave in 0..OCTAVES {
            let frequency = PI * f64::from(1u32 << octave);
            channel(&|time| (frequency * time).sin());
            channel(&|time| (frequency * time).cos());
        }
        // ln 5000 = 8.5: of the size of the other features for a minute and for an hour.
        channel(&|_| (frames as f64).ln() / 8.);
    }
    Tensor::from_vec(values, (padding.frames.len(), POSITIONS, longest), device)?.to_dtype(dtype)
}
