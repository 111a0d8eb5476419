//! Draws whose frames keep apart.

use candle_core::{Device, Tensor};
use msjoe::select::{
    Apart, Draw, Features, Scores, Strategy, draw, draw_apart, draw_apart_log_prob, draw_log_prob,
    greedy_map, log_prob_apart, select, take_apart,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::gradcheck::gradcheck;
use crate::select::ordered;
use crate::select_methods::seconds;

const LOGITS: [f64; 5] = [0.3, -1.2, 2.0, 0.0, 0.9];

/// The third frame resembles the first, the fifth is the fourth again.
fn features() -> Features {
    let rows: [[f32; 3]; 5] =
        [[1.0, 0.0, 0.0], [0.3, 1.0, -0.2], [0.9, 0.1, 0.1], [0.0, -0.5, 1.0], [0.0, -0.5, 1.0]];
    Features::new(rows.concat(), 3).unwrap()
}

fn logits() -> Vec<f32> {
    LOGITS.map(|z| z as f32).to_vec()
}

/// Squared distance of frame `i` from the span of `taken`: a ratio of two Gram determinants.
fn distance(features: &Features, taken: &[usize], i: usize) -> f64 {
    let gram = |frames: &[usize]| {
        let n = frames.len();
        let mut m: Vec<Vec<f64>> =
            frames.iter().map(|&a| frames.iter().map(|&b| features.cosine(a, b)).collect()).collect();
        let mut determinant = 1.0;
        for c in 0..n {
            determinant *= m[c][c];
            for r in c + 1..n {
                let factor = m[r][c] / m[c][c];
                let above = m[c].clone();
                m[r].iter_mut().zip(above).for_each(|(x, above)| *x -= factor * above);
            }
        }
        determinant
    };
    (gram(&[taken, &[i]].concat()) / gram(taken)).max(1e-6)
}

/// The definition, step by step; without frames that repeat others, where the ratio above is 0 / 0.
fn probability(features: &Features, strength: f64, picks: &[usize]) -> f64 {
    let key = |j: usize, i: usize| LOGITS[i].exp() * distance(features, &picks[..j], i).powf(strength);
    let step = |j: usize| {
        let left = (0..LOGITS.len()).filter(|i| !picks[..j].contains(i));
        key(j, picks[j]) / left.map(|i| key(j, i)).sum::<f64>()
    };
    (0..picks.len()).map(step).product()
}

#[test]
fn probabilities_of_all_draws_are_the_definition_and_sum_to_one() {
    let (features, z) = (features(), Tensor::new(&LOGITS, &Device::Cpu).unwrap());
    for strength in [0.0, 0.5, 1.0, 3.0] {
        let apart = Apart { features: &features, strength };
        for k in 0..=5 {
            let mut total = 0.0;
            for picks in ordered(5, k) {
                let exact = log_prob_apart(&z, apart, &picks).unwrap().to_scalar::<f64>().unwrap();
                let host = draw_apart_log_prob(&logits(), apart, &picks).unwrap();
                assert!((host - exact).abs() < 1e-6, "{picks:?}: {host} and {exact}");
                let repeated = picks.contains(&3) && picks.contains(&4);
                if picks.len() < 4 && !repeated {
                    let defined = probability(&features, strength, &picks).ln();
                    // Distances are computed in f32.
                    assert!((exact - defined).abs() < 1e-4, "{strength} {picks:?}: {exact} and {defined}");
                }
                total += exact.exp();
            }
            assert!((total - 1.0).abs() < 1e-12, "strength {strength}, k {k}: {total}");
        }
    }
}

#[test]
fn gradients_are_exact() {
    let (features, z) = (features(), Tensor::new(&LOGITS, &Device::Cpu).unwrap());
    let apart = Apart { features: &features, strength: 1.5 };
    for picks in [&[2][..], &[4, 1], &[1, 3, 0], &[3, 1, 0, 2, 4]] {
        let error = gradcheck(std::slice::from_ref(&z), |x| {
            log_prob_apart(&x[0], apart, picks).unwrap().unsqueeze(0)
        });
        assert!(error < 1e-9, "{picks:?}: {error:e}");
    }
}

#[test]
fn without_strength_it_is_the_plain_draw() {
    let (features, logits) = (features(), logits());
    let apart = Apart { features: &features, strength: 0.0 };
    for picks in ordered(5, 3) {
        let plain = draw_log_prob(&logits, &picks).unwrap();
        assert!((draw_apart_log_prob(&logits, apart, &picks).unwrap() - plain).abs() < 1e-12);
    }
}

// Seeded, so the outcome is fixed; 4 standard errors over 60 comparisons.
#[test]
fn draws_follow_their_probabilities() {
    const N: usize = 100_000;
    let (features, logits) = (features(), logits());
    let apart = Apart { features: &features, strength: 1.0 };
    let (mut kept, mut plain) = (std::collections::HashMap::new(), std::collections::HashMap::new());
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..N {
        *kept.entry(draw_apart(&logits, apart, 3, &mut rng).unwrap()).or_insert(0usize) += 1;
        *plain.entry(draw(&logits, 3, &mut rng).unwrap()).or_insert(0usize) += 1;
    }
    let worst = |counts: &std::collections::HashMap<Vec<usize>, usize>| {
        let error = |picks: &Vec<usize>| {
            let p = draw_apart_log_prob(&logits, apart, picks).unwrap().exp();
            let share = *counts.get(picks).unwrap_or(&0) as f64 / N as f64;
            (share - p).abs() / (p * (1.0 - p) / N as f64).sqrt().max(1.0 / N as f64)
        };
        ordered(5, 3).iter().map(error).fold(0.0, f64::max)
    };
    assert!(worst(&kept) < 4.0, "{} standard errors", worst(&kept));
    // The test must be able to fail: draws that do not keep apart are far off.
    assert!(worst(&plain) > 40.0, "{} standard errors", worst(&plain));
}

#[test]
fn taking_the_most_probable_makes_the_determinant_large() {
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..20 {
        let (t, width) = (40, 12);
        let features =
            Features::new((0..t * width).map(|_| rng.random::<f32>() - 0.3).collect(), width).unwrap();
        let logits: Vec<f32> = (0..t).map(|_| 3.0 * rng.random::<f32>()).collect();
        let quality: Vec<f64> = logits.iter().map(|&z| (f64::from(z) / 2.0).exp()).collect();
        let expected = greedy_map(&quality, 8, |a, b| features.cosine(a, b)).unwrap();
        let apart = Apart { features: &features, strength: 1.0 };
        assert_eq!(take_apart(&logits, apart, 8).unwrap(), expected);
    }
}

#[test]
fn frames_that_repeat_are_taken_last_and_still_taken() {
    let (features, logits) = (features(), logits());
    let apart = Apart { features: &features, strength: 1.0 };
    let order = take_apart(&logits, apart, 5).unwrap();
    assert_eq!((order[0], order[1]), (2, 4), "the largest weight, then the largest of what differs");
    let all_alike = Features::new(vec![1.0; 5 * 3], 3).unwrap();
    let alike = Apart { features: &all_alike, strength: 2.0 };
    assert_eq!(take_apart(&logits, alike, 5).unwrap(), [2, 4, 0, 3, 1], "by weight alone");
    let mut rng = StdRng::seed_from_u64(1);
    let mut drawn = draw_apart(&logits, alike, 5, &mut rng).unwrap();
    drawn.sort_unstable();
    assert_eq!(drawn, [0, 1, 2, 3, 4]);
    let excluded = [0.5, f32::NEG_INFINITY, 1.0, 0.0, f32::NEG_INFINITY];
    assert_eq!(take_apart(&excluded, alike, 3).unwrap(), [2, 0, 3]);
    assert!(take_apart(&excluded, alike, 4).unwrap_err().to_string().contains("only 3 of 5"));
    assert_eq!(draw_apart_log_prob(&excluded, alike, &[2, 1]).unwrap(), f64::NEG_INFINITY);
}

#[test]
fn the_strategy_reads_the_features() {
    let scores = Scores {
        frames: 5,
        logits: Some(logits()),
        apart: 1.0,
        features: Some(features()),
        ..Scores::default()
    };
    let taken = select(Strategy::Msjoe, &scores, 2, Draw::Spread).unwrap();
    assert_eq!((taken.frames, taken.draw_order, taken.log_prob), (vec![2, 4], vec![2, 4], None));
    let drawn = select(Strategy::Msjoe, &scores, 3, Draw::Gumbel { seed: 5 }).unwrap();
    let features = features();
    let apart = Apart { features: &features, strength: 1.0 };
    assert_eq!(drawn.log_prob, Some(draw_apart_log_prob(&logits(), apart, &drawn.draw_order).unwrap()));
    // The largest weights are what they are.
    assert_eq!(select(Strategy::Msjoe, &scores, 3, Draw::TopK).unwrap().frames, [0, 2, 4]);
    let blind = Scores { features: None, ..scores.clone() };
    let error = select(Strategy::Msjoe, &blind, 2, Draw::Spread).unwrap_err().to_string();
    assert!(error.contains("msjoe: needs features"), "{error}");
    for strength in [-1.0, 101.0, f64::NAN] {
        let scores = Scores { apart: strength, ..scores.clone() };
        let error = select(Strategy::Msjoe, &scores, 2, Draw::Spread).unwrap_err().to_string();
        assert!(error.contains("a strength from 0 to 100"), "{error}");
    }
}

// The bar of methods of this kind: 10,000 frames, 64 of them.
#[test]
fn ten_thousand_frames_take_less_than_a_second() {
    let (t, width) = (10_000, 768);
    let mut rng = StdRng::seed_from_u64(2);
    let features = Features::new((0..t * width).map(|_| rng.random::<f32>() - 0.4).collect(), width).unwrap();
    let logits: Vec<f32> = (0..t).map(|_| rng.random()).collect();
    let apart = Apart { features: &features, strength: 1.0 };
    let start = seconds();
    assert_eq!(take_apart(&logits, apart, 64).unwrap().len(), 64);
    let took = seconds() - start;
    println!("apart    {:8.2} ms", took * 1e3);
    assert!(took < if cfg!(debug_assertions) { 30.0 } else { 1.0 }, "{took} s");
}
