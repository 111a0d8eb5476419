//! The sampler's loss against enumeration, and two small learners with their controls.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use msjoe::ops::log_prob::log_probs;
use msjoe::optim::{AdamW, AdamWConfig, Parameters};
use msjoe::rl::advantage::{Baseline, Scale, baselined, group_relative};
use msjoe::rl::grpo::{Completions, GrpoConfig, Totals, grpo_loss};
use msjoe::rl::reinforce::{Drawn, Probability, ReinforceConfig, entropy, reinforce_loss};
use msjoe::select::{draw, draw_log_prob, independent_log_prob, log_prob, weights};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::gradcheck::gradcheck;
use crate::optim::message;

const LOGITS: [f64; 4] = [0.3, -1.2, 1.6, 0.9];

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Every ordered draw of `k` from `n`.
fn ordered(n: usize, k: usize) -> Vec<Vec<usize>> {
    let longer = |picks: Vec<usize>| {
        let open: Vec<usize> = (0..n).filter(|i| !picks.contains(i)).collect();
        open.into_iter().map(move |i| [picks.as_slice(), &[i]].concat())
    };
    (0..k).fold(vec![Vec::new()], |draws, _| draws.into_iter().flat_map(longer).collect())
}

fn probability(logits: &[f64], picks: &[usize]) -> f64 {
    let step = |j: usize| {
        let left = (0..logits.len()).filter(|i| !picks[..j].contains(i));
        logits[picks[j]].exp() / left.map(|i| logits[i].exp()).sum::<f64>()
    };
    (0..picks.len()).map(step).product()
}

/// A reward that depends on which frames, and on their order.
fn reward(picks: &[usize]) -> f64 {
    f64::from(u8::from(picks.contains(&2))) + 0.3 * picks[0] as f64 - 0.4 * f64::from(u8::from(picks[1] == 1))
}

/// The gradient of the expected reward, by central differences of its definition.
fn true_gradient(logits: &[f64], k: usize) -> Vec<f64> {
    let expected = |logits: &[f64]| -> f64 {
        ordered(logits.len(), k).iter().map(|picks| probability(logits, picks) * reward(picks)).sum()
    };
    (0..logits.len())
        .map(|i| {
            let moved = |by: f64| {
                let mut logits = logits.to_vec();
                logits[i] += by;
                expected(&logits)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        })
        .collect()
}

/// Minus the gradient of the loss of weighted draws.
fn ascent(draws: &[(Vec<usize>, f64)], form: Probability) -> Vec<f64> {
    let logits = Var::from_tensor(&tensor(&LOGITS)).unwrap();
    let drawn: Vec<Drawn> = draws
        .iter()
        .map(|(picks, advantage)| Drawn { logits: &logits, picks, advantage: *advantage, apart: None })
        .collect();
    let config = ReinforceConfig { probability: form, entropy_bonus: 0. };
    let total = draws.len();
    let loss = reinforce_loss(&drawn, total, &config).unwrap().loss;
    let gradient: Vec<f64> = loss.backward().unwrap().get(&logits).unwrap().to_vec1().unwrap();
    gradient.iter().map(|g| -g * total as f64).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f64::max)
}

#[test]
fn plackett_luce_is_the_gradient_of_the_expected_reward() {
    let truth = true_gradient(&LOGITS, 2);
    let draws: Vec<(Vec<usize>, f64)> = (ordered(4, 2).into_iter())
        .map(|picks| (picks.clone(), probability(&LOGITS, &picks) * reward(&picks)))
        .collect();
    let exact = ascent(&draws, Probability::PlackettLuce);
    assert!(distance(&exact, &truth) < 1e-9, "{exact:?} {truth:?}");
    // The printed form points elsewhere.
    let printed = ascent(&draws, Probability::Independent);
    assert!(distance(&printed, &truth) > 0.02, "{printed:?} {truth:?}");
}

/// Expectation over every pair of draws, each pair with its advantages.
#[test]
fn leave_one_out_is_unbiased_and_the_group_mean_shrinks() {
    let truth = true_gradient(&LOGITS, 2);
    let all = ordered(4, 2);
    let expectation = |baseline: Baseline| {
        let mut draws = vec![];
        for a in &all {
            for b in &all {
                let rewards = [Some(reward(a) as f32), Some(reward(b) as f32)];
                let chance = probability(&LOGITS, a) * probability(&LOGITS, b) / 2.;
                let advantages = baselined(&rewards, 2, baseline);
                draws.push((a.clone(), chance * f64::from(advantages[0])));
                draws.push((b.clone(), chance * f64::from(advantages[1])));
            }
        }
        ascent(&draws, Probability::PlackettLuce)
    };
    for baseline in [Baseline::None, Baseline::LeaveOneOut] {
        let ours = expectation(baseline);
        assert!(distance(&ours, &truth) < 1e-7, "{baseline:?}: {ours:?} {truth:?}");
    }
    // The mean holds the draw's own reward: the gradient is (G - 1) / G of the true one.
    let halved: Vec<f64> = truth.iter().map(|g| g / 2.).collect();
    assert!(distance(&expectation(Baseline::GroupMean), &halved) < 1e-7);
}

#[test]
fn the_independent_form_is_its_definition() {
    let picks = [3, 0, 2];
    let normaliser = LOGITS.iter().map(|z| z.exp()).sum::<f64>().ln();
    let expected: f64 = picks.iter().map(|&pick| LOGITS[pick] - normaliser).sum();
    let ours = independent_log_prob(&tensor(&LOGITS), &picks).unwrap().to_scalar::<f64>().unwrap();
    assert!((ours - expected).abs() < 1e-14);
    let error = gradcheck(&[tensor(&LOGITS)], |x| Ok(independent_log_prob(&x[0], &picks).unwrap()));
    assert!(error < 1e-9);
    // With one pick both forms are the same; f32 logits, one of them excluded.
    let logits = Tensor::new(&[0.5f32, f32::NEG_INFINITY, 2.], &Device::Cpu).unwrap();
    let value = |t: msjoe::Result<Tensor>| t.unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(value(independent_log_prob(&logits, &[2])), value(log_prob(&logits, &[2])));
    assert_eq!(value(independent_log_prob(&logits, &[])), 0.);
    let error = independent_log_prob(&logits, &[3]).unwrap_err().to_string();
    assert_eq!(error, "log_prob: pick 3 is outside the 3 frames");
}

#[test]
fn losses_and_metrics_of_micro_batches_add_up() {
    let vars = [tensor(&LOGITS), tensor(&[0., 1., -1., 2., 0.5])].map(|z| Var::from_tensor(&z).unwrap());
    let picks = [vec![0, 2], vec![1, 3], vec![4, 0, 1]];
    let drawn =
        |i: usize, advantage: f64| Drawn { logits: &vars[i / 2], picks: &picks[i], advantage, apart: None };
    let draws = [drawn(0, 0.5), drawn(1, -2.), drawn(2, 1.)];
    let config = ReinforceConfig { entropy_bonus: 0.1, ..Default::default() };
    let gradient = |loss: &Tensor| -> Vec<f64> {
        let grads = loss.backward().unwrap();
        vars.iter()
            .flat_map(|v| grads.get(v).map_or(vec![0.; v.elem_count()], |g| g.to_vec1().unwrap()))
            .collect()
    };
    let whole = reinforce_loss(&draws, 3, &config).unwrap();
    let mut parts =
        [reinforce_loss(&draws[..1], 3, &config).unwrap(), reinforce_loss(&draws[1..], 3, &config).unwrap()];
    let sum: Vec<f64> =
        gradient(&parts[0].loss).iter().zip(gradient(&parts[1].loss)).map(|(a, b)| a + b).collect();
    assert!(distance(&gradient(&whole.loss), &sum) < 1e-15);
    let value = |loss: &Tensor| loss.to_scalar::<f64>().unwrap();
    assert!((value(&whole.loss) - value(&parts[0].loss) - value(&parts[1].loss)).abs() < 1e-15);
    let second = parts[1].metrics.clone();
    parts[0].metrics.merge(&second);
    for (name, expected) in whole.metrics.values() {
        assert!((parts[0].metrics.get(name).unwrap() - expected).abs() < 1e-15, "{name}");
    }
    // By hand.
    let chance = |i: usize, z: &[f64]| probability(z, &picks[i]).ln();
    let policy =
        -(0.5 * chance(0, &LOGITS) - 2. * chance(1, &LOGITS) + chance(2, &[0., 1., -1., 2., 0.5])) / 3.;
    assert!((whole.metrics.get("sampler/policy_loss").unwrap() - policy).abs() < 1e-14);
    let spread = |z: &[f64]| {
        let total: f64 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| -(z.exp() / total) * (z - total.ln())).sum::<f64>()
    };
    let mean = (2. * spread(&LOGITS) + spread(&[0., 1., -1., 2., 0.5])) / 3.;
    assert!((whole.metrics.get("sampler/entropy").unwrap() - mean).abs() < 1e-14);
    assert!((value(&whole.loss) - (policy - 0.1 * mean)).abs() < 1e-14);
}

#[test]
fn entropies_pass_finite_differences() {
    assert!(gradcheck(&[tensor(&LOGITS)], |x| Ok(entropy(&x[0]).unwrap())) < 1e-9);
    let value =
        |z: &[f32]| entropy(&Tensor::new(z, &Device::Cpu).unwrap()).unwrap().to_scalar::<f32>().unwrap();
    assert!((value(&[3.; 8]) - 8f32.ln()).abs() < 1e-6);
    assert_eq!(value(&[200., 0.]), 0.);
    assert!((value(&[1., f32::NEG_INFINITY, 1.]) - 2f32.ln()).abs() < 1e-6);
}

#[test]
fn draws_are_checked() {
    let logits = tensor(&LOGITS);
    let error = |picks: &[usize], advantage: f64, total: usize| {
        let drawn = [Drawn { logits: &logits, picks, advantage, apart: None }];
        message(reinforce_loss(&drawn, total, &ReinforceConfig::default()).unwrap_err())
    };
    assert_eq!(error(&[4], 1., 1), "log_prob: pick 4 is outside the 4 frames");
    assert_eq!(error(&[1, 1], 1., 1), "log_prob: frame 1 is picked twice");
    assert_eq!(error(&[1], f64::NAN, 1), "reinforce: the advantage of draw 0 is NaN");
    assert_eq!(error(&[1], 1., 0), "reinforce: the step must have at least the 1 draws of this batch, got 0");
    let none = message(reinforce_loss(&[], 1, &ReinforceConfig::default()).unwrap_err());
    assert_eq!(none, "reinforce: expected draws, got none");
}

// ---- learners ----

/// Whether the rewards are those of the draws, or dealt out anew.
#[derive(Clone, Copy, PartialEq)]
enum Rewards {
    Own,
    Shuffled,
}

fn step(optimizer: &mut AdamW, parameters: &Parameters, loss: &Tensor, lr: f64) {
    let gradients = parameters.gradients(&loss.backward().unwrap()).unwrap();
    optimizer.step(parameters, &gradients, lr).unwrap();
}

fn parameters<const N: usize>(tensors: [(&str, Tensor); N]) -> Parameters {
    Parameters::new(tensors.into_iter().map(|(name, t)| (name.to_owned(), t)).collect::<BTreeMap<_, _>>())
        .unwrap()
}

/// Probability that the needle is among the three frames drawn, estimated from many draws.
fn found(logits: &[f32], needle: usize) -> f64 {
    let mut rng = StdRng::seed_from_u64(77);
    let hits = (0..500).filter(|_| draw(logits, 3, &mut rng).unwrap().contains(&needle)).count();
    hits as f64 / 500.
}

/// One needle in 40 frames, three draws: chance is 3 / 40.
fn bandit(seed: u64, rewards: Rewards) -> (f64, f64) {
    const FRAMES: usize = 40;
    const GROUP: usize = 16;
    let mut rng = StdRng::seed_from_u64(seed);
    let needle = rng.random_range(0..FRAMES);
    let policy =
        parameters([("logits", Tensor::zeros(FRAMES, candle_core::DType::F32, &Device::Cpu).unwrap())]);
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let logits = policy.get("logits").unwrap();
    let host = || logits.to_vec1::<f32>().unwrap();
    let before = found(&host(), needle);
    for _ in 0..80 {
        let picks: Vec<Vec<usize>> = (0..GROUP).map(|_| draw(&host(), 3, &mut rng).unwrap()).collect();
        let mut scores: Vec<Option<f32>> =
            picks.iter().map(|picks| Some(f32::from(u8::from(picks.contains(&needle))))).collect();
        if rewards == Rewards::Shuffled {
            scores.shuffle(&mut rng);
        }
        let advantages = baselined(&scores, GROUP, Baseline::LeaveOneOut);
        let draws: Vec<Drawn> = (picks.iter().zip(advantages))
            .map(|(picks, advantage)| Drawn { logits, picks, advantage: f64::from(advantage), apart: None })
            .collect();
        let loss = reinforce_loss(&draws, GROUP, &ReinforceConfig::default()).unwrap().loss;
        step(&mut optimizer, &policy, &loss, 0.15);
    }
    (before, found(&host(), needle))
}

#[test]
fn the_sampler_finds_the_needle() {
    for seed in [1, 2, 3] {
        let (before, after) = bandit(seed, Rewards::Own);
        assert!(before < 0.15 && after > 0.9, "seed {seed}: {before} -> {after}");
    }
    // One control wanders; together they stay where they were.
    let after: Vec<f64> = (1..=24).map(|seed| bandit(seed, Rewards::Shuffled).1).collect();
    let mean = after.iter().sum::<f64>() / 24.0;
    assert!(mean < 0.15, "shuffled rewards: {mean}, chance 0.075: {after:?}");
}

const WORDS: usize = 48;
const LENGTH: usize = 5;
const WIDTH: usize = 16;
const WANTED: u32 = 17;

/// A completion drawn from softmax(states head^T), one row of states per token, with its log-probabilities.
fn speak(states: &Tensor, head: &Tensor, rng: &mut StdRng) -> Result<(Vec<u32>, Vec<f32>)> {
    let logits: Vec<Vec<f32>> = states.matmul(&head.t()?)?.to_vec2()?;
    let say = |logits: &Vec<f32>| {
        let mut left = rng.random::<f32>();
        let p = weights(logits).unwrap();
        let word = p
            .iter()
            .position(|p| {
                left -= p;
                left < 0.
            })
            .unwrap_or(WORDS - 1);
        (word as u32, draw_log_prob(logits, &[word]).unwrap() as f32)
    };
    Ok(logits.iter().map(say).unzip())
}

/// Mean probability of the wanted word over both prompts: what a completion's reward is in expectation.
fn says(policy: &Parameters) -> f64 {
    let of = |name: &str| policy.get(name).unwrap().as_tensor().detach();
    let targets = vec![WANTED; of("states").dim(0).unwrap()];
    let ours = log_probs(&of("states"), &of("head"), &targets, 1.).unwrap().log_probs;
    f64::from(ours.exp().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap())
}

/// Two prompts, eight completions each, two updates per rollout; the reward is the share of wanted words.
fn talk(seed: u64, rewards: Rewards) -> (f64, f64) {
    const GROUP: usize = 8;
    let noise = |shape: &[usize], seed| (crate::nn::normal(shape, seed) * 0.3).unwrap();
    let policy =
        parameters([("states", noise(&[2, WIDTH], seed)), ("head", noise(&[WORDS, WIDTH], seed + 9))]);
    let (states, head) = (policy.get("states").unwrap().as_tensor(), policy.get("head").unwrap().as_tensor());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let config = GrpoConfig::default();
    let before = says(&policy);
    for _ in 0..50 {
        let (mut words, mut old, mut scores, mut rows) = (vec![], vec![], vec![], vec![]);
        for i in 0..2 * GROUP {
            let prompt = i / GROUP;
            let own = states.detach().narrow(0, prompt, 1).unwrap().repeat((LENGTH, 1)).unwrap();
            let (said, log_probs) = speak(&own, &head.detach(), &mut rng).unwrap();
            scores.push(Some(said.iter().filter(|word| **word == WANTED).count() as f32 / LENGTH as f32));
            rows.extend([prompt as u32; LENGTH]);
            words.extend(said);
            old.extend(log_probs);
        }
        if rewards == Rewards::Shuffled {
            scores.shuffle(&mut rng);
        }
        let advantages: Vec<f64> =
            group_relative(&scores, GROUP, Scale::Group).into_iter().map(f64::from).collect();
        let (old, rows) = (Tensor::new(old, &Device::Cpu).unwrap(), Tensor::new(rows, &Device::Cpu).unwrap());
        for update in 0..2 {
            let hidden = states.index_select(&rows, 0).unwrap();
            let ours = log_probs(&hidden, head, &words, 1.).unwrap();
            let completions = Completions {
                rows: &[LENGTH; 2 * GROUP],
                mask: &[true; 2 * GROUP * LENGTH],
                truncated: &[],
                advantages: &advantages,
                old_log_probs: Some(&old),
                ref_log_probs: None,
                entropies: Some(&ours.entropies),
            };
            let totals = Totals::over(&[completions], &config).unwrap();
            let result = grpo_loss(&ours.log_probs, &completions, &totals, &config).unwrap();
            if update == 0 {
                // What sampling said of its own tokens is what training says of them.
                let ratio = result.metrics.get("ratio").unwrap();
                assert!((ratio - 1.).abs() < 1e-5, "{ratio}");
            }
            step(&mut optimizer, &policy, &result.loss, 0.02);
        }
    }
    (before, says(&policy))
}

#[test]
fn the_model_learns_to_say_a_word() {
    for seed in [1, 2, 3] {
        let (before, after) = talk(seed, Rewards::Own);
        assert!(before < 0.05 && after > 0.9, "seed {seed}: {before} -> {after}");
    }
    let after: Vec<f64> = (1..=12).map(|seed| talk(seed, Rewards::Shuffled).1).collect();
    let mean = after.iter().sum::<f64>() / 12.0;
    assert!(mean < 0.04, "shuffled rewards: {mean}, chance 0.021: {after:?}");
}
