//! Adapters as PEFT files: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! PEFT loads a file whose keys match nothing without an error, and then answers as the base model does. Here every key
//! has to be understood, every pair of factors complete, and what the configuration asks for implemented.

pub mod config;
pub mod export;
pub mod names;
pub mod targets;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::write_weights;
use crate::nn::Lora;
use crate::{Error, Result};
pub use config::LoraConfig;
pub use names::Names;
use names::{Factor, key, legacy, parse};
pub use targets::Targets;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The two factors of one module.
#[derive(Debug, Clone)]
pub struct Pair {
    /// (rank, in).
    pub a: Tensor,
    /// (out, rank).
    pub b: Tensor,
}

/// Reads an adapter folder: the configuration, and the factors in f32 by the modules' current names.
///
/// # Errors
/// [`Error::Checkpoint`] naming the field or key: missing, not understood, twice, half of a pair, of a shape that fits no
/// pair, not finite.
pub fn read(dir: impl AsRef<Path>, device: &Device) -> Result<(LoraConfig, BTreeMap<String, Pair>)> {
    let dir = dir.as_ref();
    let config = LoraConfig::read(&dir.join(CONFIG))?;
    let path = dir.join(WEIGHTS);
    if !path.is_file() {
        let other = dir.join("adapter_model.bin");
        let hint =
            if other.is_file() { "; adapter_model.bin is a pickle: save it as safetensors" } else { "" };
        return Err(Error::checkpoint(&path, format!("no such file{hint}")));
    }
    let tensors = candle_core::safetensors::load(&path, device).map_err(|e| Error::checkpoint(&path, e))?;
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for (stored, tensor) in tensors.into_iter().collect::<BTreeMap<_, _>>() {
        let wrong = |cause: &str| Error::checkpoint(&path, format!("{stored}: {cause}"));
        let (module, factor) = parse(&stored)
            .ok_or_else(|| wrong("expected base_model.model.<module>.lora_A.weight or .lora_B.weight"))?;
        if tensor.rank() != 2 || !tensor.dtype().is_float() {
            return Err(wrong(&format!("{:?} {:?} is no factor", tensor.dtype(), tensor.dims())));
        }
        let tensor = tensor.to_dtype(DType::F32)?;
        let sum: f32 = tensor.abs()?.sum_all()?.to_scalar()?;
        if !sum.is_finite() {
            return Err(wrong("holds a value that is not finite"));
        }
        let slot = &mut halves.entry(module).or_default()[usize::from(factor == Factor::B)];
        if slot.replace(tensor).is_some() {
            return Err(wrong("is there twice, under the names of before and after transformers 4.52"));
        }
    }
    let pairs = halves.into_iter().map(|(module, halves)| {
        let pair = match halves {
            [Some(a), Some(b)] => Pair { a, b },
            [None, _] => return Err(Error::checkpoint(&path, format!("{module} has lora_B, but no lora_A"))),
            [_, None] => return Err(Error::checkpoint(&path, format!("{module} has lora_A, but no lora_B"))),
        };
        if pair.a.dim(0)? != pair.b.dim(1)? {
            let cause =
                format!("{module}: A {:?} and B {:?} have no rank in common", pair.a.dims(), pair.b.dims());
            return Err(Error::checkpoint(&path, cause));
        }
        Ok((module, pair))
    });
    let pairs: BTreeMap<String, Pair> = pairs.collect::<Result<_>>()?;
    if pairs.is_empty() {
        return Err(Error::checkpoint(&path, "holds no factors"));
    }
    Ok((config, pairs))
}

/// What an adapter adds to the weight (out, in) of each module.
///
/// # Errors
/// A pattern of the configuration that cannot be read.
pub fn deltas(config: &LoraConfig, pairs: BTreeMap<String, Pair>) -> Result<BTreeMap<String, Tensor>> {
    let delta = |(module, Pair { a, b }): (String, Pair)| {
        let (_, scale) = config.rank_and_scale(&[&module, &legacy(&module)])?;
        let delta = Lora { a, b, scale }.delta()?;
        Ok((module, delta))
    };
    pairs.into_iter().map(delta).collect()
}

/// Writes an adapter folder, creating it if need be; `pairs` by the modules' current names.
///
/// # Errors
/// The files cannot be written; each appears whole or not at all.
pub fn write(
    dir: impl AsRef<Path>,
    config: &LoraConfig,
    pairs: &BTreeMap<String, Pair>,
    names: Names,
) -> Result<()> {
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let mut tensors = BTreeMap::new();
    for (module, pair) in pairs {
        let module = if names == Names::Legacy { legacy(module) } else { module.clone() };
        tensors.insert(key(&module, Factor::A), pair.a.clone());
        tensors.insert(key(&module, Factor::B), pair.b.clone());
    }
    write_weights(&dir.join(WEIGHTS), &tensors)?;
    config.write(&dir.join(CONFIG))
}
