//! Selection strategies, draws and their probabilities.

use candle_core::{DType, Device, Tensor, Var};
use msjoe::select::{
    Draw, Features, Scores, Strategy, draw, draw_log_prob, log_prob, select, spread, top_k, uniform, weights,
};
use proptest::prelude::{Strategy as _, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::gradcheck::gradcheck;

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Every ordered draw of `k` from `n`.
pub fn ordered(n: usize, k: usize) -> Vec<Vec<usize>> {
    let longer = |picks: Vec<usize>| {
        let open: Vec<usize> = (0..n).filter(|i| !picks.contains(i)).collect();
        open.into_iter().map(move |i| [picks.as_slice(), &[i]].concat())
    };
    (0..k).fold(vec![Vec::new()], |draws, _| draws.into_iter().flat_map(longer).collect())
}

/// The definition, step by step.
fn probability(logits: &[f64], picks: &[usize]) -> f64 {
    let step = |j: usize| {
        let left = (0..logits.len()).filter(|i| !picks[..j].contains(i));
        logits[picks[j]].exp() / left.map(|i| logits[i].exp()).sum::<f64>()
    };
    (0..picks.len()).map(step).product()
}

const LOGITS: [f64; 5] = [0.3, -1.2, 2.0, 0.0, 0.9];

// ---- uniform and top-k ----

// python: [torch.linspace(0, t - 1, k).round().long().tolist() for t, k in ...], torch 2.7.1; the rule agreed with it on all
// 3,866 pairs with t in 1..400, 600, 1000, 3600, 5000 and k in 2, 3, 4, 5, 7, 8, 16, 32, 33, 64.
#[test]
fn uniform_is_the_rounded_linspace() {
    assert_eq!(uniform(10, 4), [0, 3, 6, 9]);
    assert_eq!(uniform(63, 8), [0, 9, 18, 27, 35, 44, 53, 62]);
    assert_eq!(uniform(6, 3), [0, 2, 5]); // 2.5 to even
    assert_eq!(uniform(8, 3), [0, 4, 7]); // 3.5 to even
    assert_eq!(
        uniform(5000, 16),
        [0, 333, 667, 1000, 1333, 1666, 2000, 2333, 2666, 2999, 3333, 3666, 3999, 4332, 4666, 4999]
    );
    assert_eq!(
        uniform(600, 32),
        [
            0, 19, 39, 58, 77, 97, 116, 135, 155, 174, 193, 213, 232, 251, 271, 290, 309, 328, 348, 367, 386,
            406, 425, 444, 464, 483, 502, 522, 541, 560, 580, 599
        ]
    );
    assert_eq!(
        (uniform(9, 1), uniform(3, 7), uniform(0, 4), uniform(4, 0)),
        (vec![4], vec![0, 1, 2], vec![], vec![])
    );
}

// Vectors A (all scores different) and B (ties at 29 - d and 29 + d, decided for the lower index) of the published baselines.
#[test]
fn top_k_golden_vectors() {
    let a: Vec<f32> = (0..40).map(|i| ((17 * i + 5) % 41) as f32 / 40.).collect();
    assert_eq!(top_k(&a, 8).unwrap(), [2, 9, 14, 21, 26, 31, 33, 38]);
    let b: Vec<f32> = (0..64).map(|i| 1. / (1. + ((i as f32 - 29.) / 3.).powi(2))).collect();
    assert_eq!(top_k(&b, 8).unwrap(), [25, 26, 27, 28, 29, 30, 31, 32]);
    assert_eq!(top_k(&[0., -0., 0.], 2).unwrap(), [0, 1]);
    assert_eq!(top_k(&[f32::NEG_INFINITY, f32::INFINITY], 1).unwrap(), [1]);
    let error = top_k(&[0., f32::NAN], 1).unwrap_err().to_string();
    assert_eq!(error, "top-k: score 1 of 2 is NaN");
}

proptest! {
    #[test]
    fn uniform_is_even(t in 1usize..6000, k in 1usize..200) {
        let frames = uniform(t, k);
        prop_assert_eq!(frames.len(), k.min(t));
        prop_assert!(frames.windows(2).all(|w| w[0] < w[1]) && frames.iter().all(|&i| i < t));
        let gaps: Vec<usize> = frames.windows(2).map(|w| w[1] - w[0]).collect();
        prop_assert!(gaps.iter().max().unwrap_or(&0) <= &(gaps.iter().min().unwrap_or(&0) + 1));
        // As far from the start as its mirror image is from the end, up to the rounding of ties.
        let mirrored = frames.iter().zip(frames.iter().rev()).map(|(a, b)| (a + b).abs_diff(t - 1));
        prop_assert!(mirrored.max().unwrap_or(0) <= 1);
    }

    #[test]
    fn top_k_takes_the_largest(scores in prop::collection::vec(-3i8..3, 0..80), k in 0usize..90) {
        let scores: Vec<f32> = scores.into_iter().map(|s| f32::from(s) / 2.).collect();
        let frames = top_k(&scores, k).unwrap();
        prop_assert_eq!(frames.len(), k.min(scores.len()));
        prop_assert!(frames.windows(2).all(|w| w[0] < w[1]));
        for i in (0..scores.len()).filter(|i| !frames.contains(i)) {
            // Everything taken is larger, or equal and earlier.
            prop_assert!(frames.iter().all(|&f| scores[f] > scores[i] || (scores[f] == scores[i] && f < i)));
        }
    }

    #[test]
    fn a_draw_repeats_nothing_and_takes_nothing_excluded(
        logits in prop::collection::vec(prop_oneof![4 => -1e4f32..1e4, 1 => any::<bool>().prop_map(|_| f32::NEG_INFINITY)], 1..60),
        k in 0usize..60, seed in any::<u64>(),
    ) {
        let possible = logits.iter().filter(|z| z.is_finite()).count();
        let result = draw(&logits, k, &mut rng(seed));
        if k > possible {
            prop_assert!(result.is_err());
        } else {
            let picks = result.unwrap();
            let unique: std::collections::BTreeSet<usize> = picks.iter().copied().collect();
            prop_assert_eq!((picks.len(), unique.len()), (k, k));
            prop_assert!(picks.iter().all(|&i| logits[i].is_finite()));
            prop_assert_eq!(&picks, &draw(&logits, k, &mut rng(seed)).unwrap());
            // A longer draw begins with the shorter one.
            if k > 0 {
                prop_assert_eq!(&picks[..k - 1], &draw(&logits, k - 1, &mut rng(seed)).unwrap()[..]);
            }
            let log_prob = draw_log_prob(&logits, &picks).unwrap();
            prop_assert!(log_prob <= 0. && log_prob.is_finite());
        }
    }

    #[test]
    fn weights_are_a_distribution(logits in prop::collection::vec(-500f32..500., 1..200)) {
        let weights = weights(&logits).unwrap();
        prop_assert!((weights.iter().sum::<f32>() - 1.).abs() < 1e-5);
        prop_assert!(weights.iter().all(|w| (0. ..=1.).contains(w)));
        let (a, b) = (top_k(&weights, 1).unwrap()[0], top_k(&logits, 1).unwrap()[0]);
        prop_assert_eq!(weights[a], weights[b]);
    }
}

// ---- probabilities of draws ----

#[test]
fn probabilities_of_all_draws_sum_to_one() {
    let logits = tensor(&LOGITS);
    for k in 0..=5 {
        let draws = ordered(5, k);
        assert_eq!(draws.len(), (6 - k..=5).product::<usize>());
        let exact = |picks: &Vec<usize>| log_prob(&logits, picks).unwrap().to_scalar::<f64>().unwrap().exp();
        let total: f64 = draws.iter().map(exact).sum();
        assert!((total - 1.).abs() < 1e-12, "{k}: {total}");
        for picks in &draws {
            assert!((exact(picks) - probability(&LOGITS, picks)).abs() < 1e-14, "{picks:?}");
            let host = draw_log_prob(&LOGITS.map(|z| z as f32), picks).unwrap();
            assert!((host - probability(&LOGITS, picks).ln()).abs() < 1e-6, "{picks:?}");
        }
    }
}

#[test]
fn log_prob_gradients() {
    for picks in [&[2][..], &[4, 1], &[1, 3, 0], &[3, 1, 0, 2, 4]] {
        let error = gradcheck(&[tensor(&LOGITS)], |x| log_prob(&x[0], picks).unwrap().unsqueeze(0));
        assert!(error < 1e-9, "{picks:?}: {error:e}");
    }
}

fn gradient(logits: &[f64], picks: &[usize]) -> Vec<f64> {
    let var = Var::from_tensor(&tensor(logits)).unwrap();
    let grads = log_prob(var.as_tensor(), picks).unwrap().backward().unwrap();
    grads.get(&var).unwrap().to_vec1().unwrap()
}

fn reward(picks: &[usize]) -> f64 {
    f64::from(u8::from(picks.contains(&3))) + 0.3 * picks[0] as f64
}

/// Central differences of the expected reward, from the definition.
fn exact_gradient(k: usize) -> Vec<f64> {
    let expected = |logits: &[f64; 5]| -> f64 {
        ordered(5, k).iter().map(|picks| probability(logits, picks) * reward(picks)).sum()
    };
    let slope = |i: usize| {
        let moved = |step: f64| {
            let mut logits = LOGITS;
            logits[i] += step;
            expected(&logits)
        };
        (moved(1e-5) - moved(-1e-5)) / 2e-5
    };
    (0..5).map(slope).collect()
}

#[test]
fn the_score_function_gives_the_gradient_of_the_expected_reward() {
    for k in 1..=4 {
        let mut score = [0f64; 5];
        for picks in ordered(5, k) {
            let weight = probability(&LOGITS, &picks) * reward(&picks);
            gradient(&LOGITS, &picks).iter().zip(&mut score).for_each(|(g, s)| *s += weight * g);
        }
        for (score, exact) in score.iter().zip(exact_gradient(k)) {
            assert!((score - exact).abs() < 1e-9, "k {k}: {score} and {exact}");
        }
    }
}

// Seeded, so the outcome is fixed; 4 standard errors over 60 + 5 comparisons.
#[test]
fn draws_follow_their_probabilities_and_reinforce_the_gradient() {
    const N: usize = 200_000;
    let logits = LOGITS.map(|z| z as f32);
    let draws = ordered(5, 3);
    let mut counts = std::collections::HashMap::new();
    let mut rng = rng(11);
    for _ in 0..N {
        *counts.entry(draw(&logits, 3, &mut rng).unwrap()).or_insert(0usize) += 1;
    }
    let (mut mean, mut square) = ([0f64; 5], [0f64; 5]); // of reward * gradient, one draw
    let mut estimate = [0f64; 5];
    for picks in &draws {
        let p = probability(&LOGITS, picks);
        let share = *counts.get(picks).unwrap_or(&0) as f64 / N as f64;
        let error = (share - p).abs() / (p * (1. - p) / N as f64).sqrt();
        assert!(error < 4., "{picks:?}: {error} standard errors");
        for (i, g) in gradient(&LOGITS, picks).into_iter().enumerate() {
            let sample = reward(picks) * g;
            mean[i] += p * sample;
            square[i] += p * sample * sample;
            estimate[i] += share * sample;
        }
    }
    for (i, exact) in exact_gradient(3).into_iter().enumerate() {
        let standard_error = ((square[i] - mean[i] * mean[i]) / N as f64).sqrt();
        let error = (estimate[i] - exact).abs() / standard_error;
        assert!(error < 4., "logit {i}: {error} standard errors");
    }
}

// The frequencies above must be able to fail: independent draws (the first frame's probabilities, multiplied) are far off.
#[test]
fn independent_probabilities_are_not_those_of_a_draw() {
    let first = weights(&LOGITS.map(|z| z as f32)).unwrap();
    let independent = |picks: &[usize]| picks.iter().map(|&i| f64::from(first[i])).product::<f64>();
    let total: f64 = ordered(5, 3).iter().map(|picks| independent(picks)).sum();
    assert!(total < 0.5, "{total}");
}

#[test]
fn peaked_and_long_logits_stay_exact() {
    // After the frame with all the mass is gone, the others compete among themselves.
    let peaked = [1e4f32, 0., 1., -3.];
    let after = draw_log_prob(&[0., 1., -3.], &[1, 0]).unwrap();
    assert!((draw_log_prob(&peaked, &[0, 2, 1]).unwrap() - after).abs() < 1e-9);
    let var = Var::new(&peaked, &Device::Cpu).unwrap();
    let value = log_prob(var.as_tensor(), &[0, 2, 1]).unwrap();
    assert!((f64::from(value.to_scalar::<f32>().unwrap()) - after).abs() < 1e-6);
    let grads: Vec<f32> = value.backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
    let others = gradient(&[0., 1., -3.], &[1, 0]);
    assert!(
        grads[0].abs() < 1e-6 && grads[1..].iter().zip(others).all(|(g, o)| (f64::from(*g) - o).abs() < 1e-6)
    );

    let mut rng = rng(3);
    let logits: Vec<f32> =
        (0..5000).map(|i| rng.random_range(-2.0..2.0) + if i % 500 == 7 { 12. } else { 0. }).collect();
    let picks = draw(&logits, 64, &mut rng).unwrap();
    let expected = draw_log_prob(&logits, &picks).unwrap();
    let var = Var::new(logits.as_slice(), &Device::Cpu).unwrap();
    let value = log_prob(var.as_tensor(), &picks).unwrap();
    let error = (f64::from(value.to_scalar::<f32>().unwrap()) - expected).abs() / expected.abs();
    assert!(error < 1e-6, "{error:e}");
    let wide: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
    let exact = gradient(&wide, &picks);
    let grads: Vec<f32> = value.backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
    let worst = grads.iter().zip(&exact).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0., f64::max);
    assert!(worst < 1e-5, "{worst:e}");
}

#[test]
fn excluded_frames_have_no_part() {
    let logits = [0.5f32, f32::NEG_INFINITY, 1., f32::NEG_INFINITY];
    assert_eq!(weights(&logits).unwrap()[1], 0.);
    // All possible frames drawn: what is left is excluded, and the last step is certain.
    let two = draw_log_prob(&[0.5, 1.], &[0]).unwrap();
    assert!((draw_log_prob(&logits, &[0, 2]).unwrap() - two).abs() < 1e-12);
    let var = Var::new(&logits, &Device::Cpu).unwrap();
    let value = log_prob(var.as_tensor(), &[0, 2]).unwrap();
    assert!((f64::from(value.to_scalar::<f32>().unwrap()) - two).abs() < 1e-6);
    let grads: Vec<f32> = value.backward().unwrap().get(&var).unwrap().to_vec1().unwrap();
    assert!(grads.iter().all(|g| g.is_finite()) && grads[1] == 0. && grads[3] == 0., "{grads:?}");
    assert_eq!(draw_log_prob(&logits, &[1]).unwrap(), f64::NEG_INFINITY);
    assert_eq!(draw_log_prob(&logits, &[1, 3]).unwrap(), f64::NEG_INFINITY);
}

#[test]
fn probabilities_refuse_impossible_picks() {
    let logits = tensor(&LOGITS);
    let error = |picks: &[usize]| log_prob(&logits, picks).unwrap_err().to_string();
    assert_eq!(error(&[1, 5]), "log_prob: pick 5 is outside the 5 frames");
    assert_eq!(error(&[1, 2, 1]), "log_prob: frame 1 is picked twice");
    let square = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        log_prob(&square, &[0]).unwrap_err().to_string(),
        "log_prob: expected logits (T,), got [2, 3]"
    );
    assert!(draw_log_prob(&[0.; 5], &[7]).is_err() && draw_log_prob(&[0.; 5], &[2, 2]).is_err());
    let half = log_prob(&logits.to_dtype(DType::BF16).unwrap(), &[0, 2]).unwrap();
    assert_eq!((half.dtype(), half.dims()), (DType::F32, &[][..]));
}

// ---- the interface ----

fn scores() -> Scores {
    Scores {
        frames: 6,
        similarity: Some(vec![vec![0.1, 0.3, 0.2, 0.1, 0.1, 0.15], vec![0.2, 0.1, 0.1, 0.1, 0.35, 0.1]]),
        logits: Some(vec![0., 1., 5., 2., -1., 4.]),
        features: Features::new((0..24).map(|i| (1.7 * i as f32).sin()).collect(), 4).ok(),
        ..Scores::default()
    }
}

const SAMPLED: Draw = Draw::Gumbel { seed: 4 };

#[test]
fn a_spread_has_each_frame_in_proportion() {
    // Equal weights: evenly spaced.
    assert_eq!(spread(&[0.5; 12], 4).unwrap(), [1, 4, 7, 10]);
    // Two equal peaks of three frames on a floor of nothing: two of each.
    let mut peaks = [-50.0; 40];
    peaks[5..8].fill(3.0);
    peaks[30..33].fill(3.0);
    assert_eq!(spread(&peaks, 4).unwrap(), [5, 7, 30, 32]);
    // One frame above all: sure, however far above; the other three share what is left.
    let mut one = [0.0; 12];
    one[4] = 900.0;
    assert_eq!(spread(&one, 4).unwrap(), [1, 4, 6, 10]);
    // Excluded frames stay out, and all others are taken when there is no choice.
    let some = [f32::NEG_INFINITY, 0.0, -800.0, f32::NEG_INFINITY, 700.0];
    assert_eq!(spread(&some, 3).unwrap(), [1, 2, 4]);
    assert!(spread(&some, 4).unwrap_err().to_string().contains("only 3 of 5"));
    assert!(spread(&[0.0, f32::NAN], 1).is_err());
    let chosen = select(Strategy::Msjoe, &scores(), 3, Draw::Spread).unwrap();
    assert_eq!((chosen.frames, chosen.log_prob), (spread(&scores().logits.unwrap(), 3).unwrap(), None));
}

proptest! {
    /// With inclusion probabilities summed from the left, the frames taken up to any point are never a whole one off.
    #[test]
    fn a_spread_is_never_a_frame_off(logits in prop::collection::vec(-6f32..6., 1..300), part in 0f64..1.) {
        let k = 1 + (part * (logits.len() - 1) as f64) as usize;
        let frames = spread(&logits, k).unwrap();
        prop_assert_eq!(frames.len(), k);
        prop_assert!(frames.is_sorted_by(|a, b| a < b) && frames[k - 1] < logits.len());
        // Water-filling by bisection: the scale at which the shares, none above one, sum to k.
        let shares = |scale: f64| logits.iter().map(move |&l| (scale + f64::from(l)).exp().min(1.0));
        let (mut low, mut high) = (-40.0, 40.0);
        for _ in 0..200 {
            let middle = (low + high) / 2.0;
            if shares(middle).sum::<f64>() < k as f64 { low = middle } else { high = middle }
        }
        let mut expected = 0.0;
        for (at, share) in shares(high).enumerate() {
            expected += share;
            let taken = frames.iter().filter(|&&frame| frame <= at).count() as f64;
            prop_assert!((taken - expected).abs() < 1.0 + 1e-6, "frame {}: {} of {}", at, taken, expected);
        }
    }
}

#[test]
fn one_interface_for_all_strategies() {
    let uniform = select(Strategy::Uniform, &Scores { frames: 6, ..Scores::default() }, 3, SAMPLED).unwrap();
    assert_eq!((uniform.frames, uniform.log_prob), (vec![0, 2, 5], None));
    assert!(uniform.weights.iter().all(|w| (w - 1. / 6.).abs() < 1e-7));

    let top = select(Strategy::TopK, &scores(), 3, SAMPLED).unwrap();
    assert_eq!((top.frames, top.draw_order, top.log_prob), (vec![0, 1, 4], vec![4, 1, 0], None));
    assert!((top.weights.iter().sum::<f32>() - 1.).abs() < 1e-6);
    assert!((top.weights[4] / top.weights[1] - 5f32.exp()).abs() < 0.1);

    let best = select(Strategy::Msjoe, &scores(), 3, Draw::TopK).unwrap();
    assert_eq!((best.frames, best.draw_order, best.log_prob), (vec![2, 3, 5], vec![2, 5, 3], None));

    let drawn = select(Strategy::Msjoe, &scores(), 3, SAMPLED).unwrap();
    assert_eq!(drawn, select(Strategy::Msjoe, &scores(), 3, SAMPLED).unwrap());
    let mut sorted = drawn.draw_order.clone();
    sorted.sort();
    assert_eq!(sorted, drawn.frames);
    let logits = scores().logits.unwrap();
    assert_eq!(drawn.log_prob, Some(draw_log_prob(&logits, &drawn.draw_order).unwrap()));
    assert_eq!(drawn.weights, weights(&logits).unwrap());
    let other = |seed| select(Strategy::Msjoe, &scores(), 3, Draw::Gumbel { seed }).unwrap().draw_order;
    assert!((0..20).any(|seed| other(seed) != drawn.draw_order));
}

#[test]
fn tspo_takes_the_largest_where_msjoe_spreads() {
    let tspo = |how| select(Strategy::Tspo, &scores(), 3, how).unwrap();
    let msjoe = |how| select(Strategy::Msjoe, &scores(), 3, how).unwrap();
    assert_eq!(tspo(Draw::Spread), msjoe(Draw::TopK));
    let largest = |how| {
        let scores = Scores { logits: Some(vec![0., 0.3, 0.4, 0.1, 0.2, 0.5]), ..scores() };
        select(how, &scores, 3, Draw::Spread).unwrap().frames
    };
    assert_eq!(largest(Strategy::Tspo), [1, 2, 5]);
    assert_ne!(largest(Strategy::Msjoe), [1, 2, 5]);
    assert_eq!(tspo(SAMPLED), msjoe(SAMPLED));
}

#[test]
fn strategies_have_names() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.to_string().parse::<Strategy>().unwrap(), strategy);
    }
    assert_eq!("top-k".parse::<Strategy>().unwrap(), Strategy::TopK);
    let error = "topk".parse::<Strategy>().unwrap_err().to_string();
    let names =
        "msjoe, tspo, top-k, uniform, bolt, aks, q-frame, bin-max, mdp3, dpp, maxinfo, focus, qca, f2c";
    assert_eq!(error, format!("expected a strategy ({names}), got \"topk\""));
}

#[test]
fn every_strategy_refuses_an_impossible_number_of_frames() {
    for strategy in Strategy::ALL {
        let error = |scores: &Scores, k| select(strategy, scores, k, Draw::TopK).unwrap_err().to_string();
        for k in [0, 7] {
            let expected = "the number of key frames must be from 1 to the 6 candidate frames, got";
            assert_eq!(error(&scores(), k), format!("{strategy}: {expected} {k}"));
        }
        let expected = format!("{strategy}: there are no candidate frames to select from");
        assert_eq!(error(&Scores::default(), 1), expected);
        assert_eq!(select(strategy, &scores(), 6, Draw::TopK).unwrap().frames, [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn strategies_refuse_scores_they_cannot_use() {
    let error = |strategy, change: fn(&mut Scores)| {
        let mut scores = scores();
        change(&mut scores);
        let sampled = select(strategy, &scores, 4, SAMPLED).unwrap_err().to_string();
        assert_eq!(sampled, select(strategy, &scores, 4, Draw::TopK).unwrap_err().to_string());
        sampled
    };
    let (top, msjoe) = (Strategy::TopK, Strategy::Msjoe);
    assert_eq!(error(msjoe, |s| s.logits = None), "msjoe: needs the sampler's logits, got none");
    assert_eq!(error(Strategy::Tspo, |s| s.logits = None), "tspo: needs the sampler's logits, got none");
    assert_eq!(
        error(msjoe, |s| s.logits = Some(vec![0.; 5])),
        "msjoe: logits: expected one per candidate frame (6), got 5"
    );
    assert_eq!(
        error(msjoe, |s| s.logits.as_mut().unwrap()[2] = f32::NAN),
        "draw: logit 2 of 6 is NaN, expected a number or -inf"
    );
    assert_eq!(
        error(msjoe, |s| s.logits.as_mut().unwrap()[2] = f32::INFINITY),
        "draw: logit 2 of 6 is inf, expected a number or -inf"
    );
    assert_eq!(
        error(msjoe, |s| s.logits.as_mut().unwrap()[..3].fill(f32::NEG_INFINITY)),
        "draw: 4 frames asked for, but only 3 of 6 logits are finite"
    );
    assert_eq!(
        error(top, |s| s.similarity = None),
        "top-k: needs similarities to at least one query, got none"
    );
    assert_eq!(
        error(top, |s| s.similarity = Some(vec![])),
        "top-k: needs similarities to at least one query, got none"
    );
    assert_eq!(
        error(top, |s| s.similarity.as_mut().unwrap()[1].truncate(5)),
        "top-k: similarities of query 1: expected one per candidate frame (6), got 5"
    );
    assert_eq!(
        error(top, |s| s.similarity.as_mut().unwrap()[1][3] = f32::NAN),
        "top-k: similarity of query 1 and frame 3 is NaN"
    );
}
