//! Layer normalisation and RMS normalisation over the last axis.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor};

use super::kernels::layer::in_pieces;
use super::{column_sums, f32_slice, fused, has_kernels, par_rows, simd, sum_rows, with_slices};

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis; half types are normalised in f32 and rounded before the
/// product with the weight, as Qwen's reference does.
///
/// # Errors
/// A weight whose length is not the last axis of `xs`.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check("rms-norm", xs, weight)?;
    let kernels = has_kernels(xs) && xs.dtype() == weight.dtype() && in_pieces(xs.dtype(), weight.dim(0)?);
    if fused(xs) || kernels {
        xs.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm::new(eps))
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

/// Statistics of a row: mean (0 for the RMS norm) and the factor that brings it to unit scale.
#[derive(Clone, Copy)]
struct Moments {
    eps: f32,
    centred: bool,
}

impl Moments {
    #[inline(always)]
    fn of(self, x: &[f32]) -> (f32, f32) {
        let d = x.len() as f32;
        let mean = if self.centred { simd::sum_by(x, |x| x) / d } else { 0.0 };
        (mean, 1.0 / (simd::sum_by(x, |x| (x - mean) * (x - mean)) / d + self.eps).sqrt())
    }

    /// Gradient of the rows `x`, plus `onto`, for the gradient `g` of their scaled form.
    fn input_grad(self, x: &[f32], w: &[f32], g: &[f32], onto: Option<&[f32]>) -> Vec<f32> {
        let d = w.len();
        par_rows(x.len(), d, |first, ys| {
            simd::dispatch(|| {
                let rows = x[first..].chunks_exact(d).zip(g[first..].chunks_exact(d));
                for (i, (y, (x, g))) in ys.chunks_exact_mut(d).zip(rows).enumerate() {
                    let (mean, scale) = self.of(x);
                    for ((y, g), w) in y.iter_mut().zip(g).zip(w) {
                        *y = g * w;
                    }
                    let along = simd::sum_pairs(y, x, |y, x| y * (x - mean)) * scale * scale / d as f32;
                    let shift = if self.centred { simd::sum_by(y, |y| y) / d as f32 } else { 0.0 };
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = scale * (*y - shift - (x - mean) * along);
                    }
                    if let Some(onto) = onto {
                        let onto = &onto[first + i * d..first + (i + 1) * d];
                        y.iter_mut().zip(onto).for_each(|(y, onto)| *y += onto);
                    }
                }
            })
        })
    }

    /// Gradient of the weight.
    fn weight_grad(self, x: &[f32], g: &[f32], into: &mut [f32], keep: bool) {
        let d = into.len();
        sum_rows(x.len() / d.max(1), into, keep, |rows, sums| {
            simd::dispatch(|| {
                let values = rows.start * d..rows.end * d;
                for (x, g) in x[values.clone()].chunks_exact(d).zip(g[values].chunks_exact(d)) {
                    let (mean, scale) = self.of(x);
                    for ((sum, x), g) in sums.iter_mut().zip(x).zip(g) {
                        *sum += g * (x - mean) * scale;
                    }
                }
            })
        });
    }
}

/// `onto +` the gradient of `xs` (.., D) for the gradient of `rms_norm(xs, weight, eps)`; f32 on the CPU.
pub(crate) fn rms_norm_input_grad(
    xs: &Tensor,
    weight: &Tensor,
    eps: f64,
    grad: &Tensor,
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let moments = Moments { eps: eps as f32, centred: false };
    let dx = with_slices("rms-norm", [xs, weight, grad, onto.unwrap_or(grad)], |[xs, w, g, base]| {
        Ok(moments.input_grad(xs, w, g, onto.map(|_| base)))
    })?;
    Tensor::from_vec(dx, xs.shape(), &Device::Cpu)
}

/// Gradient of the weight, added to `into` or in its place.
pub(crate) fn rms_norm_weight_grad(
    xs: &Tensor,
    eps: f64,
    grad: &Tensor,
    into: &mut [f32],
    keep: bool,
) -> Result<()> {
    let moments = Moments { eps: eps as f32, centred: false };
    with_slices("rms-norm", [xs, grad], |[xs, g]| {
        moments.weight_grad(xs, g, into, keep);
        Ok(())
    })
}

struct RmsNorm {
    eps: f64,
    /// One over the root mean square of each row, kept for the backward on a device.
    #[cfg(feature = "cuda")]
    scales: std::sync::Mutex<Option<Tensor>>,
}

impl RmsNorm {
    fn new(eps: f64) -> Self {
        Self {
            eps,
            #[cfg(feature = "cuda")]
            scales: Default::default(),
        }
    }
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
        let (d, moments) = (w.len(), Moments { eps: self.eps as f32, centred: false });
        let ys = par_rows(xs.len(), d, |first, ys| {
            simd::dispatch(|| {
                for (y, x) in ys.chunks_exact_mut(d).zip(xs[first..].chunks_exact(d)) {
                    let (_, scale) = moments.of(x);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * scale * w;
                    }
                }
            })
        });
        Ok((CpuStorage::F32(ys), lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        lx: &Layout,
        w: &candle_core::CudaStorage,
        lw: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (out, shape, scales) = super::cuda::layer::rms_norm((x, lx), (w, lw), self.eps)?;
        *self.scales.lock().unwrap_or_else(|e| e.into_inner()) = Some(scales);
        Ok((out, shape))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if let Some(scales) = self.scales.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            let [dx, dw] = super::cuda::layer::rms_norm_gradients([xs, w, scales, &grad])?;
            return Ok((dx, dw));
        }
        let onto = None;
        let dx = xs.track_op().then(|| rms_norm_input_grad(xs, w, self.eps, &grad, onto)).transpose()?;
        let dw = w.track_op().then(|| {
            let mut dw = vec![0f32; w.elem_count()];
            rms_norm_weight_grad(xs, self.eps, &grad, &mut dw, false)?;
            Tensor::from_vec(dw, w.shape(), &Device::Cpu)
        });
        Ok((dx, dw.transpose()?))
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
        let (d, moments) = (w.len(), Moments { eps: self.eps as f32, centred: true });
        let ys = par_rows(xs.len(), d, |first, ys| {
            simd::dispatch(|| {
                for (y, x) in ys.chunks_exact_mut(d).zip(xs[first..].chunks_exact(d)) {
                    let (mean, scale) = moments.of(x);
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
        let grad = grad.contiguous()?;
        let moments = Moments { eps: self.eps as f32, centred: true };
        let device = Device::Cpu;
        with_slices("layer-norm", [xs, w, &grad], |[x, weight, g]| {
            let dx = || Tensor::from_vec(moments.input_grad(x, weight, g, None), xs.shape(), &device);
            let sums = |f: &dyn Fn(&mut [f32])| {
                let mut sums = vec![0f32; weight.len()];
                f(&mut sums);
                Tensor::from_vec(sums, weight.len(), &device)
            };
            let dw = || sums(&|into| moments.weight_grad(x, g, into, false));
            let db = || sums(&|into| column_sums(g, into, false));
            Ok((
                xs.track_op().then(dx).transpose()?,
                w.track_op().then(dw).transpose()?,
                b.track_op().then(db).transpose()?,
            ))
        })
    }
}
