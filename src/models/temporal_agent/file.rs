//! Files of a temporal agent, as TSPO publishes them: safetensors with the agent's tensors alone, or beside those of a CLIP with
//! the prefix `selector.`; and parameters drawn from a seed.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors};

use super::{Config, MAPS, TemporalAgent, shapes};
use crate::checkpoint::random::normals;
use crate::checkpoint::write_safetensors;
use crate::error::{Error, Result};

const METADATA: &str = "msjoe-temporal-agent";
/// Where a whole model keeps the agent.
const PREFIX: &str = "selector.";
/// What else a whole model holds: its CLIP.
const CLIP: [&str; 5] =
    ["text_model.", "vision_model.", "visual_projection.", "text_projection.", "logit_scale"];
/// Deviation of the weights of a new agent, that of the language model which TSPO trains it beside.
const DEVIATION: f64 = 0.02;

impl TemporalAgent {
    /// Whether a safetensors file with tensors of these names is for [`Self::load`].
    pub fn is_file<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
        names.any(|name| MAPS.iter().any(|map| name.strip_prefix(PREFIX).unwrap_or(name).starts_with(map)))
    }

    /// An untrained agent in f32 over features of `width`: what it adds to CLIP's similarity is nearly nothing. The parameters
    /// depend on `width` and `seed` alone.
    ///
    /// # Errors
    /// A configuration that does not fit the width.
    pub fn init(config: &Config, width: usize, seed: u64, device: &Device) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in shapes(width) {
            let count = shape.iter().product();
            let values = match name.ends_with(".bias") {
                true => vec![0.0; count],
                false => normals(seed, &name, count, 0.0, DEVIATION),
            };
            tensors.insert(name, Tensor::from_vec(values, shape, device)?);
        }
        Self::new(config, tensors).map_err(|error| Error::Input(error.to_string()))
    }

    /// Writes all tensors (f32) under their published names, and the configuration in the metadata, to one file, whole or not
    /// at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let config = serde_json::to_string(self.config()).map_err(|error| Error::checkpoint(path, error))?;
        let tensors = self.tensors.iter().map(|(name, t)| Ok((name.clone(), t.to_dtype(DType::F32)?)));
        let tensors = tensors.collect::<Result<BTreeMap<_, _>>>()?;
        write_safetensors(path, &tensors, Some(HashMap::from([(METADATA.to_owned(), config)])))
    }

    /// Reads a published file, or one that [`Self::save`] wrote, to f32. The configuration is the file's, or else the published
    /// one. The agent is not trainable; see [`Self::trainable`].
    ///
    /// # Errors
    /// A file that cannot be read, lacks one of the twelve tensors, holds one that is neither the agent's nor CLIP's, or one of
    /// another shape, not of floating-point numbers or with a value that is not finite. The message names file and tensor.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let fail = |cause: String| Error::checkpoint(path, cause);
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| fail(format!("not a safetensors file: {error}")))?;
        let config = config(&bytes).map_err(fail)?;
        let whole = file.names().iter().any(|name| name.starts_with(PREFIX));
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let own = match whole {
                true if CLIP.iter().any(|part| name.starts_with(part)) => continue,
                true => name.strip_prefix(PREFIX).unwrap_or(name),
                false => name,
            };
            if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let cause = format!("tensor {name}: expected F32, F16 or BF16, got {:?}", view.dtype());
                return Err(fail(cause));
            }
            let tensor = view.load(&Device::Cpu)?.to_dtype(DType::F32)?;
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let cause = format!("tensor {name}: value {at} is {}, expected finite numbers", values[at]);
                return Err(fail(cause));
            }
            tensors.insert(own.to_owned(), tensor.to_device(device)?);
        }
        Self::new(&config, tensors).map_err(|error| fail(error.to_string()))
    }
}

fn config(bytes: &[u8]) -> std::result::Result<Config, String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    match metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA)) {
        None => Ok(Config::default()),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("metadata entry {METADATA} cannot be read: {error}")),
    }
}
