//! Rotary position embedding in the "rotate half" form: `x * cos + rotate_half(x) * sin`.

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor};

use super::kernels::layer::in_pieces;
use super::{f32_slice, fused, has_kernels, par_rows, simd, with_slices};

/// Rotates `xs` (L, H, D) by the angles of each row: `cos` and `sin` (L, D / 2). Where their dtype is another one, the rotation
/// is computed in it and rounded.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (l, _, d) = xs.dims3()?;
    if cos.dims() != [l, d / 2] || sin.dims() != cos.dims() || d % 2 != 0 {
        candle_core::bail!(
            "rope: x {:?}, cos {:?} and sin {:?} do not fit (expected (L, H, D) and (L, D / 2) twice)",
            xs.dims(),
            cos.dims(),
            sin.dims()
        )
    }
    let plain = cos.dtype() == DType::F32 && sin.dtype() == DType::F32;
    if plain && (fused(xs) || has_kernels(xs) && in_pieces(xs.dtype(), d / 2)) {
        return xs.contiguous()?.apply_op3(&cos.contiguous()?, &sin.contiguous()?, Rope);
    }
    rope_composed(&xs.to_dtype(cos.dtype())?, cos, sin)?.to_dtype(xs.dtype())
}

/// The composed twin of [`rope`].
///
/// # Errors
/// As the tensor operations.
pub fn rope_composed(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = xs.dim(D::Minus1)? / 2;
    let (a, b) = (xs.narrow(D::Minus1, 0, half)?, xs.narrow(D::Minus1, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[left, right], D::Minus1)
}

/// The angles are data, not parameters: no gradient goes to them.
struct Rope;

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        cos: &CpuStorage,
        lc: &Layout,
        sin: &CpuStorage,
        ls: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, cos, sin) =
            (f32_slice("rope", x, lx)?, f32_slice("rope", cos, lc)?, f32_slice("rope", sin, ls)?);
        let (_, heads, d) = lx.shape().dims3()?;
        Ok((CpuStorage::F32(rotated(xs, (heads, d), cos, sin, 1.0)), lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        lx: &Layout,
        cos: &candle_core::CudaStorage,
        lc: &Layout,
        sin: &candle_core::CudaStorage,
        ls: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        super::cuda::layer::rope((x, lx), (cos, lc), (sin, ls))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        if cos.track_op() || sin.track_op() {
            candle_core::bail!("rope: the angles are not differentiable")
        }
        Ok((Some(rope_back(&grad.contiguous()?, cos, sin)?), None, None))
    }
}

/// The gradient of the input for that of the output: the rotation backwards; f32 on the CPU, or a device.
pub(crate) fn rope_back(grad: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, heads, d) = grad.dims3()?;
    let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
    #[cfg(feature = "cuda")]
    if grad.device().is_cuda() {
        return super::cuda::layer::rope_back(grad, &cos, &sin);
    }
    let dx = with_slices("rope", [grad, &cos, &sin], |[grad, cos, sin]| {
        Ok(rotated(grad, (heads, d), cos, sin, -1.0))
    })?;
    Tensor::from_vec(dx, grad.shape(), &Device::Cpu)
}

/// `direction` 1 turns forwards, -1 backwards.
fn rotated(xs: &[f32], (heads, d): (usize, usize), cos: &[f32], sin: &[f32], direction: f32) -> Vec<f32> {
    let (half, row) = (d / 2, heads * d);
    par_rows(xs.len(), row, |first, ys| {
        simd::dispatch(|| {
            for (i, (y, x)) in ys.chunks_exact_mut(d).zip(xs[first..].chunks_exact(d)).enumerate() {
                let at = (first / row + i / heads) * half;
                let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
                let ((a, b), (left, right)) = (x.split_at(half), y.split_at_mut(half));
                for j in 0..half {
                    let sin = direction * sin[j];
                    left[j] = a[j] * cos[j] - b[j] * sin;
                    right[j] = b[j] * cos[j] + a[j] * sin;
                }
            }
        })
    })
}
