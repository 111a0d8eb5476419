//! Times of the operations around attention for 8,892 tokens of 7B, and of the log-probabilities of a completion.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use msjoe::ops::kernels::Program;
use msjoe::ops::kernels::layer::{self as kernels, Rows, Turn};
use msjoe::ops::log_prob::log_probs;
use msjoe::ops::norm::{rms_norm, rms_norm_composed};
use msjoe::ops::pointwise::{swiglu, swiglu_composed};
use msjoe::ops::rope::{rope, rope_composed};

use crate::clock::Clock;
use crate::report::{Report, Work};

const TOKENS: usize = 8_892;
const DTYPE: DType = DType::BF16;

pub fn ops(clock: &Clock, report: &mut Report) -> Result<()> {
    layer(clock, report)?;
    log_prob(clock, report)
}

fn layer(clock: &Clock, report: &mut Report) -> Result<()> {
    let of = |shape: &[usize], dtype| clock.normal(shape, dtype);
    let (x, grad, weight) =
        (of(&[TOKENS, 3_584], DTYPE)?, of(&[TOKENS, 3_584], DTYPE)?, of(&[3_584], DTYPE)?);
    let heads = x.reshape((TOKENS, 28, 128))?;
    let (cos, sin, scales) =
        (of(&[TOKENS, 64], DType::F32)?, of(&[TOKENS, 64], DType::F32)?, of(&[TOKENS], DType::F32)?);
    let (gate, up) = (of(&[TOKENS, 18_944], DTYPE)?, of(&[TOKENS, 18_944], DTYPE)?);
    let (rows, all) =
        (Rows::of("rms-norm", x.dims(), DTYPE)?, Rows::of("swiglu", &[gate.elem_count()], DTYPE)?);
    let turned = |turn| kernels::rope(heads.dims(), DTYPE, turn);
    let norm = [&x, &weight, &scales, &grad];
    // Values that are read and written; those of a row or of the angles hardly count.
    let (row, wide) = (x.elem_count(), gate.elem_count());
    let work = |values: usize| Work::Bytes((values * DTYPE.size_in_bytes()) as f64);
    let programs: [(&str, usize, Program, &[&Tensor]); 7] = [
        ("rms-norm", 2 * row, kernels::rms_norm(&rows, 1e-6)?, &norm[..2]),
        ("rms-norm backward, input", 3 * row, kernels::rms_norm_input_grad(&rows)?, &norm),
        ("rms-norm backward, weight", 2 * row, kernels::rms_norm_weight_grad(&rows)?, &norm),
        ("rope", 2 * row, turned(Turn::Forwards)?, &[&heads, &cos, &sin]),
        ("rope backward", 2 * row, turned(Turn::Backwards)?, &[&heads, &cos, &sin]),
        ("swiglu", 3 * wide, kernels::swiglu(&all)?, &[&gate, &up]),
        ("swiglu backward", 5 * wide, kernels::swiglu_backward(&all)?, &[&gate, &up, &up]),
    ];
    let mut norm_backward = 0.0;
    for (name, values, program, inputs) in &programs {
        let time = clock.launches(program, inputs)?;
        report.time(&format!("{name}, 8,892 tokens of 7B"), time, work(*values));
        norm_backward += if name.starts_with("rms-norm backward") { time } else { 0.0 };
    }
    report.time("rms-norm backward, 8,892 tokens of 7B", norm_backward, work(5 * row));
    type Operation<'a> = &'a dyn Fn() -> candle_core::Result<Tensor>;
    // Through the operation itself and its composed twin.
    let operations: [(&str, usize, Operation); 6] = [
        ("rms-norm operation", 2 * row, &|| rms_norm(&x, &weight, 1e-6)),
        ("rms-norm composed", 2 * row, &|| rms_norm_composed(&x, &weight, 1e-6)),
        ("rope operation", 2 * row, &|| rope(&heads, &cos, &sin)),
        ("rope composed", 2 * row, &|| {
            rope_composed(&heads.to_dtype(DType::F32)?, &cos, &sin)?.to_dtype(DTYPE)
        }),
        ("swiglu operation", 3 * wide, &|| swiglu(&gate, &up)),
        ("swiglu composed", 3 * wide, &|| swiglu_composed(&gate, &up)),
    ];
    for (name, values, operation) in operations {
        let time = clock.median(|_| Ok(operation().map(drop)?))?;
        report.time(&format!("{name}, 8,892 tokens of 7B"), time, work(values));
    }
    Ok(())
}

/// Of a head that does not learn: the logits, and in the backward the logits again and the gradients of the hidden states.
fn log_prob(clock: &Clock, report: &mut Report) -> Result<()> {
    let (tokens, width, vocabulary) = (512, 3_584, 152_064);
    let hidden = Var::from_tensor(&clock.normal(&[tokens, width], DTYPE)?)?;
    let head = (clock.normal(&[vocabulary, width], DTYPE)? * 0.02)?;
    let targets: Vec<u32> = (0..tokens as u32).map(|i| 97 * i).collect();
    let flop = 2.0 * (tokens * width * vocabulary) as f64;
    let forward = || log_probs(&hidden.as_detached_tensor(), &head, &targets, 1.0);
    let time = clock.median(|_| Ok(forward().map(drop)?))?;
    report.time("log-probs, 512 tokens of 7B", time, Work::Flop(flop));
    let loss = log_probs(&hidden, &head, &targets, 1.0)?.log_probs.sum_all()?;
    let backward = || loss.backward()?.remove(&hidden).context("no gradient arrived");
    let time = clock.median(|_| backward().map(drop))?;
    report.time("log-probs backward, 512 tokens of 7B", time, Work::Flop(2.0 * flop));
    Ok(())
}
