//! Layer normalisation and RMS normalisation over the last axis.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor};

use super::{f32_slice, fused, par_rows, simd};

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis; half types are normalised in f32 and rounded before the
/// product with the weight, as Qwen's reference does.
///
/// # Errors
/// A weight whose length is not the last axis of `xs`.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check("rms-norm", xs, weight)?;
    if fused(xs) {
        xs.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps })
    } else {
        rms_norm_composed(xs, weight, eps)
    }
}

/// The composed twin of [`rms_norm`].
///
/// # Errors
/// As the tensor operations.
pub fn rms_norm_composed(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = widened(xs)?;
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    wide.broadcast_div(&scale)?.to_dtype(xs.dtype())?.broadcast_mul(weight)
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis.
///
/// # Errors
/// Weights whose length is not the last axis of `xs`.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check("layer-norm", xs, weight)?;
    check("layer-norm", xs, bias)?;
    if fused(xs) {
        xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps })
    } else {
        layer_norm_composed(xs, weight, bias, eps)
    }
}

/// The composed twin of [`layer_norm`].
///
/// # Errors
/// As the tensor operations.
pub fn layer_norm_composed(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = widened(xs)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let normal = centred.broadcast_div(&scale)?.to_dtype(xs.dtype())?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)
}

fn widened(xs: &Tensor) -> Result<Tensor> {
    if xs.dtype() == DType::F64 { Ok(xs.clone()) } else { xs.to_dtype(DType::F32) }
}

fn check(op: &str, xs: &Tensor, weight: &Tensor) -> Result<()> {
    if weight.dims() != [xs.dim(D::Minus1)?] {
        candle_core::bail!("{op}: weight {:?} does not fit the last axis of {:?}", weight.dims(), xs.dims())
    }
    Ok(())
}

/// Gradient of the normalised rows, given that of their scaled form: both norms share it.
fn input_grad(normal: &Tensor, grad: &Tensor, scale: &Tensor, centre: Option<&Tensor>) -> Result<Tensor> {
    let along = (normal * grad)?.mean_keepdim(D::Minus1)?;
    let grad = (grad - normal.broadcast_mul(&along)?)?;
    let grad = match centre {
        Some(mean) => grad.broadcast_sub(mean)?,
        None => grad,
    };
    grad.broadcast_div(scale)
}

fn over_rows(xs: &Tensor) -> Result<Tensor> {
    xs.reshape(((), xs.dim(D::Minus1)?))?.sum(0)
}

struct RmsNorm {
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, w) = (f32_slice("rms-norm", x, lx)?, f32_slice("rms-norm", w, lw)?);
        let (d, eps) = (w.len(), self.eps as f32);
        let ys = par_rows(xs.len(), d, |first, ys| {
            simd::dispatch(|| {
                for (y, x) in ys.chunks_exact_mut(d).zip(xs[first..].chunks_exact(d)) {
                    let scale = 1.0 / (simd::sum_by(x, |x| x * x) / d as f32 + eps).sqrt();
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * scale * w;
                    }
                }
            })
        });
        Ok((CpuStorage::F32(ys), lx.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let scale = (xs.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normal = xs.broadcast_div(&scale)?;
        let dx = input_grad(&normal, &grad.broadcast_mul(w)?, &scale, None)?;
        let dw = if w.track_op() { Some(over_rows(&(grad * normal)?)?) } else { None };
        Ok((Some(dx), dw))
    }
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let op = "layer-norm";
        let (xs, w, b) = (f32_slice(op, x, lx)?, f32_slice(op, w, lw)?, f32_slice(op, b, lb)?);
        let (d, eps) = (w.len(), self.eps as f32);
        let ys = par_rows(xs.len(), d, |first, ys| {
            simd::dispatch(|| {
                for (y, x) in ys.chunks_exact_mut(d).zip(xs[first..].chunks_exact(d)) {
                    let mean = simd::sum_by(x, |x| x) / d as f32;
                    let scale = 1.0 / (simd::sum_by(x, |x| (x - mean) * (x - mean)) / d as f32 + eps).sqrt();
                    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                        *y = (x - mean) * scale * w + b;
                    }
                }
            })
        });
        Ok((CpuStorage::F32(ys), lx.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normal = centred.broadcast_div(&scale)?;
        let scaled = grad.broadcast_mul(w)?;
        let dx = input_grad(&normal, &scaled, &scale, Some(&scaled.mean_keepdim(D::Minus1)?))?;
        let dw = if w.track_op() { Some(over_rows(&(grad * &normal)?)?) } else { None };
        let db = if b.track_op() { Some(over_rows(grad)?) } else { None };
        Ok((Some(dx), dw, db))
    }
}
