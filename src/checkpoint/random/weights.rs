//! Seeded tensors by name, and their files.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::write_json;
use crate::checkpoint::{files, write_weights};
use crate::{Error, Result};

pub(super) struct Weights {
    seed: u64,
    std: f64,
    dtype: DType,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    pub fn new(seed: u64, std: f64, dtype: DType) -> Self {
        Self { seed, std, dtype, tensors: BTreeMap::new() }
    }

    /// Normal values around 0.
    pub fn normal(&mut self, name: impl Into<String>, shape: &[usize]) -> Result<()> {
        self.around(0.0, name.into(), shape)
    }

    /// Normal values around 0 with a deviation of their own.
    pub fn normal_of(&mut self, name: impl Into<String>, shape: &[usize], std: f64) -> Result<()> {
        let usual = std::mem::replace(&mut self.std, std);
        let made = self.normal(name, shape);
        self.std = usual;
        made
    }

    /// Normal values around 1: the scale of a norm. They are not 1, so that a model which leaves them out is found out.
    pub fn scale(&mut self, name: impl Into<String>, width: usize) -> Result<()> {
        self.around(1.0, name.into(), &[width])
    }

    /// `name.weight` (d_out, d_in) and `name.bias` (d_out).
    pub fn linear(&mut self, name: &str, d_in: usize, d_out: usize) -> Result<()> {
        self.normal(format!("{name}.weight"), &[d_out, d_in])?;
        self.normal(format!("{name}.bias"), &[d_out])
    }

    /// `name.weight` around 1 and `name.bias` around 0.
    pub fn layer_norm(&mut self, name: &str, width: usize) -> Result<()> {
        self.scale(format!("{name}.weight"), width)?;
        self.normal(format!("{name}.bias"), &[width])
    }

    /// A single number, of shape [].
    pub fn scalar(&mut self, name: &str, value: f32) -> Result<()> {
        let tensor = Tensor::new(value, &Device::Cpu)?.to_dtype(self.dtype)?;
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    fn around(&mut self, mean: f64, name: String, shape: &[usize]) -> Result<()> {
        let values = normals(self.seed, &name, shape.iter().product(), mean, self.std);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?;
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// One `model.safetensors`, or `shards` files with an index. Weights of the other layout are removed first, so that
    /// a folder never holds two models.
    pub fn write(self, dir: &Path, shards: usize) -> Result<()> {
        remove_weights(dir)?;
        if shards <= 1 {
            return write_weights(&dir.join("model.safetensors"), &self.tensors);
        }
        let total: usize = self.tensors.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum();
        let per_shard = self.tensors.len().div_ceil(shards);
        let count = self.tensors.len().div_ceil(per_shard);
        let mut weight_map = BTreeMap::new();
        let mut tensors = self.tensors.into_iter();
        for shard in 1..=count {
            let file = format!("model-{shard:05}-of-{count:05}.safetensors");
            let part: BTreeMap<String, Tensor> = tensors.by_ref().take(per_shard).collect();
            weight_map.extend(part.keys().map(|name| (name.clone(), file.clone())));
            write_weights(&dir.join(&file), &part)?;
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(dir, "model.safetensors.index.json", &index)
    }
}

/// Normal values. The generator depends on seed and name alone, so a tensor is the same in every layout of a file.
pub(crate) fn normals(seed: u64, name: &str, count: usize, mean: f64, std: f64) -> Vec<f32> {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let mut rng = StdRng::from_seed(digest.into());
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Box-Muller; 1 - u keeps the logarithm's argument off 0
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        let radius = std * (-2.0 * (1.0 - u).ln()).sqrt();
        values.push((mean + radius * (TAU * v).cos()) as f32);
        values.push((mean + radius * (TAU * v).sin()) as f32);
    }
    values.truncate(count);
    values
}

fn remove_weights(dir: &Path) -> Result<()> {
    for path in files(dir)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let weights = name.starts_with("model") && name.ends_with(".safetensors");
        if weights || name == "model.safetensors.index.json" {
            std::fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
        }
    }
    Ok(())
}
