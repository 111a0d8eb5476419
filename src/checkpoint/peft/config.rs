//! `adapter_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::targets::{Targets, first_match};
use crate::checkpoint::{read_json, write_json};
use crate::{Error, Result};

/// Version that the file names as its writer's: the fields are those of this release.
const PEFT_VERSION: &str = "0.18.1";

/// The part of PEFT's `LoraConfig` that this crate implements. Everything else has to be off.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Width of the factors (`r`).
    pub rank: usize,
    /// The product of the factors is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(rank)` instead (rank-stabilised, arXiv 2312.03732).
    pub use_rslora: bool,
    /// Modules that get an adapter, by their current names (see [`super::names::Names::Current`]) or their old ones.
    pub targets: Targets,
    /// Modules that get none although `targets` means them.
    pub exclude: Option<Targets>,
    /// Other ranks for some modules; the first pattern that fits the end of a name counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas for some modules.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The base model, for those who load the adapter.
    pub base_model: Option<String>,
}

impl LoraConfig {
    /// Rank, alpha and targets; the rest off.
    pub fn new(rank: usize, alpha: f64, targets: Targets) -> Self {
        Self {
            rank,
            alpha,
            use_rslora: false,
            targets,
            exclude: None,
            rank_pattern: vec![],
            alpha_pattern: vec![],
            base_model: None,
        }
    }

    /// The attention and MLP projections of the text model, none of the vision tower.
    pub fn text(rank: usize, alpha: f64) -> Self {
        let projections = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj";
        Self::new(rank, alpha, Targets::Regex(projections.to_owned()))
    }

    /// Whether a module, given by the names it goes by, gets an adapter.
    ///
    /// # Errors
    /// A pattern that cannot be read.
    pub fn targets(&self, names: &[&str]) -> Result<bool> {
        match &self.exclude {
            Some(exclude) if exclude.matches(names)? => Ok(false),
            _ => self.targets.matches(names),
        }
    }

    /// Rank and scale of a module.
    ///
    /// # Errors
    /// A pattern that cannot be read.
    pub fn rank_and_scale(&self, names: &[&str]) -> Result<(usize, f64)> {
        let rank = first_match(&self.rank_pattern, names)?.copied().unwrap_or(self.rank);
        let alpha = first_match(&self.alpha_pattern, names)?.copied().unwrap_or(self.alpha);
        let width = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / width))
    }

    /// Checks what a model cannot be built from.
    ///
    /// # Errors
    /// [`Error::Input`] for a rank of 0 or an alpha that is not finite.
    pub fn validate(&self) -> Result<()> {
        let ranks = self.rank_pattern.iter().map(|(_, rank)| *rank);
        if ranks.chain([self.rank]).any(|rank| rank == 0) {
            return Err(Error::Input("adapter: expected a rank of at least 1, got 0".into()));
        }
        let alphas = self.alpha_pattern.iter().map(|(_, alpha)| *alpha);
        if let Some(alpha) = alphas.chain([self.alpha]).find(|alpha| !alpha.is_finite()) {
            return Err(Error::Input(format!("adapter: expected a finite alpha, got {alpha}")));
        }
        Ok(())
    }

    /// Reads a file of any PEFT release.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the field that is missing, of another type, or asks for what is not implemented.
    pub fn read(path: &Path) -> Result<Self> {
        let fields: Map<String, Value> = read_json(path)?;
        let wrong = |cause: String| Error::checkpoint(path, cause);
        refuse_unsupported(&fields).map_err(wrong)?;
        let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let need = |name: &str| field(name).ok_or_else(|| wrong(format!("{name} is missing")));
        let (rank, alpha) = (need("r")?, field("lora_alpha").cloned().unwrap_or(json!(8)));
        let config = Self {
            rank: whole(rank).ok_or_else(|| wrong(format!("r is {rank}, expected a whole number")))?,
            alpha: alpha
                .as_f64()
                .ok_or_else(|| wrong(format!("lora_alpha is {alpha}, expected a number")))?,
            use_rslora: match field("use_rslora") {
                None => false,
                Some(on) => on
                    .as_bool()
                    .ok_or_else(|| wrong(format!("use_rslora is {on}, expected true or false")))?,
            },
            targets: targets(need("target_modules")?, "target_modules").map_err(wrong)?,
            exclude: (field("exclude_modules").filter(|value| !is_empty(value)))
                .map(|value| targets(value, "exclude_modules"))
                .transpose()
                .map_err(wrong)?,
            rank_pattern: pattern(field("rank_pattern"), "rank_pattern", whole).map_err(wrong)?,
            alpha_pattern: pattern(field("alpha_pattern"), "alpha_pattern", Value::as_f64).map_err(wrong)?,
            base_model: field("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        };
        config.validate().map_err(|e| wrong(e.to_string()))?;
        Ok(config)
    }

    /// Writes all the fields that PEFT writes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, &self.fields())
    }

    fn fields(&self) -> Value {
        // PEFT's own files hold whole numbers here.
        let number = |x: f64| if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) };
        let ranks: Map<_, _> = self.rank_pattern.iter().map(|(k, rank)| (k.clone(), json!(rank))).collect();
        let alphas: Map<_, _> = self.alpha_pattern.iter().map(|(k, a)| (k.clone(), number(*a))).collect();
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": self.exclude,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": number(self.alpha),
            "lora_bias": false,
            "lora_dropout": 0.0,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.rank,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": self.targets,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora
        })
    }
}

/// Names the first field that asks for something this crate would otherwise leave out without a word.
fn refuse_unsupported(fields: &Map<String, Value>) -> std::result::Result<(), String> {
    let kind = fields.get("peft_type").and_then(Value::as_str);
    if kind != Some("LORA") {
        return Err(format!("peft_type is {}, expected \"LORA\"", kind.unwrap_or("missing")));
    }
    let fixed = [("bias", json!("none")), ("fan_in_fan_out", json!(false))];
    for (name, expected) in fixed {
        if let Some(found) = fields.get(name).filter(|found| !found.is_null() && **found != expected) {
            return Err(format!("{name} is {found}, only {expected} is implemented"));
        }
    }
    const OFF: [&str; 15] = [
        "use_dora",
        "modules_to_save",
        "layer_replication",
        "target_parameters",
        "layers_to_transform",
        "layers_pattern",
        "trainable_token_indices",
        "lora_bias",
        "use_qalora",
        "alora_invocation_tokens",
        "arrow_config",
        "megatron_config",
        "loftq_config",
        "corda_config",
        "ensure_weight_tying",
    ];
    for name in OFF {
        if let Some(found) = fields.get(name).filter(|found| !is_empty(found)) {
            return Err(format!("{name} is {found}: that is not implemented, train the adapter without it"));
        }
    }
    // These rewrite the base weights when PEFT loads the file.
    match fields.get("init_lora_weights").and_then(Value::as_str) {
        Some(init) if !["gaussian", "eva", "orthogonal"].contains(&init) => Err(format!(
            "init_lora_weights is {init:?}, which changes the base weights: convert the adapter to plain LoRA first"
        )),
        _ => Ok(()),
    }
}

/// What PEFT takes for "off".
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) => false,
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn targets(value: &Value, name: &str) -> std::result::Result<Targets, String> {
    match Targets::deserialize(value) {
        Ok(Targets::Regex(text)) if text == "all-linear" => {
            Err(format!("{name} is \"all-linear\": write the modules or a regular expression"))
        }
        Ok(targets) => Ok(targets),
        Err(_) => Err(format!("{name} is {value}, expected a regular expression or a list of names")),
    }
}

fn pattern<T>(
    value: Option<&Value>,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Vec<(String, T)>, String> {
    let Some(value) = value else { return Ok(vec![]) };
    let entries = value.as_object().ok_or_else(|| format!("{name} is {value}, expected an object"))?;
    (entries.iter())
        .map(|(key, value)| {
            let read = read(value).ok_or_else(|| format!("{name}: {key} is {value}, expected a number"))?;
            Ok((key.clone(), read))
        })
        .collect()
}
