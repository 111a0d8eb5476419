//! RMS norm, rotary positions and SwiGLU: the kernels against the composed twins and their gradients.

use candle_core::{DType, Result, Tensor, Var};
use msjoe::ops::kernels::layer::{self, Rows, Turn};
use msjoe::ops::norm::rms_norm_composed;
use msjoe::ops::pointwise::swiglu_composed;
use msjoe::ops::rope::rope_composed;

use super::emulator::{run, schedule};
use super::{DTYPES, judge};
use crate::nn::normal;

fn of(dims: &[usize], seed: u64, size: f64, dtype: DType) -> Tensor {
    (normal(dims, seed) * size).unwrap().to_dtype(dtype).unwrap()
}

/// The result of `f` on `inputs` in `dtype`, and their gradients for that of the result.
fn twin<const N: usize>(
    inputs: [&Tensor; N],
    grad: &Tensor,
    dtype: DType,
    f: impl Fn([&Tensor; N]) -> Result<Tensor>,
) -> Vec<Tensor> {
    let vars = inputs.map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap());
    let out = f(vars.each_ref().map(|var| var.as_tensor())).unwrap();
    let loss = (&out * grad.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let gradients = vars.iter().map(|var| grads.get(var).unwrap().clone());
    std::iter::once(out.detach()).chain(gradients).collect()
}

/// Each result against the truth in f64, or against the twin in the same precision.
fn compare(what: &str, dtype: DType, found: &[Tensor], twin: impl Fn(DType) -> Vec<Tensor>) {
    let (truth, reference) = (twin(DType::F64), (dtype != DType::F32).then(|| twin(dtype)));
    assert_eq!(found.len(), truth.len());
    for (at, (found, truth)) in found.iter().zip(&truth).enumerate() {
        let found = found.reshape(truth.shape()).unwrap();
        judge(
            &format!("{what}, result {at}, {dtype:?}"),
            &found,
            truth,
            reference.as_ref().map(|r| &r[at]),
            2e-6,
            0.0,
        );
    }
}

#[test]
fn rms_norm_equals_its_twin() {
    let cases = [(1, 8, 1.0), (9, 3584, 1.0), (130, 40, 0.01), (64, 264, 30.0), (3, 1280, 1.0)];
    for dtype in DTYPES {
        for (i, (rows, width, size)) in cases.into_iter().enumerate() {
            let seed = 10 * i as u64;
            let (x, w) = (of(&[rows, width], seed, size, dtype), of(&[width], seed + 1, 1.0, dtype));
            let grad = of(&[rows, width], seed + 2, 1.0, dtype);
            schedule(i as u32);
            let shape = Rows::of("rms-norm", x.dims(), dtype).unwrap();
            let [out, scales] = run(&layer::rms_norm(&shape, 1e-6).unwrap(), &[&x, &w]).try_into().unwrap();
            let inputs = [&x, &w, &scales, &grad];
            let dx = run(&layer::rms_norm_input_grad(&shape).unwrap(), &inputs).remove(0);
            let dw = run(&layer::rms_norm_weight_grad(&shape).unwrap(), &inputs).remove(0);
            compare(&format!("rms-norm {rows} x {width}"), dtype, &[out, dx, dw], |dtype| {
                twin([&x, &w], &grad, dtype, |[x, w]| rms_norm_composed(x, w, 1e-6))
            });
        }
    }
}

#[test]
fn rope_equals_its_twin() {
    for dtype in DTYPES {
        for (i, dims) in [[1, 1, 16], [33, 4, 64], [70, 3, 80], [5, 28, 128]].iter().enumerate() {
            let seed = 10 * i as u64;
            let (x, grad) = (of(dims, seed, 1.0, dtype), of(dims, seed + 1, 1.0, dtype));
            let angles = of(&[dims[0], dims[2] / 2], seed + 2, 3.0, DType::F32);
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            schedule(i as u32);
            let turned =
                |x: &Tensor, turn| run(&layer::rope(dims, dtype, turn).unwrap(), &[x, &cos, &sin]).remove(0);
            let found = [turned(&x, Turn::Forwards), turned(&grad, Turn::Backwards)];
            compare(&format!("rope {dims:?}"), dtype, &found, |dtype| {
                twin([&x], &grad, dtype, |[x]| {
                    // Half types are turned in f32, as the model does.
                    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
                    let (cos, sin) = (cos.to_dtype(wide)?, sin.to_dtype(wide)?);
                    rope_composed(&x.to_dtype(wide)?, &cos, &sin)?.to_dtype(x.dtype())
                })
            });
        }
    }
}

#[test]
fn swiglu_equals_its_twin() {
    for dtype in DTYPES {
        for (i, (dims, size)) in [([1, 8], 1.0), ([4, 3420], 1.0), ([5, 1024], 20.0)].into_iter().enumerate()
        {
            let seed = 10 * i as u64;
            let [gate, up, grad] = [0, 1, 2].map(|at| of(&dims, seed + at, size, dtype));
            schedule(i as u32);
            // All values as one row: 3,420 of the vision tower's make no pieces of 16 bytes.
            let shape = Rows::of("swiglu", &[dims[0] * dims[1]], dtype).unwrap();
            let out = run(&layer::swiglu(&shape).unwrap(), &[&gate, &up]).remove(0);
            let grads = run(&layer::swiglu_backward(&shape).unwrap(), &[&gate, &up, &grad]);
            let found: Vec<Tensor> = std::iter::once(out).chain(grads).collect();
            compare(&format!("swiglu {dims:?}"), dtype, &found, |dtype| {
                twin([&gate, &up], &grad, dtype, |[gate, up]| swiglu_composed(gate, up))
            });
        }
    }
}

/// Far from 0 the gate is 0 or the identity, and its gradient stays finite.
#[test]
fn a_gate_of_any_size() {
    let values = [-3e4f32, -200., -90., -20., 20., 90., 200., 3e4];
    let gate = Tensor::new(&[values], &candle_core::Device::Cpu).unwrap();
    let ones = gate.ones_like().unwrap();
    let shape = Rows::of("swiglu", gate.dims(), DType::F32).unwrap();
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let out = flat(&run(&layer::swiglu(&shape).unwrap(), &[&gate, &ones]).remove(0));
    let slope = flat(&run(&layer::swiglu_backward(&shape).unwrap(), &[&gate, &ones, &ones]).remove(0));
    for ((x, y), slope) in values.into_iter().zip(out).zip(slope) {
        let expected = if x > 0.0 { [x, 1.0] } else { [0.0, 0.0] };
        assert!(
            (y - expected[0]).abs() <= 1e-6 * x.abs() && (slope - expected[1]).abs() < 1e-6,
            "{x}: {y} {slope}"
        );
    }
}
