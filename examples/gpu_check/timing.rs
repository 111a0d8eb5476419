//! Times of attention and similarity on inputs larger than the cache. The names are those of `benches/peers/gpu.py`.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use msjoe::ops::attention::{Mask, Segments};
use msjoe::ops::attention_cached::CachedKeys;
use msjoe::ops::cuda::device::{multiprocessors, shared_memory};
use msjoe::ops::cuda::{Memory, run_tensors};
use msjoe::ops::kernels::attention::{Packing, Shape, backward, forward};
use msjoe::ops::kernels::decode::{Cached, decode};
use msjoe::ops::kernels::similarity as launches;
use msjoe::ops::kernels::{Element, offsets};

use crate::clock::Clock;
use crate::report::{Report, Work};
use crate::timing_layer;

pub fn ops(device: &Device, rounds: usize, report: &mut Report) -> Result<()> {
    let clock = Clock::new(device, rounds)?;
    for one in &packed() {
        attention(&clock, report, one)?;
    }
    decoding(&clock, report, "decoding, one sequence of 10k", 1, 10_000, 0)?;
    decoding(&clock, report, "decoding, 8 behind a prefix of 10k", 8, 64, 10_000)?;
    for dtype in [DType::F32, DType::BF16] {
        similarity(&clock, report, dtype, 1_000)?;
    }
    timing_layer::ops(&clock, report)
}

/// Packed sequences.
struct Packed {
    name: &'static str,
    segments: Segments,
    mask: Mask,
    heads: (usize, usize),
    width: usize,
    dtype: DType,
}

fn packed() -> [Packed; 7] {
    let of = |name, lengths: &[usize], mask, heads, width| Packed {
        name,
        segments: Segments::new(lengths),
        mask,
        heads,
        width,
        dtype: DType::BF16,
    };
    let seven = |name, length, dtype| Packed { dtype, ..of(name, &[length], Mask::Causal, (28, 4), 128) };
    [
        of("16k causal, width 128", &[16_384], Mask::Causal, (16, 16), 128),
        seven("8,892 tokens of 7B, causal", 8_892, DType::BF16),
        of("552 windows of 64 patches", &[64; 552], Mask::Full, (16, 16), 80),
        of("32 slices of 1,104 patches", &[1_104; 32], Mask::Full, (16, 16), 80),
        of("256 CLIP images", &[257; 256], Mask::Full, (16, 16), 64),
        seven("8,892 tokens of 7B, causal, f16", 8_892, DType::F16),
        seven("4,096 tokens of 7B, causal, f32", 4_096, DType::F32),
    ]
}

fn attention(clock: &Clock, report: &mut Report, packed: &Packed) -> Result<()> {
    let Packed { name, ref segments, mask, heads: (heads, kv_heads), width, dtype } = *packed;
    let rows = segments.total();
    let of = |heads: usize| clock.normal(&[rows, heads, width], dtype);
    let (q, k, v, grad) = (of(heads)?, of(kv_heads)?, of(kv_heads)?, of(heads)?);
    let room = shared_memory(clock.device.as_cuda_device()?)?;
    let packing = Packing::of(segments, mask, (width as f32).powf(-0.5))?;
    let shape = Shape::new("attention", [q.dims(), k.dims(), v.dims()], dtype)?.within(room);
    let pairs: f64 = segments.lengths().map(|len| (len * len) as f64).sum();
    let seen = if mask == Mask::Causal { pairs / 2.0 } else { pairs };
    let flop = 4.0 * seen * (heads * width) as f64;
    let bytes = ((2 * heads + 2 * kv_heads) * rows * width * dtype.size_in_bytes()) as f64;
    // Windows are bound by memory, everything longer by the products.
    let work = |flop: f64, bytes: f64| match segments.lengths().max() {
        Some(longest) if longest <= 64 => Work::Bytes(bytes),
        _ if dtype == DType::F32 => Work::Wide(flop),
        _ => Work::Flop(flop),
    };
    let program = forward(&packing, &shape)?;
    let time = clock.launches(&program, &[&q, &k, &v])?;
    report.time(&format!("attention forward, {name}"), time, work(flop, bytes));
    let made = run_tensors(&program, &[&q, &k, &v], Memory::Uninitialised)?;
    let [out, lse] = made.try_into().ok().context("two outputs")?;
    let program = backward(&packing, &shape)?;
    if program.launches.iter().any(|launch| launch.shared > room) {
        eprintln!("attention backward, {name}: more shared memory than this card has; left out");
        return Ok(());
    }
    let time = clock.launches(&program, &[&q, &k, &v, &out, &grad, &lse])?;
    report.time(&format!("attention backward, {name}"), time, work(2.5 * flop, 2.0 * bytes));
    Ok(())
}

/// One new row for each sequence.
fn decoding(
    clock: &Clock,
    report: &mut Report,
    name: &str,
    sequences: usize,
    keys: usize,
    prefix: usize,
) -> Result<()> {
    let (heads, kv_heads, width, dtype) = (28, 4, 128, DType::BF16);
    let of = |rows: usize, heads: usize| clock.normal(&[rows, heads, width], dtype);
    let shared = if prefix > 0 { vec![(of(prefix, kv_heads)?, of(prefix, kv_heads)?)] } else { vec![] };
    let mut all = vec![];
    for _ in 0..sequences {
        let own = (of(keys, kv_heads)?, of(keys, kv_heads)?);
        all.push(CachedKeys { rows: 1, parts: shared.iter().cloned().chain([own]).collect() });
    }
    let q = of(sequences, heads)?;
    let (pairs, runs) = CachedKeys::distinct(all.iter());
    let inputs: Vec<&Tensor> = std::iter::once(&q).chain(pairs.iter().flat_map(|(k, v)| [k, v])).collect();
    let shape = Shape::new("decoding", [q.dims(), inputs[1].dims(), inputs[2].dims()], dtype)?;
    let scale = (width as f32).powf(-0.5);
    let rows = pairs.iter().map(|(k, _)| k.dim(0)).collect::<candle_core::Result<_>>()?;
    let cached = Cached { sequences: runs, rows, scale, multiprocessors: multiprocessors(clock.device)? };
    // What is read before each run leaves no keys in the cache.
    let time = clock.launches(&decode(&cached, &shape)?, &inputs)?;
    let read = sequences * keys + prefix;
    report.time(name, time, Work::Bytes((2 * read * kv_heads * width * dtype.size_in_bytes()) as f64));
    Ok(())
}

/// Many (video, question) pairs of an hour at one frame a second in one launch.
fn similarity(clock: &Clock, report: &mut Report, dtype: DType, videos: usize) -> Result<()> {
    let (queries, frames, width) = (8, 3_600, 768);
    let (q, f) =
        (clock.normal(&[videos * queries, width], dtype)?, frames_of(clock, videos * frames, width, dtype)?);
    let call = launches::Pairs {
        element: Element::of("similarity", dtype)?,
        width,
        query_offsets: offsets("similarity", vec![queries; videos])?,
        frame_offsets: offsets("similarity", vec![frames; videos])?,
        scale: 1.0,
    };
    let program = launches::forward(&call, videos * queries, videos * frames)?;
    let time = clock.launches(&program, &[&q, &f])?;
    let read = (videos * (queries + frames) * width * dtype.size_in_bytes()) as f64;
    let written = (call.len() * 4) as f64;
    let name = format!("similarity forward, {videos} x (8 x 3,600 x 768), {}", dtype.as_str());
    report.time(&name, time, Work::Bytes(read + written));

    let [out, inverse] =
        run_tensors(&program, &[&q, &f], Memory::Uninitialised)?.try_into().ok().context("two")?;
    let grad = clock.normal(&[call.len()], DType::F32)?;
    let program = launches::backward(&call, videos * queries, videos * frames)?;
    let time = clock.launches(&program, &[&q, &f, &inverse, &out, &grad])?;
    let name = format!("similarity backward, {videos} x (8 x 3,600 x 768), {}", dtype.as_str());
    report.time(&name, time, Work::Bytes(3.0 * read + 3.0 * written));
    Ok(())
}

/// Row by row in blocks: random numbers of more than 2^31 values at once are more than the generator counts.
fn frames_of(clock: &Clock, rows: usize, width: usize, dtype: DType) -> Result<Tensor> {
    let block = clock.normal(&[rows.div_ceil(8), width], dtype)?;
    Ok(Tensor::cat(&[&block; 8], 0)?.narrow(0, 0, rows)?.contiguous()?)
}
