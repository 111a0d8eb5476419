//! Affine maps on rows, `y = x w^T [+ b]`, and the low-rank update of an adapter.
//!
//! The products run on the stored slices: nothing is transposed into a copy, the bias is where the product starts from,
//! and the backward computes the gradients that somebody asked for and no others.

use std::ops::Range;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::few_rows::{FEW, few_rows};
use super::{column_sums, f32_slice, fused, with_slices};

/// `x` (M, K), `weight` (N, K), `bias` (N,) -> (M, N).
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check(x, weight)?;
    if bias.dims() != [weight.dim(0)?] {
        candle_core::bail!("linear: weight {:?} and bias {:?} do not fit", weight.dims(), bias.dims())
    }
    if !fused(x) {
        return linear_no_bias(x, weight)?.broadcast_add(bias);
    }
    x.contiguous()?.apply_op3(&laid_out(weight)?, &bias.contiguous()?, Linear)
}

/// The composed twin of [`linear`].
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear_composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear_no_bias_composed(x, weight)?.broadcast_add(bias)
}

/// `x` (M, K), `weight` (N, K) -> (M, N).
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear_no_bias(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    check(x, weight)?;
    if fused(x) {
        return x.contiguous()?.apply_op2(&laid_out(weight)?, LinearNoBias);
    }
    if x.track_op() || weight.track_op() {
        return x.apply_op2(weight, Product);
    }
    linear_no_bias_composed(x, weight)
}

/// The composed twin of [`linear_no_bias`].
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear_no_bias_composed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// The second half of an adapter: `base` (M, N) `+ scale * x` (M, R) `w^T`, with `weight` (N, R).
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear_onto(base: &Tensor, x: &Tensor, weight: &Tensor, scale: f64) -> Result<Tensor> {
    check(x, weight)?;
    if base.dims() != [x.dim(0)?, weight.dim(0)?] {
        candle_core::bail!(
            "linear: base {:?} does not fit x {:?}, w {:?}",
            base.dims(),
            x.dims(),
            weight.dims()
        )
    }
    if !fused(x) {
        return base + (linear_no_bias(x, weight)? * scale)?;
    }
    x.contiguous()?.apply_op3(&laid_out(weight)?, &base.contiguous()?, LinearOnto { scale })
}

/// The composed twin of [`linear_onto`].
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear_onto_composed(base: &Tensor, x: &Tensor, weight: &Tensor, scale: f64) -> Result<Tensor> {
    base + (linear_no_bias_composed(x, weight)? * scale)?
}

fn check(x: &Tensor, weight: &Tensor) -> Result<()> {
    let ((_, k), (_, kw)) = (x.dims2()?, weight.dims2()?);
    if k != kw {
        candle_core::bail!(
            "linear: x {:?} and weight {:?} do not fit (expected (M, K) and (N, K))",
            x.dims(),
            weight.dims()
        )
    }
    Ok(())
}

/// `weight` (N, K) with either axis dense, copied only where neither is.
fn laid_out(weight: &Tensor) -> Result<Tensor> {
    if weight.t()?.is_contiguous() { Ok(weight.clone()) } else { weight.contiguous() }
}

/// A matrix in memory: first value, (row, column) strides.
type Operand<'a> = (&'a [f32], (usize, usize));

/// What a product is added to.
#[derive(Clone, Copy)]
enum Onto<'a> {
    Nothing,
    /// What is there.
    Itself,
    /// A row (n,) that stands in every row.
    Row(&'a [f32]),
}

impl Onto<'_> {
    fn itself_if(keep: bool) -> Self {
        if keep { Self::Itself } else { Self::Nothing }
    }

    /// Puts a row into `columns` of some rows of `y`, which have `n` columns each; whether `y` counts from here on.
    ///
    /// # Safety
    /// The columns of `rows` lie in `y`, and nobody else reads or writes them.
    unsafe fn begin(self, y: *mut f32, n: usize, rows: Range<usize>, columns: Range<usize>) -> bool {
        if let Self::Row(row) = self {
            for at in rows {
                // SAFETY: the caller's promise; `row` has `n` values.
                unsafe {
                    let to = y.add(at * n + columns.start);
                    to.copy_from_nonoverlapping(row[columns.clone()].as_ptr(), columns.len());
                }
            }
        }
        !matches!(self, Self::Nothing)
    }
}

/// `y (m, n) = onto + scale * a (m, k) b (k, n)`; `y` is row-major.
fn product(y: &mut [f32], (m, n, k): (usize, usize, usize), onto: Onto, a: Operand, b: Operand, scale: f32) {
    if m * n == 0 {
        return;
    }
    let last = |rows: usize, columns: usize, (down, across)| (rows - 1) * down + (columns - 1) * across;
    assert!(
        y.len() >= m * n && (k == 0 || a.0.len() > last(m, k, a.1) && b.0.len() > last(k, n, b.1)),
        "product: out of bounds"
    );
    let few = m < FEW && a.1 == (k, 1) && b.1 == (1, k);
    if k == 0 || few {
        // SAFETY: `y` holds `m * n` values and is borrowed exclusively.
        let keep = unsafe { onto.begin(y.as_mut_ptr(), n, 0..m, 0..n) };
        return match k {
            0 if keep => {}
            0 => y.fill(0.0),
            _ => few_rows(y, (m, n, k), keep, a.0, b.0, scale),
        };
    }
    // Each thread computes a part of its own: `gemm` shares one product less well (LOG.md).
    let threads = rayon::current_num_threads();
    let (side, step, by_rows) = cut(m, n, threads);
    let whole = if side <= step { Parallelism::Rayon(threads) } else { Parallelism::None };
    let y = Output(y.as_mut_ptr());
    (0..side.div_ceil(step)).into_par_iter().for_each(|part| {
        let first = part * step;
        let length = step.min(side - first);
        let part = first..first + length;
        let (rows, columns) = if by_rows { (part, 0..n) } else { (0..m, part) };
        let stride = |s: usize| s as isize;
        let y: *mut f32 = { y }.0;
        // SAFETY: the assertion keeps every access inside the three buffers; `y` is borrowed exclusively, and no two
        // parts write the same value.
        unsafe {
            let keep = onto.begin(y, n, rows.clone(), columns.clone());
            gemm(
                rows.len(),
                columns.len(),
                k,
                y.add(rows.start * n + columns.start),
                1,
                stride(n),
                keep,
                a.0.as_ptr().add(rows.start * a.1.0),
                stride(a.1.1),
                stride(a.1.0),
                b.0.as_ptr().add(columns.start * b.1.1),
                stride(b.1.1),
                stride(b.1.0),
                1.0,
                scale,
                false,
                false,
                false,
                whole,
            );
        }
    });
}

/// Rows or columns that a thread computes by itself, at least.
const PART: usize = 64;
/// Parts are multiples of these, which `gemm` computes at a time, or of which that is a multiple.
const ROWS: usize = 12;
const COLUMNS: usize = 64;

/// How `threads` share a product of (m, n): the side that is cut, how much of it is a part, and whether that is rows. The longer side,
/// unless its parts are less even.
fn cut(m: usize, n: usize, threads: usize) -> (usize, usize, bool) {
    let step = |side: usize, grain: usize| side.div_ceil(threads).max(PART).next_multiple_of(grain);
    let (rows, columns) = (step(m, ROWS), step(n, COLUMNS));
    // The largest part's share of the work.
    let (of_rows, of_columns) = (rows as f64 / m as f64, columns as f64 / n as f64);
    let by_rows = if m > n { of_rows <= 1.02 * of_columns } else { of_columns > 1.02 * of_rows };
    if by_rows { (m, rows, true) } else { (n, columns, false) }
}

/// Where a product goes, shared by the threads that write parts of their own.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: see the only use.
unsafe impl Sync for Output {}

/// `y = onto + scale * x w^T` for `x` (m, k) and [`transposed`] `w` (n, k).
fn forward(y: &mut [f32], (m, n, k): (usize, usize, usize), onto: Onto, x: &[f32], w: Operand, scale: f32) {
    product(y, (m, n, k), onto, (x, (k, 1)), w, scale);
}

/// `w^T` (k, n) of a weight (n, k) of which either axis is dense.
fn transposed<'a>(w: &'a CpuStorage, layout: &Layout) -> Result<Operand<'a>> {
    let (n, k) = layout.shape().dims2()?;
    if layout.is_contiguous() || layout.stride() != [1, n] {
        return Ok((f32_slice("linear", w, layout)?, (1, k)));
    }
    let start = layout.start_offset();
    Ok((&w.as_slice::<f32>()?[start..start + n * k], (n, 1)))
}

/// A sum of products `scale * g w`, with `g` (M, N) and `w` (N, K): what reaches the input (M, K) of several maps.
pub(crate) struct InputGrad {
    values: Vec<f32>,
    started: bool,
    shape: (usize, usize),
}

impl InputGrad {
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        Self { values: vec![0f32; rows * width], started: false, shape: (rows, width) }
    }

    pub(crate) fn add(&mut self, grad: &Tensor, weight: &Tensor, scale: f64) -> Result<()> {
        let ((m, k), (n, _)) = (self.shape, weight.dims2()?);
        let turned = weight.t()?;
        let (dense, strides) = match turned.is_contiguous() {
            true => (turned, (1, n)),
            false => (weight.contiguous()?, (k, 1)),
        };
        with_slices("linear", [grad, &dense], |[g, w]| {
            let onto = Onto::itself_if(self.started);
            product(&mut self.values, (m, k, n), onto, (g, (n, 1)), (w, strides), scale as f32);
            Ok(())
        })?;
        self.started = true;
        Ok(())
    }

    pub(crate) fn tensor(self) -> Result<Tensor> {
        Tensor::from_vec(self.values, self.shape, &Device::Cpu)
    }
}

/// `scale * g^T x` (N, K) for `g` (M, N) and `x` (M, K), added to `into` or in its place.
pub(crate) fn weight_grad(x: &Tensor, grad: &Tensor, scale: f64, into: &mut [f32], keep: bool) -> Result<()> {
    let ((m, k), (_, n)) = (x.dims2()?, grad.dims2()?);
    with_slices("linear", [x, grad], |[x, g]| {
        product(into, (n, k, m), Onto::itself_if(keep), (g, (1, n)), (x, (k, 1)), scale as f32);
        Ok(())
    })
}

/// The sums of the columns of `g` (M, N), added to `into` or in its place.
pub(crate) fn bias_grad(grad: &Tensor, into: &mut [f32], keep: bool) -> Result<()> {
    with_slices("linear", [grad], |[g]| {
        column_sums(g, into, keep);
        Ok(())
    })
}

/// Gradients of `scale * x w^T` where they are wanted.
fn gradients(x: &Tensor, w: &Tensor, grad: &Tensor, scale: f64) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let ((m, k), (n, _)) = (x.dims2()?, w.dims2()?);
    let dx = x.track_op().then(|| {
        let mut dx = InputGrad::new(m, k);
        dx.add(grad, w, scale)?;
        dx.tensor()
    });
    let dw = w.track_op().then(|| {
        let mut dw = vec![0f32; n * k];
        weight_grad(x, grad, scale, &mut dw, false)?;
        Tensor::from_vec(dw, (n, k), &Device::Cpu)
    });
    Ok((dx.transpose()?, dw.transpose()?))
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (f32_slice("linear", x, lx)?, transposed(w, lw)?, f32_slice("linear", b, lb)?);
        let ((m, k), (n, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let mut y = vec![0f32; m * n];
        forward(&mut y, (m, n, k), Onto::Row(&b[..n]), x, w, 1.0);
        Ok((CpuStorage::F32(y), Shape::from((m, n))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = gradients(x, w, &grad, 1.0)?;
        let db = b.track_op().then(|| {
            let mut db = vec![0f32; b.elem_count()];
            bias_grad(&grad, &mut db, false)?;
            Tensor::from_vec(db, b.shape(), &Device::Cpu)
        });
        Ok((dx, dw, db.transpose()?))
    }
}

struct LinearNoBias;

impl CustomOp2 for LinearNoBias {
    fn name(&self) -> &'static str {
        "linear-no-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32_slice("linear", x, lx)?, transposed(w, lw)?);
        let ((m, k), (n, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let mut y = vec![0f32; m * n];
        forward(&mut y, (m, n, k), Onto::Nothing, x, w, 1.0);
        Ok((CpuStorage::F32(y), Shape::from((m, n))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, w, &grad.contiguous()?, 1.0)
    }
}

struct LinearOnto {
    scale: f64,
}

impl CustomOp3 for LinearOnto {
    fn name(&self) -> &'static str {
        "linear-onto"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        base: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32_slice("linear", x, lx)?, transposed(w, lw)?);
        let ((m, k), (n, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let mut y = f32_slice("linear", base, lb)?.to_vec();
        forward(&mut y, (m, n, k), Onto::Itself, x, w, self.scale as f32);
        Ok((CpuStorage::F32(y), Shape::from((m, n))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        base: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = gradients(x, w, &grad.contiguous()?, self.scale)?;
        Ok((dx, dw, base.track_op().then(|| grad.clone())))
    }
}

/// The product of tensors of any dtype on any device. candle's own would compute, and keep, the gradient of a frozen operand.
struct Product;

impl Product {
    /// `x w^T` by the product of a backend.
    fn of<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)>
    where
        S::Device: BackendDevice<Storage = S>,
    {
        let ((m, k), (n, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let shape = Shape::from((m, n));
        if m * n * k == 0 {
            return Ok((x.device().zeros_impl(&shape, x.dtype())?, shape));
        }
        Ok((x.matmul(w, (1, m, n, k), lx, &lw.transpose(0, 1)?)?, shape))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::of(x, lx, w, lw)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Self::of(x, lx, w, lw)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = if x.track_op() { Some(grad.matmul(w)?) } else { None };
        let dw = if w.track_op() { Some(grad.t()?.matmul(x)?) } else { None };
        Ok((dx, dw))
    }
}
