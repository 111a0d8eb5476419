//! LoRA adapters of the model: fresh ones, PEFT files, and the model with one attached.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::Qwen2_5Vl;
use super::config::Config;
use crate::checkpoint::peft::export::{self, SHARD_BYTES};
use crate::checkpoint::peft::names::{Factor, key, legacy, parse};
use crate::checkpoint::peft::{self, LoraConfig, Names, Pair, Targets};
use crate::nn::{Linear, Lora, fresh_lora};
use crate::optim::Parameters;
use crate::{Error, Result};

/// An adapter: what it is, and its trainable factors by their names in PEFT files.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Rank, scale, targets.
    pub config: LoraConfig,
    parameters: Parameters,
}

impl Adapter {
    /// A fresh adapter for `model`, which changes nothing yet. Its factors are f32 (f64 for a model in f64), whatever the
    /// model's dtype.
    ///
    /// # Errors
    /// [`Error::Input`] for targets that mean no module, or a configuration that makes no sense.
    pub fn new(model: &Qwen2_5Vl, config: LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let mut tensors = BTreeMap::new();
        for (module, parts) in model.clone().maps() {
            if !config.targets(&[&module, &legacy(&module)])? {
                continue;
            }
            let (d_out, d_in) = shape(&parts)?;
            let (rank, _) = config.rank_and_scale(&[&module, &legacy(&module)])?;
            let name = key(&module, Factor::A);
            let (a, b) =
                fresh_lora((rank, d_in, d_out), seed, &name, (dtype(&parts), model.text().device()))?;
            tensors.insert(name, a);
            tensors.insert(key(&module, Factor::B), b);
        }
        if tensors.is_empty() {
            return Err(Error::Input(format!(
                "adapter: no module of the model is among {:?}",
                config.targets
            )));
        }
        Ok(Self { config, parameters: Parameters::new(tensors)? })
    }

    /// Reads an adapter folder that PEFT or this crate wrote.
    ///
    /// # Errors
    /// As [`peft::read`]; also [`Error::Checkpoint`] when a key names no module of `model` or one that the configuration
    /// does not mean, when a module that it means has no key, and for shapes that do not fit.
    pub fn load(dir: impl AsRef<Path>, model: &Qwen2_5Vl) -> Result<Self> {
        let dir = dir.as_ref();
        let (config, mut pairs) = peft::read(dir, model.text().device())?;
        let wrong = |cause: String| Error::checkpoint(dir, cause);
        let mut tensors = BTreeMap::new();
        for (module, parts) in model.clone().maps() {
            let names = [module.as_str(), &legacy(&module)];
            let meant = config.targets(&names)?;
            let Some(Pair { a, b }) = pairs.remove(&module) else {
                if meant {
                    return Err(wrong(format!("target_modules means {module}, but its factors are missing")));
                }
                continue;
            };
            if !meant {
                return Err(wrong(format!(
                    "there are factors of {module}, which target_modules does not mean"
                )));
            }
            let ((d_out, d_in), (rank, _)) = (shape(&parts)?, config.rank_and_scale(&names)?);
            if a.dims() != [rank, d_in] || b.dims() != [d_out, rank] {
                return Err(wrong(format!(
                    "{module}: A {:?} and B {:?}, expected [{rank}, {d_in}] and [{d_out}, {rank}] for rank {rank}",
                    a.dims(),
                    b.dims()
                )));
            }
            let dtype = dtype(&parts);
            tensors.insert(key(&module, Factor::A), a.to_dtype(dtype)?);
            tensors.insert(key(&module, Factor::B), b.to_dtype(dtype)?);
        }
        if let Some(module) = pairs.keys().next() {
            return Err(wrong(format!(
                "{} module(s) of the adapter are not in the model or take none: {module}{}",
                pairs.len(),
                if pairs.len() > 1 { ", ..." } else { "" }
            )));
        }
        Ok(Self { config, parameters: Parameters::new(tensors)? })
    }

    /// Writes an adapter folder that PEFT loads.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>, names: Names) -> Result<()> {
        peft::write(dir, &self.config, &self.pairs()?, names)
    }

    /// The trainable factors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Writes the checkpoint in `base` to `out` with this adapter merged into its weights.
    ///
    /// # Errors
    /// As [`export::merged`].
    pub fn export_merged(&self, base: impl AsRef<Path>, out: impl AsRef<Path>) -> Result<()> {
        export::merged(base.as_ref(), &self.deltas()?, out.as_ref(), SHARD_BYTES)
    }

    /// What the adapter adds to the weight of each module (current names).
    ///
    /// # Errors
    /// As the tensor operations.
    pub fn deltas(&self) -> Result<BTreeMap<String, Tensor>> {
        peft::deltas(&self.config, self.pairs()?)
    }

    fn scale(&self, module: &str) -> Result<f64> {
        Ok(self.config.rank_and_scale(&[module, &legacy(module)])?.1)
    }

    /// The factors by module, detached.
    fn pairs(&self) -> Result<BTreeMap<String, Pair>> {
        let factors = self.parameters.detached();
        let modules = factors.keys().filter_map(|name| parse(name)).filter(|(_, f)| *f == Factor::A);
        let pair = |(module, _): (String, Factor)| {
            let factor = |f| {
                let name = key(&module, f);
                factors.get(&name).cloned().ok_or_else(|| Error::Input(format!("adapter: {name} is missing")))
            };
            let pair = Pair { a: factor(Factor::A)?, b: factor(Factor::B)? };
            Ok((module, pair))
        };
        modules.map(pair).collect()
    }
}

impl Qwen2_5Vl {
    /// The model with `adapter` attached and tracked, on the same base weights. [`Qwen2_5Vl::detached`] of it is the
    /// model to generate with; `self` stays what it was, the reference without the adapter.
    ///
    /// # Errors
    /// An adapter of another model.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<Self> {
        let mut model = self.without_adapter();
        let mut left = adapter.pairs()?;
        for (module, parts) in model.maps() {
            if left.remove(&module).is_none() {
                continue;
            }
            let scale = adapter.scale(&module)?;
            let factor = |factor| match adapter.parameters.get(&key(&module, factor)) {
                Some(var) => Ok(var.as_tensor().clone()),
                None => Err(Error::Input(format!("adapter: {} is missing", key(&module, factor)))),
            };
            let (a, b) = (factor(Factor::A)?, factor(Factor::B)?);
            let mut start = 0;
            for part in parts {
                let rows = part.weight().dim(0)?;
                part.set_lora(Lora { a: a.clone(), b: b.narrow(0, start, rows)?, scale })?;
                start += rows;
            }
        }
        match left.keys().next() {
            Some(module) => Err(Error::Input(format!("adapter: the model has no module {module}"))),
            None => Ok(model),
        }
    }

    /// The model without its adapter, if it has one.
    pub fn without_adapter(&self) -> Self {
        let mut model = self.clone();
        for (_, parts) in model.maps() {
            parts.into_iter().for_each(Linear::remove_lora);
        }
        model
    }

    /// Every affine map that may take an adapter, by its current name; the parts of a fused one lie one after another.
    fn maps(&mut self) -> Vec<(String, Vec<&mut Linear>)> {
        let mut maps = vec![];
        for (name, parts) in self.text.maps() {
            maps.push((format!("model.language_model.{name}"), parts));
        }
        for (name, parts) in self.vision.maps() {
            maps.push((format!("model.visual.{name}"), parts));
        }
        maps
    }
}

/// Refuses a pattern that would not train the text model alone, before the model is there.
///
/// # Errors
/// A pattern that means no module of the text model, or one of the vision tower.
pub fn targets_of_text(config: &Config, pattern: &str) -> Result<()> {
    let targets = Targets::Regex(pattern.to_owned());
    let meant = |name: &String| targets.matches(&[name, &legacy(name)]);
    let wrong = |cause: String| {
        let example = r#"".*language_model.*(q|v)_proj""#;
        Err(Error::Input(format!(
            "config: model.learn.adapters.targets: {pattern:?} {cause}; a pattern matches whole names, such as {example}"
        )))
    };
    let maps = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"];
    let text = (0..config.text.num_hidden_layers)
        .flat_map(|i| maps.map(|map| format!("model.language_model.layers.{i}.{map}_proj")));
    let maps = ["attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
    let mut vision = (0..config.vision.depth)
        .flat_map(|i| maps.map(|map| format!("model.visual.blocks.{i}.{map}")))
        .chain(["mlp.0", "mlp.2"].map(|map| format!("model.visual.merger.{map}")));
    if let Some(name) = vision.find_map(|name| meant(&name).map(|yes| yes.then_some(name)).transpose()) {
        return wrong(format!("means {}, and the vision tower is frozen", name?));
    }
    match text.map(|name| meant(&name)).find(|yes| !matches!(yes, Ok(false))) {
        Some(yes) => yes.map(|_| ()),
        None => wrong("means no module of the text model".to_owned()),
    }
}

/// (out, in) of a map that is stored as one.
fn shape(parts: &[&mut Linear]) -> Result<(usize, usize)> {
    let (mut d_out, mut d_in) = (0, 0);
    for part in parts {
        let (rows, columns) = part.weight().dims2()?;
        (d_out, d_in) = (d_out + rows, columns);
    }
    Ok((d_out, d_in))
}

fn dtype(parts: &[&mut Linear]) -> DType {
    let wide = parts.iter().any(|part| part.weight().dtype() == DType::F64);
    if wide { DType::F64 } else { DType::F32 }
}
