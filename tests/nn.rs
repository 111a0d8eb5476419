//! Fused operations against their composed twins (forward and backward), and the twins against finite differences.

use candle_core::{DType, Device, Result, Tensor, Var};
use msjoe::ops::attention::{Mask, Segments, attention, attention_composed};
use msjoe::ops::attention_cached::{CachedKeys, attention_cached, composed};
use msjoe::ops::vjp::vjp;
use msjoe::ops::{linear, norm, pointwise, rope};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Normal numbers from a seed.
pub fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
            (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// ||a - b|| / ||b||.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let sum = |x: Tensor| {
        x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    (sum((a - b).unwrap()) / sum(b.clone()).max(1e-30)).sqrt()
}

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Forward and all gradients of two forms of one operation.
fn same(name: &str, inputs: &[Tensor], fused: Op, twin: Op) {
    let run = |op: Op| {
        let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = op(&tensors).unwrap();
        let weight = normal(y.dims(), 99);
        let grads = (&y * weight).unwrap().sum_all().unwrap().backward().unwrap();
        let grads: Vec<Tensor> = vars.iter().map(|v| grads.get(v).expect("a gradient").clone()).collect();
        (y, grads)
    };
    let ((y, grads), (y_twin, grads_twin)) = (run(fused), run(twin));
    let error = relative(&y, &y_twin);
    assert!(error < 2e-6, "{name}: forward differs by {error:.1e}");
    // Some gradients are exactly zero (a softmax over one key), so they are measured against the largest of them.
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let scale = grads_twin.iter().map(norm).fold(0.0, f32::max);
    for (i, (g, t)) in grads.iter().zip(&grads_twin).enumerate() {
        let error = norm(&(g - t).unwrap()) / scale;
        assert!(error < 5e-6, "{name}: gradient {i} differs by {error:.1e}");
    }
}

#[test]
fn pointwise_and_norms_equal_their_twins() {
    let (x, y) = (normal(&[37, 96], 1), normal(&[37, 96], 2));
    let (w, b) = (normal(&[96], 3), normal(&[96], 4));
    let big = (&x * 30.0).unwrap();
    same("quick_gelu", std::slice::from_ref(&big), &|v| pointwise::quick_gelu(&v[0]), &|v| {
        pointwise::quick_gelu_composed(&v[0])
    });
    same("swiglu", &[big, y], &|v| pointwise::swiglu(&v[0], &v[1]), &|v| {
        pointwise::swiglu_composed(&v[0], &v[1])
    });
    same("rms_norm", &[x.clone(), w.clone()], &|v| norm::rms_norm(&v[0], &v[1], 1e-6), &|v| {
        norm::rms_norm_composed(&v[0], &v[1], 1e-6)
    });
    let shifted = (&x + 3.0).unwrap();
    same("layer_norm", &[shifted, w, b], &|v| norm::layer_norm(&v[0], &v[1], &v[2], 1e-5), &|v| {
        norm::layer_norm_composed(&v[0], &v[1], &v[2], 1e-5)
    });
    let (a, b) = (normal(&[5, 7], 9), normal(&[5, 7], 10));
    same("add", &[a, b], &|v| pointwise::add(&v[0], &v[1]), &|v| &v[0] + &v[1]);
}

/// Rows, width in and width out: one row, few, many, several threads' worth; widths that fill no vector.
#[test]
fn affine_maps_equal_their_twins() {
    let shapes = [
        (19, 40, 24),
        (1, 33, 1),
        (1, 700, 401),
        (2, 5, 17),
        (3, 1, 3),
        (4, 64, 150),
        (7, 64, 150),
        (16, 515, 330),
        (17, 515, 330),
        (300, 33, 70),
    ];
    for (m, k, n) in shapes {
        let (x, w, b) = (normal(&[m, k], 5), normal(&[n, k], 6), normal(&[n], 7));
        let name = |op: &str| format!("{op} ({m}, {k}) ({n}, {k})");
        same(&name("linear"), &[x.clone(), w.clone(), b], &|v| linear::linear(&v[0], &v[1], &v[2]), &|v| {
            linear::linear_composed(&v[0], &v[1], &v[2])
        });
        let plain: Op = &|v| linear::linear_no_bias(&v[0], &v[1]);
        same(&name("linear_no_bias"), &[x.clone(), w.clone()], plain, &|v| {
            linear::linear_no_bias_composed(&v[0], &v[1])
        });
        let base = normal(&[m, n], 8);
        let onto: Op = &|v| linear::linear_onto(&v[0], &v[1], &v[2], 0.7);
        same(&name("linear_onto"), &[base, x, w], onto, &|v| {
            linear::linear_onto_composed(&v[0], &v[1], &v[2], 0.7)
        });
    }
}

/// A weight that is laid out column by column: few rows and many, with and without bias, and what an adapter adds to.
#[test]
fn a_weight_laid_out_for_many_rows_is_the_same_map() {
    let (weight, bias) = (normal(&[70, 33], 3), normal(&[70], 4));
    for rows in [1, 4, 16, 65, 300] {
        let x = Var::from_tensor(&normal(&[rows, 33], 5)).unwrap();
        for bias in [None, Some(bias.clone())] {
            let plain = msjoe::nn::Linear::new(weight.clone(), bias.clone());
            let turned = plain.clone().for_many_rows().unwrap();
            assert!(!turned.weight().is_contiguous() && turned.weight().dims() == [70, 33]);
            let run = |map: &msjoe::nn::Linear| {
                let y = map.forward(x.as_tensor()).unwrap();
                let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                (y, grads.get(&x).unwrap().clone())
            };
            let ((y, dx), (y_plain, dx_plain)) = (run(&turned), run(&plain));
            assert!(relative(&y, &y_plain) < 2e-6 && relative(&dx, &dx_plain) < 2e-6, "{rows} rows");
        }
        let base = normal(&[rows, 70], 6);
        let turned = weight.t().unwrap().contiguous().unwrap().t().unwrap();
        let onto = |w: &Tensor| linear::linear_onto(&base, x.as_tensor(), w, 0.5).unwrap();
        assert!(relative(&onto(&turned), &onto(&weight)) < 2e-6, "{rows} rows onto others");
    }
    // What learns stays as it is: an optimizer writes where it lies.
    let learns = Var::from_tensor(&weight).unwrap();
    let map = msjoe::nn::Linear::new(learns.as_tensor().clone(), None).for_many_rows().unwrap();
    assert!(map.weight().is_contiguous());
}

/// Only what learns has a gradient; the others' would stay in memory to the end of the pass. Every subset of operands.
#[test]
fn operations_keep_no_gradient_of_frozen_operands() {
    type Named<'a> = (&'a str, Vec<Tensor>, Op<'a>);
    let segments = Segments::new(&[3, 4]);
    let heads = |seed| normal(&[7, 2, 4], seed);
    let (x, w, b) = (normal(&[7, 4], 1), normal(&[4], 2), normal(&[4], 3));
    let cases: [Named; 9] = [
        ("add", vec![x.clone(), x.clone()], &|v| pointwise::add(&v[0], &v[1])),
        ("swiglu", vec![x.clone(), x.clone()], &|v| pointwise::swiglu(&v[0], &v[1])),
        ("rms_norm", vec![x.clone(), w.clone()], &|v| norm::rms_norm(&v[0], &v[1], 1e-6)),
        ("layer_norm", vec![x.clone(), w, b], &|v| norm::layer_norm(&v[0], &v[1], &v[2], 1e-6)),
        ("linear", vec![x.clone(), normal(&[5, 4], 4), normal(&[5], 5)], &|v| {
            linear::linear(&v[0], &v[1], &v[2])
        }),
        ("linear_no_bias", vec![x.clone(), normal(&[5, 4], 4)], &|v| linear::linear_no_bias(&v[0], &v[1])),
        ("linear_no_bias bf16", vec![x.clone(), normal(&[5, 4], 4)], &|v| {
            let half = |x: &Tensor| x.to_dtype(DType::BF16);
            linear::linear_no_bias(&half(&v[0])?, &half(&v[1])?)
        }),
        ("linear_onto", vec![normal(&[7, 5], 6), x, normal(&[5, 4], 4)], &|v| {
            linear::linear_onto(&v[0], &v[1], &v[2], 2.0)
        }),
        ("attention", vec![heads(1), heads(2), heads(3)], &|v| {
            attention(&v[0], &v[1], &v[2], &segments, Mask::Causal, 0.5)
        }),
    ];
    for (name, inputs, op) in &cases {
        for subset in 1..1usize << inputs.len() {
            let learns = |i: &usize| subset >> i & 1 == 1;
            let tracked: Vec<Tensor> = (inputs.iter().enumerate())
                .map(|(i, x)| if learns(&i) { Var::from_tensor(x).unwrap().into_inner() } else { x.clone() })
                .collect();
            let grads = op(&tracked).unwrap().sum_all().unwrap().backward().unwrap();
            let wanted = (0..inputs.len()).filter(learns).count();
            assert_eq!(grads.get_ids().count(), wanted, "{name}, subset {subset:b}");
            assert!((0..inputs.len()).filter(learns).all(|i| grads.get(&tracked[i]).is_some()), "{name}");
        }
    }
}

#[test]
fn vjp_equals_a_weighted_sum_and_refuses_misfits() {
    let (x, g) = (Var::from_tensor(&normal(&[4, 3], 1)).unwrap(), normal(&[4, 3], 2));
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let y = x.as_tensor().to_dtype(dtype).unwrap().sqr().unwrap();
        let g = g.to_dtype(dtype).unwrap();
        let grads = vjp(&y, &g).unwrap();
        let twin = (&y * &g).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get_ids().count(), 1);
        assert_eq!(relative(grads.get(&x).unwrap(), twin.get(&x).unwrap()), 0.0, "{dtype:?}");
    }
    let y = x.as_tensor().sqr().unwrap();
    let error = vjp(&y, &g.t().unwrap()).map(drop).unwrap_err().to_string();
    assert!(error.contains("[4, 3]") && error.contains("[3, 4]"), "{error}");
    assert_eq!(vjp(&y.detach(), &g).unwrap().get_ids().count(), 0);
}

/// Several segments may continue one: the same as each of them behind a copy of it.
#[test]
fn shared_prefixes_equal_copies() {
    let lengths = [5, 3, 1, 70, 4, 6];
    let prefixes = [None, Some(0), Some(0), None, Some(3), Some(0)];
    let segments = Segments::continuing(&lengths, &prefixes).unwrap();
    let starts = segments.starts().to_vec();
    let inputs = [normal(&[89, 6, 8], 1), normal(&[89, 2, 8], 2), normal(&[89, 2, 8], 3)];
    for mask in [Mask::Causal, Mask::Full] {
        let fused: Op = &|v| attention(&v[0], &v[1], &v[2], &segments, mask, 0.4);
        same("shared prefix", &inputs, fused, &|v| {
            attention_composed(&v[0], &v[1], &v[2], &segments, mask, 0.4)
        });
    }
    // Unshared: prefix and tail as one sequence; the tail's rows come out.
    let fused: Op = &|v| attention(&v[0], &v[1], &v[2], &segments, Mask::Causal, 0.4);
    same("unshared prefix", &inputs, fused, &|v| {
        let rows = (0..lengths.len()).map(|i| {
            let rows = |x: &Tensor, i: usize| x.narrow(0, starts[i], lengths[i]);
            let whole = |x: &Tensor| match prefixes[i] {
                Some(prefix) => Tensor::cat(&[rows(x, prefix)?, rows(x, i)?], 0),
                None => rows(x, i),
            };
            let q = whole(&v[0])?;
            let alone = Segments::new(&[q.dim(0)?]);
            let out = attention_composed(&q, &whole(&v[1])?, &whole(&v[2])?, &alone, Mask::Causal, 0.4)?;
            out.narrow(0, q.dim(0)? - lengths[i], lengths[i])
        });
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    });
    for prefixes in [vec![None], vec![None, Some(1)], vec![None, Some(0), Some(1)], vec![Some(0)]] {
        let error = Segments::continuing(&vec![2; prefixes.len().max(2)], &prefixes).unwrap_err().to_string();
        assert!(error.contains("segments: "), "{error}");
    }
}

/// Large enough that the parallel path is taken.
#[test]
fn parallel_rows_equal_the_twins() {
    let (x, w) = (normal(&[301, 320], 1), normal(&[320], 2));
    same("rms_norm", &[x.clone(), w], &|v| norm::rms_norm(&v[0], &v[1], 1e-6), &|v| {
        norm::rms_norm_composed(&v[0], &v[1], 1e-6)
    });
    same("quick_gelu", &[x], &|v| pointwise::quick_gelu(&v[0]), &|v| pointwise::quick_gelu_composed(&v[0]));
}

#[test]
fn rope_equals_its_twin() {
    let angles = normal(&[133, 8], 3);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let x = normal(&[133, 12, 16], 1);
    same("rope", &[x], &|v| rope::rope(&v[0], &cos, &sin), &|v| rope::rope_composed(&v[0], &cos, &sin));
}

#[test]
fn attention_equals_its_twin() {
    let lengths: [&[usize]; 4] = [&[1], &[64], &[5, 0, 17, 17, 1], &[130, 65, 63, 257]];
    for lengths in lengths {
        for (heads, kv, width) in [(4, 4, 16), (6, 2, 20), (3, 1, 8)] {
            for mask in [Mask::Full, Mask::Causal] {
                let segments = Segments::new(lengths);
                let l = segments.total();
                let inputs =
                    [normal(&[l, heads, width], 1), normal(&[l, kv, width], 2), normal(&[l, kv, width], 3)];
                same(
                    &format!("attention {lengths:?} {heads}/{kv} x {width} {mask:?}"),
                    &inputs,
                    &|v| attention(&v[0], &v[1], &v[2], &segments, mask, 0.7),
                    &|v| attention_composed(&v[0], &v[1], &v[2], &segments, mask, 0.7),
                );
            }
        }
    }
}

/// Scores of hundreds: the softmax must subtract the maximum.
#[test]
fn attention_survives_large_logits() {
    let segments = Segments::new(&[40]);
    let q = (normal(&[40, 2, 16], 1) * 40.0).unwrap();
    let (k, v) = ((normal(&[40, 2, 16], 2) * 40.0).unwrap(), normal(&[40, 2, 16], 3));
    let fused = attention(&q, &k, &v, &segments, Mask::Causal, 0.25).unwrap();
    let twin = attention_composed(&q, &k, &v, &segments, Mask::Causal, 0.25).unwrap();
    assert!(relative(&fused, &twin) < 1e-5);
}

#[test]
fn cached_attention_equals_its_twin_and_the_uncached_form() {
    let (h, kv, d) = (6, 2, 16);
    for (keys, rows) in
        [(vec![9], 1), (vec![70, 5], 5), (vec![130, 0, 80], 70), (vec![9, 300], 260), (vec![3], 3)]
    {
        let total: usize = keys.iter().sum();
        let (k, v) = (normal(&[total, kv, d], 1), normal(&[total, kv, d], 2));
        let q_all = normal(&[total, h, d], 3);
        let q = q_all.narrow(0, total - rows, rows).unwrap();
        let mut start = 0;
        let parts = keys.iter().map(|len| {
            let part = (k.narrow(0, start, *len).unwrap(), v.narrow(0, start, *len).unwrap());
            start += len;
            part
        });
        let sequence = CachedKeys { rows, parts: parts.collect() };
        let two = [sequence.clone(), sequence];
        let q_two = Tensor::cat(&[&q, &q], 0).unwrap();
        let fused = attention_cached(&q_two, &two, 0.3).unwrap();
        assert!(relative(&fused, &composed(&q_two, &two, 0.3).unwrap()) < 2e-6);
        let whole = attention(&q_all, &k, &v, &Segments::new(&[total]), Mask::Causal, 0.3).unwrap();
        let tail = whole.narrow(0, total - rows, rows).unwrap();
        assert!(relative(&fused.narrow(0, 0, rows).unwrap(), &tail) < 2e-6);
        assert!(relative(&fused.narrow(0, rows, rows).unwrap(), &tail) < 2e-6);
    }
}

#[test]
fn misfit_shapes_are_errors_that_name_them() {
    let x = normal(&[4, 2, 8], 1);
    let error = attention(&x, &x, &x, &Segments::new(&[3]), Mask::Full, 1.0).unwrap_err().to_string();
    assert!(error.contains("attention") && error.contains("[4, 2, 8]") && error.contains('3'), "{error}");
    let error =
        linear::linear(&normal(&[2, 3], 1), &normal(&[4, 5], 1), &normal(&[4], 1)).unwrap_err().to_string();
    assert!(error.contains("[2, 3]") && error.contains("[4, 5]"), "{error}");
    let error = rope::rope(&x, &normal(&[4, 3], 1), &normal(&[4, 3], 1)).unwrap_err().to_string();
    assert!(error.contains("rope"), "{error}");
    let var = Var::from_tensor(&x).unwrap();
    let keys = [CachedKeys { rows: 4, parts: vec![(x.clone(), x.clone())] }];
    let error = attention_cached(var.as_tensor(), &keys, 1.0).unwrap_err().to_string();
    assert!(error.contains("gradients"), "{error}");
}
