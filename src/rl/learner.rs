//! The models of a run: what learns, its twins that act, and the optimizers.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;

use super::config::{EvolveConfig, Learn};
use super::rollout::Policy;
use super::update::{Gradients, Pupil};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::peft::{LoraConfig, Names, Targets};
use crate::error::{Error, Result};
use crate::models::clip::Clip;
use crate::models::qwen2_5_vl::Qwen2_5Vl;
use crate::models::qwen2_5_vl::adapter::Adapter;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::sampler::Sampler;
use crate::optim::{AdamW, Parameters, clip_grad_norm};

/// The language model in training: tracked over variables, acting over the same storage.
struct Tutored {
    model: Qwen2_5Vl,
    reference: Option<Qwen2_5Vl>,
    parameters: Parameters,
    optimizer: AdamW,
    kind: Kind,
}

enum Kind {
    /// All weights of the text model; the frozen ones beside them, so that checkpoints are whole.
    Weights(BTreeMap<String, Tensor>),
    Adapter(Adapter),
}

/// The sampler in training.
struct Trained {
    model: Sampler,
    parameters: Parameters,
    optimizer: AdamW,
}

/// All models of a run.
pub struct Learner {
    /// Acts in rollouts; builds no graph and sees every step.
    pub chat: Qwen2_5VlChat,
    /// Frozen.
    pub clip: Clip,
    /// Acts in rollouts.
    pub sampler: Sampler,
    language: Option<Tutored>,
    weighing: Option<Trained>,
}

/// File stems of a whole model and of an adapter, as Hugging Face and PEFT name them.
const MODEL: &str = "model";
const ADAPTER: &str = "adapter_model";

/// Groups of tensors by name: a checkpoint's files.
pub type Files = BTreeMap<String, BTreeMap<String, Tensor>>;

impl Learner {
    /// Sets up what `config` lets learn, on the device of `chat`. `weights` are those of `chat`'s checkpoint, from
    /// [`Qwen2_5Vl::weights`].
    ///
    /// # Errors
    /// A checkpoint that cannot be read; a model in half precision whose weights are to learn.
    pub fn new(
        mut chat: Qwen2_5VlChat,
        weights: &Checkpoint,
        clip: Clip,
        sampler: Sampler,
        config: &EvolveConfig,
    ) -> Result<Self> {
        config.sampler.suits(&sampler)?;
        let language = match &config.model.learn {
            Learn::Nothing => None,
            Learn::Everything => Some(tutored(&mut chat, weights, config)?),
            Learn::Adapters { rank, alpha, targets } => {
                let mut lora = match targets {
                    None => LoraConfig::text(*rank, *alpha),
                    Some(regex) => LoraConfig::new(*rank, *alpha, Targets::Regex(regex.clone())),
                };
                // A path of this machine would mean nothing elsewhere.
                let base = Some(weights.dir()).filter(|dir| dir.is_relative());
                lora.base_model = base.map(|dir| dir.display().to_string());
                Some(adapted(&mut chat, lora, config)?)
            }
        };
        let weighing = match config.sampler.learn {
            false => None,
            true => {
                let (model, vars) = sampler.trainable()?;
                let optimizer = AdamW::new(config.sampler.rate.adamw);
                Some(Trained { model, parameters: Parameters::from(vars), optimizer })
            }
        };
        let sampler = match &weighing {
            Some(trained) => trained.model.detached()?,
            None => sampler,
        };
        Ok(Self { chat, clip, sampler, language, weighing })
    }

    /// The acting models.
    pub fn policy(&self) -> Policy<'_> {
        Policy { chat: &self.chat, clip: Some(&self.clip), sampler: Some(&self.sampler) }
    }

    /// The language model in training, if it is.
    pub fn pupil(&self, config: &EvolveConfig) -> Option<Pupil<'_>> {
        self.language.as_ref().map(|language| Pupil {
            model: &language.model,
            reference: language.reference.as_ref(),
            parameters: &language.parameters,
            temperature: f64::from(config.plan.temperature),
            micro_batch_tokens: config.micro_batch_tokens,
            micro_batches_at_once: config.micro_batches_at_once,
        })
    }

    /// The sampler in training, if it is.
    pub fn student(&self) -> Option<(&Sampler, &Parameters)> {
        self.weighing.as_ref().map(|trained| (&trained.model, &trained.parameters))
    }

    /// A step of the language model; returns the norm of the gradient before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite.
    pub fn step_model(&mut self, mut gradients: Gradients, rate: f64, max_norm: f64) -> Result<f64> {
        let Some(language) = &mut self.language else {
            return Err(Error::Input("the language model does not learn in this run".to_owned()));
        };
        let norm = clip_grad_norm(&mut gradients, max_norm)?;
        language.optimizer.step(&language.parameters, &gradients, rate)?;
        Ok(norm)
    }

    /// A step of the sampler; returns the norm of the gradient before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite.
    pub fn step_sampler(&mut self, mut gradients: Gradients, rate: f64, max_norm: f64) -> Result<f64> {
        let Some(trained) = &mut self.weighing else {
            return Err(Error::Input("the sampler does not learn in this run".to_owned()));
        };
        let norm = clip_grad_norm(&mut gradients, max_norm)?;
        trained.optimizer.step(&trained.parameters, &gradients, rate)?;
        Ok(norm)
    }

    /// Everything that a step changes, and the whole of a model whose weights learn.
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn files(&self) -> Result<Files> {
        let mut files = Files::new();
        if let Some(language) = &self.language {
            let mut tensors = language.parameters.detached();
            match &language.kind {
                Kind::Weights(frozen) => {
                    tensors.extend(frozen.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
                    files.insert(MODEL.into(), tensors);
                }
                Kind::Adapter(_) => {
                    files.insert(ADAPTER.into(), tensors);
                }
            }
            files.insert("model-optimizer".into(), language.optimizer.state()?);
        }
        if let Some(trained) = &self.weighing {
            files.insert("sampler".into(), trained.parameters.detached());
            files.insert("sampler-optimizer".into(), trained.optimizer.state()?);
        }
        Ok(files)
    }

    /// The files as others read them: the sampler with its configuration, an adapter as PEFT has it. They replace those of
    /// the same name among [`Self::files`].
    ///
    /// # Errors
    /// A folder for temporary files that cannot be written.
    pub fn readable(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let folder = tempfile::tempdir().map_err(|error| Error::io("temporary folder", error))?;
        if let Some(trained) = &self.weighing {
            trained.model.save(folder.path().join("sampler.safetensors"))?;
        }
        if let Some(Tutored { kind: Kind::Adapter(adapter), .. }) = &self.language {
            adapter.save(folder.path(), Names::Current)?;
        }
        read_folder(folder.path(), |_| true)
    }

    /// Puts back what [`Self::files`] gave.
    ///
    /// # Errors
    /// Files of a run in which something else learned, tensors of other names or shapes.
    pub fn restore(&mut self, mut files: Files) -> Result<()> {
        let mut take = |name: &str| {
            files
                .remove(name)
                .ok_or_else(|| Error::Input(format!("checkpoint: {name}.safetensors is missing")))
        };
        if let Some(language) = &mut self.language {
            let mut tensors = take(match language.kind {
                Kind::Weights(_) => MODEL,
                Kind::Adapter(_) => ADAPTER,
            })?;
            if let Kind::Weights(frozen) = &language.kind {
                tensors.retain(|name, _| !frozen.contains_key(name));
            }
            language.parameters.set(&tensors)?;
            language.optimizer.restore(take("model-optimizer")?)?;
        }
        if let Some(trained) = &mut self.weighing {
            let mut tensors = take("sampler")?;
            let unused = trained.model.unused();
            tensors.retain(|name, _| !unused.contains_key(name));
            trained.parameters.set(&tensors)?;
            trained.optimizer.restore(take("sampler-optimizer")?)?;
        }
        match files.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Error::Input(format!("checkpoint: {name}.safetensors belongs to nothing that learns")))
            }
        }
    }
}

/// The files of a folder that `keep` accepts by name.
///
/// # Errors
/// Names the file that cannot be read.
pub fn read_folder(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let path = entry.map_err(|error| Error::io(folder, error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_file() && keep(&name) {
            files.insert(name, std::fs::read(&path).map_err(|error| Error::io(&path, error))?);
        }
    }
    Ok(files)
}

fn adapted(chat: &mut Qwen2_5VlChat, lora: LoraConfig, config: &EvolveConfig) -> Result<Tutored> {
    let adapter = Adapter::new(&chat.model, lora, config.seed)?;
    let model = chat.model.with_adapter(&adapter)?;
    let reference = (config.model.grpo.beta != 0.0).then(|| chat.model.clone());
    chat.model = model.detached();
    let optimizer = AdamW::new(config.model.rate.adamw);
    let parameters = adapter.parameters().clone();
    Ok(Tutored { model, reference, parameters, optimizer, kind: Kind::Adapter(adapter) })
}

fn tutored(chat: &mut Qwen2_5VlChat, weights: &Checkpoint, config: &EvolveConfig) -> Result<Tutored> {
    whole(chat.model.text().dtype())?;
    let tensors = weights.tensors(DType::F32, chat.model.text().device())?;
    let learns = |name: &str| !name.starts_with("visual.");
    let (own, frozen): (BTreeMap<_, _>, BTreeMap<_, _>) =
        tensors.into_iter().partition(|(name, _)| learns(name));
    let reference = match config.model.grpo.beta {
        0.0 => None,
        _ => {
            let copies = own.iter().map(|(name, t)| Ok((name.clone(), t.copy()?)));
            let copies: HashMap<String, Tensor> = copies.collect::<candle_core::Result<_>>()?;
            Some(built(chat, copies.into_iter(), &frozen)?)
        }
    };
    let parameters = Parameters::new(own)?;
    let model = built(chat, parameters.tracked().into_iter(), &frozen)?;
    chat.model = built(chat, parameters.detached().into_iter(), &frozen)?;
    let optimizer = AdamW::new(config.model.rate.adamw);
    Ok(Tutored { model, reference, parameters, optimizer, kind: Kind::Weights(frozen) })
}

fn built(
    chat: &Qwen2_5VlChat,
    own: impl Iterator<Item = (String, Tensor)>,
    frozen: &BTreeMap<String, Tensor>,
) -> Result<Qwen2_5Vl> {
    let all: HashMap<String, Tensor> =
        own.chain(frozen.iter().map(|(name, tensor)| (name.clone(), tensor.clone()))).collect();
    let vb = VarBuilder::from_tensors(all, DType::F32, chat.model.text().device());
    Ok(Qwen2_5Vl::new(&chat.model.config, vb)?)
}

/// Refuses to train all weights in half precision.
pub(super) fn whole(dtype: DType) -> Result<()> {
    if dtype == DType::F32 {
        return Ok(());
    }
    Err(Error::Input(format!(
        "model.learn: \"everything\" needs f32, got {}: a step below a weight's last digit is lost; train adapters, or set \
         models.dtype to f32",
        dtype.as_str()
    )))
}
