//! Log-probabilities from hidden states: against TRL's, the composed twin and finite differences.

use candle_core::{DType, Device, Tensor, Var};
use msjoe::ops::log_prob::{Chunks, TokenLogProbs, log_probs, log_probs_composed, log_probs_in};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::gradcheck::{gradcheck, noise};
use crate::grpo::goldens;
use crate::nn::{normal, relative};
use crate::optim::message;

fn targets(count: usize, vocabulary: u32, seed: u64) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..vocabulary)).collect()
}

fn stacked(result: TokenLogProbs) -> candle_core::Result<Tensor> {
    Tensor::stack(&[result.log_probs, result.entropies], 0)
}

fn host(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn log_probs_and_entropies_are_trls() {
    let flat = |value: &Value| -> Vec<f64> {
        let mut out = vec![];
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            match value {
                Value::Array(values) => open.extend(values.iter().rev()),
                value => out.push(value.as_f64().unwrap()),
            }
        }
        out
    };
    for (file, golden) in goldens() {
        let targets: Vec<u32> = flat(&golden["idx"]).iter().map(|&id| id as u32).collect();
        let logits = flat(&golden["logits"]);
        let width = logits.len() / targets.len();
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6)] {
            let logits = Tensor::from_slice(&logits, (targets.len(), width), &Device::Cpu).unwrap();
            let (hidden, head) =
                (logits.to_dtype(dtype).unwrap(), Tensor::eye(width, dtype, &Device::Cpu).unwrap());
            for (temperature, expected) in golden["logprobs"].as_object().unwrap() {
                let ours = log_probs(&hidden, &head, &targets, temperature.parse().unwrap()).unwrap();
                for (ours, expected) in [(ours.log_probs, "logps"), (ours.entropies, "entropy")] {
                    for (ours, expected) in
                        host(&ours).iter().zip(flat(&golden["logprobs"][temperature][expected]))
                    {
                        assert!(
                            (ours - expected).abs() < tolerance,
                            "{file}: {temperature}, {dtype:?}: {ours} {expected}"
                        );
                    }
                }
                assert!(expected.is_object());
            }
        }
    }
}

/// Result and gradients of hidden states and head, for a loss that reads both results with weights of its own.
fn run(
    hidden: &Tensor,
    head: &Tensor,
    f: impl Fn(&Tensor, &Tensor) -> candle_core::Result<TokenLogProbs>,
) -> [Tensor; 3] {
    let (hidden, head) = (Var::from_tensor(hidden).unwrap(), Var::from_tensor(head).unwrap());
    let result = stacked(f(&hidden, &head).unwrap()).unwrap();
    let weight = normal(result.dims(), 9).to_dtype(result.dtype()).unwrap();
    let grads = (&result * weight).unwrap().sum_all().unwrap().backward().unwrap();
    let grad = |var: &Var| grads.get(var).expect("a gradient").clone();
    [result.detach(), grad(&hidden), grad(&head)]
}

#[test]
fn chunks_of_any_size_equal_the_composed_twin() {
    let (n, d, v) = (37, 19, 101);
    let (hidden, head) = (normal(&[n, d], 1), (normal(&[v, d], 2) * 0.5).unwrap());
    let targets = targets(n, v as u32, 3);
    for dtype in [DType::F32, DType::F64] {
        let (hidden, head) = (hidden.to_dtype(dtype).unwrap(), head.to_dtype(dtype).unwrap());
        let twin = run(&hidden, &head, |h, w| log_probs_composed(h, w, &targets, 0.7));
        for (rows, vocabulary) in [(1, 1), (1, 101), (5, 7), (36, 100), (37, 101), (64, 16), (1000, 1000)] {
            let chunks = Chunks { rows, vocabulary };
            let ours = run(&hidden, &head, |h, w| log_probs_in(h, w, &targets, 0.7, chunks));
            for (what, (ours, twin)) in ["result", "d hidden", "d head"].iter().zip(ours.iter().zip(&twin)) {
                let error = relative(ours, twin);
                let tolerance = if dtype == DType::F64 { 1e-13 } else { 2e-6 };
                assert!(error < tolerance, "{chunks:?}, {dtype:?}: {what} differs by {error:.1e}");
            }
        }
    }
}

/// Larger than the default chunks in both directions, so that the default call crosses their borders.
#[test]
fn the_default_chunks_equal_the_composed_twin() {
    let (n, d, v) = (1100, 8, 4500);
    let (hidden, head) = (normal(&[n, d], 1), normal(&[v, d], 2));
    let targets = targets(n, v as u32, 3);
    let ours = run(&hidden, &head, |h, w| log_probs(h, w, &targets, 1.));
    let twin = run(&hidden, &head, |h, w| log_probs_composed(h, w, &targets, 1.));
    for (ours, twin) in ours.iter().zip(&twin) {
        assert!(relative(ours, twin) < 3e-6, "{:.1e}", relative(ours, twin));
    }
}

#[test]
fn gradients_pass_finite_differences() {
    let targets = targets(5, 11, 4);
    let inputs = [noise(&[5, 3], 1), (noise(&[11, 3], 2) * 2.).unwrap()];
    for chunks in [Chunks { rows: 2, vocabulary: 4 }, Chunks::default()] {
        let error = gradcheck(&inputs, |x| stacked(log_probs_in(&x[0], &x[1], &targets, 1.3, chunks)?));
        assert!(error < 1e-9, "{chunks:?}: {error:.1e}");
    }
    // Each result alone.
    let error = gradcheck(&inputs, |x| Ok(log_probs(&x[0], &x[1], &targets, 1.)?.log_probs));
    assert!(error < 1e-9, "{error:.1e}");
    let error = gradcheck(&inputs, |x| Ok(log_probs(&x[0], &x[1], &targets, 1.)?.entropies));
    assert!(error < 1e-9, "{error:.1e}");
}

#[test]
fn only_what_is_tracked_receives_a_gradient() {
    let (hidden, head, targets) = (normal(&[6, 4], 1), normal(&[9, 4], 2), targets(6, 9, 3));
    for dtype in [DType::F32, DType::F64] {
        let (hidden, head) = (hidden.to_dtype(dtype).unwrap(), head.to_dtype(dtype).unwrap());
        let both = run(&hidden, &head, |h, w| log_probs(h, w, &targets, 1.));
        for tracked_hidden in [true, false] {
            let var = Var::from_tensor(if tracked_hidden { &hidden } else { &head }).unwrap();
            let result = if tracked_hidden {
                log_probs(&var, &head, &targets, 1.)
            } else {
                log_probs(&hidden, &var, &targets, 1.)
            };
            let result = stacked(result.unwrap()).unwrap();
            let weight = normal(result.dims(), 9).to_dtype(dtype).unwrap();
            let grads = (result * weight).unwrap().sum_all().unwrap().backward().unwrap();
            let expected = &both[if tracked_hidden { 1 } else { 2 }];
            assert!(relative(grads.get(&var).unwrap(), expected) < 1e-6);
            assert!(grads.get(&hidden).is_none() && grads.get(&head).is_none());
        }
        let untracked = log_probs(&hidden, &head, &targets, 1.).unwrap();
        assert!(!untracked.log_probs.track_op() && !untracked.entropies.track_op());
    }
}

/// A tracked intermediate, as the last hidden states of a model are.
#[test]
fn gradients_go_on_into_the_model() {
    let (x, w, head) = (normal(&[6, 5], 1), normal(&[4, 5], 2), normal(&[9, 4], 3));
    let targets = targets(6, 9, 3);
    let through = |f: &dyn Fn(&Tensor) -> TokenLogProbs| {
        let w = Var::from_tensor(&w).unwrap();
        let hidden = x.matmul(&w.as_tensor().t().unwrap()).unwrap();
        let loss = stacked(f(&hidden)).unwrap().sqr().unwrap().sum_all().unwrap();
        loss.backward().unwrap().get(&w).unwrap().clone()
    };
    let ours = through(&|hidden| log_probs(hidden, &head, &targets, 1.).unwrap());
    let twin = through(&|hidden| log_probs_composed(hidden, &head, &targets, 1.).unwrap());
    assert!(relative(&ours, &twin) < 2e-6);
}

/// Judged by f64 truth: our error is at most that of the composed form in half precision itself.
#[test]
fn half_precision_is_computed_wide() {
    let (hidden, head) = (normal(&[12, 32], 1), normal(&[70, 32], 2));
    let targets = targets(12, 70, 3);
    let half = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let (hidden, head) = (half(&hidden), half(&head));
    let truth = run(&wide(&hidden), &wide(&head), |h, w| log_probs_composed(h, w, &targets, 1.));
    let ours =
        run(&hidden, &head, |h, w| log_probs_in(h, w, &targets, 1., Chunks { rows: 5, vocabulary: 16 }));
    assert_eq!((ours[0].dtype(), ours[1].dtype(), ours[2].dtype()), (DType::F32, DType::BF16, DType::BF16));
    assert!(relative(&wide(&ours[0]), &truth[0]) < 1e-6);
    for i in [1, 2] {
        // Half of the last bf16 digit.
        let error = relative(&wide(&ours[i]), &truth[i]);
        assert!(error < 3e-3, "gradient {i}: {error:.1e}");
    }
    // A frozen half-precision head under f32 hidden states.
    let f32_hidden = hidden.to_dtype(DType::F32).unwrap();
    let mixed = log_probs(&f32_hidden, &head, &targets, 1.).unwrap();
    assert!(relative(&wide(&stacked(mixed).unwrap()), &truth[0]) < 1e-6);
}

#[test]
fn large_logits_cost_no_digits() {
    let (hidden, head) = ((normal(&[20, 16], 1) * 100.).unwrap(), normal(&[300, 16], 2));
    let targets = targets(20, 300, 3);
    let ours = log_probs_in(&hidden, &head, &targets, 1., Chunks { rows: 7, vocabulary: 64 }).unwrap();
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let twin = log_probs_composed(&wide(&hidden), &wide(&head), &targets, 1.).unwrap();
    assert!(relative(&wide(&ours.log_probs), &twin.log_probs) < 1e-6);
    for (ours, twin) in host(&ours.entropies).iter().zip(host(&twin.entropies)) {
        assert!((ours - twin).abs() < 2e-4 && *ours >= 0., "{ours} {twin}");
    }
    // No information: the entropy is that of the uniform distribution.
    let none = log_probs(&normal(&[3, 16], 1).zeros_like().unwrap(), &head, &[0, 150, 299], 1.).unwrap();
    for value in host(&none.entropies).iter().chain(&host(&none.log_probs.neg().unwrap())) {
        assert!((value - 300f64.ln()).abs() < 1e-6, "{value}");
    }
}

#[test]
fn rows_do_not_depend_on_each_other() {
    let (hidden, head, targets) = (normal(&[9, 24], 1), normal(&[50, 24], 2), targets(9, 50, 3));
    let all = stacked(log_probs(&hidden, &head, &targets, 0.9).unwrap()).unwrap();
    for (row, target) in targets.iter().enumerate() {
        let one = log_probs(&hidden.narrow(0, row, 1).unwrap(), &head, &[*target], 0.9).unwrap();
        assert!(relative(&stacked(one).unwrap(), &all.narrow(1, row, 1).unwrap()) < 1e-6);
    }
    let none = log_probs(&hidden.narrow(0, 0, 0).unwrap(), &head, &[], 1.).unwrap();
    assert_eq!((none.log_probs.dims(), none.entropies.dims()), (&[0usize][..], &[0usize][..]));
}

/// The threads share the work, not the sums.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (hidden, head, targets) = (normal(&[90, 64], 1), normal(&[700, 64], 2), targets(90, 700, 3));
    let bits = |pool: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(pool).build().unwrap();
        let chunks = Chunks { rows: 32, vocabulary: 256 };
        let run = || run(&hidden, &head, |h, w| log_probs_in(h, w, &targets, 1., chunks));
        let values = pool.install(run);
        values.map(|t| host(&t).iter().map(|x| x.to_bits()).collect::<Vec<u64>>())
    };
    assert_eq!(bits(1), bits(3));
}

#[test]
fn misfits_are_errors() {
    let (hidden, head) = (normal(&[2, 4], 1), normal(&[9, 4], 2));
    let error = |hidden: &Tensor, targets: &[u32], temperature: f64| {
        message(log_probs(hidden, &head, targets, temperature).unwrap_err())
    };
    let text = error(&normal(&[2, 5], 1), &[0, 1], 1.);
    assert!(text.contains("hidden [2, 5], head [9, 4] and 2 targets do not fit"), "{text}");
    let text = error(&hidden, &[0], 1.);
    assert!(text.contains("1 targets do not fit"), "{text}");
    assert_eq!(error(&hidden, &[0, 9], 1.), "log-probs: target 1 is 9, outside the vocabulary of 9");
    for temperature in [0., -1., f64::NAN, f64::INFINITY] {
        assert!(error(&hidden, &[0, 1], temperature).contains("the temperature must be positive"));
    }
    let chunks = Chunks { rows: 0, vocabulary: 1 };
    let text = message(log_probs_in(&hidden, &head, &[0, 1], 1., chunks).unwrap_err());
    assert!(text.contains("chunks must hold at least one row"), "{text}");
}
