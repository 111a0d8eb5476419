//! The samplers behind one name: what turns similarities, and frames, into one logit per frame.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::temporal_agent::TemporalAgent;
use super::unet1d::UNet1d;
use crate::error::{Error, Result};
use crate::select::{Features, Scores};
use crate::similarity::similarity;

/// What a sampler goes by: the queries and frames of one video in CLIP's space.
#[derive(Debug, Clone)]
pub struct Sight {
    /// Cosine of each query with each frame (Q, T).
    pub similarity: Tensor,
    /// Features of the queries (Q, D), not normalised.
    pub queries: Tensor,
    /// Features of the candidate frames (T, D), not normalised.
    pub frames: Tensor,
}

impl Sight {
    /// Compares `queries` (Q, D) with `frames` (T, D).
    ///
    /// # Errors
    /// As [`similarity`].
    pub fn new(queries: Tensor, frames: Tensor) -> Result<Self> {
        Ok(Self { similarity: similarity(&queries, &frames)?, queries, frames })
    }
}

/// A sampler network. Cloning shares the parameters.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a program holds a few of them
pub enum Sampler {
    /// MSJoE's: sees the similarities.
    UNet1d(UNet1d),
    /// TSPO's: sees the frames as well.
    TemporalAgent(TemporalAgent),
}

impl From<UNet1d> for Sampler {
    fn from(network: UNet1d) -> Self {
        Self::UNet1d(network)
    }
}

impl From<TemporalAgent> for Sampler {
    fn from(agent: TemporalAgent) -> Self {
        Self::TemporalAgent(agent)
    }
}

impl Sampler {
    /// Reads a file of either kind; which one it is shows in its header.
    ///
    /// # Errors
    /// A file of neither kind; as [`UNet1d::load`] and [`TemporalAgent::load`].
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        match TemporalAgent::is_file(names(path)?.iter().map(String::as_str)) {
            true => TemporalAgent::load(path, device).map(Self::from),
            false => UNet1d::load(path, device).map(Self::from),
        }
    }

    /// Writes the file that [`Self::load`] reads, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        match self {
            Self::UNet1d(network) => network.save(path),
            Self::TemporalAgent(agent) => agent.save(path),
        }
    }

    /// Refuses a CLIP whose features have a width that the network cannot read.
    ///
    /// # Errors
    /// As [`TemporalAgent::check`].
    pub fn check(&self, features: usize) -> Result<()> {
        match self {
            Self::UNet1d(_) => Ok(()),
            Self::TemporalAgent(agent) => agent.check(features),
        }
    }

    /// Logits (T,) of the candidate frames, before the softmax.
    ///
    /// # Errors
    /// Shapes that do not fit the network.
    pub fn forward(&self, sight: &Sight) -> candle_core::Result<Tensor> {
        match self {
            Self::UNet1d(network) => network.forward(&sight.similarity),
            Self::TemporalAgent(agent) => agent.forward(&sight.frames, &sight.queries, &sight.similarity),
        }
    }

    /// How strongly frames drawn by it keep apart, see [`Scores::apart`].
    pub fn apart(&self) -> f64 {
        match self {
            Self::UNet1d(network) => network.config().apart,
            Self::TemporalAgent(_) => 0.0,
        }
    }

    /// Fills in what a choice by its weights reads.
    ///
    /// # Errors
    /// As [`Self::forward`] and [`Features::new`].
    pub fn score(&self, sight: &Sight, scores: &mut Scores) -> Result<()> {
        scores.logits = Some(self.forward(sight)?.to_vec1()?);
        scores.apart = self.apart();
        if scores.apart != 0.0 {
            scores.features = Some(Features::of(&sight.frames)?);
        }
        Ok(())
    }

    /// As [`Self::forward`] for several videos or queries.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_batch(&self, sights: &[&Sight]) -> candle_core::Result<Vec<Tensor>> {
        match self {
            Self::UNet1d(network) => {
                let matrices: Vec<Tensor> = sights.iter().map(|sight| sight.similarity.clone()).collect();
                network.forward_batch(&matrices)
            }
            Self::TemporalAgent(_) => sights.iter().map(|sight| self.forward(sight)).collect(),
        }
    }

    /// Every parameter that learns, by name.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::UNet1d(network) => network.parameters(),
            Self::TemporalAgent(agent) => agent.parameters(),
        }
    }

    /// Tensors of the file that nothing uses, by name.
    pub fn unused(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::UNet1d(_) => BTreeMap::new(),
            Self::TemporalAgent(agent) => agent.unused(),
        }
    }

    /// A copy whose parameters are variables, and these variables by name, for an optimizer.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn trainable(&self) -> candle_core::Result<(Self, BTreeMap<String, Var>)> {
        match self {
            Self::UNet1d(network) => network.trainable().map(|(network, vars)| (network.into(), vars)),
            Self::TemporalAgent(agent) => agent.trainable().map(|(agent, vars)| (agent.into(), vars)),
        }
    }

    /// A twin that shares the storage of the parameters and builds no graph.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn detached(&self) -> candle_core::Result<Self> {
        match self {
            Self::UNet1d(network) => network.detached().map(Self::from),
            Self::TemporalAgent(agent) => agent.detached().map(Self::from),
        }
    }
}

/// Longest header that is read: far above any sampler's.
const HEADER: u64 = 1 << 26;

/// Names of the tensors of a safetensors file, from its header; none for a file that is something else, which the loaders
/// explain.
fn names(path: &Path) -> Result<Vec<String>> {
    let mut file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let (mut length, mut header) = ([0; 8], vec![]);
    if file.read_exact(&mut length).is_err() {
        return Ok(vec![]);
    }
    let read = file.take(u64::from_le_bytes(length).min(HEADER)).read_to_end(&mut header);
    read.map_err(|error| Error::io(path, error))?;
    let entries = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&header);
    Ok(entries.map(|entries| entries.keys().cloned().collect()).unwrap_or_default())
}
