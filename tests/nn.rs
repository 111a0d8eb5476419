//! Fused operations against their composed twins (forward and backward), and the twins against finite differences.

use candle_core::{DType, Device, Result, Tensor, Var};
use msjoe::ops::attention::{Mask, Segments, attention, attention_composed};
use msjoe::ops::attention_cached::{CachedKeys, attention_cached, composed};
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
    let (x, w, b) = (normal(&[19, 40], 5), normal(&[24, 40], 6), normal(&[24], 7));
    same("linear", &[x, w, b], &|v| linear::linear(&v[0], &v[1], &v[2]), &|v| {
        linear::linear_composed(&v[0], &v[1], &v[2])
    });
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
