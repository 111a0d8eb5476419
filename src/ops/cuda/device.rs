//! What a device must be before kernels are launched on it.

use candle_core::cuda::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{CudaDevice, Device, Result};

use super::failed;
use crate::ops::kernels::capability::{self, Capability};

/// Checks the device's compute capability against what was built, and turns off the tracking of every tensor by events,
/// which one stream does not need and which costs two events for each allocation.
///
/// # Errors
/// A device that the kernels do not run on; the driver's.
pub fn prepare(device: &Device) -> Result<()> {
    let cuda = device.as_cuda_device()?;
    let stream = cuda.cuda_stream();
    let (major, minor) =
        stream.context().compute_capability().map_err(|e| failed("cuda", "compute capability", e))?;
    capability::check(Capability { major: major as u32, minor: minor as u32 }, capability::built())?;
    // SAFETY: this crate uses one stream for a device, so nothing is freed or written while another stream reads it.
    unsafe { cuda.disable_event_tracking() };
    Ok(())
}

/// Free bytes of the device's memory, once all work on it is done: what was freed goes back to the driver only then.
///
/// # Errors
/// Another device than CUDA; the driver's.
pub fn free_memory(device: &Device) -> Result<u64> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let free = stream.synchronize().and_then(|()| stream.context().mem_get_info());
    free.map(|(free, _)| free as u64).map_err(|e| failed("cuda", "free memory", e))
}

/// Bytes of shared memory that a block may have.
///
/// # Errors
/// The driver's.
pub fn shared_memory(device: &CudaDevice) -> Result<usize> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let most = device.cuda_stream().context().attribute(attribute);
    most.map(|most| most as usize).map_err(|e| failed("cuda", "shared memory of a block", e))
}

/// Multiprocessors of the device.
///
/// # Errors
/// Another device than CUDA; the driver's.
pub fn multiprocessors(device: &Device) -> Result<usize> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let count = device.as_cuda_device()?.cuda_stream().context().attribute(attribute);
    count.map(|count| count as usize).map_err(|e| failed("cuda", "multiprocessors", e))
}
