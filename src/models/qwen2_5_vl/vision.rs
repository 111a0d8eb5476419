//! The vision tower: patches -> window attention blocks -> merged tokens of the text model's width.
//!
//! Reference: transformers 4.51.3, `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::VisionConfig;
use super::window::PatchOrder;
use crate::nn::{Block, Linear, RmsNorm, gelu_erf};
use crate::ops::attention::{Mask, Segments};

/// The reference writes this value into the code, not into the config.
const EPS: f64 = 1e-6;
const ROPE_THETA: f32 = 10_000.0;

/// A block of the tower below `vb`. The reference rotates in f32 whatever the model's dtype.
fn block(cfg: &VisionConfig, vb: VarBuilder) -> Result<Block> {
    let (d, inner) = (cfg.hidden_size, cfg.intermediate_size);
    let (attn, mlp) = (vb.pp("attn"), vb.pp("mlp"));
    let qkv = attn.pp("qkv");
    let (weight, bias) = (qkv.get((3 * d, d), "weight")?, qkv.get(3 * d, "bias")?);
    // Three products over views of the fused weight: q, k and v come out contiguous, nothing is copied.
    let third = |i: usize| -> Result<Linear> {
        Ok(Linear::new(weight.narrow(0, i * d, d)?, Some(bias.narrow(0, i * d, d)?)))
    };
    Ok(Block {
        norm1: RmsNorm::load(d, EPS, vb.pp("norm1"))?,
        q: third(0)?,
        k: third(1)?,
        v: third(2)?,
        o: Linear::load(d, d, attn.pp("proj"))?,
        norm2: RmsNorm::load(d, EPS, vb.pp("norm2"))?,
        gate: Linear::load(d, inner, mlp.pp("gate_proj"))?,
        up: Linear::load(d, inner, mlp.pp("up_proj"))?,
        down: Linear::load(inner, d, mlp.pp("down_proj"))?,
        heads: cfg.num_heads,
        kv_heads: cfg.num_heads,
        width: d / cfg.num_heads,
    })
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
        let blocks = (0..cfg.depth).map(|i| block(cfg, vb.pp("blocks").pp(i))).collect::<Result<_>>()?;
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
        let order = self.order(pixels, grids)?;
        if pixels.dim(0)? == 0 {
            return Tensor::zeros((0, self.config.out_hidden_size), self.dtype, &self.device);
        }
        let inverse = order.inverse();
        let merged = self.merger.forward(&self.blocks(pixels, &order)?)?;
        merged.index_select(&Tensor::from_vec(inverse, merged.dim(0)?, &self.device)?, 0)
    }

    /// What the merger reads, normalised: one row (N, hidden) per patch, in the order of the returned rows and columns.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn patch_states(&self, pixels: &Tensor, grids: &[[usize; 3]]) -> Result<(Tensor, Vec<[usize; 2]>)> {
        let order = self.order(pixels, grids)?;
        Ok((self.merger.ln_q.forward(&self.blocks(pixels, &order)?)?, order.coordinates))
    }

    fn order(&self, pixels: &Tensor, grids: &[[usize; 3]]) -> Result<PatchOrder> {
        let (n, _) = pixels.dims2()?;
        let merge = self.config.spatial_merge_size;
        let rows: usize = grids.iter().map(|[t, h, w]| t * h * w).sum();
        if rows != n || grids.iter().any(|[_, h, w]| h % merge != 0 || w % merge != 0) {
            candle_core::bail!(
                "vision: {n} patch rows do not fit the grids {grids:?} ({rows} patches; height and width in multiples of {merge})"
            )
        }
        Ok(PatchOrder::new(grids, &self.config))
    }

    /// Rows of pixels -> rows behind the last block (N, hidden), window by window.
    fn blocks(&self, pixels: &Tensor, order: &PatchOrder) -> Result<Tensor> {
        let (n, merge) = (pixels.dim(0)?, self.config.spatial_merge_size);
        let index = Tensor::from_vec(order.window_index.clone(), n / (merge * merge), &self.device)?;
        let (windows, slices) = (Segments::new(&order.windows), Segments::new(&order.slices));
        let (cos, sin) = self.angles(order)?;

        let xs = self.patch_embed.forward(&pixels.to_device(&self.device)?.to_dtype(self.dtype)?)?;
        let xs = xs.reshape((n / (merge * merge), merge * merge * self.config.hidden_size))?;
        let mut xs = xs.index_select(&index, 0)?.reshape((n, ()))?;
        for (i, block) in self.blocks.iter().enumerate() {
            let full = self.config.fullatt_block_indexes.contains(&i);
            xs = block.forward(&xs, (&cos, &sin), if full { &slices } else { &windows }, Mask::Full)?;
        }
        Ok(xs)
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

    /// The maps that may take an adapter, by name; the parts of the fused projection are one.
    pub(super) fn maps(&mut self) -> Vec<(String, Vec<&mut Linear>)> {
        let mut maps = vec![];
        for (i, block) in self.blocks.iter_mut().enumerate() {
            maps.push((format!("blocks.{i}.attn.qkv"), vec![&mut block.q, &mut block.k, &mut block.v]));
            let single = [
                ("attn.proj", &mut block.o),
                ("mlp.gate_proj", &mut block.gate),
                ("mlp.up_proj", &mut block.up),
                ("mlp.down_proj", &mut block.down),
            ];
            maps.extend(single.map(|(name, linear)| (format!("blocks.{i}.{name}"), vec![linear])));
        }
        maps.push(("merger.mlp.0".to_owned(), vec![&mut self.merger.fc1]));
        maps.push(("merger.mlp.2".to_owned(), vec![&mut self.merger.fc2]));
        maps
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
