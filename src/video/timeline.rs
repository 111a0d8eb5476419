//! Which frame is on display when: exact arithmetic on presentation timestamps.

use crate::{Error, Result};

/// Frames of a video in presentation order, in ticks counted from the first displayed frame.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    /// One tick in seconds, as numerator and denominator.
    pub tick: (i64, i64),
    /// Presentation time of every displayed frame, strictly ascending, the first 0.
    pub frames: Vec<i64>,
    /// End of display of the last frame.
    pub end: i64,
}

/// More samples than this are a mistake in the rate, not a request.
const MOST_SAMPLES: i128 = 100_000_000;

impl Timeline {
    /// `ticks` in seconds, correctly rounded while both factors are below 2^53.
    pub fn seconds(&self, ticks: i64) -> f64 {
        (i128::from(ticks) * i128::from(self.tick.0)) as f64 / self.tick.1 as f64
    }

    /// Frames on display at k / fps for k = 0, 1, 2, ... while that lies before the end.
    pub fn at_rate(&self, fps: f64) -> Result<Vec<usize>> {
        if !(fps.is_finite() && fps > 0.0) {
            return Err(Error::Input(format!("fps: expected a finite rate above 0, got {fps}")));
        }
        let (num, den) = simplest_ratio(fps);
        // ticks * tick.0 / tick.1 <= k * den / num, cleared of fractions
        let per_tick = i128::from(self.tick.0).saturating_mul(num);
        let per_sample = i128::from(self.tick.1) * den;
        let count = i128::from(self.end).saturating_mul(per_tick).saturating_add(per_sample - 1) / per_sample;
        if count > MOST_SAMPLES {
            return Err(Error::Input(format!(
                "fps: {fps} asks for {count} samples, at most {MOST_SAMPLES} are possible; lower the rate"
            )));
        }
        let mut shown = Vec::with_capacity(count as usize);
        let mut frame = 0;
        for k in 0..count {
            let time = k * per_sample;
            while frame + 1 < self.frames.len() && i128::from(self.frames[frame + 1]) * per_tick <= time {
                frame += 1;
            }
            shown.push(frame);
        }
        Ok(shown)
    }

    /// The frame on display at `seconds`.
    pub fn at_seconds(&self, seconds: f64) -> Result<usize> {
        let end = self.seconds(self.end);
        if !(0.0..end).contains(&seconds) {
            return Err(Error::Input(format!(
                "seconds: expected a time in 0..{end} (from the first displayed frame), got {seconds}"
            )));
        }
        // Compared as f64 so that the time of a delivered frame asks for that very frame again.
        Ok(self.frames.partition_point(|&ticks| self.seconds(ticks) <= seconds).max(1) - 1)
    }
}

/// The simplest fraction that rounds to `x` (finite, above 0): 0.1 is 1/10, not its binary neighbour.
///
/// Continued fraction expansion; a rate given as 29.97 or as 30000.0 / 1001.0 comes out as what was meant.
pub(super) fn simplest_ratio(x: f64) -> (i128, i128) {
    let (mut p0, mut q0, mut p1, mut q1) = (0i128, 1i128, 1i128, 0i128);
    let mut rest = x;
    loop {
        let whole = rest.floor().min(1e15) as i128;
        (p0, q0, p1, q1) = (p1, q1, whole * p1 + p0, whole * q1 + q0);
        let fraction = rest - rest.floor();
        if p1 as f64 / q1 as f64 == x || fraction == 0.0 || q1 > 1_000_000_000 {
            return (p1.max(1), q1);
        }
        rest = 1.0 / fraction;
    }
}
