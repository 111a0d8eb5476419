//! RMS norm, rotary positions and SwiGLU with their gradients: `kernels/layer.cu`.

use candle_core::{DType, Result};

use super::Argument::{Float, Int};
use super::{Buffer, Element, Program, int};

/// Threads of a block, and rows of a norm that share one.
const THREADS: usize = 256;
const ROWS: usize = 8;
/// Rows whose share of the weight's gradient is summed first.
const ROWS_PER_PARTIAL: usize = 64;

/// Whether rows of `width` values of a type can be read in pieces of 16 bytes, as the kernels do.
pub fn in_pieces(dtype: DType, width: usize) -> bool {
    width > 0 && (width * dtype.size_in_bytes()).is_multiple_of(16)
}

/// Rows of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    element: Element,
    rows: usize,
    width: usize,
}

impl Rows {
    /// Of a tensor of the shape `dims`, whose last axis is the width.
    ///
    /// # Errors
    /// A dtype without kernels, a width that does not make pieces of 16 bytes, more rows than the kernels count.
    pub fn of(op: &'static str, dims: &[usize], dtype: DType) -> Result<Self> {
        let element = Element::of(op, dtype)?;
        let width = dims.last().copied().unwrap_or(0);
        if !in_pieces(dtype, width) {
            candle_core::bail!(
                "{op}: a last axis of {width} {dtype:?} values, which make no pieces of 16 bytes"
            )
        }
        let rows = dims[..dims.len() - 1].iter().product();
        int(op, "rows", rows)?;
        int(op, "values of a row", width)?;
        Ok(Self { element, rows, width })
    }

    fn dims(&self) -> [usize; 2] {
        [self.rows, self.width]
    }

    fn kernel(&self, name: &str) -> String {
        format!("layer_{name}_{}", self.element.name())
    }
}

/// Inputs `x` (rows, width), `weight` (width,); outputs the norm and the factor of each row, which is f32.
///
/// # Errors
/// More blocks than a launch takes.
pub fn rms_norm(shape: &Rows, eps: f64) -> Result<Program> {
    let mut program = Program::new("rms-norm");
    let [x, weight] = program.inputs();
    let out = program.output(shape.element.dtype(), &shape.dims());
    let scales = program.output(DType::F32, &[shape.rows]);
    let sizes = [Int(shape.rows as i32), Int(shape.width as i32)];
    let arguments = vec![x, weight, out, scales, sizes[0], sizes[1], Float(eps as f32)];
    let blocks = shape.rows.div_ceil(ROWS);
    program.launch(shape.kernel("rms_norm"), blocks, (THREADS as u32, 0), arguments)?;
    Ok(program)
}

/// Inputs `x`, `weight`, the factors of the rows and the gradient of the norm; output that of `x`.
///
/// # Errors
/// More blocks than a launch takes.
pub fn rms_norm_input_grad(shape: &Rows) -> Result<Program> {
    let mut program = Program::new("rms-norm backward");
    let [x, weight, scales, grad] = program.inputs();
    let dx = program.output(shape.element.dtype(), &shape.dims());
    let sizes = [Int(shape.rows as i32), Int(shape.width as i32)];
    let arguments = vec![x, weight, grad, scales, dx, sizes[0], sizes[1]];
    let blocks = shape.rows.div_ceil(ROWS);
    program.launch(shape.kernel("rms_norm_backward"), blocks, (THREADS as u32, 0), arguments)?;
    Ok(program)
}

/// Inputs as of [`rms_norm_input_grad`]; output the gradient of the weight.
///
/// # Errors
/// More blocks than a launch takes.
pub fn rms_norm_weight_grad(shape: &Rows) -> Result<Program> {
    let mut program = Program::new("rms-norm backward");
    let [x, _, scales, grad] = program.inputs();
    let dw = program.output(shape.element.dtype(), &[shape.width]);
    let parts = shape.rows.div_ceil(ROWS_PER_PARTIAL);
    let partial = program.add(Buffer::Scratch((parts * shape.width).max(1)));
    let (columns, width) = (shape.width.div_ceil(THREADS), Int(shape.width as i32));
    let arguments = vec![x, grad, scales, partial, Int(shape.rows as i32), width];
    program.launch(shape.kernel("rms_norm_weight"), parts * columns, (THREADS as u32, 0), arguments)?;
    let arguments = vec![partial, dw, Int(parts as i32), width];
    program.launch(shape.kernel("rms_norm_weight_sum"), columns, (THREADS as u32, 0), arguments)?;
    Ok(program)
}

/// Which way positions turn a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The operation.
    Forwards,
    /// Its gradient.
    Backwards,
}

/// Inputs `x` (L, H, D), `cos` and `sin` (L, D / 2) in f32; output `x` turned.
///
/// # Errors
/// Another shape, a dtype without kernels, half a head that does not make pieces of 16 bytes, more rows than the kernels count.
pub fn rope(dims: &[usize], dtype: DType, turn: Turn) -> Result<Program> {
    let mut program = Program::new("rope");
    let element = Element::of(program.op, dtype)?;
    let &[rows, heads, width] = dims else { candle_core::bail!("rope: expected (L, H, D), got {dims:?}") };
    if !width.is_multiple_of(2) || !in_pieces(dtype, width / 2) {
        candle_core::bail!("rope: heads of {width} {dtype:?} values, whose halves make no pieces of 16 bytes")
    }
    let [x, cos, sin] = program.inputs();
    let out = program.output(dtype, dims);
    let pieces = rows * heads * (width / 2 * element.bytes() / 16);
    let count = |name: &str, value: usize| int("rope", name, value).map(Int);
    let sizes = [count("rows", rows)?, count("heads", heads)?, count("values of a head", width / 2)?];
    let direction = if turn == Turn::Forwards { 1.0 } else { -1.0 };
    let arguments = vec![x, cos, sin, out, sizes[0], sizes[1], sizes[2], Float(direction)];
    let kernel = format!("layer_rope_{}", element.name());
    program.launch(kernel, pieces.div_ceil(THREADS), (THREADS as u32, 0), arguments)?;
    Ok(program)
}

/// Inputs `gate` and `up`; output `silu(gate) up`. Rows mean nothing here: all values may be one.
///
/// # Errors
/// More values than the kernels count.
pub fn swiglu(shape: &Rows) -> Result<Program> {
    let mut program = Program::new("swiglu");
    let [gate, up] = program.inputs();
    let out = program.output(shape.element.dtype(), &shape.dims());
    let (pieces, blocks) = shape.pieces(program.op)?;
    let arguments = vec![gate, up, out, pieces];
    program.launch(shape.kernel("swiglu"), blocks, (THREADS as u32, 0), arguments)?;
    Ok(program)
}

/// Inputs `gate`, `up` and the gradient of the result; outputs those of `gate` and `up`.
///
/// # Errors
/// More values than the kernels count.
pub fn swiglu_backward(shape: &Rows) -> Result<Program> {
    let mut program = Program::new("swiglu backward");
    let [gate, up, grad] = program.inputs();
    let dgate = program.output(shape.element.dtype(), &shape.dims());
    let dup = program.output(shape.element.dtype(), &shape.dims());
    let (pieces, blocks) = shape.pieces(program.op)?;
    let arguments = vec![gate, up, grad, dgate, dup, pieces];
    program.launch(shape.kernel("swiglu_backward"), blocks, (THREADS as u32, 0), arguments)?;
    Ok(program)
}

impl Rows {
    /// 16 bytes each, and the blocks that take them.
    fn pieces(&self, op: &str) -> Result<(super::Argument, usize)> {
        let pieces = self.rows * self.width * self.element.bytes() / 16;
        Ok((Int(int(op, "pieces of 16 bytes", pieces)?), pieces.div_ceil(THREADS)))
    }
}
