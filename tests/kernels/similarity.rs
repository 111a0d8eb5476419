//! Similarity of many pairs: the kernels and the fused CPU form against the composed twin.

use candle_core::{DType, Tensor, Var};
use msjoe::ops::kernels::attention::LITTLE_ROOM;
use msjoe::ops::kernels::similarity::{Pairs, backward, forward};
use msjoe::ops::kernels::{Element, offsets};
use msjoe::ops::similarity::{Pair, composed, similarity, split};

use super::emulator::{error, run, schedule};
use super::{DTYPES, judge};
use crate::gradcheck::{gradcheck, noise};
use crate::nn::normal;

struct Case {
    counts: &'static [(usize, usize)],
    width: usize,
    scale: f64,
    size: f64,
}

const CASES: [Case; 6] = [
    Case { counts: &[(1, 3)], width: 16, scale: 1.0, size: 1.0 },
    Case { counts: &[(8, 130), (1, 1), (3, 0), (5, 7), (4, 33), (2, 128)], width: 64, scale: 1.0, size: 1.0 },
    Case { counts: &[(16, 70), (1, 3), (9, 257)], width: 72, scale: 100.0, size: 1.0 },
    Case { counts: &[(17, 20), (40, 5), (2, 129)], width: 24, scale: 1.0, size: 0.001 },
    // More queries than a block's shared memory takes on any device.
    Case { counts: &[(80, 9), (33, 130), (2, 3)], width: 768, scale: 1.0, size: 1.0 },
    Case { counts: &[(4, 129), (2, 0), (1, 5)], width: 768, scale: 0.5, size: 30.0 },
];

impl Case {
    fn pairs(&self) -> Vec<Pair> {
        self.counts.iter().map(|&(queries, frames)| Pair { queries, frames }).collect()
    }

    /// Queries and frames, representable in `dtype`, and a gradient of the result.
    fn inputs(&self, dtype: DType, seed: u64) -> [Tensor; 3] {
        let (queries, frames) = self.counts.iter().fold((0, 0), |(q, t), pair| (q + pair.0, t + pair.1));
        let of = |rows: usize, seed| {
            (normal(&[rows, self.width], seed) * self.size).unwrap().to_dtype(dtype).unwrap()
        };
        let values = self.counts.iter().map(|(q, t)| q * t).sum();
        [of(queries, seed), of(frames, seed + 1), normal(&[values], seed + 2)]
    }

    /// The twin's result, and the gradients of queries and frames.
    fn twin(&self, [q, f, grad]: &[Tensor; 3], dtype: DType) -> [Tensor; 3] {
        let vars = [q, f].map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap());
        let out = composed(vars[0].as_tensor(), vars[1].as_tensor(), &self.pairs(), self.scale).unwrap();
        gradients(out, grad, &vars)
    }

    fn kernels(&self, [q, f, grad]: &[Tensor; 3]) -> [Tensor; 3] {
        let pairs = Pairs {
            element: Element::of("similarity", q.dtype()).unwrap(),
            width: self.width,
            query_offsets: offsets("similarity", self.counts.iter().map(|pair| pair.0)).unwrap(),
            frame_offsets: offsets("similarity", self.counts.iter().map(|pair| pair.1)).unwrap(),
            scale: self.scale as f32,
        };
        let (queries, frames) = (q.dim(0).unwrap(), f.dim(0).unwrap());
        let first = run(&forward(&pairs, queries, frames).unwrap(), &[q, f]);
        let [out, inverse] = first.try_into().unwrap();
        let program = backward(&pairs, queries, frames).unwrap();
        assert!(program.launches.iter().all(|launch| launch.shared <= LITTLE_ROOM));
        let [dq, df] = run(&program, &[q, f, &inverse, &out, grad]).try_into().unwrap();
        [out, dq, df]
    }
}

fn gradients(out: Tensor, grad: &Tensor, vars: &[Var; 2]) -> [Tensor; 3] {
    let loss = (&out * grad.to_dtype(out.dtype()).unwrap()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    let [dq, df] = vars.each_ref().map(|var| grads.get(var).unwrap().clone());
    [out.detach(), dq, df]
}

#[test]
fn similarity_equals_its_twin() {
    for dtype in DTYPES {
        for (i, case) in CASES.iter().enumerate() {
            let inputs = case.inputs(dtype, 10 * i as u64);
            let truth = case.twin(&inputs, DType::F64);
            let reference = (dtype != DType::F32).then(|| case.twin(&inputs, dtype));
            schedule(i as u32);
            for (at, found) in case.kernels(&inputs).iter().enumerate() {
                let what = format!("case {i}, result {at}, {dtype:?}");
                // The similarities themselves are f32 whatever comes in.
                let reference = reference.as_ref().filter(|_| at > 0).map(|r| &r[at]);
                judge(&what, found, &truth[at], reference, 2e-6, 0.0);
            }
        }
    }
}

#[test]
fn the_fused_form_equals_its_twin() {
    for (i, case) in CASES.iter().enumerate() {
        let inputs = case.inputs(DType::F32, 300 + 10 * i as u64);
        let truth = case.twin(&inputs, DType::F64);
        let vars = [0, 1].map(|i| Var::from_tensor(&inputs[i]).unwrap());
        let out = similarity(vars[0].as_tensor(), vars[1].as_tensor(), &case.pairs(), case.scale).unwrap();
        for (found, truth) in gradients(out, &inputs[2], &vars).iter().zip(&truth) {
            assert!(error(found, truth, 0.0) < 2e-6, "case {i}");
        }
    }
}

#[test]
fn the_twin_equals_finite_differences() {
    let pairs = [(2, 3), (1, 0), (3, 4)].map(|(queries, frames)| Pair { queries, frames });
    let inputs = [noise(&[6, 5], 1), noise(&[7, 5], 2)];
    assert!(gradcheck(&inputs, |x| similarity(&x[0], &x[1], &pairs, 3.0)) < 1e-8);
}

/// The matrices of all pairs are those of each pair.
#[test]
fn a_batch_equals_its_pairs() {
    let case = &CASES[1];
    let [queries, frames, _] = case.inputs(DType::F32, 9);
    let all = similarity(&queries, &frames, &case.pairs(), 1.0).unwrap();
    let (mut query, mut frame) = (0, 0);
    for (matrix, pair) in split(&all, &case.pairs()).unwrap().iter().zip(case.pairs()) {
        let q = queries.narrow(0, query, pair.queries).unwrap();
        let f = frames.narrow(0, frame, pair.frames).unwrap();
        (query, frame) = (query + pair.queries, frame + pair.frames);
        assert_eq!(matrix.dims(), [pair.queries, pair.frames]);
        if pair.frames > 0 {
            assert!(error(matrix, &msjoe::similarity::similarity(&q, &f).unwrap(), 0.0) < 1e-6);
        }
    }
}

/// A zero vector has similarity 0 with everything; one like another has the scale, and never more.
#[test]
fn zero_and_equal_vectors() {
    let q = Tensor::new(&[[1f32, 2., 3., 4., 5., 6., 7., 8.], [0.; 8]], &candle_core::Device::Cpu).unwrap();
    let f = Tensor::cat(&[(q.narrow(0, 0, 1).unwrap() * 2.0).unwrap(), (&q * -1.0).unwrap()], 0).unwrap();
    let case = Case { counts: &[(2, 3)], width: 8, scale: 3.0, size: 1.0 };
    let grad = Tensor::ones(6, DType::F32, q.device()).unwrap();
    let [out, dq, df] = case.kernels(&[q, f, grad]);
    let out: Vec<f32> = out.to_vec1().unwrap();
    let expected = [3., -3., 0., 0., 0., 0.];
    assert!(out.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6 && x.abs() <= 3.0), "{out:?}");
    let finite =
        |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite());
    assert!(finite(&dq) && finite(&df));
}
