//! TSPO's temporal agent (arXiv 2508.04369; Hui-design/TSPO at 19f4ecb, `model/temporal_agent.py`): a sampler that sees the
//! frames themselves, where [`super::unet1d`] sees how well they match.
//!
//! ```text
//! X   = F + PE                          F (T, D) CLIP features as they are, PE of the position i / T
//! H   = heads(softmax(q k^T / sqrt(D / heads)) v)     each frame sees the window i - w/2 .. i - w/2 + w
//! E   = W2 relu(W1 H + b1) + b2 + F
//! S_i = mean over texts of cos(E_i, t) + cos(F_i, t)
//! z_i = S_i / temperature
//! ```
//!
//! Differs from the published code: the window is walked instead of masking all T x T pairs, which gives the same; with several
//! texts the CLIP part is averaged as the other one is (there it knows one text); a frame whose features are all zero has a
//! finite gradient; the temperature is constant in training (there it falls from 0.025 to 0.01). The published network has a
//! sixth linear map, `ffn_o`, that nothing uses: it is read, kept and written, so that files go both ways, and never trained.

mod file;

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

use crate::nn::{Linear, softmax_last_dim};

/// What a file of weights does not say. The default is the published one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Heads of the attention; they divide the width of the features.
    pub heads: usize,
    /// Frames that a frame sees: itself, half of them (rounded down) before it, and the rest behind.
    pub window: usize,
    /// What scores are divided by to be logits. The K largest do not depend on it; draws do.
    pub temperature: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { heads: 8, window: 12, temperature: 0.025 }
    }
}

impl Config {
    /// Whether an agent over features of `width` can be built: an even width, heads that divide it, a window of 1 to 4096
    /// frames, a temperature above 0.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn check(&self, width: usize) -> Result<()> {
        let Self { heads, window, temperature } = self;
        if width == 0 || !width.is_multiple_of(2) {
            bail!("temporal agent: the width of the features must be even and above 0, got {width}")
        }
        if *heads == 0 || !width.is_multiple_of(*heads) {
            bail!("temporal agent: heads must divide the features' width {width}, got {heads}")
        }
        if !(1..=4096).contains(window) {
            bail!("temporal agent: window must be from 1 to 4096, got {window}")
        }
        if !(*temperature > 0.0 && temperature.is_finite()) {
            bail!("temporal agent: temperature must be above 0, got {temperature}")
        }
        Ok(())
    }
}

/// The linear maps by the names of the published file; the last one is used by nothing.
const MAPS: [&str; 6] =
    ["temporal.Self_q", "temporal.Self_k", "temporal.Self_v", "mlp.0", "mlp.2", "temporal.ffn_o"];
const UNUSED: &str = MAPS[5];

/// Added to the product of two lengths in the agent's own cosine, as published.
const COSINE_EPS: f64 = 1e-6;
/// Added to a squared length: keeps the gradient of a zero vector finite, and is below the rounding of any other.
const SQUARED_LENGTH_EPS: f64 = 1e-16;

/// The network. Cloning shares the parameters.
#[derive(Debug, Clone)]
pub struct TemporalAgent {
    config: Config,
    /// Weights and biases of all six maps.
    tensors: BTreeMap<String, Tensor>,
    query: Linear,
    key: Linear,
    value: Linear,
    wide: Linear,
    narrow: Linear,
}

impl TemporalAgent {
    /// The network over named tensors: `weight` (D, D) and `bias` (D,) of each map.
    ///
    /// # Errors
    /// A tensor that is missing, is none of the network's, or has another shape than the others; a configuration that does
    /// not fit. The message names the tensor.
    pub fn new(config: &Config, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let width = match tensors.get(&format!("{}.weight", MAPS[0])) {
            Some(weight) => weight.dims().first().copied().unwrap_or(0),
            None => bail!("tensor {}.weight is missing", MAPS[0]),
        };
        let shapes = shapes(width);
        if let Some(name) = tensors.keys().find(|name| !shapes.contains_key(*name)) {
            bail!("tensor {name} is no parameter of a temporal agent")
        }
        for (name, shape) in &shapes {
            match tensors.get(name) {
                None => bail!("tensor {name} of shape {shape:?} is missing"),
                Some(tensor) if tensor.dims() != shape => {
                    bail!("tensor {name}: expected shape {shape:?}, got {:?}", tensor.dims())
                }
                Some(_) => {}
            }
        }
        config.check(width)?;
        let map = |name: &str| {
            let part = |part: &str| tensors[&format!("{name}.{part}")].clone();
            Linear::new(part("weight"), Some(part("bias")))
        };
        let [query, key, value, wide, narrow, _] = MAPS.map(map);
        Ok(Self { config: config.clone(), query, key, value, wide, narrow, tensors })
    }

    /// What the network was built with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// D, the width of the features that it reads.
    pub fn width(&self) -> usize {
        self.query.weight().dims()[0]
    }

    /// Refuses a CLIP whose features have another width.
    ///
    /// # Errors
    /// Both widths.
    pub fn check(&self, features: usize) -> crate::error::Result<()> {
        if self.width() == features {
            return Ok(());
        }
        Err(crate::error::Error::Input(format!(
            "temporal agent: it was trained on CLIP features of width {}, got a CLIP of width {features}; take the CLIP it \
             belongs to",
            self.width()
        )))
    }

    /// Every parameter that learns, by the name under which [`Self::new`] takes it.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        let used = self.tensors.iter().filter(|(name, _)| !name.starts_with(UNUSED));
        used.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    }

    /// The tensors that the published file holds and nothing uses.
    pub fn unused(&self) -> BTreeMap<String, Tensor> {
        let unused = self.tensors.iter().filter(|(name, _)| name.starts_with(UNUSED));
        unused.map(|(name, tensor)| (name.clone(), tensor.detach())).collect()
    }

    /// A copy whose parameters are variables, and these variables by name, for an optimizer.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn trainable(&self) -> Result<(Self, BTreeMap<String, Var>)> {
        let vars = self.parameters().into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t.detach())?)));
        let vars: BTreeMap<String, Var> = vars.collect::<Result<_>>()?;
        let mut tensors = self.unused();
        tensors.extend(vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())));
        Ok((Self::new(&self.config, tensors)?, vars))
    }

    /// A twin that shares the storage of the parameters and builds no graph: rollouts see every optimizer step.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn detached(&self) -> Result<Self> {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach()));
        Self::new(&self.config, tensors.collect())
    }

    /// Logits (T,) of the frames with CLIP features `frames` (T, D) for the texts with features `queries` (Q, D), neither
    /// normalised, and their cosines `similarity` (Q, T).
    ///
    /// # Errors
    /// Shapes that do not fit each other or the network.
    pub fn forward(&self, frames: &Tensor, queries: &Tensor, similarity: &Tensor) -> Result<Tensor> {
        let (t, d) = frames.dims2()?;
        let (q, text_width) = queries.dims2()?;
        if d != self.width() || text_width != d || similarity.dims() != [q, t] || q * t == 0 {
            bail!(
                "temporal agent: expected frames (T, {width}), queries (Q, {width}) and similarities (Q, T), got {:?}, {:?} \
                 and {:?}",
                frames.dims(),
                queries.dims(),
                similarity.dims(),
                width = self.width()
            )
        }
        let dtype = self.query.weight().dtype();
        let (frames, queries) = (frames.to_dtype(dtype)?, queries.to_dtype(dtype)?);
        let placed = (&frames + positions(t, d, dtype, frames.device())?)?;
        let hidden = self.wide.forward(&self.attend(&placed)?)?.relu()?;
        let seen = (self.narrow.forward(&hidden)? + &frames)?;
        let scores = (cosines(&queries, &seen)?.mean(0)? + similarity.to_dtype(dtype)?.mean(0)?)?;
        scores / self.config.temperature
    }

    /// Each frame looks at its window: (T, D) -> (T, D).
    fn attend(&self, xs: &Tensor) -> Result<Tensor> {
        let (t, d) = xs.dims2()?;
        let (heads, window) = (self.config.heads, self.config.window);
        let before = window / 2;
        // Wider would only see frames that are not there.
        let offsets = before.saturating_sub(t - 1)..(before + t).min(window);
        let around = |map: &Linear| map.forward(xs)?.pad_with_zeros(0, before, window - 1 - before);
        let (query, keys, values) = (self.query.forward(xs)?, around(&self.key)?, around(&self.value)?);
        let by_head = |xs: Tensor| xs.reshape((t, heads, d / heads));
        let scores = (offsets.clone())
            .map(|at| by_head((&query * keys.narrow(0, at, t)?)?)?.sum(2))
            .collect::<Result<Vec<_>>>()?;
        let scores = (Tensor::stack(&scores, 2)? / ((d / heads) as f64).sqrt())?; // (T, heads, window)
        let outside = outside(t, before, &offsets, xs.dtype(), xs.device())?;
        let weights = softmax_last_dim(&scores.broadcast_add(&outside)?)?;
        let mut sum: Option<Tensor> = None;
        for (place, at) in offsets.enumerate() {
            let weight = weights.narrow(2, place, 1)?;
            let part = by_head(values.narrow(0, at, t)?.contiguous()?)?.broadcast_mul(&weight)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        match sum {
            Some(sum) => sum.reshape((t, d)),
            None => bail!("temporal agent: an empty window"),
        }
    }
}

/// Names and shapes of the tensors of an agent of that width.
fn shapes(width: usize) -> BTreeMap<String, Vec<usize>> {
    let of =
        |map: &str| [(format!("{map}.weight"), vec![width, width]), (format!("{map}.bias"), vec![width])];
    MAPS.iter().flat_map(|map| of(map)).collect()
}

/// What is added to scores (T, heads, window) so that places before the first and behind the last frame get no weight: (T, 1, window).
fn outside(
    t: usize,
    before: usize,
    offsets: &std::ops::Range<usize>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let there = |frame: usize, at: usize| (before..before + t).contains(&(frame + at));
    let values: Vec<f32> = (0..t)
        .flat_map(|frame| offsets.clone().map(move |at| if there(frame, at) { 0.0 } else { -1e6 }))
        .collect();
    Tensor::from_vec(values, (t, 1, offsets.len()), device)?.to_dtype(dtype)
}

/// Sine and cosine of the position in [0, 1), one frequency per pair of columns: (T, D).
fn positions(t: usize, d: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let frequency = |pair: usize| 10_000f64.powf(-((2 * pair) as f64) / d as f64);
    let values: Vec<f64> = (0..t)
        .flat_map(|frame| {
            let position = frame as f64 / t as f64;
            (0..d / 2).flat_map(move |pair| {
                let (sin, cos) = (position * frequency(pair)).sin_cos();
                [sin, cos]
            })
        })
        .collect();
    Tensor::from_vec(values, (t, d), device)?.to_dtype(dtype)
}

/// (Q, D), (T, D) -> (Q, T).
fn cosines(queries: &Tensor, frames: &Tensor) -> Result<Tensor> {
    let length = |rows: &Tensor| (rows.sqr()?.sum_keepdim(D::Minus1)? + SQUARED_LENGTH_EPS)?.sqrt();
    let lengths = length(queries)?.matmul(&length(frames)?.t()?)?;
    queries.matmul(&frames.t()?)? / (lengths + COSINE_EPS)?
}
