//! A base checkpoint with an adapter merged into its weights, in Hugging Face layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::names::current;
use crate::checkpoint::{Checkpoint, files, write_file, write_json, write_weights};
use crate::{Error, Result};

/// Largest file of weights that [`merged`] makes by default, in bytes.
pub const SHARD_BYTES: usize = 4 << 30;

/// Writes the checkpoint in `base` to `out` with `deltas` (out, in) added to the weights of the modules they name (current
/// names). Sums are made in f32 and rounded to the stored type; stored names, config, tokenizer and processor files stay
/// as they are. Weights above `shard_bytes` are split into files of about that size, with an index.
///
/// # Errors
/// A delta whose module is not in the checkpoint or has another shape; an `out` that already holds weights; files that
/// cannot be read or written. `config.json` is written last, so that a part of an export is not taken for a model.
pub fn merged(base: &Path, deltas: &BTreeMap<String, Tensor>, out: &Path, shard_bytes: usize) -> Result<()> {
    let checkpoint = Checkpoint::open(base)?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    if let Some(present) = files(out)?.into_iter().find(|path| is_weights(path)) {
        return Err(Error::checkpoint(present, "is in the way: export to a folder without weights"));
    }
    let module = |name: &str| name.strip_suffix(".weight").map(current);
    let known: Vec<String> = checkpoint.names().filter_map(module).collect();
    if let Some(missing) = deltas.keys().find(|name| !known.contains(name)) {
        return Err(Error::checkpoint(
            base,
            format!("the adapter changes {missing}, which has no weight here"),
        ));
    }
    let shards = shards(&checkpoint, shard_bytes)?;
    let (mut weight_map, mut total) = (BTreeMap::new(), 0);
    for (i, names) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let mut tensors = BTreeMap::new();
        for name in names {
            let tensor = checkpoint.tensor(name, &Device::Cpu)?;
            let tensor = match module(name).and_then(|module| deltas.get(&module)) {
                Some(delta) => add(&tensor, delta, name).map_err(|e| Error::checkpoint(base, e))?,
                None => tensor,
            };
            total += tensor.elem_count() * tensor.dtype().size_in_bytes();
            weight_map.insert(name.clone(), file.clone());
            tensors.insert(name.clone(), tensor);
        }
        write_weights(&out.join(&file), &tensors)?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&out.join("model.safetensors.index.json"), &index)?;
    }
    copy_files(base, out)
}

fn add(tensor: &Tensor, delta: &Tensor, name: &str) -> candle_core::Result<Tensor> {
    if tensor.dims() != delta.dims() {
        candle_core::bail!("{name} is {:?}, the adapter adds {:?}", tensor.dims(), delta.dims())
    }
    (tensor.to_dtype(DType::F32)? + delta.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)?
        .to_dtype(tensor.dtype())
}

/// Names in the order of the file, cut into runs of at most `limit` bytes (at least one tensor each).
fn shards(checkpoint: &Checkpoint, limit: usize) -> Result<Vec<Vec<String>>> {
    let (mut shards, mut room): (Vec<Vec<String>>, usize) = (vec![], 0);
    for name in checkpoint.names() {
        let bytes = checkpoint.bytes(name)?;
        match shards.last_mut() {
            Some(shard) if bytes <= room => shard.push(name.to_owned()),
            _ => {
                shards.push(vec![name.to_owned()]);
                room = limit.max(bytes);
            }
        }
        room -= bytes;
    }
    Ok(shards)
}

fn is_weights(path: &Path) -> bool {
    const ENDINGS: [&str; 8] =
        [".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"];
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Everything beside the weights.
fn copy_files(base: &Path, out: &Path) -> Result<()> {
    let (config, others): (Vec<PathBuf>, Vec<PathBuf>) =
        files(base)?.into_iter().partition(|path| path.file_name().is_some_and(|name| name == "config.json"));
    for path in others.iter().chain(&config) {
        let Some(name) = path.file_name() else { continue };
        let hidden = name.to_string_lossy().starts_with('.');
        if !hidden && !is_weights(path) {
            let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            write_file(&out.join(name), &bytes)?;
        }
    }
    Ok(())
}
