//! What is refused before any launch.

use candle_core::{DType, Device, Result, Tensor};
use msjoe::ops::attention::{Mask, Segments, attention};
use msjoe::ops::kernels::attention::{LITTLE_ROOM, Packing, Shape, backward, forward, padded};
use msjoe::ops::kernels::capability::{Capability, Release, check, check_driver};
use msjoe::ops::kernels::decode::{Cached, Run, decode};
use msjoe::ops::kernels::layer::{self, Rows, Turn};
use msjoe::ops::kernels::similarity::{self as launches, Pairs};
use msjoe::ops::kernels::{Element, check_same, offsets};
use msjoe::ops::similarity::{Pair, similarity, split};

/// The error says all of `words`.
fn refused<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("accepted, but should have been refused: {words:?}") };
    let error = error.to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error:?} lacks some of {words:?}");
}

fn shape(q: &[usize], k: &[usize], v: &[usize], dtype: DType) -> Result<Shape> {
    Shape::new("attention", [q, k, v], dtype)
}

#[test]
fn attention_shapes() {
    let of = |q: &[usize], k: &[usize]| shape(q, k, k, DType::BF16);
    assert!(of(&[7, 4, 64], &[9, 2, 64]).is_ok());
    refused(of(&[7, 4, 96], &[9, 2, 96]), &["attention", "96", "[7, 4, 96]", "[64, 80, 128]"]);
    refused(of(&[7, 4, 64], &[9, 3, 64]), &["attention", "4 query heads", "3 key heads"]);
    refused(of(&[7, 4, 64], &[9, 0, 64]), &["attention", "0 key heads"]);
    refused(of(&[7, 4, 64], &[9, 2, 80]), &["attention", "[7, 4, 64]", "[9, 2, 80]", "differ"]);
    refused(shape(&[7, 4, 64], &[9, 2, 64], &[8, 2, 64], DType::F32), &["attention", "[8, 2, 64]"]);
    refused(of(&[7, 256], &[9, 2, 64]), &["attention", "(L, H, D)", "[7, 256]"]);
    refused(of(&[0, 4, 64], &[9, 2, 64]), &["attention", "[0, 4, 64]", "no row"]);
    refused(of(&[1 << 30, 4, 64], &[9, 2, 64]), &["attention", "query rows", "2^31"]);
    for dtype in [DType::F64, DType::U8, DType::I64] {
        refused(shape(&[7, 4, 64], &[9, 2, 64], &[9, 2, 64], dtype), &["attention", "f32, bf16 and f16"]);
    }
    refused(
        padded(&Tensor::zeros((3, 2, 160), DType::F32, &Device::Cpu).unwrap()),
        &["160", "[64, 80, 128]"],
    );
}

#[test]
fn layer_shapes() {
    refused(Rows::of("rms-norm", &[3, 12], DType::BF16), &["rms-norm", "12", "BF16", "pieces of 16 bytes"]);
    refused(Rows::of("swiglu", &[3, 0], DType::F32), &["swiglu", "a last axis of 0"]);
    refused(Rows::of("swiglu", &[3, 8], DType::F64), &["swiglu", "f32, bf16 and f16"]);
    refused(
        Rows::of("rms-norm", &[1 << 20, 1 << 12, 8], DType::F32),
        &["rms-norm", "4294967296 rows", "2^31"],
    );
    assert!(
        Rows::of("rms-norm", &[8], DType::BF16).is_ok() && Rows::of("rms-norm", &[2, 4], DType::F32).is_ok()
    );
    let rope = |dims: &[usize], dtype| layer::rope(dims, dtype, Turn::Forwards);
    refused(rope(&[3, 8], DType::F32), &["rope", "(L, H, D)", "[3, 8]"]);
    refused(rope(&[3, 2, 24], DType::BF16), &["rope", "24", "halves"]);
    refused(rope(&[3, 2, 24], DType::F64), &["rope", "f32, bf16 and f16"]);
    assert!(rope(&[3, 2, 24], DType::F32).is_ok());
    let huge = Rows::of("swiglu", &[1 << 21, 1 << 14], DType::F32).unwrap();
    refused(layer::swiglu(&huge), &["swiglu", "pieces of 16 bytes", "2^31"]);
}

#[test]
fn attention_offsets() {
    let shape = shape(&[7, 4, 64], &[9, 2, 64], &[9, 2, 64], DType::BF16).unwrap();
    let good = Packing {
        cu_q: vec![0, 3, 7],
        cu_k: vec![0, 9, 9],
        prefixes: vec![],
        mask: Mask::Causal,
        scale: 0.125,
    };
    assert!(forward(&good, &shape).is_ok() && backward(&good, &shape).is_ok());
    let bad = |change: &dyn Fn(&mut Packing), words: &[&str]| {
        let mut packing = good.clone();
        change(&mut packing);
        refused(forward(&packing, &shape), words);
        refused(backward(&packing, &shape), words);
    };
    bad(&|p| p.cu_q = vec![0, 5, 3, 7], &["attention", "query offsets", "decrease from 5 to 3"]);
    bad(&|p| p.cu_q = vec![0, 3, 8], &["query offsets", "end at 8", "7 rows"]);
    bad(&|p| p.cu_k = vec![0, 9, 10], &["key offsets", "end at 10", "9 rows"]);
    bad(&|p| p.cu_k = vec![1, 9, 9], &["key offsets", "begin at 1"]);
    bad(&|p| p.cu_q = vec![-1, 3, 7], &["query offsets", "begin at -1"]);
    bad(&|p| p.cu_q = vec![0], &["query offsets", "no segment"]);
    bad(&|p| p.cu_q = vec![], &["query offsets", "no segment"]);
    bad(&|p| p.cu_k = vec![0, 4, 5, 9], &["2 segments of queries", "3 of keys"]);
    bad(&|p| p.prefixes = vec![-1], &["1 prefixes", "2 segments"]);
    bad(&|p| p.prefixes = vec![-1, 2], &["segment 1", "segment 2"]);
    bad(&|p| p.prefixes = vec![-1, 1], &["segment 1 of 2 continues segment 1"]);
    bad(&|p| p.prefixes = vec![1, 0], &["segment 0 of 2 continues segment 1"]);
    bad(&|p| p.prefixes = vec![-2, -1], &["segment 0", "segment -2"]);
    bad(&|p| p.prefixes = vec![1, -1], &["segment 0 of 2 continues segment 1", "an earlier one"]);
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        bad(&|p| p.scale = scale, &["attention", "scale"]);
    }
    refused(Packing::of(&Segments::new(&[1 << 31]), Mask::Full, 1.0), &["attention", "rows", "2^31"]);
    let none = Packing::of(&Segments::new(&[]), Mask::Full, 1.0).unwrap();
    refused(forward(&none, &shape), &["attention", "no segment"]);
}

/// A sequence among others may be empty, all of them may not.
#[test]
fn attention_of_nothing() {
    let of = |rows: usize, lengths: &[usize]| {
        let x = Tensor::zeros((rows, 2, 8), DType::F32, &Device::Cpu).unwrap();
        attention(&x, &x, &x, &Segments::new(lengths), Mask::Full, 1.0)
    };
    assert_eq!(of(3, &[0, 3, 0]).unwrap().dims(), [3, 2, 8]);
    refused(of(0, &[]), &["attention", "[0, 2, 8]", "0 segments", "no row", "expected one at least"]);
    refused(of(0, &[0, 0]), &["attention", "2 segments", "no row"]);
}

/// Before the first launch, not when the last of several comes.
#[test]
fn shared_memory() {
    let dims: &[usize] = &[7, 4, 128];
    let of = |dtype| {
        let packing = Packing::of(&Segments::new(&[7]), Mask::Causal, 1.0).unwrap();
        backward(&packing, &shape(dims, dims, dims, dtype).unwrap().within(LITTLE_ROOM)).unwrap()
    };
    let (wide, half) = (of(DType::F32), of(DType::BF16));
    assert!(half.check_shared(&[0; 3], LITTLE_ROOM, &[dims]).is_ok());
    let words = ["attention backward", "[7, 4, 128]", "attention_backward_q_f32_128", "101632", "101376"];
    refused(wide.check_shared(&[0; 3], LITTLE_ROOM, &[dims]), &words);
    refused(half.check_shared(&[0, 40_000, 0], LITTLE_ROOM, &[dims]), &["attention_backward_q_bf16_128_32"]);
}

#[test]
fn decoding() {
    let of = |q: &[usize], k: &[usize]| shape(q, k, k, DType::F16).unwrap();
    let cached = |scale| Cached {
        sequences: vec![vec![Run { pair: 0, len: 9 }]],
        rows: vec![9],
        scale,
        multiprocessors: 1,
    };
    assert!(decode(&cached(1.0), &of(&[1, 64, 64], &[9, 1, 64])).is_ok());
    let many = of(&[1, 65, 64], &[9, 1, 64]);
    refused(decode(&cached(1.0), &many), &["cache", "65 query heads", "up to 64"]);
    let two = of(&[2, 4, 64], &[9, 2, 64]);
    refused(decode(&cached(1.0), &two), &["cache", "1 sequences", "2 rows"]);
    let runs = |pair, len| Cached { sequences: vec![vec![Run { pair, len }]], ..cached(1.0) };
    let one = of(&[1, 4, 64], &[9, 2, 64]);
    refused(decode(&runs(0, 10), &one), &["cache", "sequence 0", "10 rows", "pair 0", "has 9"]);
    refused(decode(&runs(1, 9), &one), &["cache", "sequence 0", "pair 1", "1 pairs"]);
    refused(decode(&cached(0.0), &of(&[1, 4, 64], &[9, 2, 64])), &["cache", "scale"]);
}

#[test]
fn similarity_launches() {
    let good = Pairs {
        element: Element::F32,
        width: 16,
        query_offsets: vec![0, 2, 3],
        frame_offsets: vec![0, 0, 5],
        scale: 1.0,
    };
    assert!(launches::forward(&good, 3, 5).is_ok() && launches::backward(&good, 3, 5).is_ok());
    let bad = |change: &dyn Fn(&mut Pairs), words: &[&str]| {
        let mut pairs = good.clone();
        change(&mut pairs);
        refused(launches::forward(&pairs, 3, 5), words);
        refused(launches::backward(&pairs, 3, 5), words);
    };
    bad(&|p| p.width = 12, &["similarity", "width 12", "multiple of 8"]);
    bad(&|p| p.width = 0, &["similarity", "width 0"]);
    bad(&|p| p.query_offsets = vec![0, 3, 2, 3], &["similarity", "query offsets", "decrease"]);
    bad(&|p| p.frame_offsets = vec![0, 2, 6], &["similarity", "frame offsets", "end at 6", "5 rows"]);
    bad(&|p| p.frame_offsets = vec![0, 5], &["2 segments of queries", "1 of frames"]);
    bad(&|p| p.query_offsets = vec![0, 3, 3], &["similarity", "segment 1", "no query"]);
    bad(&|p| p.query_offsets = vec![0], &["similarity", "no segment"]);
}

#[test]
fn similarity_of_pairs() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let pair = |queries, frames| Pair { queries, frames };
    let (q, f) = (zeros(&[3, 8], DType::F32), zeros(&[5, 8], DType::F32));
    assert!(similarity(&q, &f, &[pair(1, 5), pair(2, 0)], 1.0).is_ok());
    refused(similarity(&q, &f, &[], 1.0), &["similarity", "0 pairs", "(3, 8)"]);
    refused(similarity(&q, &f, &[pair(3, 4)], 1.0), &["similarity", "(3, 4)", "(5, 8)"]);
    refused(similarity(&q, &f, &[pair(3, 4), pair(0, 1)], 1.0), &["similarity", "pair 1", "no query"]);
    refused(
        similarity(&q, &zeros(&[5, 9], DType::F32), &[pair(3, 5)], 1.0),
        &["similarity", "differ in width"],
    );
    refused(similarity(&q, &zeros(&[5], DType::F32), &[pair(3, 5)], 1.0), &["similarity", "(T, D)", "[5]"]);
    let half = zeros(&[5, 8], DType::BF16);
    refused(similarity(&q, &half, &[pair(3, 5)], 1.0), &["similarity", "one dtype", "F32", "BF16"]);
    refused(split(&zeros(&[16], DType::F32), &[pair(3, 5)]), &["similarity", "16", "15"]);
}

#[test]
fn other_refusals() {
    let of = |dtype| Tensor::zeros((2, 2), dtype, &Device::Cpu).unwrap();
    refused(check_same("attention", &[&of(DType::F32), &of(DType::F16)]), &["attention", "F32", "F16"]);
    refused(offsets("attention", [1 << 30, 1 << 30]), &["attention", "rows", "2^31"]);
}

#[test]
fn devices() {
    let of = |text: &str| Capability::parse(text);
    assert_eq!(of("86"), Some(Capability { major: 8, minor: 6 }));
    assert_eq!(of("120").map(|c| c.to_string()).as_deref(), Some("12.0"));
    assert_eq!([of("9"), of("8.6"), of("native")], [None; 3]);
    let (turing, ampere, hopper) = (of("75").unwrap(), of("80").unwrap(), of("90").unwrap());
    assert!(
        check(hopper, of("90")).is_ok() && check(hopper, of("80")).is_ok() && check(ampere, None).is_ok()
    );
    refused(check(turing, None), &["7.5", "8.0", "--device cpu"]);
    refused(check(ampere, of("90")), &["built for compute capability 9.0", "8.0", "CUDA_COMPUTE_CAP=80"]);
}

#[test]
fn drivers() {
    let of = |text: &str| Release::parse(text);
    assert_eq!(of("13.0"), Some(Release::of_driver(13000)));
    assert_eq!(Release::of_driver(12090).to_string(), "12.9");
    assert_eq!([of("13"), of("")], [None; 2]);
    let (old, new) = (Release::of_driver(12080), Release::of_driver(13010));
    assert!(check_driver(new, of("13.0")).is_ok() && check_driver(old, of("12.8")).is_ok());
    assert!(check_driver(old, None).is_ok());
    refused(check_driver(old, of("13.0")), &["CUDA 12.8", "CUDA 13.0", "580", "rebuild"]);
}

/// Without the feature, or without a device, the name is refused with what to do.
#[test]
fn no_device() {
    let Err(error) = msjoe::device::device("cuda:97") else { panic!("there is no such device") };
    assert!(error.to_string().contains("device cuda:97 is not usable"), "{error}");
}
