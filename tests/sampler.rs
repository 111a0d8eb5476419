//! Similarity matrix and sampler network.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, IndexOp, Tensor, Var};
use candle_nn::{Module, VarBuilder};
use msjoe::checkpoint::write_safetensors;
use msjoe::models::unet1d::{Config, UNet1d};
use msjoe::nn::{Conv1d, GroupNorm, upsample1d};
use msjoe::select::{log_prob, top_k};
use msjoe::similarity::similarity;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::gradcheck::{gradcheck, gradcheck_some, noise};

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    f32s(a).iter().zip(f32s(b)).map(|(a, b)| (a - b).abs()).fold(0., f32::max)
}

/// A similarity matrix like CLIP's: cosines around 0.2 with a few peaks.
fn matrix(queries: usize, frames: usize, seed: u64) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cell = || 0.2 + rng.random_range(-0.03..0.03) + if rng.random_bool(0.05) { 0.1 } else { 0. };
    let values: Vec<f32> = (0..queries * frames).map(|_| cell()).collect();
    Tensor::from_vec(values, (queries, frames), &Device::Cpu).unwrap()
}

fn small() -> Config {
    Config {
        channels: vec![8, 12, 16],
        stem: 4,
        groups: 4,
        kernel: 3,
        gain: 1.0,
        windows: vec![0, 1, 5],
        apart: 0.0,
    }
}

fn untrained() -> UNet1d {
    UNet1d::init(&Config::default(), 7, &Device::Cpu).unwrap()
}

// ---- similarity ----

#[test]
fn similarity_is_the_cosine() {
    let (queries, frames) = (noise(&[3, 17], 1), (noise(&[40, 17], 2) * 12.).unwrap());
    let expected = |q: usize, t: usize| {
        let (a, b) =
            (queries.i(q).unwrap().to_vec1::<f64>().unwrap(), frames.i(t).unwrap().to_vec1::<f64>().unwrap());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
    };
    let wide = similarity(&queries, &frames).unwrap().to_vec2::<f64>().unwrap();
    let narrow = |t: &Tensor, dtype| t.to_dtype(dtype).unwrap();
    let single = similarity(&narrow(&queries, DType::F32), &narrow(&frames, DType::F32)).unwrap();
    let half = similarity(&narrow(&queries, DType::BF16), &narrow(&frames, DType::F32)).unwrap();
    assert_eq!((single.dims(), single.dtype(), half.dtype()), (&[3, 40][..], DType::F32, DType::F32));
    let (single, half) = (single.to_vec2::<f32>().unwrap(), half.to_vec2::<f32>().unwrap());
    for q in 0..3 {
        for t in 0..40 {
            assert!((wide[q][t] - expected(q, t)).abs() < 1e-12);
            assert!((f64::from(single[q][t]) - expected(q, t)).abs() < 1e-6);
            assert!((f64::from(half[q][t]) - expected(q, t)).abs() < 1e-2);
        }
    }
}

#[test]
fn similarity_is_bounded_and_blind_to_length() {
    let rows = noise(&[200, 31], 3).to_dtype(DType::F32).unwrap();
    let own = similarity(&rows, &rows).unwrap();
    assert!(f32s(&own).iter().all(|s| (-1. ..=1.).contains(s)));
    assert!((0..200).all(|i| (own.i((i, i)).unwrap().to_scalar::<f32>().unwrap() - 1.).abs() < 1e-6));
    for scale in [1e-3, 1e3] {
        let scaled = similarity(&(&rows * scale).unwrap(), &rows).unwrap();
        assert!(largest_difference(&scaled, &own) < 1e-6, "scale {scale}");
    }
}

#[test]
fn a_zero_vector_is_similar_to_nothing() {
    let queries = Var::from_tensor(&Tensor::new(&[[0f32, 0.], [3., 4.]], &Device::Cpu).unwrap()).unwrap();
    let frames = Tensor::new(&[[1f32, 0.], [0., 0.]], &Device::Cpu).unwrap();
    let matrix = similarity(queries.as_tensor(), &frames).unwrap();
    assert_eq!(matrix.to_vec2::<f32>().unwrap(), [[0., 0.], [0.6, 0.]]);
    let grads = matrix.sum_all().unwrap().backward().unwrap();
    assert!(f32s(grads.get(&queries).unwrap()).iter().all(|g| g.is_finite()));
}

#[test]
fn similarity_gradients() {
    let error = gradcheck(&[noise(&[2, 5], 1), noise(&[4, 5], 2)], |x| Ok(similarity(&x[0], &x[1]).unwrap()));
    assert!(error < 1e-8, "{error:e}");
}

#[test]
fn similarity_refuses_what_does_not_fit() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let error = |a: &[usize], b: &[usize]| similarity(&zeros(a), &zeros(b)).unwrap_err().to_string();
    assert_eq!(
        error(&[8, 768], &[120, 512]),
        "similarity: queries (8, 768) and frames (120, 512) differ in width"
    );
    assert_eq!(error(&[0, 4], &[3, 4]), "similarity: queries (0, 4) and frames (3, 4) must not be empty");
    assert_eq!(error(&[2, 4], &[0, 4]), "similarity: queries (2, 4) and frames (0, 4) must not be empty");
    assert!(error(&[4], &[3, 4]).contains("expected queries (Q, D) and frames (T, D), got [4] and [3, 4]"));
}

// ---- layers ----

// candle's forward is right; only its gradient is not.
#[test]
#[allow(clippy::disallowed_methods)]
fn conv1d_equals_candles_forward() {
    for (kernel, stride, padding, length) in
        [(1, 1, 0, 5), (3, 1, 1, 9), (3, 2, 1, 9), (3, 2, 1, 8), (5, 3, 2, 11), (4, 2, 0, 4), (3, 1, 1, 1)]
    {
        let (xs, weight, bias) = (noise(&[3, 4, length], 1), noise(&[6, 4, kernel], 2), noise(&[6], 3));
        let ours =
            Conv1d::new(weight.clone(), Some(bias.clone()), stride, padding).unwrap().forward(&xs).unwrap();
        let theirs = xs.conv1d(&weight, padding, stride, 1, 1).unwrap();
        let theirs = theirs.broadcast_add(&bias.reshape((1, 6, 1)).unwrap()).unwrap();
        assert!(largest_difference(&ours, &theirs) < 1e-6, "kernel {kernel} stride {stride}");
    }
}

#[test]
fn conv1d_gradients() {
    for (kernel, stride, padding, length) in
        [(3, 1, 1, 9), (3, 2, 1, 9), (3, 2, 1, 8), (5, 3, 2, 7), (1, 1, 0, 4)]
    {
        let inputs = [noise(&[2, 4, length], 1), noise(&[6, 4, kernel], 2), noise(&[6], 3)];
        let error = gradcheck(&inputs, |x| {
            Conv1d::new(x[1].clone(), Some(x[2].clone()), stride, padding)?.forward(&x[0])
        });
        assert!(error < 1e-8, "kernel {kernel} stride {stride}: {error:e}");
    }
}

#[test]
fn conv1d_refuses_what_does_not_fit() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert!(Conv1d::new(zeros(&[2, 3]), None, 1, 0).is_err());
    assert!(Conv1d::new(zeros(&[2, 3, 3]), None, 0, 0).is_err());
    let error = Conv1d::new(zeros(&[2, 3, 3]), Some(zeros(&[3])), 1, 0).unwrap_err().to_string();
    assert!(error.contains("expected a bias of shape [2], got [3]"), "{error}");
    let conv = Conv1d::new(zeros(&[2, 3, 5]), None, 1, 1).unwrap();
    let error = conv.forward(&zeros(&[1, 3, 2])).unwrap_err().to_string();
    assert!(error.contains("expected (B, 3, L) with L + 2 >= 5, got [1, 3, 2]"), "{error}");
    assert!(conv.forward(&zeros(&[1, 4, 9])).is_err());
}

fn group_norm(weight: &Tensor, bias: &Tensor, groups: usize) -> GroupNorm {
    GroupNorm::new(weight.clone(), bias.clone(), groups, 1e-5).unwrap()
}

#[test]
fn group_norm_equals_candles() {
    let (xs, weight, bias) = (noise(&[2, 6, 5], 1), noise(&[6], 2), noise(&[6], 3));
    for groups in [1, 2, 3, 6] {
        let theirs = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), 6, groups, 1e-5).unwrap();
        let ours = group_norm(&weight, &bias, groups).forward(&xs).unwrap();
        assert!(largest_difference(&ours, &theirs.forward(&xs).unwrap()) < 1e-6);
    }
    assert!(GroupNorm::new(weight.clone(), bias.clone(), 4, 1e-5).is_err());
    assert!(GroupNorm::new(weight, noise(&[5], 3), 2, 1e-5).is_err());
}

fn mask(lengths: &[usize], longest: usize) -> Tensor {
    let cells = lengths.iter().flat_map(|&n| (0..longest).map(move |i| f64::from(u8::from(i < n))));
    Tensor::from_vec(cells.collect::<Vec<_>>(), (lengths.len(), 1, longest), &Device::Cpu).unwrap()
}

#[test]
fn group_norm_ignores_padding() {
    let (xs, weight, bias) = (noise(&[2, 6, 9], 1), noise(&[6], 2), noise(&[6], 3));
    let norm = group_norm(&weight, &bias, 2);
    let padded = norm.forward_masked(&xs, &mask(&[9, 4], 9)).unwrap();
    let whole = norm.forward(&xs.i(..1).unwrap()).unwrap();
    let cut = norm.forward(&xs.i((1.., .., ..4)).unwrap()).unwrap();
    assert!(largest_difference(&padded.i(..1).unwrap(), &whole) < 1e-6);
    assert!(largest_difference(&padded.i((1.., .., ..4)).unwrap(), &cut) < 1e-6);
    assert!(f32s(&padded.i((1.., .., 4..)).unwrap()).iter().all(|&y| y == 0.));
    assert!(norm.forward_masked(&xs, &mask(&[9], 9)).is_err());
}

#[test]
fn group_norm_gradients() {
    let inputs = [noise(&[2, 6, 5], 1), noise(&[6], 2), noise(&[6], 3)];
    let plain = gradcheck(&inputs, |x| group_norm(&x[1], &x[2], 2).forward(&x[0]));
    let masked = gradcheck(&inputs, |x| group_norm(&x[1], &x[2], 2).forward_masked(&x[0], &mask(&[5, 3], 5)));
    assert!(plain < 1e-8 && masked < 1e-8, "{plain:e} {masked:e}");
}

#[test]
fn upsample_repeats_and_shares_gradients() {
    let xs = Tensor::new(&[[[1f32, 2., 3.]]], &Device::Cpu).unwrap();
    assert_eq!(f32s(&upsample1d(&xs, 2).unwrap()), [1., 1., 2., 2., 3., 3.]);
    // The input feeds a skip connection as well, before and after in the graph.
    let before = gradcheck(&[noise(&[2, 3, 4], 1)], |x| {
        (x[0].sqr()?.sum_all()? * upsample1d(&x[0], 3)?.sqr()?.sum_all()?)?.unsqueeze(0)
    });
    let after = gradcheck(&[noise(&[2, 3, 4], 1)], |x| {
        let x = x[0].sin()?;
        upsample1d(&x, 2)?.narrow(2, 0, 4)?.mul(&x.exp()?)
    });
    assert!(before < 1e-8 && after < 1e-8, "{before:e} {after:e}");
}

// ---- the network ----

#[test]
fn the_default_has_about_two_million_parameters() {
    let count: usize = untrained().parameters().values().map(Tensor::elem_count).sum();
    assert!((1_500_000..2_500_000).contains(&count), "{count}");
    assert_eq!(count, 2_097_360);
}

#[test]
fn any_length_and_any_number_of_queries() {
    let net = untrained();
    for frames in [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 5000] {
        for queries in [1, 2, 4] {
            let logits = net.forward(&matrix(queries, frames, frames as u64)).unwrap();
            assert_eq!(logits.dims(), [frames]);
            assert!(f32s(&logits).iter().all(|z| z.is_finite()), "{queries} x {frames}");
        }
    }
}

#[test]
fn the_order_of_the_queries_does_not_matter() {
    let net = with_noise(&untrained(), DType::F32);
    for frames in [1, 64, 333] {
        let rows = matrix(4, frames, 5);
        let logits = net.forward(&rows).unwrap();
        for order in [[1u32, 0, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]] {
            let shuffled = rows.index_select(&Tensor::new(&order, &Device::Cpu).unwrap(), 0).unwrap();
            let difference = largest_difference(&net.forward(&shuffled).unwrap(), &logits);
            let scale = f32s(&logits).iter().fold(1f32, |m, z| m.max(z.abs()));
            assert!(difference <= 1e-6 * scale, "{frames} {order:?}: {difference:e} of {scale}");
        }
        let other = net.forward(&matrix(4, frames, 6)).unwrap();
        assert!(largest_difference(&other, &logits) > 1e-3, "the matrix itself must matter");
    }
}

#[test]
fn extreme_matrices_give_finite_logits_and_gradients() {
    let (net, vars) = untrained().trainable().unwrap();
    let constant = Tensor::full(0.2f32, (3, 50), &Device::Cpu).unwrap();
    let ends: Vec<f32> = (0..150).map(|i| if i % 3 == 0 { 1. } else { -1. }).collect();
    let ends = Tensor::from_vec(ends, (3, 50), &Device::Cpu).unwrap();
    let negative = Tensor::full(-1f32, (1, 5), &Device::Cpu).unwrap(); // its padding, 0, lies far above it
    let logits = net.forward_batch(&[constant.clone(), ends, negative]).unwrap();
    let loss = Tensor::cat(&logits, 0).unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    assert!(loss.to_scalar::<f32>().unwrap().is_finite());
    for (name, var) in &vars {
        assert!(f32s(grads.get(var).unwrap()).iter().all(|g| g.is_finite()), "{name}");
    }
    // No information, no preference beyond what the small head makes of time.
    let flat = f32s(&net.detached().unwrap().forward(&constant).unwrap());
    let spread = flat.iter().fold(f32::MIN, |m, z| m.max(*z)) - flat.iter().fold(f32::MAX, |m, z| m.min(*z));
    assert!(spread < 1., "{spread}");
}

#[test]
fn an_untrained_sampler_goes_by_the_best_matches_around_a_frame() {
    let rows = matrix(3, 400, 9);
    let nearness = rows.to_vec2::<f32>().unwrap().into_iter().map(|row| {
        let mean = row.iter().sum::<f32>() / 400.;
        let variance = row.iter().map(|s| (s - mean).powi(2)).sum::<f32>() / 400.;
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        row.iter().map(|s| (1. - (best - s) / (variance + 1e-6).sqrt() / 1.5).max(0.)).collect::<Vec<_>>()
    });
    let at = nearness.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a.max(b)).collect()).unwrap();
    let within = |frame: usize, window: usize| {
        at[frame.saturating_sub(window)..(frame + window + 1).min(400)].iter().copied().fold(0., f32::max)
    };
    let best: Vec<f32> =
        (0..400).map(|frame| [0, 2, 4, 8].map(|window| 2. * within(frame, window)).iter().sum()).collect();
    let logits = f32s(&untrained().forward(&rows).unwrap());
    let head: Vec<f32> = logits.iter().zip(&best).map(|(z, best)| z - best).collect();
    let mean = head.iter().sum::<f32>() / 400.;
    let rms = (head.iter().map(|h| (h - mean).powi(2)).sum::<f32>() / 400.).sqrt();
    assert!(rms > 1e-4 && rms < 0.2, "the head adds {rms}");
    let common =
        top_k(&logits, 20).unwrap().into_iter().filter(|i| top_k(&best, 20).unwrap().contains(i)).count();
    assert!(common >= 16, "{common} of 20 frames in common");
}

// Batches of unequal sizes, and what pads them, change nothing.
#[test]
fn batch_equals_singles() {
    let net = with_noise(&untrained(), DType::F32);
    let sizes = [(1, 64), (4, 7), (2, 1), (3, 65), (4, 130), (1, 33)];
    let items: Vec<Tensor> = sizes.iter().map(|&(q, t)| matrix(q, t, (q * 1000 + t) as u64)).collect();
    let singles: Vec<Tensor> = items.iter().map(|item| net.forward(item).unwrap()).collect();
    let check = |batch: &[usize]| {
        let together: Vec<Tensor> = batch.iter().map(|&i| items[i].clone()).collect();
        for (&i, logits) in batch.iter().zip(net.forward_batch(&together).unwrap()) {
            let difference = largest_difference(&logits, &singles[i]);
            let scale = f32s(&singles[i]).iter().fold(1f32, |m, z| m.max(z.abs()));
            assert!(difference < 1e-5 * scale, "item {:?} in {batch:?}: {difference:e} of {scale}", sizes[i]);
        }
    };
    for batch in [&[0, 1, 2, 3, 4, 5][..], &[1, 4], &[1, 0], &[2, 3], &[5, 5]] {
        check(batch);
    }
    let far = net.forward_batch(&[items[1].clone(), matrix(1, 5000, 1)]).unwrap();
    assert!(largest_difference(&far[0], &singles[1]) < 1e-5);
    assert!(net.forward_batch(&[]).unwrap().is_empty());
}

/// The network with every parameter moved off its special start (zero biases, unit scales).
fn with_noise(net: &UNet1d, dtype: DType) -> UNet1d {
    let moved = net.parameters().into_iter().enumerate().map(|(i, (name, t))| {
        let t = (t.to_dtype(DType::F64).unwrap() + (noise(t.dims(), i as u64) * 0.1).unwrap()).unwrap();
        (name, t.to_dtype(dtype).unwrap())
    });
    rebuilt(net.config(), moved.collect(), dtype)
}

fn rebuilt(config: &Config, tensors: HashMap<String, Tensor>, dtype: DType) -> UNet1d {
    UNet1d::new(config, VarBuilder::from_tensors(tensors, dtype, &Device::Cpu)).unwrap()
}

#[test]
fn network_gradients() {
    let net = with_noise(&UNet1d::init(&small(), 3, &Device::Cpu).unwrap(), DType::F64);
    let names: Vec<String> = net.parameters().into_keys().collect();
    let rows = |q, t, seed| matrix(q, t, seed).to_dtype(DType::F64).unwrap();
    let mut inputs: Vec<Tensor> = net.parameters().into_values().collect();
    inputs.extend([rows(2, 9, 1), rows(1, 6, 2)]);
    let error = gradcheck_some(&inputs, 4, |x| {
        let (parameters, items) = x.split_at(names.len());
        let net =
            rebuilt(&small(), names.iter().cloned().zip(parameters.iter().cloned()).collect(), DType::F64);
        Tensor::cat(&net.forward_batch(items)?, 0)
    });
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn the_same_query_twice_has_the_right_gradient() {
    let net = with_noise(&UNet1d::init(&small(), 3, &Device::Cpu).unwrap(), DType::F64);
    // Moving both copies together moves no tie: the difference quotient exists, and must equal the sum over the copies.
    let error = gradcheck_some(&[matrix(1, 6, 1).to_dtype(DType::F64).unwrap()], 6, |x| {
        net.forward(&Tensor::cat(&[&x[0], &x[0]], 0)?)
    });
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn every_parameter_receives_a_gradient_from_the_start() {
    let (net, vars) = untrained().trainable().unwrap();
    let logits = net.forward_batch(&[matrix(3, 40, 1), matrix(1, 25, 2)]).unwrap();
    let loss =
        (log_prob(&logits[0], &[3, 17, 30]).unwrap() + log_prob(&logits[1], &[24, 0]).unwrap()).unwrap();
    let grads = loss.backward().unwrap();
    for (name, var) in &vars {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} received no gradient"));
        let largest = f32s(grad).iter().fold(0f32, |m, g| m.max(g.abs()));
        assert!(largest > 1e-7, "{name}: {largest:e}");
    }
    assert_eq!(vars.len(), net.parameters().len());
}

#[test]
fn twins_share_parameters_and_build_no_graph() {
    let (net, vars) = UNet1d::init(&small(), 1, &Device::Cpu).unwrap().trainable().unwrap();
    let twin = net.detached().unwrap();
    let rows = matrix(2, 20, 1);
    assert!(net.forward(&rows).unwrap().track_op());
    assert!(!twin.forward(&rows).unwrap().track_op());
    assert!(!UNet1d::init(&small(), 1, &Device::Cpu).unwrap().forward(&rows).unwrap().track_op());
    let before = twin.forward(&rows).unwrap();
    vars["gain"].set(&Tensor::new(&[3f32, 0., 0.], &Device::Cpu).unwrap()).unwrap();
    let after = twin.forward(&rows).unwrap();
    assert!(largest_difference(&before, &after) > 0.1);
    assert_eq!(f32s(&after), f32s(&net.forward(&rows).unwrap()));
}

#[test]
fn networks_refuse_what_does_not_fit() {
    let net = UNet1d::init(&small(), 1, &Device::Cpu).unwrap();
    for shape in [&[5][..], &[0, 5], &[2, 0], &[1, 2, 5]] {
        let error =
            net.forward(&Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()).unwrap_err().to_string();
        assert!(error.contains("expected a similarity matrix (queries, frames)"), "{error}");
        assert!(error.contains(&format!("{shape:?}")), "{error}");
    }
    let bad = |change: fn(&mut Config)| {
        let mut config = small();
        change(&mut config);
        UNet1d::init(&config, 1, &Device::Cpu).unwrap_err().to_string()
    };
    assert!(bad(|c| c.channels.clear()).contains("channels must be 1 to 8 numbers"));
    assert!(bad(|c| c.channels[1] = 0).contains("from 1 to 1024, got [8, 0, 16]"));
    assert!(bad(|c| c.groups = 3).contains("groups must divide every entry of channels [8, 12, 16], got 3"));
    assert!(bad(|c| c.groups = 0).contains("groups"));
    assert!(bad(|c| c.kernel = 4).contains("kernel must be odd and at most 31, got 4"));
    assert!(bad(|c| c.windows = vec![0, 4, 4]).contains("ascending numbers up to 1024, got [0, 4, 4]"));
    assert!(bad(|c| c.windows.clear()).contains("windows must be 1 to 8"));
    assert!(bad(|c| c.stem = 0).contains("stem must be from 1 to 1024, got 0"));
}

// ---- files ----

fn bits(net: &UNet1d) -> BTreeMap<String, Vec<u32>> {
    net.parameters()
        .iter()
        .map(|(name, t)| (name.clone(), f32s(t).iter().map(|v| v.to_bits()).collect()))
        .collect()
}

#[test]
fn init_depends_on_the_seed_only() {
    let init = |seed| bits(&UNet1d::init(&small(), seed, &Device::Cpu).unwrap());
    assert_eq!(init(5), init(5));
    let (a, b) = (init(5), init(6));
    assert!(a.iter().filter(|(name, _)| name.ends_with("conv1.weight")).all(|(name, v)| b[name] != *v));
    // A layer's numbers do not depend on which other layers exist.
    let shallow = Config { channels: vec![8, 12], ..small() };
    assert_eq!(bits(&UNet1d::init(&shallow, 5, &Device::Cpu).unwrap())["stem.1.weight"], a["stem.1.weight"]);
    // Uniform of variance 1 / fan_in.
    let net = untrained();
    let weight = f32s(&net.parameters()["middle.conv1.weight"]);
    let variance = weight.iter().map(|w| w * w).sum::<f32>() / weight.len() as f32;
    assert!((variance * 256. * 3. - 1.).abs() < 0.02, "{variance}");
}

#[test]
fn a_saved_sampler_loads_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let config = Config { apart: 1.5, ..small() };
    let net = with_noise(&UNet1d::init(&config, 5, &Device::Cpu).unwrap(), DType::F32);
    net.save(&a).unwrap();
    let loaded = UNet1d::load(&a, &Device::Cpu).unwrap();
    assert_eq!(loaded.config(), net.config());
    assert_eq!(bits(&loaded), bits(&net));
    let rows = matrix(2, 50, 1);
    assert_eq!(f32s(&loaded.forward(&rows).unwrap()), f32s(&net.forward(&rows).unwrap()));
    loaded.trainable().unwrap().0.save(&b).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary files stay behind: {names:?}");
    let error = net.save(folder.path().join("missing/a.safetensors")).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

/// The error of loading a file in which `change` has been at the tensors and the header.
fn load_error(change: impl Fn(&mut BTreeMap<String, Tensor>, &mut HashMap<String, String>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampler.safetensors");
    let net = UNet1d::init(&small(), 5, &Device::Cpu).unwrap();
    let config = serde_json::to_string(net.config()).unwrap();
    let mut header =
        HashMap::from([("msjoe-sampler".to_owned(), format!("{{\"version\":3,\"config\":{config}}}"))]);
    let mut tensors = net.parameters();
    change(&mut tensors, &mut header);
    write_safetensors(&path, &tensors, Some(header)).unwrap();
    let error = UNet1d::load(&path, &Device::Cpu).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("sampler.safetensors"), "names the file: {error}");
    error
}

fn has(error: String, expected: &str) {
    assert!(error.contains(expected), "expected {expected:?} in {error:?}");
}

#[test]
fn loading_is_strict_about_tensors() {
    has(load_error(|t, _| drop(t.remove("gain"))), "tensor gain of shape [3] is missing");
    has(
        load_error(|t, _| drop(t.insert("extra".to_owned(), t["gain"].clone()))),
        "tensor extra is no parameter of a sampler with channels [8, 12, 16]",
    );
    has(
        load_error(|t, _| drop(t.insert("gain".to_owned(), t["norm.bias"].clone()))),
        "tensor gain: expected F32 of shape [3], got F32 of shape [8]",
    );
    has(
        load_error(|t, _| drop(t.insert("gain".to_owned(), t["gain"].to_dtype(DType::F16).unwrap()))),
        "tensor gain: expected F32 of shape [3], got F16",
    );
    for (value, text) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let expected = format!("tensor norm.bias: value 2 is {text}, expected finite numbers");
        let mut values = [0f32; 8];
        values[2] = value;
        let damaged = Tensor::new(&values, &Device::Cpu).unwrap();
        has(load_error(|t, _| drop(t.insert("norm.bias".to_owned(), damaged.clone()))), &expected);
    }
}

#[test]
fn loading_is_strict_about_the_header() {
    let edited = |from: &'static str, to: &'static str| {
        load_error(move |_, h| {
            let header = h.get_mut("msjoe-sampler").unwrap();
            assert!(header.contains(from));
            *header = header.replace(from, to);
        })
    };
    has(load_error(|_, h| h.clear()), "no sampler: the metadata have no entry msjoe-sampler");
    has(edited("\"version\":3", "\"version\":1"), "expected a sampler of format version 3, got version 1");
    has(edited("\"stem\":4", "\"stem\":-4"), "sampler config: invalid value");
    has(edited("\"stem\":4,", ""), "sampler config: missing field `stem`");
    has(edited("\"stem\":4", "\"stem\":4,\"heads\":1"), "sampler config: unknown field `heads`");
    has(edited("\"kernel\":3", "\"kernel\":2"), "kernel must be odd");
    has(
        edited("\"kernel\":3", "\"kernel\":5"),
        "expected F32 of shape [8, 8, 5], got F32 of shape [8, 8, 3]",
    );
    has(edited("{\"version\"", "\"version\""), "metadata entry msjoe-sampler cannot be read");
}

#[test]
fn loading_names_files_that_are_no_samplers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    has(UNet1d::load(&path, &Device::Cpu).unwrap_err().to_string(), "x.safetensors");
    for content in [&b""[..], b"not a checkpoint at all"] {
        std::fs::write(&path, content).unwrap();
        let error = UNet1d::load(&path, &Device::Cpu).unwrap_err().to_string();
        has(error.clone(), "not a safetensors file");
        has(error, "x.safetensors");
    }
}
