//! The CUDA kernels on a device: [`super::kernels`] says what to launch, this launches it.

pub mod attention;
pub mod device;
pub mod layer;
pub mod similarity;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop, result,
};
use candle_core::cuda::{CudaDevice, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Error, Layout, Result, Shape, Storage, Tensor};

use super::kernels::{Argument, Buffer, Launch, Program};

/// The kernels as portable code (PTX for compute capability 8.0), by the file they come from. The driver compiles a file
/// for the device when its first kernel is launched, and remembers it.
const MODULES: [(&str, &str); 6] = [
    ("attention_forward", include_str!(concat!(env!("OUT_DIR"), "/attention_forward.ptx"))),
    ("attention_backward", include_str!(concat!(env!("OUT_DIR"), "/attention_backward.ptx"))),
    ("attention_decode", include_str!(concat!(env!("OUT_DIR"), "/attention_decode.ptx"))),
    ("layer", include_str!(concat!(env!("OUT_DIR"), "/layer.ptx"))),
    ("similarity_backward", include_str!(concat!(env!("OUT_DIR"), "/similarity_backward.ptx"))),
    ("similarity", include_str!(concat!(env!("OUT_DIR"), "/similarity.ptx"))),
];

/// Dynamic shared memory that every launch may have; more must be allowed.
const SHARED: usize = 48 * 1024;

/// A tensor as a custom operation receives it.
pub type Input<'a> = (&'a CudaStorage, &'a Layout);

/// What new memory holds before the launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Anything.
    Uninitialised,
    /// NaN, so that a value that no kernel writes is seen.
    Poisoned,
}

/// What a device error says: where it was, and the driver's words.
fn failed(op: &str, what: &str, error: impl std::fmt::Display) -> Error {
    Error::Msg(format!("{op}: {what}: {error}"))
}

/// Runs the launches of `program` in order on the stream of its inputs and gives its outputs.
///
/// # Errors
/// Inputs on several devices or not contiguous; a kernel that needs more shared memory than the device has, before the first
/// launch; every call to the driver that fails, by the kernel it was for.
pub fn run(program: &Program, inputs: &[Input], memory: Memory) -> Result<Vec<CudaStorage>> {
    run_from(program, inputs, memory, &mut || Ok(()))
}

/// As [`run`], with `before` called when all memory is there and the first launch comes next.
fn run_from(
    program: &Program,
    inputs: &[Input],
    memory: Memory,
    before: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<CudaStorage>> {
    let op = program.op;
    let Some((first, _)) = inputs.first() else { candle_core::bail!("{op}: no input") };
    let device = first.device().clone();
    let stream = device.cuda_stream();
    let functions = functions(program, &device, inputs)?;
    let copies = inputs.iter().map(|input| aligned(&device, *input)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<Input> = (inputs.iter().zip(&copies))
        .map(|(input, copy)| copy.as_ref().map_or(*input, |(storage, layout)| (storage, layout)))
        .collect();
    let mut guards = vec![];
    let sources = inputs
        .iter()
        .map(|input| source(op, &device, &stream, *input, &mut guards))
        .collect::<Result<Vec<u64>>>()?;
    let lists = Lists::new(program, &sources)?;
    // A program without lists uploads nothing.
    let on_device = (!lists.words.is_empty()).then(|| device.clone_htod(&lists.words)).transpose()?;
    let (lists_at, lists_guard) = on_device.as_ref().map(|lists| lists.device_ptr(&stream)).unzip();

    let mut made = allocate(program, &device)?;
    let mut write_guards = vec![];
    let mut places = vec![];
    for (storage, _) in &mut made {
        let bytes = storage_bytes(storage);
        let (at, guard) = address_mut(op, storage, &stream)?;
        if memory == Memory::Poisoned && bytes > 0 {
            // SAFETY: `at` is the beginning of `bytes` bytes that were allocated just above.
            unsafe { result::memset_d8_async(at, 0xff, bytes, stream.cu_stream()) }
                .map_err(|e| failed(op, "memset", e))?;
        }
        places.push(at);
        write_guards.push(guard);
    }
    let mut new = places.into_iter();
    let addresses = (program.buffers.iter().enumerate())
        .map(|(i, buffer)| match buffer {
            Buffer::Input(at) => sources.get(*at).copied(),
            Buffer::Output(..) | Buffer::Scratch(_) => new.next(),
            _ => lists_at.map(|at| at + 8 * lists.starts[i] as u64),
        })
        .map(|at| at.ok_or_else(|| failed(op, "inputs", "fewer than the launches name")))
        .collect::<Result<Vec<u64>>>()?;
    before()?;
    for (one, function) in program.launches.iter().zip(&functions) {
        launch(op, &stream, (one, function), &addresses)?;
    }
    drop((guards, lists_guard, write_guards));
    Ok(made.into_iter().filter(|(_, output)| *output).map(|(storage, _)| storage).collect())
}

/// As [`run`] on tensors, outside any graph.
///
/// # Errors
/// As [`run`]; a tensor on another device.
pub fn run_tensors(program: &Program, inputs: &[&Tensor], memory: Memory) -> Result<Vec<Tensor>> {
    run_tensors_from(program, inputs, memory, &mut || Ok(()))
}

/// As [`run_tensors`]; `before` is called when lists and memory are on the device and only the launches are left, so that they
/// can be timed alone.
///
/// # Errors
/// As [`run_tensors`], and those of `before`.
pub fn run_tensors_from(
    program: &Program,
    inputs: &[&Tensor],
    memory: Memory,
    before: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Tensor>> {
    let guards: Vec<_> = inputs.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let inputs = (guards.iter())
        .map(|(storage, layout)| match &**storage {
            Storage::Cuda(storage) => Ok((storage, *layout)),
            _ => candle_core::bail!("{}: expected all tensors on one CUDA device", program.op),
        })
        .collect::<Result<Vec<Input>>>()?;
    let outputs = run_from(program, &inputs, memory, before)?;
    let shapes = program.buffers.iter().filter_map(|buffer| match buffer {
        Buffer::Output(_, shape) => Some(shape.as_slice()),
        _ => None,
    });
    Ok(outputs.into_iter().zip(shapes).map(|(storage, shape)| tensor(storage, shape)).collect())
}

/// A tensor outside any graph.
fn tensor(storage: CudaStorage, shape: &[usize]) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), Shape::from(shape), BackpropOp::none(), false)
}

/// A copy of a view that begins inside 16 bytes of its storage; `None` for any other.
fn aligned(device: &CudaDevice, (storage, layout): Input) -> Result<Option<(CudaStorage, Layout)>> {
    if (layout.start_offset() * storage.dtype().size_in_bytes()).is_multiple_of(16) {
        return Ok(None);
    }
    // SAFETY: the copy writes all of it.
    let mut copy = unsafe { device.alloc_uninit(layout.shape(), storage.dtype()) }?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok(Some((copy, Layout::contiguous(layout.shape()))))
}

/// Address of an input's first value.
fn source<'a>(
    op: &str,
    device: &CudaDevice,
    stream: &'a CudaStream,
    (storage, layout): Input<'a>,
    guards: &mut Vec<SyncOnDrop<'a>>,
) -> Result<u64> {
    if !storage.device().same_device(device) {
        candle_core::bail!("{op}: expected all tensors on one device")
    }
    let Some((start, _)) = layout.contiguous_offsets() else {
        candle_core::bail!(
            "{op}: expected a contiguous tensor, got shape {:?} with strides {:?}",
            layout.dims(),
            layout.stride()
        )
    };
    let (base, guard) = address(op, storage, stream)?;
    guards.push(guard);
    let at = base + (start * storage.dtype().size_in_bytes()) as u64;
    if !at.is_multiple_of(16) {
        candle_core::bail!(
            "{op}: a tensor of shape {:?} begins {start} values into its storage, expected a multiple of 16 bytes",
            layout.dims()
        )
    }
    Ok(at)
}

fn address<'a>(op: &str, storage: &'a CudaStorage, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr(stream),
        CudaStorageSlice::F16(slice) => slice.device_ptr(stream),
        _ => candle_core::bail!("{op}: expected f32, bf16 or f16, got {:?}", storage.dtype()),
    })
}

fn address_mut<'a>(
    op: &str,
    storage: &'a mut CudaStorage,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    Ok(match &mut storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr_mut(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr_mut(stream),
        CudaStorageSlice::F16(slice) => slice.device_ptr_mut(stream),
        _ => candle_core::bail!("{op}: an output of another type than f32, bf16 or f16"),
    })
}

fn storage_bytes(storage: &CudaStorage) -> usize {
    match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.num_bytes(),
        CudaStorageSlice::BF16(slice) => slice.num_bytes(),
        CudaStorageSlice::F16(slice) => slice.num_bytes(),
        _ => 0,
    }
}

/// Memory for outputs (marked) and what is needed between launches, in the program's order.
fn allocate(program: &Program, device: &CudaDevice) -> Result<Vec<(CudaStorage, bool)>> {
    let new = |dtype: DType, count: usize| {
        // SAFETY: the launches write outputs completely, and read between launches only what they wrote.
        unsafe { device.alloc_uninit(&Shape::from(count.max(1)), dtype) }
    };
    (program.buffers.iter())
        .filter_map(|buffer| match buffer {
            Buffer::Output(dtype, shape) => Some(new(*dtype, shape.iter().product()).map(|s| (s, true))),
            Buffer::Scratch(count) => Some(new(DType::F32, *count).map(|s| (s, false))),
            _ => None,
        })
        .collect()
}

/// All lists of a program in one upload, each at a multiple of 16 bytes.
struct Lists {
    words: Vec<u64>,
    /// First word of each buffer's list; 0 for the others.
    starts: Vec<usize>,
}

impl Lists {
    fn new(program: &Program, sources: &[u64]) -> Result<Self> {
        let mut lists = Self { words: vec![], starts: vec![] };
        for buffer in &program.buffers {
            lists.words.resize(lists.words.len().next_multiple_of(2), 0);
            lists.starts.push(lists.words.len());
            match buffer {
                Buffer::Ints(values) => lists.words.extend(values.chunks(2).map(|pair| {
                    let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(0)];
                    u64::from(low as u32) | u64::from(high as u32) << 32
                })),
                Buffer::Longs(values) => lists.words.extend(values.iter().map(|&x| x as u64)),
                Buffer::Addresses(places) => {
                    for &(input, byte) in places {
                        let Some(base) = sources.get(input) else {
                            candle_core::bail!("{}: no input {input}", program.op)
                        };
                        lists.words.push(base + byte as u64);
                    }
                }
                _ => {}
            }
        }
        Ok(lists)
    }
}

/// The kernels of all launches, each allowed the shared memory that it needs, or none of them.
fn functions(program: &Program, device: &CudaDevice, inputs: &[Input]) -> Result<Vec<CudaFunction>> {
    let op = program.op;
    let (mut functions, mut own) = (vec![], vec![]);
    for one in &program.launches {
        let name = one.kernel.as_str();
        let function = function(op, device, name)?;
        // What a kernel declares itself counts as well.
        let declared = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        own.push(function.get_attribute(declared).map_err(|e| failed(op, name, e))? as usize);
        functions.push(function);
    }
    if program.launches.iter().zip(&own).all(|(one, own)| one.shared + own <= SHARED) {
        return Ok(functions);
    }
    let room = device::shared_memory(device)?;
    let shapes: Vec<&[usize]> = inputs.iter().map(|(_, layout)| layout.dims()).collect();
    program.check_shared(&own, room, &shapes)?;
    for ((one, function), own) in program.launches.iter().zip(&functions).zip(&own) {
        if one.shared + own > SHARED {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let allowed = function.set_attribute(most, (room - own) as i32);
            allowed.map_err(|e| failed(op, &one.kernel, e))?;
        }
    }
    Ok(functions)
}

fn function(op: &str, device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    let Some((module, ptx)) =
        MODULES.iter().find(|(module, _)| name.starts_with(module) || belongs(name, module))
    else {
        candle_core::bail!("{op}: no kernel is called {name}")
    };
    let function = device.get_or_load_custom_func(name, module, ptx).map_err(|e| failed(op, name, e))?;
    Ok(function.into_cuda_function())
}

fn launch(
    op: &str,
    stream: &CudaStream,
    (one, function): (&Launch, &CudaFunction),
    addresses: &[u64],
) -> Result<()> {
    let nowhere = 0u64;
    let mut builder = stream.launch_builder(function);
    for argument in &one.arguments {
        match argument {
            Argument::Null => builder.arg(&nowhere),
            Argument::Buffer(at) => builder.arg(&addresses[*at]),
            Argument::Int(value) => builder.arg(value),
            Argument::Float(value) => builder.arg(value),
        };
    }
    let config = LaunchConfig {
        grid_dim: (one.blocks, 1, 1),
        block_dim: (one.threads, 1, 1),
        shared_mem_bytes: one.shared as u32,
    };
    // SAFETY: the arguments have the kernel's order and types, and the lists were checked against the tensors
    // (`ops::kernels`, which the tests hold against the same sources); all memory outlives the launch in stream order.
    unsafe { builder.launch(config) }.map_err(|e| failed(op, &one.kernel, e))?;
    Ok(())
}

/// Kernels that are named otherwise than their file.
fn belongs(kernel: &str, module: &str) -> bool {
    matches!(
        (module, kernel.rsplit_once('_').map_or(kernel, |(name, _)| name)),
        ("attention_backward", "attention_delta") | ("attention_decode", "attention_combine")
    )
}
