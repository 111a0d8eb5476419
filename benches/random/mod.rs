//! A checkpoint that holds a random tensor under every name, for measuring real shapes without real weights.
#![allow(missing_docs)]

use std::sync::Mutex;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct Random(Mutex<StdRng>);

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut rng = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| rng.random_range(-0.03..0.03)).collect();
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} was asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// f32 on the CPU, from a fixed seed.
pub fn var_builder() -> VarBuilder<'static> {
    let backend = Box::new(Random(Mutex::new(StdRng::seed_from_u64(0))));
    VarBuilder::from_backend(backend, DType::F32, Device::Cpu)
}

/// Peak resident memory of this process in MiB.
pub fn peak_mib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(anyhow::Context::context(kib, "VmHWM in /proc/self/status")? / 1024)
}

/// The middle of the sorted values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
