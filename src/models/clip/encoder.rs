//! The pre-norm transformer that both towers share (transformers 4.51.3, `CLIPEncoder`).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Activation, EncoderConfig};
use crate::nn::{LayerNorm, Linear, add};
use crate::ops::attention::{Mask, Segments, attention};

#[derive(Debug, Clone)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn new(cfg: EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let linear = |name| Linear::load(cfg.hidden, cfg.hidden, vb.pp(name));
        Ok(Self {
            q: linear("q_proj")?,
            k: linear("k_proj")?,
            v: linear("v_proj")?,
            out: linear("out_proj")?,
            heads: cfg.heads,
        })
    }

    /// `xs` (L, D) -> (L, D), before the output projection.
    fn mix(&self, xs: &Tensor, segments: &Segments, mask: Mask) -> Result<Tensor> {
        let (l, d) = xs.dims2()?;
        let width = d / self.heads;
        let split = |linear: &Linear| linear.forward(xs)?.reshape((l, self.heads, width));
        let scale = 1.0 / (width as f64).sqrt();
        let mixed = attention(&split(&self.q)?, &split(&self.k)?, &split(&self.v)?, segments, mask, scale)?;
        mixed.reshape((l, d))
    }
}

#[derive(Debug, Clone)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(cfg: EncoderConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            fc1: Linear::load(cfg.hidden, cfg.intermediate, vb.pp("fc1"))?,
            fc2: Linear::load(cfg.intermediate, cfg.hidden, vb.pp("fc2"))?,
            activation: cfg.activation,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.activation.apply(&self.fc1.forward(xs)?)?)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn new(cfg: EncoderConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            layer_norm1: LayerNorm::load(cfg.hidden, cfg.eps, vb.pp("layer_norm1"))?,
            self_attn: Attention::new(cfg, vb.pp("self_attn"))?,
            layer_norm2: LayerNorm::load(cfg.hidden, cfg.eps, vb.pp("layer_norm2"))?,
            mlp: Mlp::new(cfg, vb.pp("mlp"))?,
        })
    }

    fn for_many_rows(mut self, last: bool) -> Result<Self> {
        let Attention { q, k, v, out, heads } = self.self_attn;
        let turn = |linear: Linear, few: bool| if few { Ok(linear) } else { linear.for_many_rows() };
        let (q, k, v) = (turn(q, false)?, turn(k, false)?, turn(v, false)?);
        self.self_attn = Attention { q, k, v, out: turn(out, last)?, heads };
        self.mlp.fc1 = turn(self.mlp.fc1, last)?;
        self.mlp.fc2 = turn(self.mlp.fc2, last)?;
        Ok(self)
    }

    /// `xs` (L, D) -> (L, D), or (R, D) when only the R rows `keep` are wanted.
    fn forward(&self, xs: &Tensor, segments: &Segments, mask: Mask, keep: Option<&Tensor>) -> Result<Tensor> {
        let mixed = self.self_attn.mix(&self.layer_norm1.forward(xs)?, segments, mask)?;
        let (xs, mixed) = match keep {
            Some(rows) => (xs.index_select(rows, 0)?, mixed.index_select(rows, 0)?),
            None => (xs.clone(), mixed),
        };
        let xs = add(&xs, &self.self_attn.out.forward(&mixed)?)?;
        let ys = self.mlp.forward(&self.layer_norm2.forward(&xs)?)?;
        add(&xs, &ys)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
}

impl Encoder {
    pub fn new(cfg: EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("layers");
        let layers = (0..cfg.layers).map(|i| Layer::new(cfg, vb.pp(i))).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// The same encoder for many rows at a time. Behind the last attention only the pooled ones are left: those weights stay.
    pub fn for_many_rows(self) -> Result<Self> {
        let last = self.layers.len() - 1;
        let turn = |(i, layer): (usize, Layer)| layer.for_many_rows(i == last);
        Ok(Self { layers: self.layers.into_iter().enumerate().map(turn).collect::<Result<_>>()? })
    }

    /// Hidden states (R, D) of the R pooled rows of `xs` (L, D). Behind the last attention the other rows
    /// influence nothing, so they are dropped there.
    pub fn forward(&self, xs: Tensor, segments: &Segments, mask: Mask, pooled: &Tensor) -> Result<Tensor> {
        let last = self.layers.len() - 1;
        let run = |xs: Tensor, (i, layer): (usize, &Layer)| {
            layer.forward(&xs, segments, mask, (i == last).then_some(pooled))
        };
        self.layers.iter().enumerate().try_fold(xs, run)
    }
}
