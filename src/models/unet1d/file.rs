//! Sampler files: safetensors with the configuration in the metadata; and parameters drawn from a seed.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Config, UNet1d};
use crate::checkpoint::write_safetensors;
use crate::error::{Error, Result};

// One metadata entry, because safetensors writes several in an order that differs between runs.
const METADATA: &str = "msjoe-sampler";
const VERSION: u32 = 3;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    config: serde_json::Value,
}

impl UNet1d {
    /// An untrained network in f32. The parameters depend on `config` and `seed` only, not on the device or the order in
    /// which layers are built.
    ///
    /// # Errors
    /// A configuration outside its bounds.
    pub fn init(config: &Config, seed: u64, device: &Device) -> Result<Self> {
        let vb = VarBuilder::from_backend(Box::new(Seeded { seed }), DType::F32, device.clone());
        Self::new(config, vb).map_err(|e| Error::Input(e.to_string()))
    }

    /// Writes parameters (f32) and configuration to one file, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let config = serde_json::to_value(self.config()).map_err(|e| Error::checkpoint(path, e))?;
        let header = serde_json::to_string(&Header { version: VERSION, config });
        let header = header.map_err(|e| Error::checkpoint(path, e))?;
        let tensors = self.parameters().into_iter().map(|(name, t)| Ok((name, t.to_dtype(DType::F32)?)));
        let tensors = tensors.collect::<Result<BTreeMap<_, _>>>()?;
        write_safetensors(path, &tensors, Some(HashMap::from([(METADATA.to_owned(), header)])))
    }

    /// Reads a file that [`Self::save`] wrote. The network is not trainable; see [`Self::trainable`].
    ///
    /// # Errors
    /// A file that cannot be read, is no sampler file or of another version, has a configuration outside its bounds, lacks
    /// a parameter, holds one that the network does not have, or one of another shape or type or with a value that is not
    /// finite. The message names the file and the parameter.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let fail = |cause: String| Error::checkpoint(path, cause);
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|e| fail(format!("not a safetensors file: {e}")))?;
        let config = read_header(&bytes).map_err(fail)?;
        let shapes = Self::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu))?.parameters();
        let unknown = file.names().into_iter().find(|name| !shapes.contains_key(*name));
        if let Some(name) = unknown {
            return Err(fail(format!(
                "tensor {name} is no parameter of a sampler with channels {:?}",
                config.channels
            )));
        }
        let mut tensors = HashMap::with_capacity(shapes.len());
        for (name, expected) in &shapes {
            let values = read_tensor(&file, name, expected.dims()).map_err(fail)?;
            tensors.insert(name.clone(), Tensor::from_vec(values, expected.shape(), device)?);
        }
        Ok(Self::new(&config, VarBuilder::from_tensors(tensors, DType::F32, device))?)
    }
}

fn read_header(bytes: &[u8]) -> std::result::Result<Config, String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let header = metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA));
    let header = header.ok_or_else(|| format!("no sampler: the metadata have no entry {METADATA}"))?;
    let header: Header =
        serde_json::from_str(header).map_err(|e| format!("metadata entry {METADATA} cannot be read: {e}"))?;
    if header.version != VERSION {
        return Err(format!(
            "expected a sampler of format version {VERSION}, got version {}",
            header.version
        ));
    }
    let config: Config = serde_json::from_value(header.config).map_err(|e| format!("sampler config: {e}"))?;
    config.check().map_err(|e| e.to_string())?;
    Ok(config)
}

fn read_tensor(file: &SafeTensors, name: &str, shape: &[usize]) -> std::result::Result<Vec<f32>, String> {
    let view = file.tensor(name).map_err(|_| format!("tensor {name} of shape {shape:?} is missing"))?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        let (dtype, found) = (view.dtype(), view.shape());
        return Err(format!(
            "tensor {name}: expected F32 of shape {shape:?}, got {dtype:?} of shape {found:?}"
        ));
    }
    let values: Vec<f32> =
        (view.data().as_chunks::<4>().0.iter()).map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(format!("tensor {name}: value {at} is {}, expected finite numbers", values[at])),
        None => Ok(values),
    }
}

/// Draws every parameter from a generator of its own, seeded by the seed and the parameter's name.
struct Seeded {
    seed: u64,
}

impl SimpleBackend for Seeded {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let count = shape.elem_count();
        let values: Vec<f32> = match init {
            Init::Const(value) => vec![value as f32; count],
            Init::Uniform { lo, up } => {
                let digest =
                    Sha256::new().chain_update(self.seed.to_le_bytes()).chain_update(name).finalize();
                let mut rng = StdRng::from_seed(digest.into());
                (0..count).map(|_| rng.random_range(lo..up) as f32).collect()
            }
            other => candle_core::bail!("{name}: the sampler draws no parameter as {other:?}"),
        };
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: a parameter without a shape cannot be drawn")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
