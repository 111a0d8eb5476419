//! Rewards and what they are worth: TRL's advantages, baselines, difficulty, groups without a signal, peaks.

use msjoe::rl::advantage::{
    Baseline, Scale, Signal, baselined, difficulty_aware, group_relative, group_std, has_signal,
    normalize_then_sum, weighted_sum,
};
use msjoe::rl::reward::{Outcome, Peak, Reward, RewardConfig};
use proptest::prelude::{Strategy as _, any, prop, prop_assert, prop_assert_eq, proptest};
use serde_json::Value;

use crate::grpo::goldens;

fn some(values: &[f32]) -> Vec<Option<f32>> {
    values.iter().copied().map(Some).collect()
}

#[test]
fn advantages_are_trls() {
    for (file, golden) in goldens() {
        let optional = |value: &Value| value.as_f64().map(|x| x as f32);
        let list = |value: &Value| value.as_array().unwrap().iter().map(optional).collect::<Vec<_>>();
        let per_function: Vec<Vec<Option<f32>>> =
            golden["rewards_per_func"].as_array().unwrap().iter().map(list).collect();
        let weights: Vec<f32> = list(&golden["weights"]).into_iter().flatten().collect();
        let group = golden["G"].as_u64().unwrap() as usize;
        let rewards = weighted_sum(&per_function, &weights).unwrap();
        // TRL's are f32, whose last digit of a reward is divided by a deviation; the smallest one tells how far that goes.
        let columns = (0..weights.len()).map(|k| per_function.iter().map(|row| row[k]).collect());
        let deviations = columns.chain([rewards.clone()]).flat_map(|r: Vec<_>| group_std(&r, group));
        let tolerance = 1e-6 + 1e-7 / deviations.filter(|&s| s > 1e-6).fold(1., f64::min) as f32;
        for (mode, expected) in golden["advantages"].as_object().unwrap() {
            let scale = match mode.as_str() {
                "group" => Some(Scale::Group),
                "batch" => Some(Scale::Batch),
                "none" => Some(Scale::None),
                _ => None,
            };
            let ours = match scale {
                Some(scale) => group_relative(&rewards, group, scale),
                None => normalize_then_sum(&per_function, &weights, group).unwrap(),
            };
            assert_eq!(ours.len(), rewards.len());
            for (at, (ours, expected)) in ours.iter().zip(list(&expected["adv"])).enumerate() {
                let error = (ours - expected.unwrap()).abs();
                assert!(error < tolerance * ours.abs().max(1.), "{file}: {mode}, {at}: {ours} {expected:?}");
            }
            let Some(scale) = scale else { continue };
            for (ours, expected) in rewards.iter().zip(list(&expected["rewards"])) {
                assert_eq!(ours.is_some(), expected.is_some(), "{file}: {mode}");
                let error = (ours.unwrap_or(0.) - expected.unwrap_or(0.)).abs();
                assert!(error < 1e-6, "{file}: {mode}: {ours:?} {expected:?}");
            }
            // The deviation that TRL reports, one per completion.
            let of = if scale == Scale::Batch { rewards.len() } else { group };
            let deviations = group_std(&rewards, of);
            let zeros = expected["is_std_zero"].as_array().unwrap();
            for (at, (expected, zero)) in expected["std"].as_array().unwrap().iter().zip(zeros).enumerate() {
                // `null` of a single score: our deviation is 0 there.
                let error = (deviations[at / of] - expected.as_f64().unwrap_or(0.)).abs();
                assert!(error < 1e-6, "{file}: {mode}, std of {at} is off by {error}");
                let zero = zero.as_bool().unwrap() || expected.is_null();
                assert_eq!(deviations[at / of] < 1e-8, zero, "{file}: {mode}, {at}");
            }
        }
    }
}

#[test]
fn baselines() {
    let rewards = some(&[1.5, 0.5, 0., 1.]);
    let close = |ours: Vec<f32>, expected: &[f32]| {
        assert!(
            ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{ours:?}"
        );
    };
    // The advantages of TRL's RLOO trainer for these rewards.
    close(baselined(&rewards, 4, Baseline::LeaveOneOut), &[1., -1. / 3., -1., 1. / 3.]);
    close(baselined(&rewards, 4, Baseline::GroupMean), &[0.75, -0.25, -0.75, 0.25]);
    close(baselined(&rewards, 4, Baseline::None), &[1.5, 0.5, 0., 1.]);
    close(baselined(&rewards, 2, Baseline::LeaveOneOut), &[1., -1., -1., 1.]);
    // Without a score, or without another one in the group.
    let holes = [Some(1.), None, Some(3.), Some(5.), None];
    close(baselined(&holes, 3, Baseline::LeaveOneOut), &[-2., 0., 2., 0., 0.]);
    close(baselined(&holes, 3, Baseline::GroupMean), &[-1., 0., 1., 0., 0.]);
    close(baselined(&holes, 3, Baseline::None), &[1., 0., 3., 5., 0.]);
}

#[test]
fn the_base_expects_nothing_of_difficulty() {
    for c in [1e-3, 0.1, 0.5, 0.75, 0.999] {
        let expected =
            c * difficulty_aware(true, c).unwrap() + (1. - c) * difficulty_aware(false, c).unwrap();
        assert!(expected.abs() < 1e-12, "{c}: {expected}");
    }
    let advantage = |right, c| difficulty_aware(right, c).unwrap();
    assert_eq!((advantage(true, 0.25), advantage(false, 0.25)), (4., -1. / 0.75));
    // At the ends what cannot happen under the base has a bounded weight, and what always happens has weight 1.
    assert_eq!((advantage(true, 0.), advantage(false, 0.)), (10., -1.));
    assert_eq!((advantage(true, 1.), advantage(false, 1.)), (1., -10.));
    for c in [-0.1, 1.1, f64::NAN] {
        let error = difficulty_aware(true, c).unwrap_err().to_string();
        assert_eq!(error, format!("difficulty: a pass rate must be from 0 to 1, got {c}"));
    }
}

#[test]
fn groups_without_a_signal_are_counted() {
    let accuracies =
        [some(&[1., 1., 1.]), some(&[0., 0., 0.]), some(&[1., 0., 1.]), vec![None; 3], some(&[0., 0., 0.])];
    // The last group is wrong throughout, but its formats differ.
    let rewards =
        [some(&[0.9; 3]), some(&[0.1; 3]), some(&[1., 0.1, 0.9]), vec![None; 3], some(&[0.1, 0., 0.1])];
    let (rewards, accuracies) = (rewards.concat(), accuracies.concat());
    let mut signal = Signal::count(&rewards, &accuracies, 3).unwrap();
    assert_eq!(signal, Signal { groups: 5, zero_std: 3, all_right: 1, all_wrong: 2, unscorable: 1 });
    assert_eq!(signal.zero_std_share(), 0.6);
    signal.merge(signal);
    assert_eq!(signal, Signal { groups: 10, zero_std: 6, all_right: 2, all_wrong: 4, unscorable: 2 });
    assert_eq!(Signal::default().zero_std_share(), 0.);
    assert!(has_signal(&[None, Some(1.), Some(0.9)]) && !has_signal(&[None, Some(1.)]) && !has_signal(&[]));
    let error = Signal::count(&rewards, &accuracies[1..], 3).unwrap_err().to_string();
    assert_eq!(error, "signal: 15 rewards and 14 accuracies");
    let error = weighted_sum(&[some(&[1.]), some(&[1., 2.])], &[1.]).unwrap_err().to_string();
    assert_eq!(error, "rewards: completion 1 has 2 scores for 1 weights");
    assert!(normalize_then_sum(&[some(&[1.])], &[1., 2.], 1).is_err());
}

proptest! {
    #[test]
    fn advantages_of_a_group_sum_to_zero(
        rewards in prop::collection::vec(prop::option::weighted(0.8, (0u8..11).prop_map(|r| f32::from(r) / 10.)), 0..40),
        group in 1usize..9,
    ) {
        for scale in [Scale::Group, Scale::Batch, Scale::None] {
            let ours = group_relative(&rewards, group, scale);
            prop_assert_eq!(ours.len(), rewards.len());
            for (ours, rewards) in ours.chunks(group).zip(rewards.chunks(group)) {
                prop_assert!(ours.iter().sum::<f32>().abs() < 1e-3);
                let moves = ours.iter().any(|&a| a != 0.);
                prop_assert_eq!(moves, has_signal(rewards));
                prop_assert!(ours.iter().zip(rewards).all(|(a, r)| a.is_finite() && (r.is_some() || *a == 0.)));
            }
        }
    }

    #[test]
    fn a_reward_is_the_sum_of_its_parts(
        right in any::<bool>(), well_formed in any::<bool>(),
        similarity in prop::collection::vec(prop::collection::vec(-1f32..1., 0..30), 0..5),
        deviation in any::<bool>(),
    ) {
        let peak = if deviation { Peak::Deviation { threshold: 2. } } else { Peak::default() };
        let config = RewardConfig { peak, ..Default::default() };
        let reward = Reward::of(&Outcome { right, well_formed, similarity: &similarity }, &config).unwrap();
        let sum = 0.8 * reward.accuracy + 0.1 * reward.format + 0.1 * reward.info;
        prop_assert!((reward.total - sum).abs() < 1e-6);
        for (_, part) in reward.parts() {
            prop_assert!((0. ..=1.000001).contains(&part));
        }
    }
}

#[test]
fn rewards() {
    let flat = vec![0.2f32; 20];
    let mut peaked = vec![0.02f32; 20];
    peaked[7] = 0.21;
    let similarity = [flat.clone(), peaked.clone(), peaked.clone(), flat.clone()];
    let of = |right, well_formed, similarity: &[Vec<f32>]| {
        Reward::of(&Outcome { right, well_formed, similarity }, &RewardConfig::default()).unwrap()
    };
    let reward = of(true, false, &similarity);
    let expected =
        [("reward", 0.85), ("rewards/accuracy", 1.), ("rewards/format", 0.), ("rewards/info", 0.5)];
    assert_eq!(reward.parts(), expected);
    assert_eq!(of(true, true, &similarity[1..3]).total, 1.);
    assert_eq!(of(false, false, &[]).parts().map(|(_, part)| part), [0.; 4]);
    // Other weights.
    let config = RewardConfig { accuracy: 1., format: 0.5, info: 0., peak: Peak::default() };
    let reward =
        Reward::of(&Outcome { right: true, well_formed: true, similarity: &similarity }, &config).unwrap();
    assert_eq!((reward.total, reward.info), (1.5, 0.5));
}

#[test]
fn peaks() {
    let ratio = Peak::default();
    let height = |values: &[f32]| ratio.height(values).unwrap();
    assert!((height(&[0.02, 0.3, 0.1]) - 15.).abs() < 1e-5);
    // Raised to the floor: zero and negative cosines neither divide by zero nor change the sign.
    assert!((height(&[0.3, -0.5, 0.]) - 300.).abs() < 1e-3);
    assert_eq!(height(&[-0.5, -0.1]), 1.);
    assert_eq!(height(&[]), 0.);
    let deviation = Peak::Deviation { threshold: 3. };
    let height = |values: &[f32]| deviation.height(values).unwrap();
    // One of n equal values stands out by sqrt(n - 1) deviations, whatever its height.
    let mut spike = [0.2f32; 17];
    spike[3] = 0.9;
    assert!((height(&spike) - 4.).abs() < 1e-6);
    assert_eq!((height(&[0.25; 5]), height(&[])), (0., 0.));
    let error = ratio.height(&[0.1, f32::NAN]).unwrap_err().to_string();
    assert_eq!(error, "reward: the similarity of frame 1 is NaN");
}

#[test]
fn reward_settings_are_checked() {
    let error = |config: RewardConfig| config.check().unwrap_err().to_string();
    let fine = RewardConfig::default();
    let text = error(RewardConfig { format: -1., ..fine });
    assert_eq!(text, "reward: the weight of format must be a number of at least 0, got -1");
    let text = error(RewardConfig { peak: Peak::Ratio { threshold: 10., floor: 0. }, ..fine });
    assert_eq!(text, "reward: the floor of a ratio must be above 0, got 0");
    let text = error(RewardConfig { peak: Peak::Deviation { threshold: f64::NAN }, ..fine });
    assert_eq!(text, "reward: the threshold of a peak must be a number, got NaN");
    let text = toml::to_string(&fine).unwrap();
    assert_eq!(toml::from_str::<RewardConfig>(&text).unwrap(), fine);
    let other: RewardConfig =
        toml::from_str("info = 0.2\npeak = { deviation = { threshold = 4.0 } }").unwrap();
    assert_eq!((other.info, other.peak), (0.2, Peak::Deviation { threshold: 4. }));
}
