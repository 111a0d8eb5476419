//! Times by events on the stream: the median of warm runs.

use anyhow::{Context, Result};
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::{DType, Device, Error, Tensor};
use msjoe::ops::cuda::{Memory, run_tensors_from};
use msjoe::ops::kernels::Program;

use crate::report::Ceilings;

/// Runs that are not timed.
const WARM: usize = 2;
/// Values (f32) that are read before a timed run, and how often: 8 GiB in all, milliseconds for any card, and more than its
/// cache at once. What was written instead would leave the cache within the run, at its cost.
const FILLER: ((usize, usize), usize) = ((65_536, 1_024), 32);

/// Starts the clock.
pub type Start<'a> = &'a mut dyn FnMut() -> candle_core::Result<()>;

pub struct Clock<'a> {
    pub device: &'a Device,
    rounds: usize,
    filler: Tensor,
}

impl<'a> Clock<'a> {
    pub fn new(device: &'a Device, rounds: usize) -> Result<Self> {
        Ok(Self { device, rounds, filler: Tensor::zeros(FILLER.0, DType::F32, device)? })
    }

    /// Median milliseconds of what `f`, which is told its round, puts on the stream once it has started the clock. Work is on
    /// the stream before, so that the host is ahead of the device and what it does between launches does not count.
    pub fn median_with_start(&self, mut f: impl FnMut(usize, Start) -> Result<()>) -> Result<f64> {
        let stream = self.device.as_cuda_device()?.cuda_stream();
        let mark = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut times = vec![];
        for round in 0..WARM + self.rounds.max(1) {
            let mut start = None;
            f(round, &mut || {
                for _ in 0..FILLER.1 {
                    self.filler.sum(1)?;
                }
                start = Some(mark().map_err(Error::wrap)?);
                Ok(())
            })?;
            let end = mark()?;
            stream.synchronize()?;
            times.push(f64::from(start.context("the clock was not started")?.elapsed_ms(&end)?));
        }
        let mut times = times.split_off(WARM);
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Median milliseconds of all of `f`.
    pub fn median(&self, mut f: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        self.median_with_start(|round, start| {
            start()?;
            f(round)
        })
    }

    /// Median milliseconds of a program's launches alone: its lists and memory are there before.
    pub fn launches(&self, program: &Program, inputs: &[&Tensor]) -> Result<f64> {
        self.median_with_start(|_, start| {
            Ok(run_tensors_from(program, inputs, Memory::Uninitialised, start).map(drop)?)
        })
    }

    pub fn normal(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 1.0, shape, self.device)?.to_dtype(dtype)?)
    }
}

/// What the card does at best: products of bf16 matrices, and copies.
pub fn ceilings(device: &Device, rounds: usize) -> Result<Ceilings> {
    let (clock, n) = (Clock::new(device, rounds)?, 8_192);
    let (a, b) = (clock.normal(&[n, n], DType::BF16)?, clock.normal(&[n, n], DType::BF16)?);
    let product = clock.median(|_| Ok(a.matmul(&b).map(drop)?))?;
    let (bytes, stream) = (1usize << 31, device.as_cuda_device()?.cuda_stream());
    let (from, mut to) = (stream.alloc_zeros::<u8>(bytes)?, stream.alloc_zeros::<u8>(bytes)?);
    let copy = clock.median(|_| Ok(stream.memcpy_dtod(&from, &mut to)?))?;
    let (flop, moved) = (2.0 * (n as f64).powi(3), 2.0 * bytes as f64);
    Ok(Ceilings { tflops: Some(flop / product / 1e9), tbps: Some(moved / copy / 1e9) })
}
