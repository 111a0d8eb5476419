//! Gradients of the leaves below a tensor, given the gradient of the tensor itself.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

/// The backward pass from `y`, whose gradient is `grad`. Only variables are kept: candle leaves the gradients of frozen
/// operands in the store.
///
/// # Errors
/// Shapes or dtypes that differ, an operation without a backward.
pub fn vjp(y: &Tensor, grad: &Tensor) -> Result<GradStore> {
    if y.dims() != grad.dims() || y.dtype() != grad.dtype() {
        candle_core::bail!(
            "vjp: {:?} {:?} with a gradient of {:?} {:?}",
            y.dtype(),
            y.dims(),
            grad.dtype(),
            grad.dims()
        )
    }
    if !y.track_op() {
        return Ok(GradStore::default());
    }
    leaves(&y.apply_op1(Seed(grad.detach()))?)
}

/// As `loss.backward()`, keeping variables alone.
///
/// # Errors
/// As candle's `backward`.
pub fn leaves(loss: &Tensor) -> Result<GradStore> {
    let mut all = loss.backward()?;
    let mut kept = GradStore::default();
    for node in loss.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
        if let Some(grad) = all.remove(node) {
            kept.insert(node, grad);
        }
    }
    Ok(kept)
}

/// A scalar whose gradient with respect to its argument is the given tensor.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "vjp-seed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let zero = match storage {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            CpuStorage::BF16(_) => CpuStorage::BF16(vec![Default::default()]),
            CpuStorage::F16(_) => CpuStorage::F16(vec![Default::default()]),
            _ => CpuStorage::F32(vec![0.0]),
        };
        Ok((zero, Shape::from(())))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        let dtype = if storage.dtype().is_float() { storage.dtype() } else { DType::F32 };
        Ok((storage.device().zeros_impl(&Shape::from(()), dtype)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
