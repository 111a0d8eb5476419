//! TSPO's temporal agent: its numbers against its formulas, its gradients, its files, and what it learns.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use msjoe::checkpoint::write_safetensors;
use msjoe::models::sampler::{Sampler, Sight};
use msjoe::models::temporal_agent::{Config, TemporalAgent};
use msjoe::models::unet1d::{self, UNet1d};
use msjoe::optim::{AdamW, AdamWConfig, Parameters};
use msjoe::rl::advantage::{Baseline, baselined};
use msjoe::rl::reinforce::{Drawn, ReinforceConfig, reinforce_loss};
use msjoe::select::{draw, top_k};
use msjoe::similarity::similarity;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::gradcheck::{gradcheck_some, noise};

const WIDTH: usize = 24;

fn config() -> Config {
    Config { heads: 4, window: 5, temperature: 0.5 }
}

/// Names and shapes as the published file has them.
fn shapes(width: usize) -> BTreeMap<String, Vec<usize>> {
    let maps = ["temporal.Self_q", "temporal.Self_k", "temporal.Self_v", "temporal.ffn_o", "mlp.0", "mlp.2"];
    let both =
        |map: &str| [(format!("{map}.weight"), vec![width, width]), (format!("{map}.bias"), vec![width])];
    maps.iter().flat_map(|map| both(map)).collect()
}

/// Tensors large enough that every part of the network counts.
fn tensors(width: usize) -> BTreeMap<String, Tensor> {
    let scale = 1.5 / (width as f64).sqrt();
    let made = shapes(width).into_iter().zip(1..);
    made.map(|((name, shape), seed)| (name, (noise(&shape, seed) * scale).unwrap())).collect()
}

fn agent(config: &Config) -> TemporalAgent {
    TemporalAgent::new(config, tensors(WIDTH)).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The formulas number by number, with the window as a mask over all pairs of frames.
fn by_hand(config: &Config, frames: &Tensor, queries: &Tensor) -> Vec<f64> {
    let tensors = tensors(WIDTH);
    let (frames, queries) = (rows(frames), rows(queries));
    let (t, d, head) = (frames.len(), WIDTH, WIDTH / config.heads);
    let map = |name: &str, x: &[f64]| -> Vec<f64> {
        let weight = rows(&tensors[&format!("{name}.weight")]);
        let bias: Vec<f64> = tensors[&format!("{name}.bias")].to_vec1().unwrap();
        weight.iter().zip(bias).map(|(row, bias)| dot(row, x) + bias).collect()
    };
    let placed: Vec<Vec<f64>> = (frames.iter().enumerate())
        .map(|(i, frame)| {
            let angle =
                |c: usize| i as f64 / t as f64 * (-(10_000f64.ln()) * (c - c % 2) as f64 / d as f64).exp();
            let code = |c: usize| if c.is_multiple_of(2) { angle(c).sin() } else { angle(c).cos() };
            frame.iter().enumerate().map(|(c, x)| x + code(c)).collect()
        })
        .collect();
    let project = |name: &str| placed.iter().map(|x| map(name, x)).collect::<Vec<_>>();
    let (q, k, v) = (project("temporal.Self_q"), project("temporal.Self_k"), project("temporal.Self_v"));
    let cosine = |a: &[f64], b: &[f64], eps: f64| dot(a, b) / ((dot(a, a) * dot(b, b)).sqrt() + eps);
    let score = |i: usize| {
        let clamped = |m: usize| (i + m).saturating_sub(config.window / 2).min(t - 1);
        let seen: Vec<usize> = (0..config.window).map(clamped).collect();
        let mut hidden = vec![0.; d];
        for h in 0..config.heads {
            let part = h * head..(h + 1) * head;
            let logit = |j: usize| match seen.contains(&j) {
                true => dot(&q[i][part.clone()], &k[j][part.clone()]) / (head as f64).sqrt(),
                false => -1e6,
            };
            let logits: Vec<f64> = (0..t).map(logit).collect();
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|x| (x - most).exp()).sum();
            for (j, logit) in logits.iter().enumerate() {
                let weight = (logit - most).exp() / total;
                part.clone().for_each(|c| hidden[c] += weight * v[j][c]);
            }
        }
        let wide: Vec<f64> = map("mlp.0", &hidden).into_iter().map(|x| x.max(0.)).collect();
        let seen: Vec<f64> = map("mlp.2", &wide).iter().zip(&frames[i]).map(|(x, f)| x + f).collect();
        let both = |text: &Vec<f64>| cosine(&seen, text, 1e-6) + cosine(&frames[i], text, 0.);
        queries.iter().map(both).sum::<f64>() / queries.len() as f64 / config.temperature
    };
    (0..t).map(score).collect()
}

fn video(frames: usize, queries: usize) -> (Tensor, Tensor) {
    ((noise(&[frames, WIDTH], 50) * 3.).unwrap(), noise(&[queries, WIDTH], 51))
}

#[test]
fn the_network_is_its_formulas() {
    // One frame, fewer than the window, an even and an odd window, one that reaches over everything.
    for (frames, queries, window) in
        [(1, 1, 12), (3, 1, 12), (9, 1, 5), (30, 1, 12), (30, 3, 12), (7, 2, 1), (6, 1, 40)]
    {
        let config = Config { window, ..config() };
        let (features, texts) = video(frames, queries);
        let matrix = similarity(&texts, &features).unwrap();
        let expected = by_hand(&config, &features, &texts);
        let wide = agent(&config).forward(&features, &texts, &matrix).unwrap().to_vec1::<f64>().unwrap();
        let single = tensors(WIDTH).into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap()));
        let single = TemporalAgent::new(&config, single.collect()).unwrap();
        let single = single.forward(&features, &texts, &matrix).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(wide.len(), frames);
        for (at, expected) in expected.into_iter().enumerate() {
            assert!((wide[at] - expected).abs() < 1e-9, "{frames} frames, window {window}: {at}");
            assert!(
                (f64::from(single[at]) - expected).abs() < 2e-5,
                "{frames} frames, window {window}: {at}"
            );
        }
    }
}

#[test]
fn a_frame_is_seen_from_within_the_window_alone() {
    let (features, texts) = video(40, 1);
    let logits = |features: &Tensor| {
        let matrix = similarity(&texts, features).unwrap();
        let agent = agent(&Config { window: 12, ..config() });
        agent.forward(features, &texts, &matrix).unwrap().to_vec1::<f64>().unwrap()
    };
    let mut changed = rows(&features);
    changed[20].iter_mut().for_each(|x| *x = 1. - *x);
    let changed = Tensor::new(changed, &Device::Cpu).unwrap();
    let (before, after) = (logits(&features), logits(&changed));
    let moved: Vec<usize> = (0..40).filter(|&i| before[i] != after[i]).collect();
    // i - 6 ..= i + 5 holds frame 20.
    assert_eq!(moved, (15..=26).collect::<Vec<_>>());
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (features, texts) = video(9, 2);
    let names: Vec<String> = agent(&config()).parameters().into_keys().collect();
    assert_eq!(names.len(), 10, "ffn_o takes no part: {names:?}");
    let mut inputs: Vec<Tensor> = names.iter().map(|name| tensors(WIDTH)[name].clone()).collect();
    inputs.extend([features, texts]);
    let worst = gradcheck_some(&inputs, 40, |inputs| {
        let (parameters, inputs) = inputs.split_at(names.len());
        let mut all = tensors(WIDTH);
        all.extend(names.iter().cloned().zip(parameters.iter().cloned()));
        let matrix = similarity(&inputs[1], &inputs[0]).unwrap();
        TemporalAgent::new(&config(), all)?.forward(&inputs[0], &inputs[1], &matrix)
    });
    assert!(worst < 1e-7, "{worst}");
}

#[test]
fn a_frame_without_content_has_a_finite_gradient() {
    let (net, vars) = TemporalAgent::init(&config(), WIDTH, 1, &Device::Cpu).unwrap().trainable().unwrap();
    let (frames, texts) = (Tensor::zeros((4, WIDTH), DType::F32, &Device::Cpu).unwrap(), video(1, 1).1);
    let matrix = similarity(&texts, &frames).unwrap();
    let logits = net.forward(&frames, &texts, &matrix).unwrap();
    let store = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, gradient) in Parameters::from(vars).gradients(&store).unwrap() {
        let largest = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest.is_finite(), "{name}");
    }
}

#[test]
fn an_untrained_agent_follows_the_similarity() {
    let net = TemporalAgent::init(&Config::default(), 64, 7, &Device::Cpu).unwrap();
    let frames = (noise(&[50, 64], 3) * 5.).unwrap().to_dtype(DType::F32).unwrap();
    let texts = noise(&[1, 64], 4).to_dtype(DType::F32).unwrap();
    let matrix = similarity(&texts, &frames).unwrap();
    let logits = net.forward(&frames, &texts, &matrix).unwrap().to_vec1::<f32>().unwrap();
    for (logit, cosine) in logits.iter().zip(matrix.to_vec2::<f32>().unwrap()[0].iter()) {
        assert!((logit * 0.025 - 2. * cosine).abs() < 0.02, "{} and {cosine}", logit * 0.025);
    }
    let again = TemporalAgent::init(&Config::default(), 64, 7, &Device::Cpu).unwrap();
    let other = TemporalAgent::init(&Config::default(), 64, 8, &Device::Cpu).unwrap();
    let bits = |net: &TemporalAgent| rows(&net.parameters()["mlp.0.weight"]);
    assert!(bits(&net) == bits(&again) && bits(&net) != bits(&other));
}

fn single(width: usize) -> BTreeMap<String, Tensor> {
    tensors(width).into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap())).collect()
}

#[test]
fn files_go_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // As published: the agent alone, without a word on its settings.
    write_safetensors(&path("alone.safetensors"), &single(WIDTH), None).unwrap();
    let alone = TemporalAgent::load(path("alone.safetensors"), &Device::Cpu).unwrap();
    assert_eq!((alone.config(), alone.width()), (&Config::default(), WIDTH));
    // As published: within a model, in half precision, beside its CLIP.
    let mut whole: BTreeMap<String, Tensor> = (single(WIDTH).into_iter())
        .map(|(name, t)| (format!("selector.{name}"), t.to_dtype(DType::BF16).unwrap()))
        .collect();
    whole.insert("text_model.final_layer_norm.bias".to_owned(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
    whole.insert("logit_scale".to_owned(), Tensor::new(2.6f32, &Device::Cpu).unwrap());
    write_safetensors(&path("whole.safetensors"), &whole, None).unwrap();
    let loaded = TemporalAgent::load(path("whole.safetensors"), &Device::Cpu).unwrap();
    let half = single(WIDTH)["mlp.0.weight"].to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(rows(&loaded.parameters()["mlp.0.weight"]), rows(&half));
    // Ours: settings and the unused map come back, and the file is the same again.
    let ours = TemporalAgent::new(&config(), single(WIDTH)).unwrap();
    ours.save(path("a.safetensors")).unwrap();
    let again = match Sampler::load(path("a.safetensors"), &Device::Cpu).unwrap() {
        Sampler::TemporalAgent(agent) => agent,
        other => panic!("{other:?}"),
    };
    assert_eq!(again.config(), &config());
    assert_eq!(again.unused().len(), 2);
    again.trainable().unwrap().0.save(path("b.safetensors")).unwrap();
    assert_eq!(std::fs::read(path("a.safetensors")).unwrap(), std::fs::read(path("b.safetensors")).unwrap());
    // The same interface reads the other kind.
    let network = UNet1d::init(&unet1d::Config::default(), 1, &Device::Cpu).unwrap();
    network.save(path("u.safetensors")).unwrap();
    assert!(matches!(Sampler::load(path("u.safetensors"), &Device::Cpu).unwrap(), Sampler::UNet1d(_)));
}

#[test]
fn loading_is_strict() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.safetensors");
    let error = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = single(WIDTH);
        change(&mut tensors);
        write_safetensors(&path, &tensors, None).unwrap();
        let error = Sampler::load(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("agent.safetensors"), "names the file: {error}");
        error
    };
    let has = |error: String, expected: &str| assert!(error.contains(expected), "{expected:?} in {error:?}");
    for name in shapes(WIDTH).into_keys() {
        has(error(&|t| drop(t.remove(&name))), &format!("tensor {name}"));
    }
    has(
        error(&|t| drop(t.insert("temporal.alpha".into(), t["mlp.0.bias"].clone()))),
        "tensor temporal.alpha is no parameter of a temporal agent",
    );
    has(
        error(&|t| drop(t.insert("mlp.2.weight".into(), t["mlp.2.bias"].clone()))),
        "tensor mlp.2.weight: expected shape [24, 24], got [24]",
    );
    let integers = Tensor::zeros(WIDTH, DType::I64, &Device::Cpu).unwrap();
    has(
        error(&|t| drop(t.insert("mlp.0.bias".into(), integers.clone()))),
        "tensor mlp.0.bias: expected F32, F16 or BF16, got I64",
    );
    let mut values = [0f32; WIDTH];
    values[5] = f32::NAN;
    let damaged = Tensor::new(&values, &Device::Cpu).unwrap();
    has(
        error(&|t| drop(t.insert("mlp.0.bias".into(), damaged.clone()))),
        "tensor mlp.0.bias: value 5 is NaN, expected finite numbers",
    );
    // A width that eight heads do not divide.
    write_safetensors(&path, &single(12), None).unwrap();
    let narrow = Sampler::load(&path, &Device::Cpu).unwrap_err().to_string();
    has(narrow, "heads must divide the features' width 12, got 8");
    std::fs::write(&path, b"no tensors at all").unwrap();
    has(Sampler::load(&path, &Device::Cpu).unwrap_err().to_string(), "not a safetensors file");
}

#[test]
fn inputs_must_fit() {
    let (features, texts) = video(6, 2);
    let matrix = similarity(&texts, &features).unwrap();
    let agent = agent(&config());
    let refused = |frames: &Tensor, queries: &Tensor, matrix: &Tensor| {
        let error = agent.forward(frames, queries, matrix).unwrap_err().to_string();
        assert!(error.contains("temporal agent: expected frames (T, 24), queries (Q, 24)"), "{error}");
    };
    refused(&noise(&[6, 16], 1), &texts, &matrix);
    refused(&features, &noise(&[2, 16], 1), &matrix);
    refused(&features, &texts, &matrix.t().unwrap());
    let error = |config: &Config| TemporalAgent::init(config, 24, 1, &Device::Cpu).unwrap_err().to_string();
    assert!(error(&Config { heads: 5, ..config() }).contains("heads must divide"));
    assert!(error(&Config { window: 0, ..config() }).contains("window must be from 1"));
    assert!(error(&Config { temperature: 0., ..config() }).contains("temperature must be above 0"));
}

const FRAMES: usize = 16;

/// A video in which one frame is marked, in a direction that the text knows nothing of; the frame asked for is the next one.
fn episode(rng: &mut StdRng) -> (Sight, usize) {
    let marked = rng.random_range(0..FRAMES - 1);
    let value = |frame: usize, c: usize, rng: &mut StdRng| {
        let common = if c.is_multiple_of(2) { 1. } else { 0. };
        let mark = if frame == marked && c == 1 { 3. } else { 0. };
        common + mark + rng.random_range(-0.1..0.1)
    };
    let values: Vec<f32> = (0..FRAMES * 16).map(|at| value(at / 16, at % 16, rng) as f32).collect();
    let frames = Tensor::from_vec(values, (FRAMES, 16), &Device::Cpu).unwrap();
    let text: Vec<f32> = (0..16).map(|c| if c % 4 == 0 { 1. } else { 0. }).collect();
    let text = Tensor::from_vec(text, (1, 16), &Device::Cpu).unwrap();
    (Sight::new(text, frames).unwrap(), marked + 1)
}

fn accuracy(net: &Sampler) -> f32 {
    let mut rng = StdRng::seed_from_u64(99);
    let right = (0..200).filter(|_| {
        let (sight, asked) = episode(&mut rng);
        let logits = net.forward(&sight).unwrap().to_vec1::<f32>().unwrap();
        top_k(&logits, 1).unwrap() == [asked]
    });
    right.count() as f32 / 200.
}

/// Accuracy before and after REINFORCE on single draws; `shuffled` deals the rewards to other draws.
fn train(shuffled: bool) -> (f32, f32) {
    const DRAWS: usize = 8;
    // A frame and the one before it: in a wider window the frames on either side of the marked one look the same.
    let config = Config { heads: 2, window: 2, temperature: 0.1 };
    let net = Sampler::from(TemporalAgent::init(&config, 16, 1, &Device::Cpu).unwrap());
    let (net, vars) = net.trainable().unwrap();
    let (parameters, mut optimizer) = (Parameters::from(vars), AdamW::new(AdamWConfig::default()));
    let mut rng = StdRng::seed_from_u64(2);
    let before = accuracy(&net);
    for _ in 0..150 {
        let (sights, asked): (Vec<_>, Vec<_>) = (0..16).map(|_| episode(&mut rng)).unzip();
        let logits = net.forward_batch(&sights.iter().collect::<Vec<_>>()).unwrap();
        let (mut picks, mut rewards) = (vec![], vec![]);
        for (logits, asked) in logits.iter().zip(asked) {
            let host = logits.to_vec1::<f32>().unwrap();
            for _ in 0..DRAWS {
                let drawn = draw(&host, 1, &mut rng).unwrap();
                rewards.push(Some(f32::from(u8::from(drawn == [asked]))));
                picks.push(drawn);
            }
        }
        if shuffled {
            rewards.shuffle(&mut rng);
        }
        let advantages = baselined(&rewards, DRAWS, Baseline::LeaveOneOut);
        let drawn =
            |(at, picks): (usize, &Vec<usize>)| (at / DRAWS, picks.clone(), f64::from(advantages[at]));
        let all: Vec<(usize, Vec<usize>, f64)> = picks.iter().enumerate().map(drawn).collect();
        let draws: Vec<Drawn> = (all.iter())
            .map(|(at, picks, advantage)| Drawn {
                logits: &logits[*at],
                picks,
                advantage: *advantage,
                apart: None,
            })
            .collect();
        let loss = reinforce_loss(&draws, draws.len(), &ReinforceConfig::default()).unwrap();
        let gradients = parameters.gradients(&loss.loss.backward().unwrap()).unwrap();
        optimizer.step(&parameters, &gradients, 3e-3).unwrap();
    }
    (before, accuracy(&net))
}

#[test]
fn reinforce_teaches_the_agent_to_look_beside_a_frame() {
    let (before, after) = train(false);
    assert!(before < 0.2, "similarity cannot tell: {before}");
    assert!(after > 0.9, "{before} -> {after}");
}

#[test]
fn shuffled_rewards_teach_the_agent_nothing() {
    let (before, after) = train(true);
    assert!(after < 0.25, "{before} -> {after}");
}
