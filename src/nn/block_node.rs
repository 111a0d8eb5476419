//! A block as one node of candle's graph.
//!
//! candle allocates and adds at every edge of its graph, which on the CPU costs more than the products. Here the backward
//! is written out; the weights that learn come in as one vector, so that their gradients go out as one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, TensorId};

use super::{Block, Linear, RmsNorm};
use crate::ops::attention::{self, Mask, Segments};
use crate::ops::attention_packed::Kernel;
use crate::ops::linear::InputGrad;
use crate::ops::pointwise::{add_values, swiglu_gradients};
use crate::ops::rope::rope_back;
use crate::ops::{norm, pointwise};

/// [`Block::forward`] for f32 on the CPU.
pub(super) fn forward(
    block: &Block,
    xs: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    segments: &Segments,
    mask: Mask,
) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let frozen = block.detached();
    let kernel = Kernel { segments: segments.clone(), mask, scale: block.scale() as f32 };
    let (ys, saved) = run(&frozen, &xs.detach(), (cos, sin), &kernel)?;
    let learned = learned(block);
    let flat = learned.iter().map(|tensor| tensor.flatten_all()).collect::<Result<Vec<_>>>()?;
    let flat = match flat.as_slice() {
        [] => Tensor::zeros(0, DType::F32, &Device::Cpu)?,
        flat => Tensor::cat(flat, 0)?,
    };
    let angles = (cos.contiguous()?, sin.contiguous()?);
    let node = Node { block: block.clone(), frozen, angles, kernel, saved, ys: Mutex::new(Some(ys)) };
    xs.apply_op2(&flat, node)
}

/// What the backward needs of the forward; the norms and the gated product are computed again.
struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Arc<Vec<f32>>,
    /// Between attention and MLP.
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
}

fn run(block: &Block, xs: &Tensor, angles: (&Tensor, &Tensor), kernel: &Kernel) -> Result<(Vec<f32>, Saved)> {
    let [q, k, v] = block.qkv(xs, angles)?;
    let (out, lse) = attention::forward_saved(kernel, [&q, &k, &v])?;
    let middle = pointwise::add(xs, &block.o.forward(&out.flatten_from(1)?)?)?;
    let ys = block.norm2.forward(&middle)?;
    let (gate, up) = (block.gate.forward(&ys)?, block.up.forward(&ys)?);
    let ys = add_values(&middle, &block.down.forward(&pointwise::swiglu(&gate, &up)?)?)?;
    Ok((ys, Saved { q, k, v, out, lse: Arc::new(lse), middle, gate, up }))
}

/// The tensors that learn, each once: a fused weight or an adapter may be part of several maps.
fn learned(block: &Block) -> Vec<&Tensor> {
    let mut seen = std::collections::HashSet::new();
    block.tensors().into_iter().filter(|t| t.track_op() && seen.insert(t.id())).collect()
}

/// Gradients of all weights that learn, in one vector.
pub(super) struct Flat {
    values: Vec<f32>,
    /// Where each one lies, and whether something was written there.
    slots: HashMap<TensorId, (Range<usize>, bool)>,
}

impl Flat {
    fn new(tensors: &[&Tensor]) -> Self {
        let (mut slots, mut end) = (HashMap::new(), 0);
        for tensor in tensors {
            slots.insert(tensor.id(), (end..end + tensor.elem_count(), false));
            end += tensor.elem_count();
        }
        Self { values: vec![0f32; end], slots }
    }

    /// Calls `write(into, keep)` when `tensor` learns; `keep` says that `into` must be added to.
    pub fn write(
        &mut self,
        tensor: &Tensor,
        write: impl FnOnce(&mut [f32], bool) -> Result<()>,
    ) -> Result<()> {
        let Some((range, keep)) = self.slots.get_mut(&tensor.id()) else { return Ok(()) };
        let keep = std::mem::replace(keep, true);
        write(&mut self.values[range.clone()], keep)
    }
}

struct Node {
    /// With the identities of the weights that learn.
    block: Block,
    frozen: Block,
    angles: (Tensor, Tensor),
    kernel: Kernel,
    saved: Saved,
    /// The output, until candle asks for it.
    ys: Mutex<Option<Vec<f32>>>,
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        lx: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        match self.ys.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(ys) => Ok((CpuStorage::F32(ys), lx.shape().clone())),
            None => candle_core::bail!("block: the forward of a node runs once"),
        }
    }

    fn bwd(
        &self,
        xs: &Tensor,
        flat: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut into = Flat::new(&learned(&self.block));
        let grad = grad.contiguous()?;
        let grad = self.mlp(&grad, &mut into)?;
        let first = [&self.block.q, &self.block.k, &self.block.v, &self.block.o];
        let attention_learns = first.into_iter().any(Linear::learns) || self.block.norm1.learns();
        let dx = if xs.track_op() || attention_learns {
            self.attention(&xs.detach(), xs.track_op(), &grad, &mut into)?
        } else {
            None
        };
        let dw = flat.track_op().then(|| Tensor::from_vec(into.values, flat.shape(), &Device::Cpu));
        Ok((dx, dw.transpose()?))
    }
}

impl Node {
    /// From the gradient of the output to that of the residual stream between attention and MLP.
    fn mlp(&self, grad: &Tensor, into: &mut Flat) -> Result<Tensor> {
        let (block, saved) = (&self.block, &self.saved);
        let mut dh = InputGrad::new(grad.dim(0)?, saved.gate.dim(1)?);
        block.down.input_grad(grad, &mut dh)?;
        let [h, dgate, dup] = swiglu_gradients(&saved.gate, &saved.up, &dh.tensor()?)?;
        block.down.weight_grads(&h, grad, into)?;
        drop(h);
        if [&block.gate, &block.up].into_iter().any(Linear::learns) {
            let ys = self.frozen.norm2.forward(&saved.middle)?;
            block.gate.weight_grads(&ys, &dgate, into)?;
            block.up.weight_grads(&ys, &dup, into)?;
        }
        let mut dy = InputGrad::new(grad.dim(0)?, grad.dim(1)?);
        block.gate.input_grad(&dgate, &mut dy)?;
        block.up.input_grad(&dup, &mut dy)?;
        through_norm(&block.norm2, &saved.middle, &dy.tensor()?, grad, into)
    }

    /// From there to the block's input, when `wanted`.
    fn attention(&self, xs: &Tensor, wanted: bool, grad: &Tensor, into: &mut Flat) -> Result<Option<Tensor>> {
        let (block, saved) = (&self.block, &self.saved);
        let (l, d) = xs.dims2()?;
        let out = saved.out.flatten_from(1)?;
        block.o.weight_grads(&out, grad, into)?;
        let mut dout = InputGrad::new(l, out.dim(1)?);
        block.o.input_grad(grad, &mut dout)?;
        let dout = dout.tensor()?.reshape(saved.out.shape())?;
        let inputs = [&saved.q, &saved.k, &saved.v, &saved.out, &dout];
        let [dq, dk, dv] = attention::gradients(&self.kernel, inputs, &saved.lse)?;
        let (cos, sin) = (&self.angles.0, &self.angles.1);
        let (dq, dk) = (rope_back(&dq, cos, sin)?, rope_back(&dk, cos, sin)?);
        let maps = [(&block.q, dq), (&block.k, dk), (&block.v, dv)];
        let maps = maps.map(|(linear, grad)| Ok((linear, grad.flatten_from(1)?)));
        let maps = maps.into_iter().collect::<Result<Vec<_>>>()?;
        if maps.iter().any(|(linear, _)| linear.learns()) {
            let ys = self.frozen.norm1.forward(xs)?;
            maps.iter().try_for_each(|(linear, grad)| linear.weight_grads(&ys, grad, into))?;
        }
        if !wanted && !block.norm1.learns() {
            return Ok(None);
        }
        let mut dy = InputGrad::new(l, d);
        maps.iter().try_for_each(|(linear, grad)| linear.input_grad(grad, &mut dy))?;
        through_norm(&block.norm1, xs, &dy.tensor()?, grad, into).map(Some)
    }
}

/// The gradient `dy` of a norm's output, brought to its input `xs`, plus the gradient of the residual beside it.
fn through_norm(
    norm: &RmsNorm,
    xs: &Tensor,
    dy: &Tensor,
    residual: &Tensor,
    into: &mut Flat,
) -> Result<Tensor> {
    into.write(norm.weight(), |into, keep| norm::rms_norm_weight_grad(xs, norm.eps(), dy, into, keep))?;
    norm::rms_norm_input_grad(xs, norm.weight(), norm.eps(), dy, Some(residual))
}
