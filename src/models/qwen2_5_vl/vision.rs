//! The vision tower: patches -> window attention blocks -> merged tokens of the text model's width.
//!
//! Reference: transformers 4.51.3, `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::VisionConfig;
use super::window::PatchOrder;
use crate::nn::{Linear, RmsNorm, add, gelu_erf, swiglu};
use crate::ops::attention::{Mask, Segments, attention};
use crate::ops::rope::rope;

/// The reference writes this value into the code, not into the config.
const EPS: f64 = 1e-6;
const ROPE_THETA: f32 = 10_000.0;

#[derive(Clone)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let d = cfg.hidden_size;
        let qkv = vb.pp("qkv");
        let (weight, bias) = (qkv.get((3 * d, d), "weight")?, qkv.get(3 * d, "bias")?);
        // Three products over views of the fused weight: q, k and v come out contiguous, nothing is copied.
        let third = |i: usize| -> Result<Linear> {
            Ok(Linear::new(weight.narrow(0, i * d, d)?, Some(bias.narrow(0, i * d, d)?)))
        };
        Ok(Self {
            q: third(0)?,
            k: third(1)?,
            v: third(2)?,
            proj: Linear::load(d, d, vb.pp("proj"))?,
            heads: cfg.num_heads,
        })
    }

    /// `xs` (N, D), `cos` and `sin` (N, head_dim / 2) in f32 or f64.
    fn forward(&self, xs: &Tensor, (cos, sin): (&Tensor, &Tensor), segments: &Segments) -> Result<Tensor> {
        let (n, d) = xs.dims2()?;
        let head_dim = d / self.heads;
        let heads = |xs: Tensor| xs.reshape((n, self.heads, head_dim));
        // The reference rotates in f32 whatever the model's dtype.
        let rotate = |xs: Tensor| rope(&xs.to_dtype(cos.dtype())?, cos, sin)?.to_dtype(xs.dtype());
        let q = rotate(heads(self.q.forward(xs)?)?)?;
        let k = rotate(heads(self.k.forward(xs)?)?)?;
        let v = heads(self.v.forward(xs)?)?;
        let out = attention(&q, &k, &v, segments, Mask::Full, (head_dim as f64).powf(-0.5))?;
        self.proj.forward(&out.reshape((n, d))?)
    }

    fn detached(&self) -> Self {
        Self {
            q: self.q.detached(),
            k: self.k.detached(),
            v: self.v.detached(),
            proj: self.proj.detached(),
            heads: self.heads,
        }
    }
}

#[derive(Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let (d, inner) = (cfg.hidden_size, cfg.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(d, inner, vb.pp("gate_proj"))?,
            up_proj: Linear::load(d, inner, vb.pp("up_proj"))?,
            down_proj: Linear::load(inner, d, vb.pp("down_proj"))?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&swiglu(&self.gate_proj.forward(xs)?, &self.up_proj.forward(xs)?)?)
    }

    fn detached(&self) -> Self {
        Self {
            gate_proj: self.gate_proj.detached(),
            up_proj: self.up_proj.detached(),
            down_proj: self.down_proj.detached(),
        }
    }
}

#[derive(Clone)]
struct Block {
    norm1: RmsNorm,
    attn: Attention,
    norm2: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: RmsNorm::load(cfg.hidden_size, EPS, vb.pp("norm1"))?,
            attn: Attention::new(cfg, vb.pp("attn"))?,
            norm2: RmsNorm::load(cfg.hidden_size, EPS, vb.pp("norm2"))?,
            mlp: Mlp::new(cfg, vb.pp("mlp"))?,
        })
    }

    fn forward(&self, xs: &Tensor, angles: (&Tensor, &Tensor), segments: &Segments) -> Result<Tensor> {
        let xs = add(xs, &self.attn.forward(&self.norm1.forward(xs)?, angles, segments)?)?;
        add(&xs, &self.mlp.forward(&self.norm2.forward(&xs)?)?)
    }

    fn detached(&self) -> Self {
        Self {
            norm1: self.norm1.detached(),
            attn: self.attn.detached(),
            norm2: self.norm2.detached(),
            mlp: self.mlp.detached(),
        }
    }
}

#[derive(Clone)]
struct Merger {
    ln_q: RmsNorm,
    fc1: Linear,
    fc2: Linear,
    width: usize,
}

impl Merger {
    fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let width = cfg.hidden_size * cfg.spatial_merge_size.pow(2);
        Ok(Self {
            ln_q: RmsNorm::load(cfg.hidden_size, EPS, vb.pp("ln_q"))?,
            fc1: Linear::load(width, width, vb.pp("mlp.0"))?,
            fc2: Linear::load(width, cfg.out_hidden_size, vb.pp("mlp.2"))?,
            width,
        })
    }

    /// (N, D) -> (N / merge^2, out).
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = self.ln_q.forward(xs)?.reshape(((), self.width))?;
        self.fc2.forward(&gelu_erf(&self.fc1.forward(&xs)?)?)
    }

    fn detached(&self) -> Self {
        let (ln_q, fc1, fc2) = (self.ln_q.detached(), self.fc1.detached(), self.fc2.detached());
        Self { ln_q, fc1, fc2, width: self.width }
    }
}

/// The tower.
#[derive(Clone)]
pub struct VisionTower {
    patch_embed: Linear,
    blocks: Vec<Block>,
    merger: Merger,
    config: VisionConfig,
    device: Device,
    dtype: DType,
}

impl VisionTower {
    /// Reads the tower below `vb` (`visual.` in the files).
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let stem = (cfg.in_channels, cfg.temporal_patch_size, cfg.patch_size);
        let shape = (cfg.hidden_size, stem.0, stem.1, stem.2, stem.2);
        let patch = vb.pp("patch_embed").get(shape, "proj.weight")?;
        // The stride of this convolution is its kernel: a product over flattened patches is the same.
        let patch = patch.reshape((cfg.hidden_size, ()))?;
        let blocks = (0..cfg.depth).map(|i| Block::new(cfg, vb.pp("blocks").pp(i))).collect::<Result<_>>()?;
        Ok(Self {
            patch_embed: Linear::new(patch, None),
            blocks,
            merger: Merger::new(cfg, vb.pp("merger"))?,
            config: cfg.clone(),
            device: vb.device().clone(),
            dtype: vb.dtype(),
        })
    }

    /// `pixels` (N, C * temporal_patch * patch^2) with the patch grids `[t, h, w]` they belong to -> (N / merge^2, out),
    /// in the order of the placeholder tokens.
    ///
    /// # Errors
    /// Rows that do not add up to the grids, or grids that are no multiple of the merge size.
    pub fn forward(&self, pixels: &Tensor, grids: &[[usize; 3]]) -> Result<Tensor> {
        let (n, _) = pixels.dims2()?;
        let merge = self.config.spatial_merge_size;
        let rows: usize = grids.iter().map(|[t, h, w]| t * h * w).sum();
        if rows != n || grids.iter().any(|[_, h, w]| h % merge != 0 || w % merge != 0) {
            candle_core::bail!(
                "vision: {n} patch rows do not fit the grids {grids:?} ({rows} patches; height and width in multiples of {merge})"
            )
        }
        if n == 0 {
            return Tensor::zeros((0, self.config.out_hidden_size), self.dtype, &self.device);
        }
        let order = PatchOrder::new(grids, &self.config);
        let index = |ids: Vec<u32>| Tensor::from_vec(ids, n / (merge * merge), &self.device);
        let (windows, slices) = (Segments::new(&order.windows), Segments::new(&order.slices));
        let (cos, sin) = self.angles(&order)?;

        let xs = self.patch_embed.forward(&pixels.to_device(&self.device)?.to_dtype(self.dtype)?)?;
        let xs = xs.reshape((n / (merge * merge), merge * merge * self.config.hidden_size))?;
        let mut xs = xs.index_select(&index(order.window_index.clone())?, 0)?.reshape((n, ()))?;
        for (i, block) in self.blocks.iter().enumerate() {
            let full = self.config.fullatt_block_indexes.contains(&i);
            xs = block.forward(&xs, (&cos, &sin), if full { &slices } else { &windows })?;
        }
        self.merger.forward(&xs)?.index_select(&index(order.inverse())?, 0)
    }

    /// The same tower on the same storage, outside any graph.
    pub fn detached(&self) -> Self {
        Self {
            patch_embed: self.patch_embed.detached(),
            blocks: self.blocks.iter().map(Block::detached).collect(),
            merger: self.merger.detached(),
            config: self.config.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
        }
    }

    /// Rotary angles of each patch: row frequencies, then column frequencies. Two tensors (N, head_dim / 2), f32
    /// (f64 for a model in f64).
    fn angles(&self, order: &PatchOrder) -> Result<(Tensor, Tensor)> {
        let quarter = self.config.hidden_size / self.config.num_heads / 4;
        let frequencies: Vec<f32> =
            (0..quarter).map(|i| 1.0 / ROPE_THETA.powf(i as f32 / quarter as f32)).collect();
        let angles: Vec<f32> = (order.coordinates.iter())
            .flat_map(|place| place.iter().flat_map(|&at| frequencies.iter().map(move |f| at as f32 * f)))
            .collect();
        let angles = Tensor::from_vec(angles, (order.coordinates.len(), 2 * quarter), &self.device)?;
        let wide = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Ok((angles.cos()?.to_dtype(wide)?, angles.sin()?.to_dtype(wide)?))
    }
}
