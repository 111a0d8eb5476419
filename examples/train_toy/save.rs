//! An unfinished training in one file: parameters, moments, and the step in the file's metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use msjoe::checkpoint::write_safetensors;
use msjoe::optim::{AdamW, Parameters};

pub fn save(path: &Path, step: u64, parameters: &Parameters, optimizer: &AdamW) -> Result<()> {
    let named = |kind: &'static str, tensors: BTreeMap<String, Tensor>| {
        tensors.into_iter().map(move |(name, tensor)| (format!("{kind}:{name}"), tensor))
    };
    let tensors = named("parameter", parameters.detached()).chain(named("optimizer", optimizer.state()?));
    let metadata = HashMap::from([("step".to_owned(), step.to_string())]);
    Ok(write_safetensors(path, &tensors.collect(), Some(metadata))?)
}

/// Restores what was saved and returns its step; 0 when nothing was.
pub fn restore(path: &Path, parameters: &Parameters, optimizer: &mut AdamW) -> Result<u64> {
    if !path.is_file() {
        return Ok(0);
    }
    let bytes = std::fs::read(path)?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let step = header.metadata().as_ref().and_then(|m| m.get("step")).context("no step in the metadata")?;
    let (mut weights, mut moments) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)? {
        match name.split_once(':') {
            Some(("parameter", name)) => weights.insert(name.to_owned(), tensor),
            Some(("optimizer", name)) => moments.insert(name.to_owned(), tensor),
            _ => anyhow::bail!("{}: unexpected tensor {name}", path.display()),
        };
    }
    parameters.set(&weights)?;
    optimizer.restore(moments)?;
    Ok(step.parse()?)
}
