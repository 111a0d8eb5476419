//! Means with intervals over questions and repeated runs, by bootstrap (Efron 1979; percentile intervals).

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::error::{Error, Result};

/// Resamples behind an interval.
const RESAMPLES: usize = 2000;

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Over all runs and questions.
    pub mean: f64,
    /// 2.5 % of the resamples are below.
    pub low: f64,
    /// 2.5 % of the resamples are above.
    pub high: f64,
}

impl Estimate {
    /// `62.5 [58.1, 66.9]`: the mean and the interval of a share, in percent.
    pub fn percent(&self) -> String {
        let Self { mean, low, high } = self;
        format!("{:.1} [{:.1}, {:.1}]", 100. * mean, 100. * low, 100. * high)
    }
}

/// Share of right answers, `runs[run][question]`. Questions and runs are both drawn anew in each resample, so the interval
/// covers other questions and other seeds.
///
/// # Errors
/// No runs, no questions, or runs of unequal length.
pub fn accuracy(runs: &[Vec<bool>], seed: u64) -> Result<Estimate> {
    let questions = check(runs)?;
    let mean = |q: &[usize], r: &[usize]| share(runs, q, r);
    let mut rng = StdRng::seed_from_u64(seed);
    Ok(estimate(mean(&all(questions), &all(runs.len())), || {
        let (q, r) = (resample(questions, &mut rng), resample(runs.len(), &mut rng));
        mean(&q, &r)
    }))
}

/// How much larger the share of right answers is in `a` than in `b`, of the same questions in the same order: each resample
/// compares the two on the same questions.
///
/// # Errors
/// As [`accuracy`]; other numbers of questions in `a` and `b`.
pub fn difference(a: &[Vec<bool>], b: &[Vec<bool>], seed: u64) -> Result<Estimate> {
    let (questions, other) = (check(a)?, check(b)?);
    if questions != other {
        return Err(Error::Input(format!(
            "statistics: {questions} questions cannot be compared with {other} others"
        )));
    }
    let every = all(questions);
    let mean = share(a, &every, &all(a.len())) - share(b, &every, &all(b.len()));
    let mut rng = StdRng::seed_from_u64(seed);
    Ok(estimate(mean, || {
        let q = resample(questions, &mut rng);
        let (ra, rb) = (resample(a.len(), &mut rng), resample(b.len(), &mut rng));
        share(a, &q, &ra) - share(b, &q, &rb)
    }))
}

/// What two methods are right about that the other is not, and how surprising that would be of equals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// Questions that only the first answers rightly.
    pub only_first: usize,
    /// Questions that only the second answers rightly.
    pub only_second: usize,
    /// Two-sided p-value of the exact test: twice the smaller tail of the binomial distribution with probability 1/2, at
    /// most 1.
    pub p: f64,
}

/// McNemar's exact test (1947) of two methods on the same questions in the same order.
///
/// # Errors
/// No questions, other numbers of questions in `a` and `b`.
pub fn mcnemar(a: &[bool], b: &[bool]) -> Result<McNemar> {
    if a.is_empty() || a.len() != b.len() {
        let (a, b) = (a.len(), b.len());
        return Err(Error::Input(format!("statistics: {a} questions cannot be compared with {b} others")));
    }
    let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| **a && !**b).count();
    let (only_first, only_second) = (only(a, b), only(b, a));
    let (n, fewer) = (only_first + only_second, only_first.min(only_second));
    // ln of n over i, times 1/2 to the n.
    let (mut term, mut tail) = (-(n as f64) * std::f64::consts::LN_2, 0.);
    for i in 0..=fewer {
        tail += term.exp();
        term += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    Ok(McNemar { only_first, only_second, p: (2. * tail).min(1.) })
}

fn check(runs: &[Vec<bool>]) -> Result<usize> {
    let questions = runs.first().map_or(0, Vec::len);
    if questions == 0 || runs.iter().any(|run| run.len() != questions) {
        let lengths: Vec<usize> = runs.iter().map(Vec::len).collect();
        return Err(Error::Input(format!(
            "statistics: expected runs over the same questions, got runs of {lengths:?} questions"
        )));
    }
    Ok(questions)
}

fn all(count: usize) -> Vec<usize> {
    (0..count).collect()
}

fn resample(count: usize, rng: &mut StdRng) -> Vec<usize> {
    (0..count).map(|_| rng.random_range(0..count)).collect()
}

fn share(runs: &[Vec<bool>], questions: &[usize], picked: &[usize]) -> f64 {
    let right: usize = picked.iter().map(|&r| questions.iter().filter(|&&q| runs[r][q]).count()).sum();
    right as f64 / (questions.len() * picked.len()) as f64
}

fn estimate(mean: f64, mut draw: impl FnMut() -> f64) -> Estimate {
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(|_| draw()).collect();
    drawn.sort_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    Estimate { mean, low: drawn[tail], high: drawn[RESAMPLES - 1 - tail] }
}
