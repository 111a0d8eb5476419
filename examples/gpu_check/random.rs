//! Random inputs.

use candle_core::{DType, Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Tensors of normal numbers, one seed after another.
pub struct Source(StdRng);

impl Source {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// On the CPU, times `size`, representable in `dtype`.
    pub fn normal(&mut self, shape: &[usize], size: f64, dtype: DType) -> Result<Tensor> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| {
                let (u, v): (f32, f32) = (1.0 - self.0.random::<f32>(), self.0.random());
                (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
            })
            .collect();
        (Tensor::from_vec(values, shape, &Device::Cpu)? * size)?.to_dtype(dtype)
    }
}
