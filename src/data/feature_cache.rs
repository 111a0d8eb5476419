//! Frame features on disk, so that a second question about a video does not encode it again.
//!
//! One safetensors file per key: `embeds` (T, D) f32, `seconds` (T,) f64, and in the metadata the key in full and a
//! SHA-256 over key, shapes and values; where something was wrong with the video, the metadata says so and the SHA-256 covers
//! that too. Every byte of an entry is covered: whatever is not exactly what was written is reported as damaged and computed
//! again. Entries are written under a temporary name and renamed, so readers and several writers at once see whole entries
//! only.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::checkpoint::write_file;
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::video::Video;

/// Raised when the layout of an entry changes; part of the key.
const VERSION: u32 = 1;

/// Everything that decides the features of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Hash of the video's content (`Video::content_hash`).
    pub video: String,
    /// Hash of the model's weights and configuration (`Clip::revision`).
    pub model: String,
    /// Frames per second of the sampling.
    pub fps: f64,
    /// Resizing and normalisation in words (`Processor::description`).
    pub preprocessing: String,
}

impl Key {
    /// That of all frames of `video` at `fps`, as `clip` sees them.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(video: &Video, clip: &Clip, fps: f64) -> Result<Self> {
        Ok(Self {
            video: video.content_hash()?,
            model: clip.revision().to_owned(),
            fps,
            preprocessing: clip.processor().description().to_owned(),
        })
    }

    /// The key as one line; values are quoted, so two keys never give the same line.
    fn text(&self) -> String {
        format!(
            "version={VERSION} video={:?} model={:?} fps={:?} preprocessing={:?}",
            self.video, self.model, self.fps, self.preprocessing
        )
    }
}

/// Features of the frames of a video.
#[derive(Debug, Clone)]
pub struct Features {
    /// (T, D) in f32, projected, not normalised.
    pub embeds: Tensor,
    /// Presentation time of each frame in seconds.
    pub seconds: Vec<f64>,
    /// What was wrong with the video although its frames came.
    pub warning: Option<String>,
}

/// What the cache knows about a key.
#[derive(Debug, Clone)]
pub enum Entry {
    /// The features, on the CPU.
    Hit(Features),
    /// Nothing yet.
    Miss,
    /// A file that is not what was written; compute again and [`FeatureCache::put`] over it.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// Features with where they came from.
#[derive(Debug, Clone)]
pub struct Cached {
    /// The features.
    pub features: Features,
    /// Whether they were read from the cache.
    pub hit: bool,
    /// A damaged entry, or one that could not be written; the features are right nevertheless.
    pub warning: Option<String>,
}

/// A folder of features. Safe to share between threads and processes.
#[derive(Debug, Clone)]
pub struct FeatureCache {
    dir: PathBuf,
}

impl FeatureCache {
    /// A cache in `dir`, which is created when the first entry is written.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The file of a key, whether it exists or not.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.safetensors", &hex(&Sha256::digest(key.text()))[..32]))
    }

    /// Looks a key up. A damaged entry is reported in the value and logged as a warning.
    ///
    /// # Errors
    /// A file that exists and cannot be read.
    pub fn get(&self, key: &Key) -> Result<Entry> {
        let path = self.path(key);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Entry::Miss),
            Err(e) => return Err(Error::io(path, e)),
        };
        match parse(&bytes, key) {
            Ok(features) => Ok(Entry::Hit(features)),
            Err(cause) => {
                tracing::warn!(path = %path.display(), %cause, "damaged feature cache entry");
                Ok(Entry::Damaged { path, cause })
            }
        }
    }

    /// Writes an entry, replacing what is there.
    ///
    /// # Errors
    /// Embeddings that are not (T, D) with T times, or not finite; a folder that cannot be written.
    pub fn put(&self, key: &Key, features: &Features) -> Result<()> {
        let bytes = serialize(key, features)?;
        std::fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        write_file(&self.path(key), &bytes)
    }

    /// The features of a key, from the cache or from `compute`, which are then written. An entry that is damaged,
    /// cannot be read or cannot be written costs time and gives a warning, never the result.
    ///
    /// # Errors
    /// Those of `compute`, and features that contradict themselves.
    pub fn get_or_compute(&self, key: &Key, compute: impl FnOnce() -> Result<Features>) -> Result<Cached> {
        let mut warning = match self.get(key) {
            Ok(Entry::Hit(features)) => return Ok(Cached { features, hit: true, warning: None }),
            Ok(Entry::Miss) => None,
            Ok(Entry::Damaged { path, cause }) => {
                Some(format!("{}: damaged feature cache entry, computed again: {cause}", path.display()))
            }
            Err(e) => Some(format!("feature cache entry cannot be read, computed again: {e}")),
        };
        let features = compute()?;
        match self.put(key, &features) {
            Ok(()) => {}
            Err(error @ Error::Io { .. }) => {
                let cause = format!("features could not be cached: {error}");
                tracing::warn!("{cause}");
                warning = Some(warning.map_or(cause.clone(), |first| format!("{first}; {cause}")));
            }
            Err(other) => return Err(other),
        }
        Ok(Cached { features, hit: false, warning })
    }
}

fn serialize(key: &Key, features: &Features) -> Result<Vec<u8>> {
    let (t, d) = features.embeds.dims2()?;
    if t != features.seconds.len() {
        return Err(Error::Input(format!(
            "feature cache: {t} rows of features, but {} times",
            features.seconds.len()
        )));
    }
    let values = features.embeds.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
    if !values.iter().all(|x| x.is_finite()) || !features.seconds.iter().all(|x| x.is_finite()) {
        return Err(Error::Input("feature cache: features or times are not finite".into()));
    }
    let embeds: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let seconds: Vec<u8> = features.seconds.iter().flat_map(|x| x.to_le_bytes()).collect();
    let warning = features.warning.as_deref();
    let sha256 = checksum(key, [t, d], [&embeds, &seconds], warning);
    let fields = [("key", key.text()), ("sha256", sha256)].into_iter();
    let fields = fields.chain(warning.map(|warning| ("warning", warning.to_owned())));
    let metadata: HashMap<String, String> = fields.map(|(name, value)| (name.to_owned(), value)).collect();
    let views = || -> std::result::Result<_, safetensors::SafeTensorError> {
        Ok(BTreeMap::from([
            ("embeds", TensorView::new(Dtype::F32, vec![t, d], &embeds)?),
            ("seconds", TensorView::new(Dtype::F64, vec![t], &seconds)?),
        ]))
    };
    let bytes = views().and_then(|views| safetensors::serialize(views, Some(metadata)));
    bytes.map_err(|e| Error::Input(format!("feature cache: {e}")))
}

fn parse(bytes: &[u8], key: &Key) -> std::result::Result<Features, String> {
    let entry = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let metadata = header.metadata().as_ref();
    let found = |name: &str| metadata.and_then(|metadata| metadata.get(name));
    let field = |name: &str| found(name).ok_or_else(|| format!("the metadata has no {name}"));
    let written = field("key")?;
    if *written != key.text() {
        return Err(format!("holds another key: expected {}, got {written}", key.text()));
    }
    let tensor = |name: &str, dtype: Dtype| {
        let view = entry.tensor(name).map_err(|e| e.to_string())?;
        if view.dtype() != dtype {
            return Err(format!("{name} is {:?}, expected {dtype:?}", view.dtype()));
        }
        Ok(view)
    };
    let (embeds, seconds) = (tensor("embeds", Dtype::F32)?, tensor("seconds", Dtype::F64)?);
    let (&[t, d], &[times]) = (embeds.shape(), seconds.shape()) else {
        return Err(format!(
            "embeds {:?} and seconds {:?}, expected (T, D) and (T,)",
            embeds.shape(),
            seconds.shape()
        ));
    };
    if t != times {
        return Err(format!("{t} rows of features, but {times} times"));
    }
    let warning = found("warning").cloned();
    if *field("sha256")? != checksum(key, [t, d], [embeds.data(), seconds.data()], warning.as_deref()) {
        return Err("the checksum does not match the values".into());
    }
    let values = embeds.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    let embeds = Tensor::from_vec(values, (t, d), &Device::Cpu).map_err(|e| e.to_string())?;
    let seconds = seconds.data().as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect();
    Ok(Features { embeds, seconds, warning })
}

/// Without a warning that of the entries that were written before there were any.
fn checksum(key: &Key, shape: [usize; 2], values: [&[u8]; 2], warning: Option<&str>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(key.text());
    shape.iter().for_each(|size| hasher.update((*size as u64).to_le_bytes()));
    values.iter().for_each(|values| hasher.update(values));
    if let Some(warning) = warning {
        hasher.update("warning");
        hasher.update(warning);
    }
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where features are kept when the caller names no folder: `$MSJOE_CACHE/features`, else
/// `$XDG_CACHE_HOME/msjoe/features`, else `~/.cache/msjoe/features`; `None` without a home.
pub fn default_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = var("MSJOE_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("msjoe")))
        .or_else(|| Some(var("HOME")?.join(Path::new(".cache/msjoe"))))?;
    Some(root.join("features"))
}
