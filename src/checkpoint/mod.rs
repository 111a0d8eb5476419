//! Checkpoints in Hugging Face layout: `config.json` beside `model.safetensors`, or shards with an index.
//!
//! Loading is strict in both directions. A tensor the model asks for must be there, with its shape and with finite
//! values; a tensor of the file that nobody asked for is an error as well ([`Checkpoint::finish`]), because it means
//! that the file belongs to another model.

mod files;
pub mod peft;
pub mod random;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;

pub(crate) use files::{files, parent, temporary};
pub use files::{read_json, write_file, write_folder, write_json};

use crate::error::{Error, Result};

/// The weights and files of one model folder.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    tensors: MmapedSafetensors,
    /// Name the model uses -> name in the file.
    names: BTreeMap<String, String>,
    read: Mutex<BTreeSet<String>>,
}

impl Checkpoint {
    /// Opens `dir/model.safetensors`, or the shards that `dir/model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// No weights in the folder, a shard that is missing or damaged, an index that names tensors no shard holds.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_renamed(dir, |name| Some(name.to_owned()))
    }

    /// As [`Self::open`]; `rename` turns each stored name into the one the model asks for, or leaves it out.
    ///
    /// # Errors
    /// As [`Self::open`]; also when two stored names become the same.
    pub fn open_renamed(dir: impl AsRef<Path>, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        let (files, listed) = weight_files(&dir)?;
        // SAFETY: the mapping is read-only; a file that another process truncates meanwhile is the
        // caller's breach, as with every memory-mapped checkpoint.
        let tensors = unsafe { MmapedSafetensors::multi(&files) }
            .map_err(|e| Error::checkpoint(&dir, format!("weights cannot be opened: {e}")))?;
        let (mut names, mut stored_names) = (BTreeMap::new(), BTreeSet::new());
        for (stored, _) in tensors.tensors() {
            stored_names.insert(stored.clone());
            let Some(name) = rename(&stored) else { continue };
            if let Some(other) = names.insert(name.clone(), stored.clone()) {
                let cause = format!("tensors {other} and {stored} both stand for {name}");
                return Err(Error::checkpoint(&dir, cause));
            }
        }
        if let Some(missing) = listed.iter().find(|name| !stored_names.contains(*name)) {
            return Err(Error::checkpoint(&dir, format!("the index lists {missing}, but no shard holds it")));
        }
        Ok(Self { inner: Arc::new(Inner { dir, tensors, names, read: Mutex::default() }) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Whether the weights hold a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.inner.names.contains_key(name)
    }

    /// Parses `config.json`.
    ///
    /// # Errors
    /// The file is missing or is not what `C` expects (the message names the field).
    pub fn config<C: DeserializeOwned>(&self) -> Result<C> {
        read_json(&self.inner.dir.join("config.json"))
    }

    /// Tensors by name, cast to `dtype` on `device`. What is read is remembered for [`Self::finish`].
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        let backend = Box::new(Reader { inner: self.inner.clone() });
        VarBuilder::from_backend(backend, dtype, device.clone())
    }

    /// Names of the tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.names.keys().map(String::as_str)
    }

    /// A tensor as it is stored.
    ///
    /// # Errors
    /// A name that is not there, a tensor that is damaged or not finite.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        use candle_core::safetensors::Load;
        let reader = Reader { inner: self.inner.clone() };
        let tensor = reader.view(name).and_then(|view| view.load(device));
        tensor.map_err(|cause| Error::checkpoint(&self.inner.dir, cause))
    }

    /// Values of a tensor.
    ///
    /// # Errors
    /// A name that is not there.
    pub fn elements(&self, name: &str) -> Result<usize> {
        let wrong = |cause: String| Error::checkpoint(&self.inner.dir, cause);
        let stored = self.inner.names.get(name).ok_or_else(|| wrong(format!("tensor {name} is missing")))?;
        let view = self.inner.tensors.get(stored).map_err(|e| wrong(e.to_string()))?;
        Ok(view.shape().iter().product())
    }

    /// Bytes that a tensor takes in the file.
    ///
    /// # Errors
    /// A name that is not there.
    pub fn bytes(&self, name: &str) -> Result<usize> {
        let wrong = |cause: String| Error::checkpoint(&self.inner.dir, cause);
        let stored = self.inner.names.get(name).ok_or_else(|| wrong(format!("tensor {name} is missing")))?;
        Ok(self.inner.tensors.get(stored).map_err(|e| wrong(e.to_string()))?.data().len())
    }

    /// Every tensor by the model's name for it, cast to `dtype` on `device`: what a training run starts from.
    ///
    /// # Errors
    /// A tensor that is damaged or not finite.
    pub fn tensors(&self, dtype: DType, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        let reader = Reader { inner: self.inner.clone() };
        let names = self.inner.names.keys();
        let read = names.map(|name| Ok((name.clone(), reader.get_unchecked(name, dtype, device)?)));
        read.collect::<candle_core::Result<_>>().map_err(|cause| Error::checkpoint(&self.inner.dir, cause))
    }

    /// Call after the model is built: every tensor of the file must have been used.
    ///
    /// # Errors
    /// Names the tensors that nobody read and that are not among `ignorable` (name endings).
    pub fn finish(&self, ignorable: &[&str]) -> Result<()> {
        let read = self.inner.read.lock().unwrap_or_else(|e| e.into_inner());
        let unused: Vec<&String> = (self.inner.names.keys())
            .filter(|name| !read.contains(*name) && !ignorable.iter().any(|end| name.ends_with(end)))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = unused.iter().take(5).map(|name| name.as_str()).collect();
        let more = if unused.len() > 5 { ", ..." } else { "" };
        Err(Error::checkpoint(
            &self.inner.dir,
            format!(
                "{} tensor(s) match nothing in the model: {}{more}; the config describes another model than the weights",
                unused.len(),
                shown.join(", ")
            ),
        ))
    }
}

/// The safetensors files of a folder, and the tensor names that its index lists (none without an index).
fn weight_files(dir: &Path) -> Result<(Vec<PathBuf>, Vec<String>)> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok((vec![single], vec![]));
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        let cause = if dir.is_dir() {
            "holds neither model.safetensors nor model.safetensors.index.json"
        } else {
            "is not a folder; give a folder in Hugging Face layout, or fetch a model by name first"
        };
        return Err(Error::checkpoint(dir, cause));
    }
    let Index { weight_map } = read_json(&index)?;
    let files: BTreeSet<&String> = weight_map.values().collect();
    let paths: Vec<PathBuf> = files.into_iter().map(|file| dir.join(file)).collect();
    if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
        return Err(Error::checkpoint(missing, "this shard is listed in the index but is missing"));
    }
    Ok((paths, weight_map.into_keys().collect()))
}

struct Reader {
    inner: Arc<Inner>,
}

impl Reader {
    fn view(&self, name: &str) -> candle_core::Result<TensorView<'_>> {
        let Some(stored) = self.inner.names.get(name) else { candle_core::bail!("tensor {name} is missing") };
        let view = self.inner.tensors.get(stored)?;
        if let Some(at) = first_not_finite(&view) {
            candle_core::bail!("tensor {name} holds a value that is not finite (element {at})")
        }
        self.inner.read.lock().unwrap_or_else(|e| e.into_inner()).insert(name.to_owned());
        Ok(view)
    }
}

impl SimpleBackend for Reader {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            candle_core::bail!("tensor {name} has shape {:?}, expected {:?}", tensor.dims(), shape.dims())
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        use candle_core::safetensors::Load;
        self.view(name)?.load(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.inner.names.contains_key(name)
    }
}

/// Index of the first NaN or infinity: all exponent bits set.
fn first_not_finite(view: &TensorView<'_>) -> Option<usize> {
    let (width, mask): (usize, u64) = match view.dtype() {
        Dtype::F64 => (8, 0x7FF0_0000_0000_0000),
        Dtype::F32 => (4, 0x7F80_0000),
        Dtype::BF16 => (2, 0x7F80),
        Dtype::F16 => (2, 0x7C00),
        _ => return None,
    };
    let bits = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
    const BLOCK: usize = 1 << 16;
    view.data().par_chunks(BLOCK * width).enumerate().find_map_first(|(block, bytes)| {
        let at = bytes.chunks_exact(width).position(|b| bits(b) & mask == mask)?;
        Some(block * BLOCK + at)
    })
}

/// Writes a model's weights: as [`write_safetensors`], and saying that their layout is PyTorch's, without which transformers
/// refuses the file.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_weights(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    write_safetensors(path, tensors, Some(HashMap::from([("format".to_owned(), "pt".to_owned())])))
}

/// Writes tensors as safetensors: to a temporary file beside `path`, then renamed.
///
/// # Errors
/// The file cannot be written; nothing is left behind then.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let cpu: BTreeMap<&str, Tensor> = (tensors.iter())
        .map(|(name, t)| Ok((name.as_str(), t.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(cpu, metadata).map_err(|e| Error::checkpoint(path, e))?;
    write_file(path, &bytes)
}
