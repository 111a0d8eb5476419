//! Q-Frame (arXiv 2506.22139): frames drawn with Gumbel noise, the first of them large and the later ones smaller.
//!
//! Differs from the published code: the draw has a seed, its noise is exact (no small constant inside the logarithms), nothing
//! falls back to random frames on an error, and where there are fewer candidates than the three levels hold, the tokens that
//! are left enlarge frames instead of being lost.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::curve::finite;
use super::draw::draw;
use crate::error::{Error, Result};

/// Settings of [`q_frame`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QFrame {
    /// Divides the logits before the draw. Published: 0.8.
    pub temperature: f32,
}

impl Default for QFrame {
    fn default() -> Self {
        Self { temperature: 0.8 }
    }
}

/// How many frames are shown at which size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// At full size.
    pub full: usize,
    /// At half the width and height: a quarter of the tokens.
    pub half: usize,
    /// At a quarter of the width and height: a sixteenth of the tokens.
    pub quarter: usize,
}

impl Levels {
    /// `k` frames at full size.
    pub fn full(k: usize) -> Self {
        Self { full: k, half: 0, quarter: 0 }
    }

    /// The tokens of `k` full frames over three sizes, in the published proportion of 4 : 8 : 32 for `k` = 8 as nearly as
    /// whole frames allow; at most `t` frames. With fewer candidates than that, the tokens left over enlarge frames, up to all
    /// at full size when `k` is not below `t`.
    pub fn mixed(k: usize, t: usize) -> Self {
        let k = k.min(t);
        let full = (k / 2).min(t);
        let half = k.min(t - full);
        let quarter = (16 * k - 16 * (k / 2) - 4 * k).min(t - full - half);
        let mut levels = Self { full, half, quarter };
        let mut left = (16 * k).saturating_sub(16 * full + 4 * half + quarter);
        let raised = levels.quarter.min(left / 3);
        (levels.quarter, levels.half, left) =
            (levels.quarter - raised, levels.half + raised, left - 3 * raised);
        let raised = levels.half.min(left / 12);
        (levels.half, levels.full) = (levels.half - raised, levels.full + raised);
        levels
    }

    /// Frames in all.
    pub fn count(self) -> usize {
        self.full.saturating_add(self.half).saturating_add(self.quarter)
    }

    /// Tokens in all, in units of a full frame.
    pub fn tokens(self) -> f64 {
        self.full as f64 + self.half as f64 / 4. + self.quarter as f64 / 16.
    }

    /// Side length of the frame drawn at `position`, as a part of the full one.
    pub fn scale(self, position: usize) -> f32 {
        match position {
            _ if position < self.full => 1.,
            _ if position < self.full.saturating_add(self.half) => 0.5,
            _ => 0.25,
        }
    }
}

/// `levels.count()` frames drawn without replacement with probability proportional to `exp(logit / temperature)`, in draw
/// order: the first `levels.full` are meant for full size, the next for half, the rest for a quarter ([`Levels::scale`]). The
/// same seed gives the same frames; all candidates when there are no more.
///
/// `logits` (T,): the inner products of CLIP's raw embeddings in the paper; cosines times 100 are of that order.
///
/// # Errors
/// A logit that is not finite, a temperature that is not a positive number.
pub fn q_frame(logits: &[f32], levels: Levels, settings: QFrame, seed: u64) -> Result<Vec<usize>> {
    finite("q-frame", logits)?;
    draw(&tempered(logits, settings)?, levels.count().min(logits.len()), &mut StdRng::seed_from_u64(seed))
}

/// The logits of the distribution that is drawn from.
pub(super) fn tempered(logits: &[f32], settings: QFrame) -> Result<Vec<f32>> {
    let temperature = settings.temperature;
    if !(temperature > 0. && temperature.is_finite()) {
        return Err(Error::Input(format!("q-frame: expected a temperature above 0, got {temperature}")));
    }
    let tempered: Vec<f32> = logits.iter().map(|logit| logit / temperature).collect();
    finite("q-frame, after the temperature", &tempered)?;
    Ok(tempered)
}
