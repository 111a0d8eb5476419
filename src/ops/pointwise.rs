//! Activations, fused and in parallel on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::{f32_slice, fused, par_rows, simd};

/// Blocks of this many values go to a thread; the functions have no row structure.
const WIDTH: usize = 1024;

/// `x * sigmoid(1.702 x)`, CLIP's activation.
///
/// # Errors
/// As the tensor operations.
pub fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    if fused(xs) { xs.contiguous()?.apply_op1(QuickGelu) } else { quick_gelu_composed(xs) }
}

/// The composed twin of [`quick_gelu`].
///
/// # Errors
/// As the tensor operations.
pub fn quick_gelu_composed(xs: &Tensor) -> Result<Tensor> {
    xs * candle_nn::ops::sigmoid(&(xs * 1.702)?)?
}

/// `silu(gate) * up` (SwiGLU, arXiv 2002.05202), both of one shape.
///
/// # Errors
/// Shapes that differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!("swiglu: gate {:?} and up {:?} differ in shape", gate.dims(), up.dims())
    }
    if fused(gate) {
        gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
    } else {
        swiglu_composed(gate, up)
    }
}

/// The composed twin of [`swiglu`].
///
/// # Errors
/// Shapes that differ.
pub fn swiglu_composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// `a + b`, both of one shape.
///
/// # Errors
/// Shapes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        candle_core::bail!("add: {:?} and {:?} differ in shape", a.dims(), b.dims())
    }
    if fused(a) { a.contiguous()?.apply_op2(&b.contiguous()?, Add) } else { a + b }
}

struct QuickGelu;

impl CustomOp1 for QuickGelu {
    fn name(&self) -> &'static str {
        "quick-gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = f32_slice("quick-gelu", storage, layout)?;
        let ys = par_rows(xs.len(), WIDTH, |first, ys| {
            simd::dispatch(|| {
                for (y, x) in ys.iter_mut().zip(&xs[first..]) {
                    *y = x * simd::sigmoid(1.702 * x);
                }
            })
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let s = candle_nn::ops::sigmoid(&(xs * 1.702)?)?;
        let slope = (&s + ((xs * 1.702)? * (&s * (1.0 - &s)?)?)?)?;
        Ok(Some((grad * slope)?))
    }
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        lg: &Layout,
        u: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (f32_slice("swiglu", g, lg)?, f32_slice("swiglu", u, lu)?);
        let ys = par_rows(gate.len(), WIDTH, |first, ys| {
            simd::dispatch(|| {
                for ((y, g), u) in ys.iter_mut().zip(&gate[first..]).zip(&up[first..]) {
                    *y = g * simd::sigmoid(*g) * u;
                }
            })
        });
        Ok((CpuStorage::F32(ys), lg.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let s = candle_nn::ops::sigmoid(gate)?;
        let silu = (gate * &s)?;
        let slope = (&s + (&silu * (1.0 - &s)?)?)?;
        Ok((Some(((grad * up)? * slope)?), Some((grad * silu)?)))
    }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (f32_slice("add", a, la)?, f32_slice("add", b, lb)?);
        let ys = par_rows(a.len(), WIDTH, |first, ys| {
            simd::dispatch(|| {
                for ((y, a), b) in ys.iter_mut().zip(&a[first..]).zip(&b[first..]) {
                    *y = a + b;
                }
            })
        });
        Ok((CpuStorage::F32(ys), la.shape().clone()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((a.track_op().then(|| grad.clone()), b.track_op().then(|| grad.clone())))
    }
}
