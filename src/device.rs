//! Where and in which precision models run.

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// Parses `cpu` or `cuda[:N]`.
///
/// # Errors
/// An unknown name, a CUDA device that this build or machine does not have, or one that the kernels do not run on.
pub fn device(name: &str) -> Result<Device> {
    match name.split_once(':').unwrap_or((name, "0")) {
        _ if name == "cpu" => Ok(Device::Cpu),
        ("cuda", ordinal) => {
            let ordinal = ordinal
                .parse()
                .map_err(|_| Error::Input(format!("device {name}: expected cuda:N with a number N")))?;
            cuda(ordinal).map_err(|e| Error::Input(format!("device {name} is not usable: {e}")))
        }
        _ => Err(Error::Input(format!("device {name}: expected cpu or cuda[:N]"))),
    }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> candle_core::Result<Device> {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    // One for all: tensors of two, even on the same card, do not mix.
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    crate::ops::cuda::device::check_driver()?;
    // A stream of its own: the default one is another for every thread, and what a thread writes there is not in order with
    // what the next one reads.
    let device = Device::new_cuda_with_stream(ordinal)?;
    crate::ops::cuda::device::prepare(&device)?;
    open.insert(ordinal, device.clone());
    Ok(device)
}

#[cfg(feature = "cuda")]
fn cuda_memory(device: &Device) -> Option<u64> {
    crate::ops::cuda::device::free_memory(device).ok()
}

#[cfg(not(feature = "cuda"))]
fn cuda_memory(_device: &Device) -> Option<u64> {
    None
}

#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize) -> candle_core::Result<Device> {
    candle_core::bail!("this program was built without CUDA; build it with --features cuda")
}

/// Free memory of a CUDA device in bytes; `None` for another device, or when the driver does not say.
pub fn free_memory(device: &Device) -> Option<u64> {
    if device.is_cuda() { cuda_memory(device) } else { None }
}

/// Parses `f32`, `bf16` or `f16`; `auto` is f32 on the CPU (half-precision products are far slower there) and bf16
/// elsewhere.
///
/// # Errors
/// An unknown name.
pub fn dtype(name: &str, device: &Device) -> Result<DType> {
    match name {
        "auto" if device.is_cpu() => Ok(DType::F32),
        "auto" | "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        "f32" => Ok(DType::F32),
        _ => Err(Error::Input(format!("dtype {name}: expected auto, f32, bf16 or f16"))),
    }
}
