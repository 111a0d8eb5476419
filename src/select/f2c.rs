//! Key clips with adaptive resolution, after F2C (arXiv 2510.02262): frames that stand out grow into clips, and all frames shrink
//! so that the tokens stay those of K full frames.
//!
//! The paper's code is not public and its text leaves details open; the idea is the paper's, these choices are ours. Anchors are
//! the peaks of the score curve (its watershed has one basin each), thinned by clustering where features are given; a clip
//! grows while its frames score at least half of its anchor, on scores in [0, 1]; the size follows from the number of frames.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::curve::{ascending, falling, finite, largest, unit};
use super::features::{Features, dot};
use super::fill::fill;
use super::uniform::uniform;
use crate::error::{Error, Result};

// Rounds of clustering; the assignments of so few points settle sooner.
const ROUNDS: usize = 10;
// Peaks per anchor that the clustering starts from.
const PEAKS: usize = 4;

/// Settings of [`f2c`]. Ours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct F2c {
    /// Anchors per key frame of the budget, in (0, 1].
    pub anchors: f64,
    /// A clip grows over frames with at least this part of its anchor's score, in [0, 1].
    pub hold: f64,
    /// Frames of the longest clip (before neighbours merge).
    pub longest: usize,
    /// How far the sides of frames may shrink: 2 allows up to four times as many frames; 1 keeps them at full size.
    pub shrink: f64,
}

impl Default for F2c {
    fn default() -> Self {
        Self { anchors: 0.5, hold: 0.5, longest: 16, shrink: 2. }
    }
}

/// Clips, and the size of their frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Clips {
    /// Ranges of frames, ascending; no two overlap or touch.
    pub clips: Vec<Range<usize>>,
    /// Side length of every frame as a part of the full one, in (0, 1].
    pub scale: f32,
}

impl Clips {
    /// All frames of the clips, ascending.
    pub fn frames(&self) -> Vec<usize> {
        self.clips.iter().cloned().flatten().collect()
    }
}

/// Clips with the tokens of `k` full frames: from `k` to `k * shrink^2` frames at the side length `sqrt(k / frames)`. All frames
/// at full size when `k` is not below their number; constant scores have evenly spaced anchors.
///
/// `scores` (T,) in any affine scale; `features` (T, D) keep anchors from resembling each other. Of equal scores the lower index
/// wins.
///
/// # Errors
/// A score that is not finite, features of another length, settings out of range.
pub fn f2c(scores: &[f32], features: Option<&Features>, k: usize, settings: F2c) -> Result<Clips> {
    finite("f2c", scores)?;
    features.map_or(Ok(()), |features| features.check("f2c", scores.len()))?;
    check(settings)?;
    let n = scores.len();
    if k == 0 || k >= n {
        return Ok(Clips { clips: ranges(&uniform(n, k)), scale: 1. });
    }
    let unit = unit(scores);
    let wanted = ((k as f64 * settings.anchors).round() as usize).clamp(1, k);
    let anchors = match &unit {
        Some(unit) => anchors(unit, features, wanted),
        None => uniform(n, wanted),
    };
    let most = ((k as f64 * settings.shrink * settings.shrink) as usize).clamp(k, n);
    let frames = match &unit {
        Some(unit) => grow(unit, &anchors, (k, most), settings),
        // Nothing holds more than anything else.
        None => grow(&vec![0.; n], &anchors, (k, k), settings),
    };
    let scale = (k as f64 / frames.len() as f64).sqrt().min(1.) as f32;
    Ok(Clips { clips: ranges(&frames), scale })
}

fn check(settings: F2c) -> Result<()> {
    let F2c { anchors, hold, longest, shrink } = settings;
    let fine = anchors > 0. && anchors <= 1. && (0. ..=1.).contains(&hold) && longest > 0;
    if !(fine && shrink >= 1. && shrink.is_finite()) {
        return Err(Error::Input(format!(
            "f2c: expected anchors above 0 to 1, hold from 0 to 1, longest and shrink from 1, got {settings:?}"
        )));
    }
    Ok(())
}

/// `wanted` frames to grow clips from.
fn anchors(unit: &[f64], features: Option<&Features>, wanted: usize) -> Vec<usize> {
    let peaks = peaks(unit);
    let heights: Vec<f64> = peaks.iter().map(|&peak| unit[peak]).collect();
    let mut best: Vec<usize> = falling(&heights).into_iter().map(|at| peaks[at]).collect();
    if let Some(features) = features {
        best.truncate(wanted.saturating_mul(PEAKS));
        best = one_per_cluster(unit, features, &best, wanted);
    }
    let preference: Vec<f64> = unit.iter().map(|score| score + 1.).collect();
    fill(&best, &preference, wanted)
}

/// The local maxima, ascending; of a plateau its first frame.
fn peaks(unit: &[f64]) -> Vec<usize> {
    let mut peaks = vec![];
    let mut start = 0;
    while start < unit.len() {
        let plateau = unit[start..].iter().take_while(|&&score| score == unit[start]).count();
        let end = start + plateau;
        let lower = |at: usize| unit.get(at).is_none_or(|&score| score < unit[start]);
        if (start == 0 || lower(start - 1)) && lower(end) {
            peaks.push(start);
        }
        start = end;
    }
    peaks
}

/// The best frame of each of `count` clusters of the candidates (best first): k-means begun from the best one and then the
/// farthest ones.
fn one_per_cluster(unit: &[f64], features: &Features, candidates: &[usize], count: usize) -> Vec<usize> {
    if candidates.len() <= count {
        return candidates.to_vec();
    }
    let row = |at: usize| features.row(candidates[at]);
    let mut centres = vec![row(0).to_vec()];
    let apart = |a: usize, b: usize| features.distance(candidates[a], candidates[b]);
    let mut nearest: Vec<f64> = (0..candidates.len()).map(|at| apart(at, 0)).collect();
    while centres.len() < count {
        let Some(next) = largest(&nearest, 0..nearest.len()).filter(|&next| nearest[next] > 0.) else {
            break;
        };
        centres.push(row(next).to_vec());
        for (at, near) in nearest.iter_mut().enumerate() {
            *near = near.min(apart(at, next));
        }
    }
    let mut home = vec![usize::MAX; candidates.len()];
    for _ in 0..ROUNDS {
        let lengths: Vec<f32> = centres.iter().map(|centre| dot(centre, centre)).collect();
        let closeness = |at: usize| -> Vec<f64> {
            let near = |(centre, length): (&Vec<f32>, &f32)| f64::from(2. * dot(row(at), centre) - length);
            centres.iter().zip(&lengths).map(near).collect()
        };
        let new: Vec<usize> = (0..candidates.len())
            .map(|at| largest(&closeness(at), 0..centres.len()).unwrap_or_default())
            .collect();
        if new == home {
            break;
        }
        home = new;
        for (cluster, centre) in centres.iter_mut().enumerate() {
            let members: Vec<usize> = (0..home.len()).filter(|&at| home[at] == cluster).collect();
            if members.is_empty() {
                continue;
            }
            for (d, x) in centre.iter_mut().enumerate() {
                *x = members.iter().map(|&at| row(at)[d]).sum::<f32>() / members.len() as f32;
            }
        }
    }
    let clusters = 0..centres.len();
    let best = clusters.filter_map(|c| (0..home.len()).find(|&at| home[at] == c).map(|at| candidates[at]));
    let mut best: Vec<usize> = ascending(best.collect());
    best.sort_by(|&a, &b| unit[b].total_cmp(&unit[a]));
    best
}

/// A frame beside a clip.
struct Edge {
    score: f64,
    frame: usize,
    clip: usize,
    step: isize,
    /// Steps from the anchor.
    away: usize,
}

impl Ord for Edge {
    fn cmp(&self, other: &Self) -> Ordering {
        // Of equal scores the one nearer to its anchor, then the lower index.
        let place = |edge: &Self| (edge.away, edge.frame, edge.clip);
        self.score.total_cmp(&other.score).then_with(|| place(other).cmp(&place(self)))
    }
}

impl PartialOrd for Edge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Edge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Edge {}

/// The anchors and the best frames beside them: at least `least` in all, at most `most`.
fn grow(unit: &[f64], anchors: &[usize], (least, most): (usize, usize), settings: F2c) -> Vec<usize> {
    let mut taken = vec![false; unit.len()];
    anchors.iter().for_each(|&anchor| taken[anchor] = true);
    let (mut lengths, mut total) = (vec![1; anchors.len()], anchors.len());
    let beside = |clip: usize, step: isize, away: usize| {
        let frame = anchors[clip].checked_add_signed(step * away as isize)?;
        Some(Edge { score: *unit.get(frame)?, frame, clip, step, away })
    };
    let both = |clip: usize| [beside(clip, -1, 1), beside(clip, 1, 1)];
    let mut edges: BinaryHeap<Edge> = (0..anchors.len()).flat_map(both).flatten().collect();
    while total < most {
        let Some(edge) = edges.pop() else { break };
        let Edge { score, frame, clip, step, away } = edge;
        let holds = score > 0. && score >= settings.hold * unit[anchors[clip]];
        if taken[frame] || lengths[clip] >= settings.longest || (total >= least && !holds) {
            continue;
        }
        taken[frame] = true;
        (lengths[clip], total) = (lengths[clip] + 1, total + 1);
        edges.extend(beside(clip, step, away + 1));
    }
    let frames: Vec<usize> = (0..unit.len()).filter(|&frame| taken[frame]).collect();
    let preference: Vec<f64> = unit.iter().map(|score| score + 1.).collect();
    ascending(fill(&frames, &preference, least.max(total)))
}

/// Runs of frames that follow each other.
fn ranges(frames: &[usize]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = vec![];
    for &frame in frames {
        match ranges.last_mut() {
            Some(last) if last.end == frame => last.end += 1,
            _ => ranges.push(frame..frame + 1),
        }
    }
    ranges
}
