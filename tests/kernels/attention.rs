//! Attention: the kernels against the composed twin.

use candle_core::{DType, Result, Tensor, Var};
use msjoe::ops::attention::{Mask, Segments, attention_composed};
use msjoe::ops::attention_cached::{CachedKeys, composed};
use msjoe::ops::kernels::Buffer;
use msjoe::ops::kernels::attention::{LITTLE_ROOM, Packing, ROOM, Shape, WIDTHS, backward, forward, padded};
use msjoe::ops::kernels::decode::{Cached, Run, decode};

use super::emulator::{error, run, schedule};
use super::{DTYPES, judge};
use crate::nn::normal;

struct Case {
    name: &'static str,
    segments: Segments,
    mask: Mask,
    heads: (usize, usize),
    /// Of queries and keys.
    size: f64,
}

/// Self-attention of ragged, empty and one-row segments, windows, prefixes, large logits.
fn cases() -> Vec<Case> {
    let case = |name, segments, mask, heads| Case { name, segments, mask, heads, size: 1.0 };
    let prefixes = [None, Some(0), Some(0), None, Some(3), Some(3)];
    let family = Segments::continuing(&[33, 10, 70, 5, 0, 20], &prefixes).unwrap();
    let ragged = Segments::new(&[0, 1, 65, 0, 17, 131]);
    vec![
        case("ragged, causal", ragged, Mask::Causal, (4, 2)),
        case("short, full", Segments::new(&[16, 4, 64, 63, 1, 0, 8]), Mask::Full, (2, 2)),
        case("ragged, full", Segments::new(&[3, 90]), Mask::Full, (3, 1)),
        case("prefixes, causal", family.clone(), Mask::Causal, (4, 2)),
        case("prefixes, full", family, Mask::Full, (2, 1)),
        case("one row", Segments::new(&[1]), Mask::Causal, (7, 1)),
        Case { size: 10.0, ..case("large logits", Segments::new(&[90]), Mask::Causal, (2, 1)) },
    ]
}

struct Inputs {
    /// q, k, v and the gradient of the output, representable in the dtype.
    tensors: [Tensor; 4],
    scale: f64,
}

impl Inputs {
    fn new(case: &Case, width: usize, dtype: DType, seed: u64) -> Self {
        let (rows, (heads, kv_heads)) = (case.segments.total(), case.heads);
        let of = |heads: usize, size: f64, seed| {
            (normal(&[rows, heads, width], seed) * size).unwrap().to_dtype(dtype).unwrap()
        };
        let [q, k] = [(heads, 0), (kv_heads, 1)].map(|(heads, i)| of(heads, case.size, seed + i));
        let tensors = [q, k, of(kv_heads, 1.0, seed + 2), of(heads, 1.0, seed + 3)];
        Self { tensors, scale: (width as f64).powf(-0.5) }
    }

    /// Output and gradients of the twin in `dtype`.
    fn twin(&self, case: &Case, dtype: DType) -> [Tensor; 4] {
        let tensors = self.tensors.each_ref().map(|x| x.to_dtype(dtype).unwrap());
        let vars = [0, 1, 2].map(|i| Var::from_tensor(&tensors[i]).unwrap());
        let [q, k, v] = vars.each_ref().map(|var| var.as_tensor());
        let out = attention_composed(q, k, v, &case.segments, case.mask, self.scale).unwrap();
        let grads = (&out * &tensors[3]).unwrap().sum_all().unwrap().backward().unwrap();
        let [dq, dk, dv] = vars.each_ref().map(|var| grads.get(var).unwrap().clone());
        [out.detach(), dq, dk, dv]
    }

    fn packing(&self, case: &Case) -> (Packing, Shape) {
        let packing = Packing::of(&case.segments, case.mask, self.scale as f32).unwrap();
        (packing, self.shape().unwrap())
    }

    fn shape(&self) -> Result<Shape> {
        let [q, k, v, _] = &self.tensors;
        Shape::new("attention", [q.dims(), k.dims(), v.dims()], q.dtype())
    }

    /// Output and gradients of the kernels that need at most `room`, the backward from the forward's own results.
    fn kernels(&self, case: &Case, room: usize) -> [Tensor; 4] {
        let (packing, shape) = self.packing(case);
        let shape = shape.within(room);
        let [q, k, v, grad] = &self.tensors;
        let programs = [forward(&packing, &shape).unwrap(), backward(&packing, &shape).unwrap()];
        assert!(programs.iter().flat_map(|program| &program.launches).all(|launch| launch.shared <= room));
        let first = run(&programs[0], &[q, k, v]);
        let [out, lse] = first.try_into().unwrap();
        let grads = run(&programs[1], &[q, k, v, &out, grad, &lse]);
        let [dq, dk, dv] = grads.try_into().unwrap();
        [out, dq, dk, dv]
    }
}

fn check(width: usize, dtype: DType, room: usize) {
    for (i, case) in cases().iter().enumerate() {
        let inputs = Inputs::new(case, width, dtype, 10 * i as u64 + width as u64);
        let truth = inputs.twin(case, DType::F64);
        schedule(i as u32);
        let found = inputs.kernels(case, room);
        let reference = (dtype != DType::F32).then(|| inputs.twin(case, dtype));
        let limits = if case.size > 1.0 { (1e-5, 1e-4) } else { (1e-6, 2e-6) };
        for (at, name) in ["output", "dq", "dk", "dv"].into_iter().enumerate() {
            let what = format!("{}, {name}, width {width}, {dtype:?}", case.name);
            let reference = reference.as_ref().map(|r| &r[at]);
            // A softmax over one key has gradients of zero for query and key: they are measured against that of the value.
            let least = 0.1 * norm(&truth[3]);
            judge(&what, &found[at], &truth[at], reference, if at == 0 { limits.0 } else { limits.1 }, least);
        }
    }
}

fn norm(x: &Tensor) -> f64 {
    dot(x, x).sqrt()
}

#[test]
fn attention_equals_its_twin_in_f32() {
    WIDTHS.iter().for_each(|&width| check(width, DType::F32, ROOM));
}

#[test]
fn attention_equals_its_twin_in_bf16() {
    WIDTHS.iter().for_each(|&width| check(width, DType::BF16, ROOM));
}

#[test]
fn attention_equals_its_twin_in_f16() {
    WIDTHS.iter().for_each(|&width| check(width, DType::F16, ROOM));
}

/// On cards that give a block less shared memory, everything but the gradients of f32 heads of 128.
#[test]
fn attention_equals_its_twin_in_little_room() {
    check(128, DType::BF16, LITTLE_ROOM);
    check(128, DType::F16, LITTLE_ROOM);
    check(80, DType::F32, LITTLE_ROOM);
}

/// Heads of other widths, as the small models have, go through the next larger kernel.
#[test]
fn narrow_heads_are_padded() {
    let case = &cases()[0];
    for width in [16, 32, 72] {
        let narrow = Inputs::new(case, width, DType::F32, 5);
        let wide =
            Inputs { tensors: narrow.tensors.each_ref().map(|x| padded(x).unwrap()), scale: narrow.scale };
        assert!(WIDTHS.contains(&wide.tensors[0].dim(2).unwrap()));
        for (found, truth) in wide.kernels(case, ROOM).iter().zip(narrow.twin(case, DType::F64)) {
            let found = found.narrow(2, 0, width).unwrap();
            assert!(error(&found, &truth, 0.0) < 2e-6);
        }
    }
}

/// The loss along random directions, by central differences of the emulated forward itself.
#[test]
fn attention_gradients_equal_finite_differences() {
    let case = &cases()[3];
    let inputs = Inputs::new(case, 64, DType::F32, 77);
    let (packing, shape) = inputs.packing(case);
    let program = forward(&packing, &shape).unwrap();
    let loss = |tensors: &[Tensor; 3]| {
        let out = run(&program, &[&tensors[0], &tensors[1], &tensors[2]]).swap_remove(0);
        dot(&out, &inputs.tensors[3])
    };
    let grads = inputs.kernels(case, ROOM);
    for i in 0..3 {
        let direction = normal(inputs.tensors[i].dims(), 900 + i as u64);
        let moved = |step: f64| {
            let mut tensors = [0, 1, 2].map(|i| inputs.tensors[i].clone());
            tensors[i] = (&tensors[i] + (&direction * step).unwrap()).unwrap();
            loss(&tensors)
        };
        let (h, analytic) = (0.01, dot(&grads[1 + i], &direction));
        let numeric = (moved(h) - moved(-h)) / (2.0 * h);
        assert!((numeric - analytic).abs() < 2e-3 * analytic.abs().max(1.0), "{i}: {numeric} and {analytic}");
    }
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    (wide(a) * wide(b)).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

/// The control: one offset that is wrong by a row must be seen.
#[test]
fn a_wrong_offset_is_caught() {
    let case = &cases()[0];
    let inputs = Inputs::new(case, 64, DType::F32, 3);
    let (packing, shape) = inputs.packing(case);
    let mut program = forward(&packing, &shape).unwrap();
    let [q, k, v, _] = &inputs.tensors;
    let truth = &inputs.twin(case, DType::F64)[0];
    assert!(error(&run(&program, &[q, k, v])[0], truth, 0.0) < 1e-6);
    let lists = program.buffers.iter_mut().filter_map(|buffer| match buffer {
        Buffer::Ints(list) if *list == packing.cu_k => Some(list),
        _ => None,
    });
    // The keys' offsets are the second list of that content.
    lists.skip(1).for_each(|list| list[2] += 1);
    assert!(error(&run(&program, &[q, k, v])[0], truth, 0.0) > 1e-2);
}

struct Cache {
    sequences: Vec<CachedKeys>,
    q: Tensor,
}

impl Cache {
    /// Prefixes that sequences share, and their tails: `(prefix, tails)`, each tail `(keys, new rows)`.
    fn new(
        families: &[(usize, &[(usize, usize)])],
        heads: (usize, usize),
        width: usize,
        dtype: DType,
    ) -> Self {
        let mut seed = 0;
        let mut of = |rows: usize, heads: usize| {
            seed += 1;
            normal(&[rows, heads, width], seed).to_dtype(dtype).unwrap()
        };
        let (mut sequences, mut total) = (vec![], 0);
        for &(prefix, tails) in families {
            let shared = (of(prefix, heads.1), of(prefix, heads.1));
            for &(keys, rows) in tails {
                // As the cache does it: filled rows of a larger buffer.
                let buffers = (of(keys + 7, heads.1), of(keys + 7, heads.1));
                let own = (buffers.0.narrow(0, 0, keys).unwrap(), buffers.1.narrow(0, 0, keys).unwrap());
                sequences.push(CachedKeys { rows, parts: vec![shared.clone(), own] });
                total += rows;
            }
        }
        Self { sequences, q: of(total, heads.0) }
    }

    fn twin(&self, dtype: DType) -> Tensor {
        let to = |x: &Tensor| x.to_dtype(dtype).unwrap();
        let sequences: Vec<CachedKeys> = (self.sequences.iter())
            .map(|s| CachedKeys {
                rows: s.rows,
                parts: s.parts.iter().map(|(k, v)| (to(k), to(v))).collect(),
            })
            .collect();
        composed(&to(&self.q), &sequences, self.scale()).unwrap()
    }

    fn scale(&self) -> f64 {
        (self.q.dim(2).unwrap() as f64).powf(-0.5)
    }

    fn judge(&self, what: &str, found: &Tensor) {
        let dtype = self.q.dtype();
        let reference = (dtype != DType::F32).then(|| self.twin(dtype));
        judge(&format!("{what}, {dtype:?}"), found, &self.twin(DType::F64), reference.as_ref(), 1e-6, 0.0);
    }
}

/// One new row per sequence: keys in pieces, prefixes that several share, groups of one and of seven heads.
#[test]
fn decoding_equals_its_twin() {
    let families: [(usize, &[(usize, usize)]); 3] =
        [(130, &[(5, 1), (1, 1), (70, 1)]), (0, &[(333, 1)]), (64, &[(2, 1), (64, 1)])];
    let many: [(usize, &[(usize, usize)]); 1] = [(200, &[(1, 1); 11])];
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        for (width, multiprocessors) in WIDTHS.into_iter().zip([1, 4, 132]) {
            for (name, families, heads) in [
                ("families", &families[..], (7, 1)),
                ("heads", &families[..], (4, 4)),
                ("many", &many[..], (14, 2)),
            ] {
                schedule(i as u32);
                let cache = Cache::new(families, heads, width, dtype);
                let (pairs, runs) = CachedKeys::distinct(cache.sequences.iter());
                let shared = families.iter().filter(|(prefix, _)| *prefix > 0).count();
                assert_eq!(pairs.len(), shared + cache.sequences.len());
                let inputs: Vec<&Tensor> =
                    std::iter::once(&cache.q).chain(pairs.iter().flat_map(|(k, v)| [k, v])).collect();
                let shape =
                    Shape::new("decode", [inputs[0].dims(), inputs[1].dims(), inputs[2].dims()], dtype)
                        .unwrap();
                let rows = pairs.iter().map(|(k, _)| k.dim(0).unwrap()).collect();
                let scale = cache.scale() as f32;
                let cached = Cached { sequences: runs, rows, scale, multiprocessors };
                let out = run(&decode(&cached, &shape).unwrap(), &inputs).swap_remove(0);
                cache.judge(&format!("{name}, width {width}"), &out);
            }
        }
    }
}

/// The keys are cut so that the device is full, whether one sequence has them or many share them.
#[test]
fn decoding_fills_the_device() {
    let multiprocessors = 132;
    for (sequences, prefix, tail) in [(1, 0, 10_000), (8, 10_000, 64), (16, 8_892, 64)] {
        let own = |i| Run { pair: 1 + i, len: tail };
        let shared = (prefix > 0).then_some(Run { pair: 0, len: prefix });
        let cached = Cached {
            sequences: (0..sequences).map(|i| shared.into_iter().chain([own(i)]).collect()).collect(),
            rows: std::iter::once(prefix).chain(vec![tail; sequences]).collect(),
            scale: 1.0,
            multiprocessors,
        };
        let (q, k) = ([sequences, 28, 128], [tail, 4, 128]);
        let shape = Shape::new("decode", [&q[..], &k[..], &k[..]], DType::BF16).unwrap();
        let program = decode(&cached, &shape).unwrap();
        let decoding = program.launches.iter().filter(|launch| launch.kernel.starts_with("attention_decode"));
        let blocks: u32 = decoding.map(|launch| launch.blocks).sum();
        assert!(
            blocks as usize >= multiprocessors,
            "{blocks} blocks for {sequences} sequences behind {prefix} keys"
        );
    }
}

/// Several new rows per sequence behind what is cached: causal with an offset.
#[test]
fn rows_behind_a_cache_equal_their_twin() {
    let families: [(usize, &[(usize, usize)]); 2] =
        [(60, &[(20, 20), (70, 5)]), (0, &[(1, 1), (65, 65), (90, 0)])];
    for dtype in DTYPES {
        let cache = Cache::new(&families, (4, 2), 80, dtype);
        let (k, v, packing) = CachedKeys::packed(&cache.sequences, cache.scale() as f32).unwrap();
        let shape = Shape::new("attention", [cache.q.dims(), k.dims(), v.dims()], dtype).unwrap();
        let out = run(&forward(&packing, &shape).unwrap(), &[&cache.q, &k, &v]).swap_remove(0);
        cache.judge("rows behind a cache", &out);
    }
}
