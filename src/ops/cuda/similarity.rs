//! Similarity of many pairs on a device.

use candle_core::{CudaStorage, Result, Shape, Tensor};

use super::{Input, Memory, run, run_tensors, tensor};
use crate::ops::kernels::similarity::{Pairs, backward, forward};

/// Similarities of all segments one after another and, outside any graph, one over the length of each frame.
///
/// # Errors
/// Shapes, types and offsets without kernels; the driver's.
pub fn compare(pairs: &Pairs, queries: Input, frames: Input) -> Result<(CudaStorage, Shape, Tensor)> {
    let (rows, times) = (queries.1.shape().dims2()?.0, frames.1.shape().dims2()?.0);
    let mut outputs = run(&forward(pairs, rows, times)?, &[queries, frames], Memory::Uninitialised)?;
    match (outputs.pop(), outputs.pop()) {
        (Some(inverse), Some(out)) => Ok((out, Shape::from(pairs.len()), tensor(inverse, &[times]))),
        _ => candle_core::bail!("similarity: the launches gave no output"),
    }
}

/// Gradients of queries and frames from those, one over the lengths of the frames, the similarities and their gradient;
/// all contiguous.
///
/// # Errors
/// As [`compare`].
pub fn gradients(pairs: &Pairs, tensors: [&Tensor; 5]) -> Result<[Tensor; 2]> {
    let [queries, frames, ..] = tensors;
    let program = backward(pairs, queries.dim(0)?, frames.dim(0)?)?;
    let outputs = run_tensors(&program, &tensors, Memory::Uninitialised)?;
    outputs.try_into().or_else(|_| candle_core::bail!("similarity backward: the launches gave no output"))
}
