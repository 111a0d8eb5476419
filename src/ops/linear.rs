//! Affine map with the bias folded into the matrix product: `y = x w^T + b`.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use gemm::{Parallelism, gemm};

use super::{f32_slice, fused};

/// `x` (M, K), `weight` (N, K), `bias` (N,) -> (M, N).
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if !fused(x) {
        return linear_composed(x, weight, bias);
    }
    let ((_, k), (n, kw)) = (x.dims2()?, weight.dims2()?);
    if k != kw || bias.dims() != [n] {
        candle_core::bail!(
            "linear: x {:?}, weight {:?} and bias {:?} do not fit (expected (M, K), (N, K), (N,))",
            x.dims(),
            weight.dims(),
            bias.dims()
        )
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
}

/// The composed twin of [`linear`].
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear_composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
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
        let (x, w, b) =
            (f32_slice("linear", x, lx)?, f32_slice("linear", w, lw)?, f32_slice("linear", b, lb)?);
        let ((m, k), (n, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let mut y = Vec::with_capacity(m * n);
        (0..m).for_each(|_| y.extend_from_slice(b));
        // SAFETY: the three slices were checked to be contiguous and of these shapes; `y` is a buffer of its own.
        unsafe {
            gemm(
                m,
                n,
                k,
                y.as_mut_ptr(),
                1,
                n as isize,
                true,
                x.as_ptr(),
                1,
                k as isize,
                w.as_ptr(),
                k as isize,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(rayon::current_num_threads()),
            );
        }
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
        let dx = if x.track_op() { Some(grad.matmul(w)?) } else { None };
        let dw = if w.track_op() { Some(grad.t()?.matmul(x)?) } else { None };
        let db = if b.track_op() { Some(grad.sum(0)?) } else { None };
        Ok((dx, dw, db))
    }
}
