//! RMS norm, rotary positions and SwiGLU on a device.

use candle_core::{CudaStorage, Result, Shape, Tensor};

use super::{Input, Memory, run, run_tensors, tensor};
use crate::ops::kernels::layer::{self, Rows, Turn};

fn one<T>(op: &str, outputs: Vec<T>) -> Result<T> {
    let [one] = outputs.try_into().or_else(|_| candle_core::bail!("{op}: the launches gave no output"))?;
    Ok(one)
}

/// The norm and, outside any graph, the factor of each row.
///
/// # Errors
/// Shapes and types without kernels; the driver's.
pub fn rms_norm(x: Input, weight: Input, eps: f64) -> Result<(CudaStorage, Shape, Tensor)> {
    let shape = Rows::of("rms-norm", x.1.dims(), candle_core::backend::BackendStorage::dtype(x.0))?;
    let program = layer::rms_norm(&shape, eps)?;
    let [out, scales] = run(&program, &[x, weight], Memory::Uninitialised)?
        .try_into()
        .or_else(|_| candle_core::bail!("rms-norm: the launches gave no output"))?;
    let rows = x.1.shape().elem_count() / x.1.dims().last().copied().unwrap_or(1);
    Ok((out, x.1.shape().clone(), tensor(scales, &[rows])))
}

/// Gradients of `x` and of the weight, as far as they are wanted, from `x`, the weight, the factors of the rows and the
/// gradient of the norm.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_gradients(tensors: [&Tensor; 4]) -> Result<[Option<Tensor>; 2]> {
    let [x, weight, ..] = tensors;
    let shape = Rows::of("rms-norm backward", x.dims(), x.dtype())?;
    let run = |program| one("rms-norm backward", run_tensors(&program, &tensors, Memory::Uninitialised)?);
    let dx = x.track_op().then(|| run(layer::rms_norm_input_grad(&shape)?)?.reshape(x.shape()));
    let dw = weight.track_op().then(|| run(layer::rms_norm_weight_grad(&shape)?));
    Ok([dx.transpose()?, dw.transpose()?])
}

/// `x` turned by f32 angles.
///
/// # Errors
/// As [`rms_norm`].
pub fn rope(x: Input, cos: Input, sin: Input) -> Result<(CudaStorage, Shape)> {
    let dtype = candle_core::backend::BackendStorage::dtype(x.0);
    let program = layer::rope(x.1.dims(), dtype, Turn::Forwards)?;
    Ok((one("rope", run(&program, &[x, cos, sin], Memory::Uninitialised)?)?, x.1.shape().clone()))
}

/// The gradient of the input for that of the output.
///
/// # Errors
/// As [`rms_norm`].
pub fn rope_back(grad: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let program = layer::rope(grad.dims(), grad.dtype(), Turn::Backwards)?;
    one("rope", run_tensors(&program, &[grad, cos, sin], Memory::Uninitialised)?)
}

/// `silu(gate) up`.
///
/// # Errors
/// As [`rms_norm`].
pub fn swiglu(gate: Input, up: Input) -> Result<(CudaStorage, Shape)> {
    let count = gate.1.shape().elem_count();
    let shape = Rows::of("swiglu", &[count], candle_core::backend::BackendStorage::dtype(gate.0))?;
    let out = run(&layer::swiglu(&shape)?, &[gate, up], Memory::Uninitialised)?;
    Ok((one("swiglu", out)?, gate.1.shape().clone()))
}

/// Gradients of `gate` and `up`.
///
/// # Errors
/// As [`rms_norm`].
pub fn swiglu_gradients(tensors: [&Tensor; 3]) -> Result<[Tensor; 2]> {
    let shape = Rows::of("swiglu backward", &[tensors[0].elem_count()], tensors[0].dtype())?;
    let outputs = run_tensors(&layer::swiglu_backward(&shape)?, &tensors, Memory::Uninitialised)?;
    let outputs: [Tensor; 2] =
        outputs.try_into().or_else(|_| candle_core::bail!("swiglu backward: the launches gave no output"))?;
    let [dgate, dup] = outputs.map(|x| x.reshape(tensors[0].shape()));
    Ok([dgate?, dup?])
}
