//! When the answer to a question is seen, and how much of it a selection of frames catches.

use std::ops::Range;

use crate::text::one_line;

/// Seconds by which a frame may miss a moment of LongVideoBench, and an interval of LVBench.
const SLACK_OF_MOMENTS: f64 = 2.;
const SLACK_OF_INTERVALS: f64 = 1.;
/// Seconds that rounding of times may cost.
const ROUNDING: f64 = 1e-6;

/// When the answer is seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Evidence {
    /// Not known.
    #[default]
    Unknown,
    /// Intervals in seconds (`time_reference` of LVBench). One that ends where it starts is a moment.
    Seconds(Vec<Range<f64>>),
    /// Frame numbers of the video, at its own frame rate (`position` of LongVideoBench).
    Frames(Vec<u64>),
}

impl Evidence {
    /// The intervals, in seconds, in which a chosen frame counts as seeing the evidence: 2 s around each frame number, 1 s
    /// around each interval. `fps` is the video's frame rate; `duration` its length in seconds, beyond which frame numbers
    /// are left out (one of LongVideoBench's lies weeks after the end of its video).
    pub fn windows(&self, fps: f64, duration: Option<f64>) -> Vec<Range<f64>> {
        match self {
            Self::Unknown => vec![],
            Self::Seconds(ranges) => {
                let wide =
                    |range: &Range<f64>| range.start - SLACK_OF_INTERVALS..range.end + SLACK_OF_INTERVALS;
                ranges.iter().map(wide).collect()
            }
            Self::Frames(frames) => {
                let seconds = frames.iter().map(|&frame| frame as f64 / fps);
                let there =
                    seconds.filter(|&at| at.is_finite() && duration.is_none_or(|duration| at <= duration));
                there.map(|at| at - SLACK_OF_MOMENTS..at + SLACK_OF_MOMENTS).collect()
            }
        }
    }

    /// The share of [`Evidence::windows`] in which at least one of `seconds`, the times of the chosen frames, lies; the
    /// borders count. `None` without evidence: the question is left out of the mean.
    pub fn recall(&self, seconds: &[f64], fps: f64, duration: Option<f64>) -> Option<f64> {
        found(&self.windows(fps, duration), seconds)
    }
}

/// The share of `windows` in which one of `seconds` lies, borders included; `None` without windows.
pub fn found(windows: &[Range<f64>], seconds: &[f64]) -> Option<f64> {
    let inside = |window: &Range<f64>| {
        seconds.iter().any(|&at| window.start - ROUNDING <= at && at <= window.end + ROUNDING)
    };
    let hits = windows.iter().filter(|window| inside(window)).count();
    (!windows.is_empty()).then(|| hits as f64 / windows.len() as f64)
}

/// Reads `mm:ss-mm:ss`; minutes may have three digits, and hours may stand before them.
///
/// # Errors
/// What was expected: `None` in place of a time, an end before the start, anything else.
pub(super) fn interval(text: &str) -> Result<Range<f64>, String> {
    let text = one_line(text);
    let cause =
        |what: &str| format!("time_reference {text:?}: {what}; the question is used without evidence");
    let Some((start, end)) = text.split_once('-') else {
        return Err(cause("expected two times, mm:ss-mm:ss"));
    };
    let (Some(start), Some(end)) = (clock(start), clock(end)) else {
        return Err(cause("expected two times, mm:ss-mm:ss"));
    };
    if end < start {
        return Err(cause("it ends before it starts"));
    }
    Ok(start..end)
}

/// Seconds of `ss`, `mm:ss` or `hh:mm:ss`, with a decimal point or comma in the last.
pub(super) fn clock(text: &str) -> Option<f64> {
    let text = text.trim().replace(',', ".");
    let parts: Vec<&str> = text.split(':').collect();
    let (seconds, larger) = parts.split_last().filter(|(_, larger)| larger.len() <= 2)?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !seconds.starts_with(|c: char| c.is_ascii_digit()) || !larger.iter().all(|part| digits(part)) {
        return None;
    }
    let larger = larger.iter().try_fold(0., |sum, part| Some(sum * 60. + part.parse::<f64>().ok()?));
    Some(larger? * 60. + seconds.parse::<f64>().ok().filter(|seconds| seconds.is_finite())?)
}
