//! The sampler learns from rewards alone what similarity cannot tell it; and nothing from rewards that belong to others.

use candle_core::{Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use msjoe::models::unet1d::{Config, UNet1d};
use msjoe::select::{draw, log_prob, top_k};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const FRAMES: usize = 24;

/// One query that peaks at a random frame; the frame asked for is the one after it.
fn episode(frames: usize, rng: &mut StdRng) -> (Tensor, usize) {
    let peak = rng.random_range(1..frames - 1);
    let row: Vec<f32> =
        (0..frames).map(|t| rng.random_range(0.16..0.2) + if t == peak { 0.1 } else { 0. }).collect();
    (Tensor::from_vec(row, (1, frames), &Device::Cpu).unwrap(), peak + 1)
}

/// Share of fresh episodes in which the frame asked for has the largest weight.
fn accuracy(net: &UNet1d, frames: usize) -> f32 {
    let mut rng = StdRng::seed_from_u64(99);
    let (rows, targets): (Vec<_>, Vec<_>) = (0..200).map(|_| episode(frames, &mut rng)).unzip();
    let logits = net.forward_batch(&rows).unwrap();
    let right = logits
        .iter()
        .zip(targets)
        .filter(|(z, target)| top_k(&z.to_vec1::<f32>().unwrap(), 1).unwrap() == [*target]);
    right.count() as f32 / 200.
}

/// REINFORCE on draws of two frames, reward 1 when the right one is among them. `shuffled` deals the same rewards to
/// other draws.
fn train(shuffled: bool) -> (f32, UNet1d) {
    const BATCH: usize = 24;
    const DRAWS: usize = 4;
    let config = Config {
        channels: vec![16, 24],
        stem: 8,
        groups: 4,
        kernel: 3,
        gain: 1.0,
        windows: vec![0, 2],
        apart: 0.0,
    };
    let (net, vars) = UNet1d::init(&config, 1, &Device::Cpu).unwrap().trainable().unwrap();
    let settings = ParamsAdamW { lr: 5e-3, weight_decay: 0., ..Default::default() };
    let mut optimizer = AdamW::new(vars.into_values().collect(), settings).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let before = accuracy(&net, FRAMES);
    for _ in 0..150 {
        let (rows, targets): (Vec<_>, Vec<_>) = (0..BATCH).map(|_| episode(FRAMES, &mut rng)).unzip();
        let logits = net.forward_batch(&rows).unwrap();
        let mut log_probs = Vec::new();
        let mut rewards = Vec::new();
        for (z, target) in logits.iter().zip(targets) {
            let host = z.to_vec1::<f32>().unwrap();
            for _ in 0..DRAWS {
                let picks = draw(&host, 2, &mut rng).unwrap();
                log_probs.push(log_prob(z, &picks).unwrap());
                rewards.push(f32::from(u8::from(picks.contains(&target))));
            }
        }
        if shuffled {
            rewards.shuffle(&mut rng);
        }
        let baseline = rewards.iter().sum::<f32>() / rewards.len() as f32;
        let advantages: Vec<f32> = rewards.iter().map(|r| r - baseline).collect();
        let advantages = Tensor::new(advantages, &Device::Cpu).unwrap();
        let loss =
            (Tensor::stack(&log_probs, 0).unwrap() * advantages).unwrap().mean_all().unwrap().neg().unwrap();
        optimizer.backward_step(&loss).unwrap();
    }
    (before, net.detached().unwrap())
}

#[test]
fn reinforce_learns_the_frame_after_the_peak() {
    let (before, net) = train(false);
    assert!(before < 0.1, "top-k cannot pick it: {before}");
    // At the length it was trained on, and at others.
    for frames in [FRAMES, 12, 200] {
        let after = accuracy(&net, frames);
        assert!(after > 0.9, "{frames} frames: {before} -> {after}");
    }
}

#[test]
fn shuffled_rewards_teach_nothing() {
    let (before, net) = train(true);
    let after = accuracy(&net, FRAMES);
    assert!(after < 0.2, "{before} -> {after}");
}
