//! FOCUS (arXiv 2510.27280): stretches of the video are the arms of a bandit, and only the frames it samples are scored.
//!
//! Differs from the published code: the last arm keeps the frames that do not divide, videos shorter than the smallest number of
//! arms have fewer, samples near an arm's edge stay inside it, arms without enough free frames pass their share on, so that
//! always K frames come back, and a score that is not finite is refused. Random numbers are not NumPy's. The final arms are those
//! of the largest mean, as the paper has it; that code's choice, the largest upper bound, is a setting: it favours the arms that
//! were not looked at closely, because their bounds are wide.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rand::distr::Open01;
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

use super::curve::{ascending, falling, unit};
use super::uniform::uniform;
use crate::error::{Error, Result};

// Published.
const LEAST_VARIANCE: f64 = 1e-6;
const LEAST_ARMS: usize = 8;
const LEAST_ZOOMED: usize = 4;
const FINAL_ARMS: (usize, usize) = (4, 32);
const MOST_GAP: f64 = 1.;
const GAP_SHARE: f64 = 0.25;
const CROWDED: f64 = 0.2;

/// Which arms frames are taken from in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalArms {
    /// Those whose scored frames are best on average: the paper.
    Mean,
    /// Those of the largest upper bound: the published code.
    Bound,
}

/// Settings of [`focus`]; the defaults are the published ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Focus {
    /// Candidates per second.
    pub fps: f64,
    /// Seconds per arm.
    pub coarse: f64,
    /// Seconds per sample of an arm that is looked at closely.
    pub fine: f64,
    /// Frames of an arm scored at first, besides the middle one.
    pub extra: usize,
    /// Part of the arms that is looked at closely, and from which frames are taken.
    pub zoom: f64,
    /// Part of the close samples that is evenly spaced; the others are random.
    pub even: f64,
    /// Part of the frames that are the best scored ones.
    pub top: f64,
    /// Of the draw inside an arm, on scores in [0, 1].
    pub temperature: f64,
    /// By what the arms to take frames from are chosen.
    pub final_arms: FinalArms,
}

impl Default for Focus {
    fn default() -> Self {
        Self {
            fps: 1.,
            coarse: 16.,
            fine: 1.,
            extra: 2,
            zoom: 0.25,
            even: 0.5,
            top: 0.2,
            temperature: 0.06,
            final_arms: FinalArms::Mean,
        }
    }
}

/// What [`focus`] chose, and what it had to look at for that.
#[derive(Debug, Clone, PartialEq)]
pub struct Focused {
    /// The frames, ascending.
    pub frames: Vec<usize>,
    /// Every frame that was scored, ascending, with its score.
    pub scored: Vec<(usize, f32)>,
}

/// `k` of `frames` candidates, ascending, scoring only some of them: the middle and two more of every 16 seconds, then most of
/// the quarter of these stretches that promise most. All frames, and nothing scored, when `k` is not below their number. The
/// same seed and scores give the same frames.
///
/// `score` is called at most twice, with ascending frames, each only once, and answers with one score each, of any affine
/// scale comparable to probabilities: the bounds are made for scores in [0, 1].
///
/// # Errors
/// Those of `score`, an answer of another length, a score that is not finite, settings out of range.
pub fn focus(
    frames: usize,
    k: usize,
    settings: &Focus,
    seed: u64,
    score: &mut dyn FnMut(&[usize]) -> Result<Vec<f32>>,
) -> Result<Focused> {
    check(settings)?;
    if k == 0 || k >= frames {
        return Ok(Focused { frames: uniform(frames, k), scored: vec![] });
    }
    let mut search = Search::new(frames, settings, seed);
    let first = search.first_look();
    search.look(first, score)?;
    let closer = search.closer_look();
    search.look(closer, score)?;
    let frames = ascending(search.choose(k).into_iter().collect());
    Ok(Focused { frames, scored: search.scores.into_iter().collect() })
}

fn check(settings: &Focus) -> Result<()> {
    let Focus { fps, coarse, fine, zoom, even, top, temperature, .. } = *settings;
    let positive = [("fps", fps), ("coarse", coarse), ("fine", fine), ("temperature", temperature)];
    let parts = [("zoom", zoom), ("even", even), ("top", top)];
    let bad = |what: &str, expected: &str, value| {
        Err(Error::Input(format!("focus: expected {what} {expected}, got {value}")))
    };
    if let Some((what, value)) = positive.into_iter().find(|one| !(one.1 > 0. && one.1.is_finite())) {
        return bad(what, "above 0", value);
    }
    match parts.into_iter().find(|one| !(0. ..=1.).contains(&one.1)) {
        Some((what, value)) => bad(what, "from 0 to 1", value),
        None => Ok(()),
    }
}

struct Search<'a> {
    settings: &'a Focus,
    frames: usize,
    arms: Vec<Range<usize>>,
    /// Frames per arm before the last one's extra.
    size: usize,
    scores: BTreeMap<usize, f32>,
    rng: StdRng,
}

impl<'a> Search<'a> {
    fn new(frames: usize, settings: &'a Focus, seed: u64) -> Self {
        let seconds = frames as f64 / settings.fps;
        let wanted = ((seconds / settings.coarse).ceil() as usize).max(LEAST_ARMS).min(frames);
        let count = frames / (frames / wanted);
        let size = frames / count;
        let end = |arm: usize| if arm + 1 == count { frames } else { (arm + 1) * size };
        let arms = (0..count).map(|arm| arm * size..end(arm)).collect();
        Self { settings, frames, arms, size, scores: BTreeMap::new(), rng: StdRng::seed_from_u64(seed) }
    }

    /// The middle of every arm and some others.
    fn first_look(&mut self) -> Vec<usize> {
        let mut wanted = vec![];
        for arm in &self.arms {
            let middle = arm.start + arm.len() / 2;
            wanted.push(middle);
            let others: Vec<usize> = arm.clone().filter(|&frame| frame != middle).collect();
            let some = index::sample(&mut self.rng, others.len(), self.settings.extra.min(others.len()));
            wanted.extend(some.into_iter().map(|at| others[at]));
        }
        wanted
    }

    /// More frames around the middle of the arms of the largest bounds.
    fn closer_look(&mut self) -> Vec<usize> {
        let mut best = self.best_arms(FinalArms::Bound);
        best.truncate(self.share_of_arms().max(LEAST_ZOOMED));
        let reach = self.size.div_ceil(2);
        let seconds = self.size as f64 / self.settings.fps;
        let count = ((seconds / self.settings.fine) as usize).min(self.size);
        let even = (count as f64 * self.settings.even).round() as usize;
        let mut wanted = BTreeSet::new();
        for arm in best.into_iter().map(|arm| self.arms[arm].clone()) {
            let middle = arm.start + arm.len() / 2;
            let window = middle.saturating_sub(reach).max(arm.start)..(middle + reach).min(arm.end);
            let at = |bin: usize| window.start + (2 * bin + 1) * window.len() / (2 * even);
            wanted.extend((0..even).map(at).filter(|frame| !self.scores.contains_key(frame)));
            let free = |frame: &usize| !self.scores.contains_key(frame) && !wanted.contains(frame);
            let free: Vec<usize> = window.filter(free).collect();
            let some = index::sample(&mut self.rng, free.len(), (count - even).min(free.len()));
            wanted.extend(some.into_iter().map(|at| free[at]));
        }
        wanted.into_iter().collect()
    }

    fn look(
        &mut self,
        wanted: Vec<usize>,
        score: &mut dyn FnMut(&[usize]) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let wanted = ascending(wanted);
        if wanted.is_empty() {
            return Ok(());
        }
        let scores = score(&wanted)?;
        if scores.len() != wanted.len() {
            let (asked, got) = (wanted.len(), scores.len());
            return Err(Error::Input(format!("focus: expected one score per frame ({asked}), got {got}")));
        }
        if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
            let (frame, score) = (wanted[at], scores[at]);
            return Err(Error::Input(format!(
                "focus: the score of frame {frame} is {score}, expected a finite number"
            )));
        }
        self.scores.extend(wanted.into_iter().zip(scores));
        Ok(())
    }

    /// The part of the arms that is looked at closely, rounded up.
    fn share_of_arms(&self) -> usize {
        (self.settings.zoom * self.arms.len() as f64).ceil() as usize
    }

    /// The arms from the best down, by the mean of their scores or its upper bound (Bernstein).
    fn best_arms(&self, by: FinalArms) -> Vec<usize> {
        let log = (self.scores.len() as f64).ln();
        let bound = |arm: &Range<usize>| {
            let scores: Vec<f64> =
                self.scores.range(arm.clone()).map(|(_, &score)| f64::from(score)).collect();
            let n = scores.len() as f64;
            let mean = scores.iter().sum::<f64>() / n;
            let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / n;
            match by {
                FinalArms::Mean => mean,
                FinalArms::Bound => {
                    mean + (2. * log * variance.max(LEAST_VARIANCE) / n).sqrt() + 3. * log / n
                }
            }
        };
        falling(&self.arms.iter().map(bound).collect::<Vec<f64>>())
    }

    /// The best scored frames, and draws from the best arms.
    fn choose(&mut self, k: usize) -> BTreeSet<usize> {
        let frames: Vec<usize> = self.scores.keys().copied().collect();
        let scores: Vec<f64> = self.scores.values().map(|&score| f64::from(score)).collect();
        let top = (self.settings.top * k.min(frames.len()) as f64).round() as usize;
        let mut chosen: BTreeSet<usize> =
            falling(&scores).into_iter().take(top).map(|at| frames[at]).collect();
        let order = self.best_arms(self.settings.final_arms);
        let arms = self.share_of_arms().clamp(FINAL_ARMS.0, FINAL_ARMS.1).min(order.len());
        let left = k - chosen.len();
        for (rank, &arm) in order[..arms].iter().enumerate() {
            let share = left / arms + usize::from(rank < left % arms);
            self.draw_in(arm, share, k, &mut chosen);
        }
        for arm in order {
            let missing = k - chosen.len();
            self.draw_in(arm, missing, k, &mut chosen);
        }
        chosen
    }

    /// Up to `count` frames of an arm, without replacement in proportion to `exp(score / temperature)`, kept apart while that
    /// is possible.
    fn draw_in(&mut self, arm: usize, count: usize, k: usize, chosen: &mut BTreeSet<usize>) {
        let free: Vec<usize> = self.arms[arm].clone().filter(|frame| !chosen.contains(frame)).collect();
        if count == 0 || free.is_empty() {
            return;
        }
        let scores: Vec<f32> = free.iter().map(|&frame| self.nearest_score(arm, frame)).collect();
        let unit = unit(&scores).unwrap_or_else(|| vec![0.; scores.len()]);
        let keys: Vec<f64> = unit
            .iter()
            .map(|x| x / self.settings.temperature - (-self.rng.sample::<f64, _>(Open01).ln()).ln())
            .collect();
        let gap = self.gap(k);
        let near = |frame: usize, chosen: &BTreeSet<usize>| {
            let before = chosen.range(..frame).next_back().map(|other| frame - other);
            let after = chosen.range(frame..).next().map(|other| other - frame);
            before.into_iter().chain(after).any(|distance| (distance as f64) < gap)
        };
        let order = falling(&keys);
        let (mut left, mut close) = (count, vec![]);
        for frame in order.into_iter().map(|at| free[at]) {
            if left == 0 {
                break;
            }
            if near(frame, chosen) {
                close.push(frame);
            } else {
                chosen.insert(frame);
                left -= 1;
            }
        }
        chosen.extend(close.into_iter().take(left));
    }

    /// The score of the nearest scored frame of the arm, the earlier of two.
    fn nearest_score(&self, arm: usize, frame: usize) -> f32 {
        let arm = self.arms[arm].clone();
        let before = self.scores.range(arm.start..=frame).next_back();
        let after = self.scores.range(frame..arm.end).next();
        match (before, after) {
            (Some((a, score)), Some((b, _))) if frame - a <= b - frame => *score,
            (_, Some((_, score))) | (Some((_, score)), None) => *score,
            (None, None) => 0.,
        }
    }

    /// Frames that two chosen ones of an arm should at least be apart.
    fn gap(&self, k: usize) -> f64 {
        let average = self.frames as f64 / self.settings.fps / k as f64;
        let seconds = if average <= CROWDED { 0. } else { MOST_GAP.min(GAP_SHARE * average) };
        seconds * self.settings.fps
    }
}
