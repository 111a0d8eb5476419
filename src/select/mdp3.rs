//! MDP3 (arXiv 2501.02885): a determinantal point process per segment of the video, joined by dynamic programming.
//!
//! Differs from the published code: the last segment may be shorter than the others, a frame that repeats a chosen one keeps a
//! small positive determinant instead of minus infinity or the absolute value of a rounding error, and the text is unit-length
//! (its kernel is computed from the cosine).

use std::collections::BTreeMap;
use std::ops::Range;

use super::curve::finite;
use super::features::Features;
use super::uniform::uniform;
use crate::error::{Error, Result};

// The kernel of a frame with itself: one for each of the five widths.
const SELF: f64 = 5.;
const SMALLEST: f64 = 1e-6;

/// Settings of [`mdp3`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mdp3 {
    /// How little the question counts against the differences between frames: it has weight `2 / lambda`. Published: 0.2.
    pub lambda: f64,
    /// Frames per segment; `None` for the published rule, 32 for up to 32 key frames and otherwise 128.
    pub segment: Option<usize>,
}

impl Default for Mdp3 {
    fn default() -> Self {
        Self { lambda: 0.2, segment: None }
    }
}

/// `k` frames, ascending; all frames when `k` is not below their number. Of equal gains the earlier frame wins, and the plan
/// with fewer frames in the later segment.
///
/// `cosines` (T,) in [-1, 1]: of the question with each frame. `features` (T, D). With the kernel `k(d) = sum over a in 1/8,
/// 1/4, 1/2, 1, 2 of exp(-d^2 / 2a)` of a distance, a set `S` of frames in a segment, given the last frame `C` chosen before it,
/// is worth `(2 / lambda) sum_(C and S) ln k(question, frame) + ln det K_(C and S)`, and nothing when `S` is empty; sets grow
/// greedily, and dynamic programming shares the `k` frames among the segments. O(T m (D + k^2)) for segments of m, times
/// the number of different frames that a segment may follow.
///
/// # Errors
/// A cosine that is not in [-1, 1], features of another length, settings that are not above 0.
pub fn mdp3(cosines: &[f32], features: &Features, k: usize, settings: Mdp3) -> Result<Vec<usize>> {
    finite("mdp3", cosines)?;
    features.check("mdp3", cosines.len())?;
    if let Some(at) = cosines.iter().position(|cosine| cosine.abs() > 1. + 1e-4) {
        let cosine = cosines[at];
        return Err(Error::Input(format!("mdp3: expected cosines from -1 to 1, score {at} is {cosine}")));
    }
    let size = settings.segment.unwrap_or(if k <= 32 { 32 } else { 128 });
    let lambda = settings.lambda;
    if size == 0 || !(lambda > 0. && lambda.is_finite()) {
        return Err(Error::Input(format!(
            "mdp3: expected lambda and the segment above 0, got {lambda} and {size}"
        )));
    }
    let n = cosines.len();
    if k == 0 || k >= n {
        return Ok(uniform(n, k));
    }
    // The worth of a set is the logarithm of the determinant of `q_i q_j K_ij`.
    let fits: Vec<f64> = cosines.iter().map(|&c| kernel(2. - 2. * f64::from(c)).ln() / lambda).collect();
    let mut plans: Vec<Option<Plan>> = vec![None; k + 1];
    plans[0] = Some(Plan::default());
    for start in (0..n).step_by(size) {
        plans = extend(&plans, &Segment::new(start..n.min(start.saturating_add(size)), features, &fits));
    }
    let plan = plans.pop().flatten();
    plan.map(|plan| plan.frames).ok_or_else(|| Error::Input(format!("mdp3: no plan of {k} frames")))
}

/// By the squared distance.
fn kernel(distance: f64) -> f64 {
    // Each width is half the next: the exponential of the widest, squared again and again.
    let widest = (-distance.max(0.) / 4.).exp();
    (0..4).fold((widest, widest), |(power, sum), _| (power * power, sum + power * power)).1
}

/// The best choice of so many frames up to some segment.
#[derive(Clone, Default)]
struct Plan {
    worth: f64,
    /// Ascending.
    frames: Vec<usize>,
}

fn extend(plans: &[Option<Plan>], segment: &Segment) -> Vec<Option<Plan>> {
    let k = plans.len() - 1;
    let known = || plans.iter().enumerate().filter_map(|(have, plan)| Some((have, plan.as_ref()?)));
    // The plan with the fewest frames before a segment may take the most of it.
    let mut chains: BTreeMap<Option<usize>, Chain> = BTreeMap::new();
    for (have, plan) in known() {
        let last = plan.frames.last().copied();
        chains.entry(last).or_insert_with(|| segment.chain(last, k - have));
    }
    // From how many frames before, and how many of this segment, each number is reached best.
    let mut best: Vec<Option<(f64, usize, usize)>> = vec![None; k + 1];
    for (have, plan) in known().rev() {
        let Some(chain) = chains.get(&plan.frames.last().copied()) else { continue };
        for (more, worth) in chain.worth.iter().enumerate().take(k - have + 1) {
            let worth = plan.worth + worth;
            if best[have + more].is_none_or(|(most, ..)| worth > most) {
                best[have + more] = Some((worth, have, more));
            }
        }
    }
    let plan = |(worth, have, more): (f64, usize, usize)| {
        let mut frames = plans[have].as_ref()?.frames.clone();
        let mut new = chains.get(&frames.last().copied())?.frames[..more].to_vec();
        new.sort_unstable();
        frames.extend(new);
        Some(Plan { worth, frames })
    };
    best.into_iter().map(|best| plan(best?)).collect()
}

/// What a segment offers after some frame, greedily.
struct Chain {
    /// In the order in which they are taken.
    frames: Vec<usize>,
    /// Of the first 0, 1, 2, ... of them.
    worth: Vec<f64>,
}

struct Segment<'a> {
    frames: Range<usize>,
    features: &'a Features,
    /// `ln q` of every frame of the video.
    fits: &'a [f64],
    /// The largest `ln q` of the segment, so that products stay in range.
    shift: f64,
    /// `q_i q_j K_ij` of the segment's frames, shifted.
    rows: Vec<Vec<f64>>,
}

impl<'a> Segment<'a> {
    fn new(frames: Range<usize>, features: &'a Features, fits: &'a [f64]) -> Self {
        let shift = fits[frames.clone()].iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut rows = vec![vec![0.; frames.len()]; frames.len()];
        for i in 0..frames.len() {
            let (a, qa) = (frames.start + i, (fits[frames.start + i] - shift).exp());
            rows[i][i] = qa * qa * SELF;
            for (j, b) in (frames.start..a).enumerate() {
                let value = qa * (fits[b] - shift).exp() * kernel(features.distance(a, b));
                (rows[i][j], rows[j][i]) = (value, value);
            }
        }
        Self { frames, features, fits, shift, rows }
    }

    fn chain(&self, last: Option<usize>, k: usize) -> Chain {
        let diagonal = (0..self.frames.len()).map(|i| self.rows[i][i]).collect();
        let mut volume = Volume::new(diagonal, SMALLEST);
        let mut total = 0.;
        if let Some(last) = last {
            // Quality and length of the earlier frame cancel out of what it takes from the others.
            let row = self.frames.clone().map(|frame| {
                (self.fits[frame] - self.shift).exp() * kernel(self.features.distance(last, frame))
                    / SELF.sqrt()
            });
            volume.project(row.collect());
            total = 2. * self.fits[last] + SELF.ln();
        }
        let (mut frames, mut worth) = (vec![], vec![0.]);
        while frames.len() < k {
            let Some(next) = volume.widest() else { break };
            total += volume.gain(next).max(f64::MIN_POSITIVE).ln() + 2. * self.shift;
            volume.take(next, &self.rows[next]);
            frames.push(self.frames.start + next);
            worth.push(total);
        }
        Chain { frames, worth }
    }
}

/// The determinant of a growing set of items, by an incremental Cholesky factorisation.
#[derive(Debug, Clone)]
struct Volume {
    /// By how much each item would multiply the determinant; minus infinity for those that are in.
    residual: Vec<f64>,
    /// Gains below these are rounding.
    floor: Vec<f64>,
    factors: Vec<Vec<f64>>,
}

impl Volume {
    /// Of the empty set, with the diagonal of the kernel; gains below `smallest` times an item's own length are rounding.
    fn new(diagonal: Vec<f64>, smallest: f64) -> Self {
        let floor = diagonal.iter().map(|length| smallest * length).collect();
        Self { residual: diagonal, floor, factors: vec![] }
    }

    /// By how much the determinant would grow, at least the item's floor.
    fn gain(&self, item: usize) -> f64 {
        self.residual[item].max(self.floor[item])
    }

    /// The item with the largest gain, the first of equals; `None` when all are in.
    fn widest(&self) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (item, &residual) in self.residual.iter().enumerate() {
            let gain = residual.max(self.floor[item]);
            if residual > f64::NEG_INFINITY && best.is_none_or(|(_, most)| gain > most) {
                best = Some((item, gain));
            }
        }
        best.map(|(item, _)| item)
    }

    /// Adds something outside the items that each of them has the component `factor` (N,) along.
    fn project(&mut self, factor: Vec<f64>) {
        for (residual, value) in self.residual.iter_mut().zip(&factor) {
            *residual -= value * value;
        }
        self.factors.push(factor);
    }

    /// Adds an item, with its row of the kernel.
    fn take(&mut self, item: usize, row: &[f64]) {
        let length = self.gain(item).max(f64::MIN_POSITIVE).sqrt();
        let mut factor = row.to_vec();
        for earlier in &self.factors {
            let weight = earlier[item];
            factor.iter_mut().zip(earlier).for_each(|(out, value)| *out -= weight * value);
        }
        factor.iter_mut().for_each(|value| *value /= length);
        self.project(factor);
        self.residual[item] = f64::NEG_INFINITY;
    }
}
