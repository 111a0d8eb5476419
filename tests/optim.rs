//! The optimizer against PyTorch's, its state across runs, clipping and schedules.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use msjoe::checkpoint::write_safetensors;
use msjoe::optim::{AdamW, AdamWConfig, Parameters, Schedule, Shape, clip_grad_norm};
use serde_json::Value;

use crate::nn::{normal, relative};

type Tensors = BTreeMap<String, Tensor>;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/adamw.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The tensors of one golden object, by name.
fn tensors(golden: &Value, values: &Value, dtype: DType) -> Tensors {
    let one = |(name, values): (&String, &Value)| {
        let shape: Vec<usize> = floats(&golden["shapes"][name]).iter().map(|&d| d as usize).collect();
        let tensor = Tensor::from_vec(floats(values), shape, &Device::Cpu).unwrap();
        (name.clone(), tensor.to_dtype(dtype).unwrap())
    };
    values.as_object().unwrap().iter().map(one).collect()
}

fn named<const N: usize>(tensors: [(&str, Tensor); N]) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

fn bits(tensors: &Tensors) -> Vec<(String, Vec<u32>)> {
    let bits =
        |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    tensors.iter().map(|(name, t)| (name.clone(), bits(t))).collect()
}

/// candle appends a backtrace to its messages when the environment asks for one.
pub fn message(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    let host = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let pairs = host(a).into_iter().zip(host(b));
    pairs.map(|(a, b)| (a - b).abs() / b.abs().max(1e-2)).fold(0., f64::max)
}

#[test]
fn adamw_is_pytorchs() {
    let golden = golden();
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
        for (name, case) in golden["adamw"].as_object().unwrap() {
            let settings = &case["settings"];
            let betas = floats(&settings["betas"]);
            let mut optimizer = AdamW::new(AdamWConfig {
                beta1: betas[0],
                beta2: betas[1],
                eps: settings["eps"].as_f64().unwrap(),
                weight_decay: settings["weight_decay"].as_f64().unwrap(),
            });
            let parameters = Parameters::new(tensors(&golden, &case["start"], dtype)).unwrap();
            for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                let gradients = tensors(&golden, &step["gradients"], dtype);
                optimizer.step(&parameters, &gradients, step["lr"].as_f64().unwrap()).unwrap();
                for (key, expected) in tensors(&golden, &step["values"], DType::F64) {
                    let error = worst(parameters.get(&key).unwrap(), &expected);
                    assert!(error < tolerance, "{name}, {dtype:?}, step {i}, {key}: off by {error:.1e}");
                }
            }
            let state = optimizer.state().unwrap();
            for (key, moments) in case["moments"].as_object().unwrap() {
                for (moment, values) in moments.as_object().unwrap() {
                    let ours = &state[&format!("{moment}.{key}")];
                    let expected = Tensor::from_vec(floats(values), ours.shape(), &Device::Cpu).unwrap();
                    let error = worst(ours, &expected);
                    assert!(error < tolerance, "{name}, {dtype:?}, {moment} of {key}: off by {error:.1e}");
                }
            }
        }
    }
}

/// Values, gradients by step: large enough for the parallel path, with a length that no block divides.
fn run(optimizer: &mut AdamW, parameters: &Parameters, steps: std::ops::Range<u64>) {
    for step in steps {
        let gradient = |(name, var): (&str, &candle_core::Var)| {
            (name.to_owned(), normal(var.dims(), 100 + step).to_dtype(var.dtype()).unwrap())
        };
        let gradients: Tensors = parameters.iter().map(gradient).collect();
        optimizer.step(parameters, &gradients, 1e-2 / (1 + step) as f64).unwrap();
    }
}

fn start() -> Tensors {
    named([("large", normal(&[211, 409], 1)), ("small", normal(&[7], 2)), ("one", normal(&[1, 1], 3))])
}

fn decaying() -> AdamW {
    AdamW::new(AdamWConfig { weight_decay: 0.1, ..Default::default() })
}

#[test]
fn the_fused_step_is_the_composed_one_on_any_number_of_threads() {
    let parameters = Parameters::new(start()).unwrap();
    run(&mut decaying(), &parameters, 0..5);
    let wide: Tensors = start().into_iter().map(|(n, t)| (n, t.to_dtype(DType::F64).unwrap())).collect();
    let wide = Parameters::new(wide).unwrap();
    run(&mut decaying(), &wide, 0..5);
    for (name, var) in parameters.iter() {
        let error = relative(&var.to_dtype(DType::F64).unwrap(), wide.get(name).unwrap());
        assert!(error < 3e-7, "{name}: off by {error:.1e}");
    }
    let alone = Parameters::new(start()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| run(&mut decaying(), &alone, 0..5));
    assert_eq!(bits(&parameters.detached()), bits(&alone.detached()));
}

#[test]
fn half_precision_keeps_f32_moments() {
    let half: Tensors = start().into_iter().map(|(n, t)| (n, t.to_dtype(DType::BF16).unwrap())).collect();
    let wide: Tensors = half.iter().map(|(n, t)| (n.clone(), t.to_dtype(DType::F32).unwrap())).collect();
    let (half, wide) = (Parameters::new(half).unwrap(), Parameters::new(wide).unwrap());
    let gradients: Tensors = (half.iter())
        .map(|(name, var)| (name.to_owned(), normal(var.dims(), 5).to_dtype(DType::BF16).unwrap()))
        .collect();
    let (mut a, mut b) = (decaying(), decaying());
    a.step(&half, &gradients, 1e-2).unwrap();
    b.step(&wide, &gradients, 1e-2).unwrap();
    assert_eq!(bits(&moments(&a)), bits(&moments(&b)));
    for (name, var) in half.iter() {
        // Composed and fused form may differ in the last f32 digit, so a few values round to the other neighbour.
        let rounded = wide.get(name).unwrap().to_dtype(DType::BF16).unwrap();
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let error = relative(&wide(var), &wide(&rounded));
        assert!(error < 2e-4, "{name}: off by {error:.1e}");
    }
}

fn moments(optimizer: &AdamW) -> Tensors {
    let mut state = optimizer.state().unwrap();
    state.remove("step");
    state
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let straight = Parameters::new(start()).unwrap();
    let mut optimizer = decaying();
    run(&mut optimizer, &straight, 0..3);
    let folder = tempfile::tempdir().unwrap();
    let (state, values) = (folder.path().join("optimizer.safetensors"), folder.path().join("m.safetensors"));
    let snapshot = optimizer.state().unwrap();
    let before = bits(&moments(&optimizer));
    write_safetensors(&state, &snapshot, None).unwrap();
    write_safetensors(&values, &straight.detached(), None).unwrap();
    run(&mut optimizer, &straight, 3..6);

    let read =
        |path| candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect::<Tensors>();
    let resumed = Parameters::new(read(&values)).unwrap();
    let mut other = decaying();
    run(&mut other, &Parameters::new(start()).unwrap(), 0..1); // dropped by the restore
    other.restore(read(&state)).unwrap();
    assert_eq!(other.steps(), 3);
    run(&mut other, &resumed, 3..6);
    assert_eq!(bits(&resumed.detached()), bits(&straight.detached()));
    assert_eq!(bits(&moments(&other)), bits(&moments(&optimizer)));
    assert_eq!((other.steps(), optimizer.steps()), (6, 6));
    // A state is a copy: later steps do not reach into it.
    let kept: Tensors = snapshot.into_iter().filter(|(name, _)| name != "step").collect();
    assert_eq!(bits(&kept), before);
}

#[test]
fn no_gradient_no_change() {
    let parameters = Parameters::new(start()).unwrap();
    let zeros: Tensors = parameters
        .iter()
        .map(|(n, v)| (n.to_owned(), v.as_tensor().detach().zeros_like().unwrap()))
        .collect();
    AdamW::new(AdamWConfig::default()).step(&parameters, &zeros, 0.1).unwrap();
    assert_eq!(bits(&parameters.detached()), bits(&start()));
}

/// The error of a step, which must leave values and state as they were.
fn refused(optimizer: &mut AdamW, parameters: &Parameters, gradients: Tensors, lr: f64) -> String {
    let before = (bits(&parameters.detached()), bits(&moments(optimizer)), optimizer.steps());
    let error = message(optimizer.step(parameters, &gradients, lr).unwrap_err());
    assert_eq!(before, (bits(&parameters.detached()), bits(&moments(optimizer)), optimizer.steps()));
    error
}

#[test]
fn gradients_must_be_those_of_the_parameters() {
    let parameters = Parameters::new(start()).unwrap();
    let mut optimizer = decaying();
    let all = || start();
    let mut gradients = all();
    gradients.insert("other".into(), normal(&[2], 1));
    let error = refused(&mut optimizer, &parameters, gradients, 0.1);
    assert_eq!(error, "adamw: there is a gradient of other, but no such parameter");
    let mut gradients = all();
    gradients.remove("one");
    let error = refused(&mut optimizer, &parameters, gradients, 0.1);
    assert_eq!(error, "adamw: the gradient of one is missing");
    let mut gradients = all();
    gradients.insert("small".into(), normal(&[8], 1));
    let error = refused(&mut optimizer, &parameters, gradients, 0.1);
    assert_eq!(error, "adamw: small is [7], but its gradient is [8]");
    for lr in [f64::NAN, f64::INFINITY, -1.] {
        let error = refused(&mut optimizer, &parameters, all(), lr);
        assert!(error.starts_with("adamw: the learning rate must be"), "{error}");
    }
    let mut wrong = AdamW::new(AdamWConfig { beta2: 1., ..Default::default() });
    let error = refused(&mut wrong, &parameters, all(), 0.1);
    assert!(error.starts_with("adamw: betas must be"), "{error}");

    run(&mut optimizer, &parameters, 0..2);
    let fewer = parameters.filtered(|name| name != "one");
    let mut gradients = all();
    gradients.remove("one");
    let error = refused(&mut optimizer, &fewer, gradients, 0.1);
    assert_eq!(error, "adamw: after 2 steps the state holds moments of one, which is no parameter");
    let mut more = Parameters::new(named([("later", normal(&[2], 1))])).unwrap();
    more.extend(&parameters).unwrap();
    let mut gradients = all();
    gradients.insert("later".into(), normal(&[2], 1));
    let error = refused(&mut optimizer, &more, gradients, 0.1);
    assert_eq!(error, "adamw: later has no moments after 2 steps: all parameters take every step");
    let mut other = start();
    other.insert("small".into(), normal(&[3], 1));
    let error = refused(&mut optimizer, &Parameters::new(other.clone()).unwrap(), other, 0.1);
    assert_eq!(error, "adamw: small is [3] F32, but its moments are [7] F32");
}

#[test]
fn states_are_checked() {
    let mut optimizer = decaying();
    run(&mut optimizer, &Parameters::new(start()).unwrap(), 0..2);
    let state = optimizer.state().unwrap();
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut wrong = state.clone();
        change(&mut wrong);
        let mut optimizer = decaying();
        let error = message(optimizer.restore(wrong).unwrap_err());
        assert_eq!((optimizer.steps(), moments(&optimizer).len()), (0, 0));
        error
    };
    let error = changed(&|s| drop(s.remove("step")));
    assert_eq!(error, "adamw: the state holds no `step`");
    let error = changed(&|s| drop(s.insert("step".into(), Tensor::new(&[-1i64], &Device::Cpu).unwrap())));
    assert_eq!(error, "adamw: `step` must be one count, got [-1]");
    let error = changed(&|s| drop(s.remove("exp_avg_sq.one")));
    assert_eq!(error, "adamw: the state holds `exp_avg.one`, but no `exp_avg_sq.one`");
    let error = changed(&|s| drop(s.remove("exp_avg.one")));
    assert!(error.starts_with("adamw: `exp_avg_sq.one` belongs to no state"), "{error}");
    let error = changed(&|s| drop(s.insert("exp_avg.small".into(), normal(&[9], 1))));
    assert_eq!(error, "adamw: the moments of small differ: [9] F32 and [7] F32");
}

#[test]
fn clipping_is_pytorchs() {
    let golden = golden();
    for case in golden["clip"].as_array().unwrap() {
        let maximum = case["max"].as_f64().unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            let mut gradients = tensors(&golden, &case["gradients"], dtype);
            let norm = clip_grad_norm(&mut gradients, maximum).unwrap();
            assert!((norm - case["norm"].as_f64().unwrap()).abs() < tolerance * norm, "{norm}");
            for (name, expected) in tensors(&golden, &case["clipped"], DType::F64) {
                assert!(worst(&gradients[&name], &expected) < tolerance, "{name} at {maximum}");
            }
        }
    }
}

#[test]
fn the_norm_spans_all_gradients() {
    let mut gradients = start();
    let total: f32 =
        gradients.values().map(|g| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sum();
    let norm = clip_grad_norm(&mut gradients, f64::INFINITY).unwrap();
    assert!((norm / f64::from(total).sqrt() - 1.).abs() < 1e-5);
    assert_eq!(bits(&gradients), bits(&start()));
    assert!((clip_grad_norm(&mut gradients, 1.).unwrap() - norm).abs() < 1e-12);
    assert!((clip_grad_norm(&mut gradients, 5.).unwrap() - 1.).abs() < 1e-5);
    assert_eq!(clip_grad_norm(&mut Tensors::new(), 1.).unwrap(), 0.);
    // Squares that f32 cannot hold.
    let mut huge = named([("a", Tensor::new(&[1e30f32, 0.], &Device::Cpu).unwrap())]);
    assert!((clip_grad_norm(&mut huge, 1.).unwrap() / 1e30 - 1.).abs() < 1e-6);
}

#[test]
fn gradients_that_are_not_finite_are_named() {
    let mut gradients = start();
    for wrong in [f32::NAN, f32::INFINITY] {
        gradients.insert("small".into(), Tensor::new(&[1., wrong], &Device::Cpu).unwrap());
        let error = message(clip_grad_norm(&mut gradients, 1.).unwrap_err());
        assert_eq!(error, "clip_grad_norm: 1 of 3 gradients hold NaN or infinity: small");
    }
    let error = message(clip_grad_norm(&mut start(), 0.).unwrap_err());
    assert_eq!(error, "clip_grad_norm: the largest norm must be positive, got 0");
}

#[test]
fn schedules_are_those_of_transformers_after_the_warm_up() {
    for case in golden()["schedules"].as_array().unwrap() {
        let schedule: Schedule = serde_json::from_value(serde_json::json!({
            "shape": case["shape"], "peak": case["peak"], "warmup": case["warmup"], "total": case["total"], "floor": case["floor"],
        }))
        .unwrap();
        schedule.check().unwrap();
        let warmup = schedule.warmup;
        for (step, expected) in floats(&case["rates"]).into_iter().enumerate() {
            // Theirs is one step behind while it rises.
            let ours = if (step as u64) < warmup { step.checked_sub(1) } else { Some(step) };
            let ours = ours.map_or(0., |step| schedule.rate(step as u64));
            assert!(
                (ours - expected).abs() < 1e-12 * schedule.peak,
                "{schedule:?} at {step}: {ours} {expected}"
            );
        }
        assert_eq!(schedule.rate(warmup), schedule.peak);
        let last = if schedule.shape == Shape::Constant { schedule.peak } else { schedule.floor };
        for step in [schedule.total, schedule.total + 1, u64::MAX] {
            assert!((schedule.rate(step) - last).abs() < 1e-18, "{schedule:?} at {step}");
        }
    }
}

#[test]
fn schedules_are_checked() {
    let good = Schedule { peak: 1e-3, warmup: 2, total: 10, floor: 0., shape: Shape::Cosine };
    let error = |schedule: Schedule| schedule.check().unwrap_err().to_string();
    assert_eq!(error(Schedule { peak: 0., ..good }), "schedule: the peak rate must be above 0, got 0");
    assert_eq!(
        error(Schedule { peak: f64::NAN, ..good }),
        "schedule: the peak rate must be above 0, got NaN"
    );
    assert_eq!(
        error(Schedule { floor: 2e-3, ..good }),
        "schedule: the floor must be from 0 to the peak 0.001, got 0.002"
    );
    assert_eq!(
        error(Schedule { warmup: 11, ..good }),
        "schedule: 11 steps of warm-up do not fit into a run of 10; set warmup to at most that"
    );
    // All warm-up: the last step has the peak.
    assert_eq!(Schedule { warmup: 10, ..good }.rate(9), 1e-3);
}
