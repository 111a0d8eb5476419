//! The CUDA kernels in emulation, launched as on a device, against the composed twins of their operations; and what is
//! refused before a launch.

use candle_core::{DType, Tensor};

mod attention;
mod bad;
mod emulator;
mod layer;
mod similarity;

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// f32: a relative error of at most `limit` from the truth in f64. Half precision: an error of at most 1.1 times that of
/// `reference`, the composed twin in the same precision (the house allows twice it), or of `limit`.
fn judge(what: &str, found: &Tensor, truth: &Tensor, reference: Option<&Tensor>, limit: f64, least: f64) {
    let error = emulator::error(found, truth, least);
    let half = reference.map_or(0.0, |reference| 1.1 * emulator::error(reference, truth, least));
    let limit = limit.max(half);
    assert!(error <= limit, "{what}: an error of {error:.2e}, at most {limit:.2e} is allowed");
}
