//! Every operation against its CPU twin in f64, outputs poisoned before the launches.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use msjoe::ops::attention::{Mask, Segments, attention, attention_composed};
use msjoe::ops::attention_cached::{CachedKeys, composed};
use msjoe::ops::cuda::attention::cached as cached_on_device;
use msjoe::ops::cuda::device::shared_memory;
use msjoe::ops::cuda::{Memory, run_tensors};
use msjoe::ops::kernels::attention::{Packing, Shape, WIDTHS, backward, forward};
use msjoe::ops::kernels::similarity as launches;
use msjoe::ops::kernels::{Element, offsets};
use msjoe::ops::similarity::{self, Pair};

use crate::ops_layer;
use crate::random::Source;
use crate::report::Report;

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

pub fn check(device: &Device, seed: u64, report: &mut Report) -> Result<()> {
    let mut source = Source::new(seed);
    for case in &cases()? {
        for dtype in DTYPES {
            for width in WIDTHS {
                case.kernels(device, width, dtype, &mut source, report)?;
            }
        }
        // Through the public operation and its graph, with heads that are padded and with a width that has kernels.
        case.operation(device, 32, DType::F32, &mut source, report)?;
        case.operation(device, 128, DType::BF16, &mut source, report)?;
    }
    for dtype in DTYPES {
        for width in WIDTHS {
            cached(device, width, dtype, &mut source, report)?;
        }
        pairs(device, dtype, &mut source, report)?;
        ops_layer::check(device, dtype, &mut source, report)?;
    }
    Ok(())
}

struct Case {
    name: &'static str,
    segments: Segments,
    mask: Mask,
    heads: (usize, usize),
    size: f64,
}

fn cases() -> Result<Vec<Case>> {
    let prefixes = [None, Some(0), Some(0), None, Some(3)];
    let family = Segments::continuing(&[300, 70, 129, 5, 64], &prefixes)?;
    let case = |name, segments, mask, heads, size| Case { name, segments, mask, heads, size };
    Ok(vec![
        case("ragged causal", Segments::new(&[0, 1, 700, 0, 64, 333]), Mask::Causal, (7, 1), 1.0),
        case("windows", Segments::new(&[64, 16, 4, 64, 63, 8]), Mask::Full, (4, 4), 1.0),
        case("ragged full", Segments::new(&[257, 500]), Mask::Full, (4, 2), 1.0),
        case("shared prefixes", family, Mask::Causal, (4, 2), 1.0),
        case("large logits", Segments::new(&[300]), Mask::Causal, (2, 1), 10.0),
    ])
}

impl Case {
    fn inputs(&self, width: usize, dtype: DType, source: &mut Source) -> Result<[Tensor; 4]> {
        let (rows, (heads, kv_heads)) = (self.segments.total(), self.heads);
        let mut of = |heads: usize, size: f64| source.normal(&[rows, heads, width], size, dtype);
        Ok([of(heads, self.size)?, of(kv_heads, self.size)?, of(kv_heads, 1.0)?, of(heads, 1.0)?])
    }

    /// Output and gradients by the graph of `f` on tensors of `dtype`.
    fn graph(
        &self,
        inputs: &[Tensor; 4],
        dtype: DType,
        f: impl Fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let vars = inputs[..3].iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?));
        let vars = vars.collect::<candle_core::Result<Vec<_>>>()?;
        let out = f(vars[0].as_tensor(), vars[1].as_tensor(), vars[2].as_tensor())?;
        let grads = (&out * inputs[3].to_dtype(dtype)?)?.sum_all()?.backward()?;
        let of = |var: &Var| grads.get(var).cloned().context("no gradient arrived");
        let mut all = vec![out.detach()];
        for var in &vars {
            all.push(of(var)?);
        }
        Ok(all)
    }

    fn twin(&self, inputs: &[Tensor; 4], dtype: DType) -> Result<Vec<Tensor>> {
        let scale = scale_of(&inputs[0])?;
        self.graph(inputs, dtype, |q, k, v| attention_composed(q, k, v, &self.segments, self.mask, scale))
    }

    fn kernels(
        &self,
        device: &Device,
        width: usize,
        dtype: DType,
        source: &mut Source,
        report: &mut Report,
    ) -> Result<()> {
        let inputs = self.inputs(width, dtype, source)?;
        let (truth, reference) =
            (self.twin(&inputs, DType::F64)?, half(dtype, || self.twin(&inputs, dtype))?);
        let [q, k, v, grad] = on(device, &inputs)?;
        let packing = Packing::of(&self.segments, self.mask, scale_of(&q)? as f32)?;
        let room = shared_memory(device.as_cuda_device()?)?;
        let shape = Shape::new("attention", [q.dims(), k.dims(), v.dims()], dtype)?.within(room);
        let mut found = run_tensors(&forward(&packing, &shape)?, &[&q, &k, &v], Memory::Poisoned)?;
        let lse = found.remove(1);
        let backward = backward(&packing, &shape)?;
        if backward.launches.iter().all(|launch| launch.shared <= room) {
            let inputs = [&q, &k, &v, &found[0], &grad, &lse];
            let grads = run_tensors(&backward, &inputs, Memory::Poisoned)?;
            found.extend(grads);
        } else {
            eprintln!(
                "attention backward, width {width}, {dtype:?}: more shared memory than this card has; left out"
            );
        }
        let what = format!("attention {}, width {width}, {dtype:?}", self.name);
        self.judge(&what, &found, &truth, reference.as_deref(), report)
    }

    fn operation(
        &self,
        device: &Device,
        width: usize,
        dtype: DType,
        source: &mut Source,
        report: &mut Report,
    ) -> Result<()> {
        let inputs = self.inputs(width, dtype, source)?;
        let (truth, reference) =
            (self.twin(&inputs, DType::F64)?, half(dtype, || self.twin(&inputs, dtype))?);
        let scale = scale_of(&inputs[0])?;
        let found = self.graph(&on(device, &inputs)?, dtype, |q, k, v| {
            attention(q, k, v, &self.segments, self.mask, scale)
        })?;
        let what = format!("attention {}, graph, width {width}, {dtype:?}", self.name);
        self.judge(&what, &found, &truth, reference.as_deref(), report)
    }

    fn judge(
        &self,
        what: &str,
        found: &[Tensor],
        truth: &[Tensor],
        reference: Option<&[Tensor]>,
        report: &mut Report,
    ) -> Result<()> {
        let limits = if self.size > 1.0 { [2e-5, 2e-4, 2e-4, 2e-4] } else { [2e-6, 4e-6, 4e-6, 4e-6] };
        for (i, (name, found)) in ["output", "dq", "dk", "dv"].into_iter().zip(found).enumerate() {
            let judged = (limits[i], reference.map(|r| &r[i]), 0.0);
            report.check(&format!("{what}, {name}"), found, &truth[i], judged)?;
        }
        Ok(())
    }
}

fn scale_of(q: &Tensor) -> Result<f64> {
    Ok((q.dim(2)? as f64).powf(-0.5))
}

fn on<const N: usize>(device: &Device, tensors: &[Tensor; N]) -> Result<[Tensor; N]> {
    let moved = tensors.iter().map(|x| x.to_device(device)).collect::<candle_core::Result<Vec<_>>>()?;
    moved.try_into().ok().context("as many tensors as before")
}

pub fn half<R>(dtype: DType, twin: impl FnOnce() -> Result<R>) -> Result<Option<R>> {
    if dtype == DType::F32 { Ok(None) } else { twin().map(Some) }
}

/// Decoding with prefixes that sequences share, and several new rows behind a cache.
fn cached(
    device: &Device,
    width: usize,
    dtype: DType,
    source: &mut Source,
    report: &mut Report,
) -> Result<()> {
    for (name, heads, tails) in [
        ("one row each", (7, 1), [(5, 1), (1000, 1), (64, 1)]),
        ("several rows", (4, 2), [(20, 20), (300, 70), (1, 1)]),
    ] {
        let mut of = |rows: usize, heads: usize| source.normal(&[rows, heads, width], 1.0, dtype);
        let shared = (of(500, heads.1)?, of(500, heads.1)?);
        let mut sequences = vec![];
        for (keys, rows) in tails {
            sequences.push(CachedKeys {
                rows,
                parts: vec![shared.clone(), (of(keys, heads.1)?, of(keys, heads.1)?)],
            });
        }
        let q = of(tails.iter().map(|tail| tail.1).sum(), heads.0)?;
        let moved =
            |to: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| -> Result<(Tensor, Vec<CachedKeys>)> {
                let shared = (to(&shared.0)?, to(&shared.1)?);
                let sequences = sequences.iter().map(|s| {
                    let own = (to(&s.parts[1].0)?, to(&s.parts[1].1)?);
                    Ok(CachedKeys { rows: s.rows, parts: vec![shared.clone(), own] })
                });
                Ok((to(&q)?, sequences.collect::<Result<Vec<_>>>()?))
            };
        let scale = scale_of(&q)?;
        let twin = |dtype: DType| {
            let (q, sequences) = moved(&|x| x.to_dtype(dtype))?;
            Ok(composed(&q, &sequences, scale)?)
        };
        let (truth, reference) = (twin(DType::F64)?, half(dtype, || twin(dtype))?);
        let (q, sequences) = moved(&|x| x.to_device(device))?;
        let found = cached_on_device(&q, &sequences, scale, Memory::Poisoned)?;
        let what = format!("attention over a cache, {name}, width {width}, {dtype:?}");
        report.check(&what, &found, &truth, (2e-6, reference.as_ref(), 0.0))?;
    }
    Ok(())
}

fn pairs(device: &Device, dtype: DType, source: &mut Source, report: &mut Report) -> Result<()> {
    for (width, counts) in
        [(768, vec![(8, 360), (1, 1), (3, 0), (16, 129), (17, 64), (80, 30)]), (64, vec![(40, 7), (2, 1000)])]
    {
        let pairs: Vec<Pair> = counts.iter().map(|&(queries, frames)| Pair { queries, frames }).collect();
        let (rows, times) = counts.iter().fold((0, 0), |(q, t), pair| (q + pair.0, t + pair.1));
        let values = pairs.iter().map(|pair| pair.values()).sum();
        let (q, f) =
            (source.normal(&[rows, width], 1.0, dtype)?, source.normal(&[times, width], 1.0, dtype)?);
        let grad = source.normal(&[values], 1.0, DType::F32)?;
        type Operation = fn(&Tensor, &Tensor, &[Pair], f64) -> candle_core::Result<Tensor>;
        let graph = |device: &Device, dtype: DType, operation: Operation| -> Result<Vec<Tensor>> {
            let var = |x: &Tensor| Var::from_tensor(&x.to_device(device)?.to_dtype(dtype)?);
            let (q, f) = (var(&q)?, var(&f)?);
            let out = operation(q.as_tensor(), f.as_tensor(), &pairs, 1.0)?;
            let grads = (&out * grad.to_device(device)?.to_dtype(out.dtype())?)?.sum_all()?.backward()?;
            let of = |var: &Var| grads.get(var).cloned().context("no gradient arrived");
            Ok(vec![out.detach(), of(&q)?, of(&f)?])
        };
        let twin = |dtype: DType| graph(&Device::Cpu, dtype, similarity::composed);
        let (truth, reference) = (twin(DType::F64)?, half(dtype, || twin(dtype))?);
        let by_graph = graph(device, dtype, similarity::similarity)?;
        let call = launches::Pairs {
            element: Element::of("similarity", dtype)?,
            width,
            query_offsets: offsets("similarity", counts.iter().map(|pair| pair.0))?,
            frame_offsets: offsets("similarity", counts.iter().map(|pair| pair.1))?,
            scale: 1.0,
        };
        let [q, f, grad] = on(device, &[q.clone(), f.clone(), grad.clone()])?;
        let mut found = run_tensors(&launches::forward(&call, rows, times)?, &[&q, &f], Memory::Poisoned)?;
        let inverse = found.remove(1);
        let inputs = [&q, &f, &inverse, &found[0], &grad];
        let grads = run_tensors(&launches::backward(&call, rows, times)?, &inputs, Memory::Poisoned)?;
        found.extend(grads);
        for (how, found) in [("", found), ("graph, ", by_graph)] {
            for (i, name) in ["output", "gradient of queries", "gradient of frames"].into_iter().enumerate() {
                let what = format!("similarity, {how}width {width}, {dtype:?}, {name}");
                // The similarities themselves are f32 whatever comes in.
                let reference = reference.as_ref().filter(|_| i > 0).map(|r| &r[i]);
                report.check(&what, &found[i], &truth[i], (2e-6, reference, 0.0))?;
            }
        }
    }
    Ok(())
}
