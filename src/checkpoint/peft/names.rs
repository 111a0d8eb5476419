//! Names of Qwen2.5-VL's modules in adapter files.
//!
//! transformers 4.52 moved the towers below `model.`; newer PEFT loads nothing from files with the names of before, and
//! says so in a warning only. The current names are therefore ours, and the old ones are understood.

use std::fmt;

/// Which names a file has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Names {
    /// `model.language_model.layers.0.self_attn.q_proj`, `model.visual.blocks.0.attn.qkv`: transformers 4.52 and later.
    #[default]
    Current,
    /// `model.layers.0.self_attn.q_proj`, `visual.blocks.0.attn.qkv`: transformers up to 4.51.
    Legacy,
}

/// The current name of a module or tensor that may have an old one.
pub fn current(name: &str) -> String {
    if name.starts_with("visual.") {
        return format!("model.{name}");
    }
    match name.strip_prefix("model.") {
        Some(rest) if !rest.starts_with("language_model.") && !rest.starts_with("visual.") => {
            format!("model.language_model.{rest}")
        }
        _ => name.to_owned(),
    }
}

/// The old name of a module or tensor under its current name.
pub fn legacy(name: &str) -> String {
    match (name.strip_prefix("model.language_model."), name.strip_prefix("model.visual.")) {
        (Some(rest), _) => format!("model.{rest}"),
        (_, Some(rest)) => format!("visual.{rest}"),
        _ => name.to_owned(),
    }
}

/// The two factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    /// (rank, in).
    A,
    /// (out, rank).
    B,
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if *self == Self::A { "lora_A" } else { "lora_B" })
    }
}

const PREFIX: &str = "base_model.model.";

/// The key of a factor in the file.
pub fn key(module: &str, factor: Factor) -> String {
    format!("{PREFIX}{module}.{factor}.weight")
}

/// Module (current name) and factor of a key; `None` when it is no factor of an affine map.
pub fn parse(key: &str) -> Option<(String, Factor)> {
    let rest = key.strip_prefix(PREFIX)?;
    let (module, factor) = match rest.strip_suffix(".lora_A.weight") {
        Some(module) => (module, Factor::A),
        None => (rest.strip_suffix(".lora_B.weight")?, Factor::B),
    };
    Some((current(module), factor))
}
