//! The key-frame sampler: a 1-D U-Net from a similarity matrix (Q, T) to one logit per frame (T,).
//!
//! MSJoE (arXiv 2602.22932, section 3) names a 1-D U-Net of about 2 M parameters and gives no further detail. Decided here:
//!
//! - **Queries.** A shared stem reads each query's row on its own; the rows are then pooled by mean and maximum over the
//!   queries, and only the pooled features enter the U-Net. The order of the queries therefore cannot matter (beyond the
//!   order of at most a few floating-point additions), and any number of queries is accepted.
//! - **Length.** Nothing depends on a multiple of anything. A level of the U-Net halves the length rounding up, and the way
//!   back repeats and crops. The ends see zeros, the average of the normalised features. In a batch of unequal lengths the
//!   padding is masked out of every convolution, normalisation and pooling: an item gets the logits it gets alone.
//! - **Windows.** Evidence often lies beside a match (what comes right after X) or has to be seen more than once. How near the frames
//!   within 2, 4 and 8 of each frame come to the query's best match stands beside the frame's own nearness, so that looking
//!   around a match is a matter of four numbers, which a policy gradient finds, and not of convolutions, which it has to build
//!   first.
//! - **Reach.** With the default configuration a logit sees about 120 frames to either side, and the whole video through the
//!   normalised rows and the group statistics.
//! - **Start.** `logits = head(..) + sum over windows of (gain + sharpness(..)) * largest nearness within the window`: one `gain` per
//!   window, [`Config::gain`] in all at the start, and one `sharpness` per window and video, linear in the mean features and 0 at
//!   the start (a question about one thing wants the peak, one about the whole video does not); the head close to zero. An
//!   untrained sampler draws from everything that matches about as well as the best frame, and from around it: of few seconds
//!   where the query is rare, of half of the video where it is common, whatever the scale of the similarities.

mod config;
mod features;
mod file;
mod padding;

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder};

use crate::nn::{Conv1d, GroupNorm, silu, upsample1d};
pub use config::Config;
use features::{POSITIONS, ROWS};
use padding::Padding;

/// Two convolutions with the input added to their output; normalisation before each (B, C_in, L) -> (B, C_out, L).
#[derive(Debug, Clone)]
struct Block {
    norm1: GroupNorm,
    conv1: Conv1d,
    norm2: GroupNorm,
    conv2: Conv1d,
    skip: Option<Conv1d>,
}

impl Block {
    fn new(c_in: usize, c_out: usize, cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let skip = match c_in == c_out {
            true => None,
            false => Some(Conv1d::load((c_in, c_out, 1), vb.pp("skip"))?),
        };
        Ok(Self {
            norm1: GroupNorm::load(c_in, cfg.groups, vb.pp("norm1"))?,
            conv1: Conv1d::load((c_in, c_out, cfg.kernel), vb.pp("conv1"))?,
            norm2: GroupNorm::load(c_out, cfg.groups, vb.pp("norm2"))?,
            conv2: Conv1d::load((c_out, c_out, cfg.kernel), vb.pp("conv2"))?,
            skip,
        })
    }

    fn forward(&self, xs: &Tensor, padding: &Padding, level: usize) -> Result<Tensor> {
        let ys = self.conv1.forward(&silu(&padding.norm(&self.norm1, xs, level)?)?)?;
        let ys = self.conv2.forward(&silu(&padding.norm(&self.norm2, &ys, level)?)?)?;
        let xs = match &self.skip {
            Some(skip) => skip.forward(xs)?,
            None => xs.clone(),
        };
        padding.clear((xs + ys)?, level)
    }

    fn collect(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
        insert(into, &format!("{prefix}.norm1"), self.norm1.parameters());
        insert(into, &format!("{prefix}.conv1"), self.conv1.parameters());
        insert(into, &format!("{prefix}.norm2"), self.norm2.parameters());
        insert(into, &format!("{prefix}.conv2"), self.conv2.parameters());
        if let Some(skip) = &self.skip {
            insert(into, &format!("{prefix}.skip"), skip.parameters());
        }
    }
}

/// One step of the way down or up: a block and the convolution that changes level.
#[derive(Debug, Clone)]
struct Stage {
    conv: Conv1d,
    block: Block,
}

impl Stage {
    fn collect(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
        insert(into, &format!("{prefix}.conv"), self.conv.parameters());
        self.block.collect(&format!("{prefix}.block"), into);
    }
}

fn insert<'a>(
    into: &mut BTreeMap<String, Tensor>,
    prefix: &str,
    parameters: impl Iterator<Item = (&'static str, &'a Tensor)>,
) {
    into.extend(parameters.map(|(name, tensor)| (format!("{prefix}.{name}"), tensor.clone())));
}

/// The sampler network. Cloning shares the parameters.
#[derive(Debug, Clone)]
pub struct UNet1d {
    config: Config,
    stem: [Conv1d; 2],
    inlet: Conv1d,
    down: Vec<Stage>, // level i -> i + 1
    middle: Block,
    up: Vec<Stage>, // level i + 1 -> i, listed by i
    norm: GroupNorm,
    head: Conv1d,
    sharpness: Tensor, // (windows, features)
    gain: Tensor,      // (windows,)
}

impl UNet1d {
    /// Builds the network from named parameters.
    ///
    /// # Errors
    /// A configuration outside its bounds, and what the builder reports (a missing or misshaped tensor).
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let (cfg, channels) = (config, &config.channels);
        let top = channels[0];
        let stem = [(ROWS, "stem.0"), (cfg.stem, "stem.1")]
            .map(|(c_in, name)| Conv1d::load((c_in, cfg.stem, cfg.kernel), vb.pp(name)));
        let [stem0, stem1] = stem;
        let (pooled, windows) = (2 * (ROWS + cfg.stem) + POSITIONS, cfg.windows.len());
        let steps = || channels.windows(2).map(|pair| (pair[0], pair[1])).enumerate();
        let down = steps().map(|(i, (upper, lower))| {
            let vb = vb.pp(format!("down.{i}"));
            let block = Block::new(upper, upper, cfg, vb.pp("block"))?;
            Ok(Stage { block, conv: Conv1d::load_strided((upper, lower, cfg.kernel), 2, vb.pp("conv"))? })
        });
        let up = steps().map(|(i, (upper, lower))| {
            let vb = vb.pp(format!("up.{i}"));
            let block = Block::new(2 * upper, upper, cfg, vb.pp("block"))?;
            Ok(Stage { block, conv: Conv1d::load((lower, upper, cfg.kernel), vb.pp("conv"))? })
        });
        let bottom = channels[channels.len() - 1];
        Ok(Self {
            stem: [stem0?, stem1?],
            inlet: Conv1d::load((pooled, top, 1), vb.pp("inlet"))?,
            down: down.collect::<Result<_>>()?,
            middle: Block::new(bottom, bottom, cfg, vb.pp("middle"))?,
            up: up.collect::<Result<_>>()?,
            norm: GroupNorm::load(top, cfg.groups, vb.pp("norm"))?,
            // No bias: adding a constant to all logits changes nothing, so it could never learn. A tenth of the usual
            // width: near zero, yet the layers below receive a gradient from the first step.
            head: Conv1d::load_no_bias((top, 1, 1), 0.1, vb.pp("head"))?,
            sharpness: vb.get_with_hints((windows, pooled + top), "sharpness", Init::Const(0.))?,
            gain: vb.get_with_hints(windows, "gain", Init::Const(config.gain / windows as f64))?,
            config: config.clone(),
        })
    }

    /// The configuration the network was built with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every parameter by the name under which [`Self::new`] reads it.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        let mut all = BTreeMap::new();
        for (i, conv) in self.stem.iter().enumerate() {
            insert(&mut all, &format!("stem.{i}"), conv.parameters());
        }
        insert(&mut all, "inlet", self.inlet.parameters());
        for (i, stage) in self.down.iter().enumerate() {
            stage.collect(&format!("down.{i}"), &mut all);
        }
        self.middle.collect("middle", &mut all);
        for (i, stage) in self.up.iter().enumerate() {
            stage.collect(&format!("up.{i}"), &mut all);
        }
        insert(&mut all, "norm", self.norm.parameters());
        insert(&mut all, "head", self.head.parameters());
        all.insert("gain".to_owned(), self.gain.clone());
        all.insert("sharpness".to_owned(), self.sharpness.clone());
        all
    }

    /// A copy whose parameters are variables, and these variables by name, for an optimizer.
    ///
    /// A network loaded or initialised is not trainable: its forward pass builds no graph.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn trainable(&self) -> Result<(Self, BTreeMap<String, Var>)> {
        let vars = self.parameters().into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t.detach())?)));
        let vars: BTreeMap<String, Var> = vars.collect::<Result<_>>()?;
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Ok((self.rebuilt(tensors)?, vars))
    }

    /// A twin that shares the storage of the parameters and builds no graph: rollouts see every optimizer step.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn detached(&self) -> Result<Self> {
        self.rebuilt(self.parameters().into_iter().map(|(name, t)| (name, t.detach())).collect())
    }

    fn rebuilt(&self, tensors: HashMap<String, Tensor>) -> Result<Self> {
        Self::new(&self.config, VarBuilder::from_tensors(tensors, self.dtype(), self.device()))
    }

    fn dtype(&self) -> DType {
        self.gain.dtype()
    }

    fn device(&self) -> &Device {
        self.gain.device()
    }

    /// Logits of one similarity matrix: (Q, T) -> (T,).
    ///
    /// # Errors
    /// A matrix without a row or a column, or of another rank.
    pub fn forward(&self, similarity: &Tensor) -> Result<Tensor> {
        let mut logits = self.forward_batch(std::slice::from_ref(similarity))?;
        match logits.pop() {
            Some(logits) => Ok(logits),
            None => bail!("UNet1d: no logits for one matrix"),
        }
    }

    /// Logits of several matrices in one pass: (Q_b, T_b) each, of any sizes -> (T_b,) each, equal to those of
    /// [`Self::forward`] up to rounding.
    ///
    /// # Errors
    /// As [`Self::forward`]; the message names the position in the batch.
    pub fn forward_batch(&self, similarity: &[Tensor]) -> Result<Vec<Tensor>> {
        if similarity.is_empty() {
            return Ok(Vec::new());
        }
        let (rows, padding) = Padding::stack(similarity, self.config.channels.len(), self.dtype())?;
        let (pooled, prior) = self.pool(&rows, &padding)?;
        let mut xs = padding.clear(self.inlet.forward(&pooled)?, 0)?;
        let mut skips = Vec::with_capacity(self.down.len());
        for (level, stage) in self.down.iter().enumerate() {
            xs = stage.block.forward(&xs, &padding, level)?;
            skips.push(xs.clone());
            xs = padding.clear(stage.conv.forward(&xs)?, level + 1)?;
        }
        xs = self.middle.forward(&xs, &padding, self.down.len())?;
        for (level, (stage, skip)) in self.up.iter().zip(skips).enumerate().rev() {
            let wide = padding.clear(upsample1d(&xs, 2)?.narrow(2, 0, skip.dim(2)?)?, level)?;
            let ys = padding.clear(stage.conv.forward(&wide)?, level)?;
            xs = stage.block.forward(&Tensor::cat(&[&ys, &skip], 1)?, &padding, level)?;
        }
        let xs = silu(&padding.norm(&self.norm, &xs, 0)?)?;
        let video = Tensor::cat(&[padding.mean(&padding.clear(pooled, 0)?)?, padding.mean(&xs)?], 1)?; // (B, C, 1)
        // Divided by the root of their number: a step of the optimizer moves all features at once.
        let video = (video.transpose(1, 2)? / (video.dim(1)? as f64).sqrt())?;
        let sharpness = video.broadcast_mul(&self.sharpness.unsqueeze(0)?)?.sum(2)?;
        let gains = sharpness.broadcast_add(&self.gain)?.unsqueeze(2)?; // (B, windows, 1)
        let prior = prior.broadcast_mul(&gains)?.sum(1)?;
        let logits = (self.head.forward(&xs)?.squeeze(1)? + prior)?;
        padding.split(&logits)
    }

    // Rows (B, Q, T) -> features over all queries (B, C, T), and the largest nearness within each window (B, windows, T).
    fn pool(&self, rows: &Tensor, padding: &Padding) -> Result<(Tensor, Tensor)> {
        let (b, q, t) = rows.dims3()?;
        let rows = features::rows(rows, padding)?; // (B * Q, ROWS, T)
        let hidden = padding.clear_rows(silu(&self.stem[0].forward(&rows)?)?)?;
        let hidden = padding.clear_rows(silu(&self.stem[1].forward(&hidden)?)?)?;
        let each = Tensor::cat(&[&rows, &hidden], 1)?.reshape((b, q, ROWS + self.config.stem, t))?;
        let best = padding.max_over_queries(&each)?;
        let prior = padding.max_within(&best.narrow(1, features::NEARNESS, 1)?, &self.config.windows)?;
        let position = features::positions(padding, rows.dtype(), rows.device())?;
        Ok((Tensor::cat(&[&padding.mean_over_queries(&each)?, &best, &position], 1)?, prior))
    }
}
