//! What a device must be before kernels are launched on it.

use candle_core::cuda::cudarc::driver::sys::{CUdevice_attribute, CUmemPool_attribute, CUmemoryPool};
use candle_core::cuda::cudarc::driver::{CudaContext, result, sys};
use candle_core::{CudaDevice, Device, Result};

use super::failed;
use crate::ops::kernels::capability::{self, Capability, Release};

/// The latest CUDA that the driver serves.
///
/// # Errors
/// The driver's.
pub fn driver() -> Result<Release> {
    let mut number = 0;
    // SAFETY: it writes one number, and needs nothing before.
    unsafe { sys::cuDriverGetVersion(&raw mut number) }
        .result()
        .map_err(|e| failed("cuda", "version of the driver", e))?;
    Ok(Release::of_driver(number.max(0) as u32))
}

/// Checks, before anything is loaded, that the driver reads what was built.
///
/// # Errors
/// A driver that is older than the toolkit of the build; the driver's.
pub fn check_driver() -> Result<()> {
    capability::check_driver(driver()?, capability::toolkit())
}

/// Checks the device's compute capability against what was built, turns off the tracking of every tensor by events, which one
/// stream does not need and which costs two events for each allocation, and lets the pool keep what is freed: by default it
/// gives all of it back at every synchronisation, and the next tensors wait until memory is mapped again.
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
    keep_memory(stream.context())
}

/// The pool that tensors come from; `None` where the driver has none.
fn pool(context: &CudaContext) -> Result<Option<CUmemoryPool>> {
    if !context.has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: the device is that of an open context.
    let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) };
    pool.map(Some).map_err(|e| failed("cuda", "memory pool", e))
}

fn keep_memory(context: &CudaContext) -> Result<()> {
    let Some(pool) = pool(context)? else { return Ok(()) };
    let (what, mut bytes) = (CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX);
    // SAFETY: the pool is the device's own, and this attribute is a u64.
    let set = unsafe { result::mem_pool::set_attribute(pool, what, (&raw mut bytes).cast()) };
    set.map_err(|e| failed("cuda", "release threshold of the memory pool", e))
}

/// Free bytes of the device's memory, once all work on it is done and the pool has given back what it keeps.
///
/// # Errors
/// Another device than CUDA; the driver's.
pub fn free_memory(device: &Device) -> Result<u64> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let context = stream.context();
    stream.synchronize().map_err(|e| failed("cuda", "synchronize", e))?;
    if let Some(pool) = pool(context)? {
        // SAFETY: the pool is the device's own; what tensors hold is not touched.
        unsafe { result::mem_pool::trim_to(pool, 0) }.map_err(|e| failed("cuda", "trim", e))?;
    }
    let free = context.mem_get_info();
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
