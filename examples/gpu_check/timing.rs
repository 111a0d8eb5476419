//! Times of the operations by events on the stream: the median of warm runs, on inputs larger than the cache. The names
//! are those of `benches/peers/gpu.py`.

use anyhow::{Context, Result};
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::{DType, Device, Tensor};
use msjoe::ops::attention::{Mask, Segments};
use msjoe::ops::attention_cached::{CachedKeys, attention_cached};
use msjoe::ops::cuda::device::shared_memory;
use msjoe::ops::cuda::{Memory, run_tensors};
use msjoe::ops::kernels::attention::{Packing, Shape, backward, forward};
use msjoe::ops::kernels::similarity as launches;
use msjoe::ops::kernels::{Element, offsets};
use msjoe::ops::norm::{rms_norm, rms_norm_composed};
use msjoe::ops::pointwise::{swiglu, swiglu_composed};
use msjoe::ops::rope::{rope, rope_composed};

use crate::report::{Ceilings, Report, Work};

/// Runs that are not timed.
const WARM: usize = 2;

struct Clock<'a> {
    device: &'a Device,
    rounds: usize,
}

impl Clock<'_> {
    /// Median milliseconds of `f`, which is told its round.
    fn median(&self, mut f: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        let stream = self.device.as_cuda_device()?.cuda_stream();
        let mark = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut times = vec![];
        for round in 0..WARM + self.rounds.max(1) {
            let start = mark()?;
            f(round)?;
            let end = mark()?;
            stream.synchronize()?;
            times.push(f64::from(start.elapsed_ms(&end)?));
        }
        let mut times = times.split_off(WARM);
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    fn normal(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 1.0, shape, self.device)?.to_dtype(dtype)?)
    }
}

/// Ceilings first, then every operation.
pub fn ops(device: &Device, rounds: usize, report: &mut Report) -> Result<()> {
    let clock = Clock { device, rounds };
    report.set_ceilings(ceilings(&clock)?);
    for one in &packed() {
        attention(&clock, report, one)?;
    }
    decoding(&clock, report, "decoding, one sequence of 10k", 1, 10_000, 0)?;
    decoding(&clock, report, "decoding, 8 behind a prefix of 10k", 8, 64, 10_000)?;
    for dtype in [DType::F32, DType::BF16] {
        similarity(&clock, report, dtype, 1_000)?;
    }
    layer(&clock, report)
}

/// The operations around attention for 8,892 tokens of 7B, each beside its composed twin.
fn layer(clock: &Clock, report: &mut Report) -> Result<()> {
    let (tokens, dtype) = (8_892, DType::BF16);
    let (x, weight) = (clock.normal(&[tokens, 3_584], dtype)?, clock.normal(&[3_584], dtype)?);
    let heads = x.reshape((tokens, 28, 128))?;
    let (cos, sin) = (clock.normal(&[tokens, 64], DType::F32)?, clock.normal(&[tokens, 64], DType::F32)?);
    let (gate, up) = (clock.normal(&[tokens, 18_944], dtype)?, clock.normal(&[tokens, 18_944], dtype)?);
    let mut time = |name: &str, values: usize, f: &dyn Fn() -> candle_core::Result<Tensor>| {
        let milliseconds = clock.median(|_| Ok(f().map(drop)?))?;
        report.time(&format!("{name}, 8,892 tokens of 7B"), milliseconds, Work::Bytes((2 * values) as f64));
        Ok::<(), anyhow::Error>(())
    };
    let (row, wide) = (2 * x.elem_count(), 3 * gate.elem_count());
    time("rms-norm", row, &|| rms_norm(&x, &weight, 1e-6))?;
    time("rms-norm composed", row, &|| rms_norm_composed(&x, &weight, 1e-6))?;
    time("rope", row, &|| rope(&heads, &cos, &sin))?;
    time("rope composed", row, &|| rope_composed(&heads.to_dtype(DType::F32)?, &cos, &sin)?.to_dtype(dtype))?;
    time("swiglu", wide, &|| swiglu(&gate, &up))?;
    time("swiglu composed", wide, &|| swiglu_composed(&gate, &up))
}

/// What the card does at best: products of bf16 matrices, and copies.
fn ceilings(clock: &Clock) -> Result<Ceilings> {
    let n = 8_192;
    let (a, b) = (clock.normal(&[n, n], DType::BF16)?, clock.normal(&[n, n], DType::BF16)?);
    let product = clock.median(|_| Ok(a.matmul(&b).map(drop)?))?;
    let bytes = 1usize << 31;
    let from = Tensor::zeros(bytes / 4, DType::F32, clock.device)?;
    let copy = clock.median(|_| Ok(from.copy().map(drop)?))?;
    let (flop, moved) = (2.0 * (n as f64).powi(3), 2.0 * bytes as f64);
    Ok(Ceilings { tflops: Some(flop / product / 1e9), tbps: Some(moved / copy / 1e9) })
}

/// Packed sequences.
struct Packed {
    name: &'static str,
    segments: Segments,
    mask: Mask,
    heads: (usize, usize),
    width: usize,
}

fn packed() -> [Packed; 5] {
    let of = |name, lengths: &[usize], mask, heads, width| Packed {
        name,
        segments: Segments::new(lengths),
        mask,
        heads,
        width,
    };
    [
        of("16k causal, width 128", &[16_384], Mask::Causal, (16, 16), 128),
        of("8,892 tokens of 7B, causal", &[8_892], Mask::Causal, (28, 4), 128),
        of("552 windows of 64 patches", &[64; 552], Mask::Full, (16, 16), 80),
        of("32 slices of 1,104 patches", &[1_104; 32], Mask::Full, (16, 16), 80),
        of("256 CLIP images", &[257; 256], Mask::Full, (16, 16), 64),
    ]
}

fn attention(clock: &Clock, report: &mut Report, packed: &Packed) -> Result<()> {
    let Packed { name, ref segments, mask, heads: (heads, kv_heads), width } = *packed;
    let (rows, dtype) = (segments.total(), DType::BF16);
    let of = |heads: usize| clock.normal(&[rows, heads, width], dtype);
    let (q, k, v, grad) = (of(heads)?, of(kv_heads)?, of(kv_heads)?, of(heads)?);
    let packing = Packing::of(segments, mask, (width as f32).powf(-0.5))?;
    let shape = Shape::new("attention", [q.dims(), k.dims(), v.dims()], dtype)?
        .within(shared_memory(clock.device.as_cuda_device()?)?);
    let pairs: f64 = segments.lengths().map(|len| (len * len) as f64).sum();
    let seen = if mask == Mask::Causal { pairs / 2.0 } else { pairs };
    let flop = 4.0 * seen * (heads * width) as f64;
    let bytes = ((2 * heads + 2 * kv_heads) * rows * width * dtype.size_in_bytes()) as f64;
    // Windows are bound by memory, everything longer by the products.
    let work = |flop: f64, bytes: f64| match segments.lengths().max() {
        Some(longest) if longest <= 64 => Work::Bytes(bytes),
        _ => Work::Flop(flop),
    };
    let program = forward(&packing, &shape)?;
    let launch = || run_tensors(&program, &[&q, &k, &v], Memory::Uninitialised);
    let time = clock.median(|_| Ok(launch().map(drop)?))?;
    report.time(&format!("attention forward, {name}"), time, work(flop, bytes));
    let [out, lse] = launch()?.try_into().ok().context("two outputs")?;
    let program = backward(&packing, &shape)?;
    let inputs = [&q, &k, &v, &out, &grad, &lse];
    let time = clock.median(|_| Ok(run_tensors(&program, &inputs, Memory::Uninitialised).map(drop)?))?;
    report.time(&format!("attention backward, {name}"), time, work(2.5 * flop, 2.0 * bytes));
    Ok(())
}

/// Eight layers in turn, so that no round finds its keys in the cache.
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
    let mut layers = vec![];
    for _ in 0..8 {
        let shared =
            (prefix > 0).then(|| Ok::<_, anyhow::Error>((of(prefix, kv_heads)?, of(prefix, kv_heads)?)));
        let shared = shared.transpose()?;
        let mut all = vec![];
        for _ in 0..sequences {
            let own = (of(keys, kv_heads)?, of(keys, kv_heads)?);
            all.push(CachedKeys { rows: 1, parts: shared.iter().cloned().chain([own]).collect() });
        }
        layers.push(all);
    }
    let q = of(sequences, heads)?;
    let scale = f64::from(width as u32).powf(-0.5);
    let time = clock.median(|round| Ok(attention_cached(&q, &layers[round % 8], scale).map(drop)?))?;
    let rows = sequences * keys + prefix;
    report.time(name, time, Work::Bytes((2 * rows * kv_heads * width * dtype.size_in_bytes()) as f64));
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
    let time = clock.median(|_| Ok(run_tensors(&program, &[&q, &f], Memory::Uninitialised).map(drop)?))?;
    let read = (videos * (queries + frames) * width * dtype.size_in_bytes()) as f64;
    let written = (call.len() * 4) as f64;
    let name = format!("similarity forward, {videos} x (8 x 3,600 x 768), {}", dtype.as_str());
    report.time(&name, time, Work::Bytes(read + written));

    let [out, inverse] =
        run_tensors(&program, &[&q, &f], Memory::Uninitialised)?.try_into().ok().context("two")?;
    let grad = clock.normal(&[call.len()], DType::F32)?;
    let program = launches::backward(&call, videos * queries, videos * frames)?;
    let inputs = [&q, &f, &inverse, &out, &grad];
    let time = clock.median(|_| Ok(run_tensors(&program, &inputs, Memory::Uninitialised).map(drop)?))?;
    let name = format!("similarity backward, {videos} x (8 x 3,600 x 768), {}", dtype.as_str());
    report.time(&name, time, Work::Bytes(3.0 * read + 3.0 * written));
    Ok(())
}

/// Row by row in blocks: random numbers of more than 2^31 values at once are more than the generator counts.
fn frames_of(clock: &Clock, rows: usize, width: usize, dtype: DType) -> Result<Tensor> {
    let block = clock.normal(&[rows.div_ceil(8), width], dtype)?;
    Ok(Tensor::cat(&[&block; 8], 0)?.narrow(0, 0, rows)?.contiguous()?)
}
