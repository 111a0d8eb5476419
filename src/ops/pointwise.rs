//! Activations, fused and in parallel on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::kernels::layer::in_pieces;
use super::{f32_slice, fused, has_kernels, par_rows, par_rows_of, simd, with_slices};

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
    let pieces = in_pieces(gate.dtype(), gate.elem_count()) && gate.dtype() == up.dtype();
    if fused(gate) || has_kernels(gate) && pieces {
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

/// The values of `a + b`; f32 on the CPU.
pub(crate) fn add_values(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    with_slices("add", [a, b], |[a, b]| Ok(sums(a, b)))
}

fn sums(a: &[f32], b: &[f32]) -> Vec<f32> {
    par_rows(a.len(), WIDTH, |first, ys| {
        simd::dispatch(|| {
            for ((y, a), b) in ys.iter_mut().zip(&a[first..]).zip(&b[first..]) {
                *y = a + b;
            }
        })
    })
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
        let grad = grad.contiguous()?;
        let dx = with_slices("quick-gelu", [xs, &grad], |[xs, grad]| {
            Ok(par_rows(xs.len(), WIDTH, |first, ys| {
                simd::dispatch(|| {
                    for ((y, x), g) in ys.iter_mut().zip(&xs[first..]).zip(&grad[first..]) {
                        let s = simd::sigmoid(1.702 * x);
                        *y = g * (s + 1.702 * x * s * (1.0 - s));
                    }
                })
            }))
        })?;
        Tensor::from_vec(dx, xs.shape(), &Device::Cpu).map(Some)
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        g: &candle_core::CudaStorage,
        lg: &Layout,
        u: &candle_core::CudaStorage,
        lu: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        super::cuda::layer::swiglu((g, lg), (u, lu))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if gate.device().is_cuda() {
            let [dg, du] = super::cuda::layer::swiglu_gradients([gate, up, &grad])?;
            return Ok((gate.track_op().then_some(dg), up.track_op().then_some(du)));
        }
        let [_, dg, du] = swiglu_gradients(gate, up, &grad)?;
        Ok((gate.track_op().then_some(dg), up.track_op().then_some(du)))
    }
}

/// The output again, and the gradients of `gate` and `up`; f32 on the CPU.
pub(crate) fn swiglu_gradients(gate: &Tensor, up: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
    let made = with_slices("swiglu", [gate, up, grad], |[gate, up, grad]| {
        Ok(par_rows_of(gate.len(), WIDTH, |first, [ys, dg, du]: [&mut [f32]; 3]| {
            simd::dispatch(|| {
                let from = gate[first..].iter().zip(&up[first..]).zip(&grad[first..]);
                let to = ys.iter_mut().zip(dg.iter_mut()).zip(du.iter_mut());
                for (((y, dg), du), ((g, u), grad)) in to.zip(from) {
                    let s = simd::sigmoid(*g);
                    let silu = g * s;
                    *y = silu * u;
                    *dg = grad * u * (s + silu * (1.0 - s));
                    *du = grad * silu;
                }
            })
        }))
    })?;
    let [y, dg, du] = made.map(|values| Tensor::from_vec(values, gate.shape(), &Device::Cpu));
    Ok([y?, dg?, du?])
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
        let ys = sums(f32_slice("add", a, la)?, f32_slice("add", b, lb)?);
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
