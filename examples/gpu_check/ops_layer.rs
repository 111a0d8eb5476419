//! The operations around attention and the log-probabilities against their CPU twins in f64.

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};
use msjoe::ops::cuda::{Memory, run_tensors};
use msjoe::ops::kernels::Program;
use msjoe::ops::kernels::layer::{self as kernels, Rows, Turn};
use msjoe::ops::log_prob::log_probs;
use msjoe::ops::norm::rms_norm;
use msjoe::ops::pointwise::swiglu;
use msjoe::ops::rope::rope;

use crate::ops::half;
use crate::random::Source;
use crate::report::Report;

pub fn check(device: &Device, dtype: DType, source: &mut Source, report: &mut Report) -> Result<()> {
    layer(device, dtype, source, report)?;
    writes_everything(device, dtype, source, report)?;
    unaligned(device, dtype, source, report)?;
    log_prob(device, dtype, source, report)
}

/// Outputs that start as NaN hold none afterwards.
fn writes_everything(device: &Device, dtype: DType, source: &mut Source, report: &mut Report) -> Result<()> {
    let mut of =
        |shape: &[usize], dtype| Ok::<_, anyhow::Error>(source.normal(shape, 1.0, dtype)?.to_device(device)?);
    let (x, grad, weight) = (of(&[301, 3584], dtype)?, of(&[301, 3584], dtype)?, of(&[3584], dtype)?);
    let (heads, angles) = (of(&[301, 28, 128], dtype)?, of(&[301, 64], DType::F32)?);
    let scales = of(&[301], DType::F32)?;
    let (rows, all) = (Rows::of("rms-norm", x.dims(), dtype)?, Rows::of("swiglu", &[x.elem_count()], dtype)?);
    let norm = [&x, &weight, &scales, &grad];
    let programs: [(&str, Program, &[&Tensor]); 6] = [
        ("rms-norm", kernels::rms_norm(&rows, 1e-6)?, &norm[..2]),
        ("rms-norm, gradient of the input", kernels::rms_norm_input_grad(&rows)?, &norm),
        ("rms-norm, gradient of the weight", kernels::rms_norm_weight_grad(&rows)?, &norm),
        ("rope", kernels::rope(heads.dims(), dtype, Turn::Forwards)?, &[&heads, &angles, &angles]),
        ("swiglu", kernels::swiglu(&all)?, &[&x, &grad]),
        ("swiglu, gradients", kernels::swiglu_backward(&all)?, &[&x, &grad, &grad]),
    ];
    for (name, program, inputs) in programs {
        let mut missing = 0.0;
        for output in run_tensors(&program, inputs, Memory::Poisoned)? {
            let wide = output.to_dtype(DType::F32)?;
            missing += f64::from(wide.ne(&wide)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?);
        }
        report.judge(&format!("{name}, {dtype:?}, values not written"), missing, 0.0);
    }
    Ok(())
}

/// The operations around attention, through their graphs: the composed form is taken for f64 and for half types on the CPU.
fn layer(device: &Device, dtype: DType, source: &mut Source, report: &mut Report) -> Result<()> {
    let mut of = |shape: &[usize], size: f64| source.normal(shape, size, dtype);
    let (x, weight, gate) = (of(&[300, 3584], 1.0)?, of(&[3584], 1.0)?, of(&[300, 3584], 3.0)?);
    let (heads, grad) = (of(&[300, 28, 128], 1.0)?, of(&[300, 3584], 1.0)?);
    let angles = source.normal(&[300, 64], 3.0, DType::F32)?;
    type Operation<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;
    let turned = |x: &[Tensor]| {
        let wide = if x[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let angles = angles.to_device(x[0].device())?.to_dtype(wide)?;
        rope(&x[0], &angles.cos()?, &angles.sin()?)?.flatten_from(1)
    };
    let all: [(&str, Vec<&Tensor>, Operation); 3] = [
        ("rms-norm", vec![&x, &weight], &|x| rms_norm(&x[0], &x[1], 1e-6)),
        ("rope", vec![&heads], &turned),
        ("swiglu", vec![&gate, &x], &|x| swiglu(&x[0], &x[1])),
    ];
    for (name, inputs, operation) in all {
        let graph = |device: &Device, dtype: DType| -> Result<Vec<Tensor>> {
            let moved = inputs.iter().map(|x| Var::from_tensor(&x.to_device(device)?.to_dtype(dtype)?));
            let vars = moved.collect::<candle_core::Result<Vec<_>>>()?;
            let out = operation(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
            let grad = grad.to_device(device)?.to_dtype(dtype)?;
            let grads = (&out * grad)?.sum_all()?.backward()?;
            let gradients = vars.iter().map(|var| grads.get(var).cloned().context("no gradient arrived"));
            std::iter::once(Ok(out.detach())).chain(gradients).collect()
        };
        let (truth, found) = (graph(&Device::Cpu, DType::F64)?, graph(device, dtype)?);
        let reference = half(dtype, || graph(&Device::Cpu, dtype))?;
        for (i, (found, truth)) in found.iter().zip(&truth).enumerate() {
            let what = if i == 0 { "output".to_owned() } else { format!("gradient {i}") };
            let judged = (2e-6, reference.as_ref().map(|r| &r[i]), 0.0);
            report.check(&format!("{name}, {dtype:?}, {what}"), found, truth, judged)?;
        }
    }
    Ok(())
}

/// A view that begins inside 16 bytes is copied: the same bits as of the copy.
fn unaligned(device: &Device, dtype: DType, source: &mut Source, report: &mut Report) -> Result<()> {
    let wide = source.normal(&[129], 1.0, dtype)?.to_device(device)?;
    let (view, copy) = (wide.narrow(0, 1, 128)?, wide.narrow(0, 1, 128)?.force_contiguous()?);
    let (found, truth) = (swiglu(&view, &view)?, swiglu(&copy, &copy)?);
    report.check(&format!("swiglu of a view, {dtype:?}"), &found, &truth, (0.0, None, 0.0))
}

/// Log-probabilities, entropies and the gradients of hidden states and head, over several chunks of the vocabulary.
fn log_prob(device: &Device, dtype: DType, source: &mut Source, report: &mut Report) -> Result<()> {
    let (hidden, head) = (source.normal(&[70, 256], 1.0, dtype)?, source.normal(&[35_000, 256], 0.1, dtype)?);
    let upstream = source.normal(&[2, 70], 1.0, DType::F32)?;
    let targets: Vec<u32> = (0..70).map(|i| 500 * i).collect();
    type Operation<'a> = &'a dyn Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>;
    let graph = |device: &Device, dtype: DType, operation: Operation| -> Result<Vec<Tensor>> {
        let [hidden, head] =
            [&hidden, &head].map(|x| Var::from_tensor(&x.to_device(device)?.to_dtype(dtype)?));
        let (hidden, head) = (hidden?, head?);
        let both = operation(hidden.as_tensor(), head.as_tensor())?;
        let grads = (&both * upstream.to_device(device)?.to_dtype(both.dtype())?)?.sum_all()?.backward()?;
        let of = |var: &Var| grads.get(var).cloned().context("no gradient arrived");
        Ok(vec![both.get(0)?.detach(), both.get(1)?.detach(), of(&hidden)?, of(&head)?])
    };
    let own = |hidden: &Tensor, head: &Tensor| {
        let made = log_probs(hidden, head, &targets, 1.3)?;
        Tensor::stack(&[made.log_probs, made.entropies], 0)
    };
    // Logits are rounded to a half type, as on the device.
    let rounding = |hidden: &Tensor, head: &Tensor| {
        let logits = (hidden.matmul(&head.t()?)?.to_dtype(DType::F32)? / 1.3)?;
        let all = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        let index = Tensor::from_slice(&targets, (targets.len(), 1), hidden.device())?;
        let entropies = (all.exp()? * &all)?.sum(1)?.neg()?;
        Tensor::stack(&[all.gather(&index, 1)?.squeeze(1)?, entropies], 0)
    };
    let truth = graph(&Device::Cpu, DType::F64, &own)?;
    let reference = half(dtype, || graph(&Device::Cpu, dtype, &rounding))?;
    let found = graph(device, dtype, &own)?;
    let names = ["log-probabilities", "entropies", "gradient of hidden states", "gradient of the head"];
    for (i, name) in names.into_iter().enumerate() {
        let judged = (4e-6, reference.as_ref().map(|r| &r[i]), 0.0);
        report.check(&format!("log-probs, {dtype:?}, {name}"), &found[i], &truth[i], judged)?;
    }
    Ok(())
}
