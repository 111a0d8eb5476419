//! The launches of the CUDA kernels in `kernels/`, as data: names, grids, arguments and lists, made and checked on the
//! host. A device runs them with the feature `cuda`; the tests run the same ones in emulation.

pub mod attention;
pub mod capability;
pub mod decode;
pub mod layer;
pub mod similarity;

use candle_core::{DType, Result, Tensor};

/// Type of the values that a kernel reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32 bits.
    F32,
    /// 16 bits, the exponent of f32.
    Bf16,
    /// 16 bits, IEEE.
    F16,
}

impl Element {
    /// The type that `dtype` is to `op`.
    ///
    /// # Errors
    /// A dtype without kernels.
    pub fn of(op: &str, dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::BF16 => Ok(Self::Bf16),
            DType::F16 => Ok(Self::F16),
            _ => {
                candle_core::bail!(
                    "{op}: the kernels take f32, bf16 and f16, got {dtype:?}; convert the tensors"
                )
            }
        }
    }

    /// As tensors call it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        self.dtype().size_in_bytes()
    }

    fn name(self) -> &'static str {
        self.dtype().as_str()
    }
}

/// What launches read and write.
#[derive(Debug, Clone, PartialEq)]
pub enum Buffer {
    /// A contiguous tensor of the caller's, by its place among them.
    Input(usize),
    /// A result, which the launches write completely.
    Output(DType, Vec<usize>),
    /// So many f32 between launches.
    Scratch(usize),
    /// A list of 32-bit integers.
    Ints(Vec<i32>),
    /// A list of 64-bit integers.
    Longs(Vec<i64>),
    /// Addresses inside of inputs: their places among them, and bytes from their beginnings.
    Addresses(Vec<(usize, usize)>),
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A null pointer.
    Null,
    /// Address of a buffer, by its place among them.
    Buffer(usize),
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
}

/// One launch, of a grid and blocks with one dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: String,
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// In the kernel's order.
    pub arguments: Vec<Argument>,
}

/// The launches of one operation, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Name of the operation, for errors.
    pub op: &'static str,
    /// What the launches name.
    pub buffers: Vec<Buffer>,
    /// What is launched.
    pub launches: Vec<Launch>,
}

impl Program {
    fn new(op: &'static str) -> Self {
        Self { op, buffers: vec![], launches: vec![] }
    }

    fn add(&mut self, buffer: Buffer) -> Argument {
        self.buffers.push(buffer);
        Argument::Buffer(self.buffers.len() - 1)
    }

    fn inputs<const N: usize>(&mut self) -> [Argument; N] {
        std::array::from_fn(|i| self.add(Buffer::Input(i)))
    }

    fn output(&mut self, dtype: DType, shape: &[usize]) -> Argument {
        self.add(Buffer::Output(dtype, shape.to_vec()))
    }

    fn ints(&mut self, values: Vec<i32>) -> Argument {
        self.add(Buffer::Ints(values))
    }

    /// Adds a launch, unless it has no block.
    fn launch(
        &mut self,
        kernel: String,
        blocks: usize,
        (threads, shared): (u32, usize),
        arguments: Vec<Argument>,
    ) -> Result<()> {
        let Ok(blocks) = i32::try_from(blocks) else {
            candle_core::bail!("{}: {blocks} blocks are more than one launch takes; split the batch", self.op)
        };
        if blocks > 0 {
            self.launches.push(Launch { kernel, blocks: blocks as u32, threads, shared, arguments });
        }
        Ok(())
    }
}

impl Program {
    /// That a device, which gives a block `room` bytes of shared memory, takes all launches; `own` is what each launch's kernel
    /// declares itself, `shapes` are those of the tensors, for the error.
    ///
    /// # Errors
    /// The first launch that needs more.
    pub fn check_shared(&self, own: &[usize], room: usize, shapes: &[&[usize]]) -> Result<()> {
        for (one, own) in self.launches.iter().zip(own) {
            let needs = one.shared + own;
            if needs > room {
                candle_core::bail!(
                    "{} of tensors {shapes:?}: {} needs {needs} bytes of shared memory for a block, this device has {room}; \
                     use a smaller width or half precision",
                    self.op,
                    one.kernel
                )
            }
        }
        Ok(())
    }
}

/// That all tensors have one dtype and are on one device.
///
/// # Errors
/// The first that differs.
pub fn check_same(op: &str, tensors: &[&Tensor]) -> Result<()> {
    let Some(first) = tensors.first() else { return Ok(()) };
    for other in tensors {
        if other.dtype() != first.dtype() || !other.device().same_device(first.device()) {
            candle_core::bail!(
                "{op}: expected one dtype and device, got {:?} {:?} on {:?} and {:?} {:?} on {:?}",
                first.dtype(),
                first.dims(),
                first.device().location(),
                other.dtype(),
                other.dims(),
                other.device().location()
            )
        }
    }
    Ok(())
}

/// Bytes of a tile in shared memory: 16 more than the width for each row.
fn tile_bytes(element: Element, width: usize, rows: usize) -> usize {
    rows * (width * element.bytes() + 16)
}

/// Sizes and offsets are 32-bit integers on the device.
fn int(op: &str, name: &str, value: usize) -> Result<i32> {
    match i32::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => candle_core::bail!("{op}: {value} {name} are more than the kernels count (2^31 - 1)"),
    }
}

/// First rows of parts of the given lengths, and the end of the last.
///
/// # Errors
/// More rows than 2^31 - 1.
pub fn offsets(op: &str, lengths: impl IntoIterator<Item = usize>) -> Result<Vec<i32>> {
    let mut all = vec![0];
    let mut end = 0;
    for length in lengths {
        end += length;
        all.push(int(op, "rows", end)?);
    }
    Ok(all)
}

/// That `offsets` begin at 0, never decrease and end at `rows`.
fn check_offsets(op: &str, name: &str, offsets: &[i32], rows: usize) -> Result<()> {
    if offsets.len() < 2 {
        candle_core::bail!("{op}: {name} {offsets:?} hold no segment; expected one at least")
    }
    if offsets[0] != 0 {
        candle_core::bail!("{op}: {name} begin at {}, expected 0", offsets[0])
    }
    if let Some(i) = (1..offsets.len()).find(|&i| offsets[i] < offsets[i - 1]) {
        candle_core::bail!("{op}: {name} decrease from {} to {} at {i}", offsets[i - 1], offsets[i])
    }
    let end = offsets[offsets.len() - 1];
    if end as usize != rows {
        candle_core::bail!("{op}: {name} end at {end}, but the tensor has {rows} rows")
    }
    Ok(())
}

/// `(segment, tile)` of all tiles of `rows` rows.
fn tiles(offsets: &[i32], rows: i32) -> Vec<(i32, i32)> {
    (offsets.windows(2).enumerate())
        .flat_map(|(segment, bounds)| {
            let count = (bounds[1] - bounds[0] + rows - 1) / rows;
            (0..count).map(move |tile| (segment as i32, tile))
        })
        .collect()
}

fn flat(tiles: impl IntoIterator<Item = (i32, i32)>) -> Vec<i32> {
    tiles.into_iter().flat_map(|(segment, tile)| [segment, tile]).collect()
}
