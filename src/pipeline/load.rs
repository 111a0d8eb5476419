//! Loading the models of a pipeline.

use std::path::PathBuf;

use candle_core::{DType, Device};

use super::Pipeline;
use crate::data::feature_cache::FeatureCache;
use crate::error::Result;
use crate::models::clip::Clip;
use crate::models::language::VideoLanguageModel;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::sampler::Sampler;
use crate::models::unet1d::{Config, UNet1d};

/// Where the weights are, and where they run.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Folder of the multimodal language model, in Hugging Face layout ([`crate::hub::resolve`] finds or downloads it);
    /// `None` for pipelines that only choose frames by given queries.
    pub mllm: Option<PathBuf>,
    /// Folder of an adapter for the language model, as PEFT writes it.
    pub adapter: Option<PathBuf>,
    /// Folder of CLIP; `None` for pipelines that only sample uniformly.
    pub clip: Option<PathBuf>,
    /// File of the trained sampler, a U-Net or a temporal agent; `None` takes a fresh U-Net, which follows the best similarity of
    /// each frame.
    pub sampler: Option<PathBuf>,
    /// Where features are kept; `None` keeps none.
    pub cache: Option<PathBuf>,
    /// The device of all models.
    pub device: Device,
    /// The precision of the multimodal language model; CLIP and the sampler run in f32.
    pub dtype: DType,
}

impl Weights {
    /// The models on the CPU in f32, without sampler file and cache.
    pub fn new(mllm: impl Into<PathBuf>, clip: impl Into<PathBuf>) -> Self {
        Self {
            mllm: Some(mllm.into()),
            adapter: None,
            clip: Some(clip.into()),
            sampler: None,
            cache: None,
            device: Device::Cpu,
            dtype: DType::F32,
        }
    }
}

impl Pipeline {
    /// Loads the models.
    ///
    /// # Errors
    /// Names the file or folder and what is wrong with it.
    pub fn load(weights: &Weights) -> Result<Self> {
        let mut warnings = vec![];
        let sampler = match &weights.sampler {
            Some(file) => Sampler::load(file, &weights.device)?,
            None => {
                warnings
                    .push("no sampler file was given: an untrained sampler follows the similarities".into());
                UNet1d::init(&Config::default(), 0, &weights.device)?.into()
            }
        };
        let clip = |dir: &PathBuf| Clip::load(dir, DType::F32, &weights.device);
        let clip = weights.clip.as_ref().map(clip).transpose()?;
        clip.as_ref().map_or(Ok(()), |clip| sampler.check(clip.config().projection_dim))?;
        let model = |dir: &PathBuf| -> Result<Box<dyn VideoLanguageModel>> {
            let adapter = weights.adapter.as_deref();
            Ok(Box::new(Qwen2_5VlChat::load_adapted(dir, adapter, weights.dtype, &weights.device)?))
        };
        let model = weights.mllm.as_ref().map(model).transpose()?;
        let cache = weights.cache.clone().map(FeatureCache::new);
        Ok(Self { model, clip, sampler: Some(sampler), cache, warnings })
    }
}
