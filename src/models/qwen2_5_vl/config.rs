//! The checkpoint's `config.json`, under Hugging Face's key names.
//!
//! Two layouts are in circulation: flat text fields (published files; transformers up to 4.51) and a nested `text_config`
//! (4.52 and later, where `rope_parameters` may stand for `rope_theta` and `rope_scaling`). Both are read; a key that
//! appears twice with two values is an error, as is any combination of sizes from which no model can be built.
//! Vision keys that are absent take the class defaults of transformers 4.51.3, because some releases write only what
//! differs from them. Text sizes and media token ids must be in the file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// A Qwen2.5-VL model: text decoder, vision tower, and the tokens that join them.
///
/// Deserialising validates, so a `Config` read from a file is one that a model can be built from; after changing fields
/// by hand, call [`Config::validate`]. Serialises to the flat layout that transformers 4.51.3 reads.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Config {
    /// The decoder.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The token whose rows are replaced by image embeddings (`<|image_pad|>`).
    pub image_token_id: u32,
    /// The token whose rows are replaced by video embeddings (`<|video_pad|>`).
    pub video_token_id: u32,
    /// The token that opens an image or a video (`<|vision_start|>`).
    pub vision_start_token_id: u32,
    /// The token that closes an image or a video (`<|vision_end|>`), where the file names it.
    pub vision_end_token_id: Option<u32>,
    /// End tokens of `config.json` (one number or a list there; empty when absent). `generation_config.json` may name more.
    pub eos_token_ids: Vec<u32>,
    /// Padding token, where the file names it.
    pub pad_token_id: Option<u32>,
}

/// The text decoder: Qwen2 with grouped-query attention and three-axis rotary positions.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct TextConfig {
    /// Rows of the embedding table, and width of the logits.
    pub vocab_size: usize,
    /// Model width D.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Added to the mean square in every text norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Rotary frequencies taken from the t, h and w position; they sum to `head_dim() / 2`.
    pub mrope_section: [usize; 3],
    /// Longest sequence the checkpoint states, in tokens.
    pub max_position_embeddings: usize,
    /// Logits are taken with the embedding table; the file then has no `lm_head.weight`.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Activation of the MLP; only `silu` is implemented.
    #[serde(default = "silu")]
    pub hidden_act: String,
}

/// The vision tower: a window-attention ViT and the merger that projects to the decoder's width.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width of a block.
    pub hidden_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Width after the merger; equals the decoder's `hidden_size`.
    pub out_hidden_size: usize,
    /// Edge of a patch, in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Patches along each edge of one merged token.
    pub spatial_merge_size: usize,
    /// Edge of an attention window, in pixels.
    pub window_size: usize,
    /// Blocks that attend to a whole temporal slice instead of windows.
    pub fullatt_block_indexes: Vec<usize>,
    /// Temporal position ids per second of video.
    pub tokens_per_second: f64,
    /// Colour channels (`in_chans` in older files).
    pub in_channels: usize,
    /// Activation of the MLP; only `silu` is implemented.
    pub hidden_act: String,
}

/// The published sizes, for benchmarks and random checkpoints of the real shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Qwen2.5-VL-3B-Instruct (tied embeddings).
    B3,
    /// Qwen2.5-VL-7B-Instruct.
    B7,
    /// Qwen2.5-VL-32B-Instruct.
    B32,
    /// Qwen2.5-VL-72B-Instruct.
    B72,
}

fn silu() -> String {
    "silu".to_owned()
}

impl Default for VisionConfig {
    /// The class defaults of transformers 4.51.3, which are not the values of the published files.
    fn default() -> Self {
        Self {
            depth: 32,
            hidden_size: 3584,
            num_heads: 16,
            intermediate_size: 3420,
            out_hidden_size: 3584,
            patch_size: 14,
            temporal_patch_size: 2,
            spatial_merge_size: 2,
            window_size: 112,
            fullatt_block_indexes: vec![7, 15, 23, 31],
            tokens_per_second: 4.0,
            in_channels: 3,
            hidden_act: silu(),
        }
    }
}

impl TextConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn validate(&self) -> Result<()> {
        nonzero(
            "text",
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_hidden_layers", self.num_hidden_layers),
                ("num_attention_heads", self.num_attention_heads),
                ("num_key_value_heads", self.num_key_value_heads),
                ("max_position_embeddings", self.max_position_embeddings),
            ],
        )?;
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)?;
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)?;
        let sum = self.mrope_section.iter().fold(0usize, |sum, section| sum.saturating_add(*section));
        let head_dim = self.head_dim();
        if !head_dim.is_multiple_of(2) || sum != head_dim / 2 {
            return Err(Error::Input(format!(
                "mrope_section {:?} sums to {sum}, expected half of the head width {head_dim} \
                 (hidden_size {} / num_attention_heads {heads})",
                self.mrope_section, self.hidden_size
            )));
        }
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("rope_theta", self.rope_theta)?;
        only_silu("hidden_act", &self.hidden_act)
    }
}

impl VisionConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Values of one patch row: channels x frames x height x width.
    pub fn patch_width(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Edge of one merged token in pixels; frame sizes are multiples of it.
    pub fn token_edge(&self) -> usize {
        self.patch_size * self.spatial_merge_size
    }

    fn validate(&self) -> Result<()> {
        nonzero(
            "vision",
            &[
                ("depth", self.depth),
                ("hidden_size", self.hidden_size),
                ("num_heads", self.num_heads),
                ("intermediate_size", self.intermediate_size),
                ("out_hidden_size", self.out_hidden_size),
                ("patch_size", self.patch_size),
                ("temporal_patch_size", self.temporal_patch_size),
                ("spatial_merge_size", self.spatial_merge_size),
                ("window_size", self.window_size),
                ("in_channels", self.in_channels),
            ],
        )?;
        divides("vision num_heads", self.num_heads, "vision hidden_size", self.hidden_size)?;
        if !self.head_dim().is_multiple_of(4) {
            return Err(Error::Input(format!(
                "vision hidden_size {} / num_heads {} = {}, expected a multiple of 4: the 2-D rotary positions split a \
                 head in four",
                self.hidden_size,
                self.num_heads,
                self.head_dim()
            )));
        }
        divides("patch_size x spatial_merge_size", self.token_edge(), "window_size", self.window_size)?;
        if let Some(block) = self.fullatt_block_indexes.iter().find(|block| **block >= self.depth) {
            return Err(Error::Input(format!(
                "fullatt_block_indexes names block {block}, but the vision tower has depth {}",
                self.depth
            )));
        }
        if self.in_channels != 3 {
            return Err(Error::Input(format!("vision in_channels {}, expected 3 (RGB)", self.in_channels)));
        }
        positive("tokens_per_second", self.tokens_per_second)?;
        only_silu("vision hidden_act", &self.hidden_act)
    }
}

impl Config {
    /// Reads and validates `config.json` in the folder `dir`, or the file itself.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Checkpoint`] naming the file and the contradiction otherwise.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref();
        if !path.exists() {
            return Err(Error::checkpoint(
                path,
                "there is no such folder; expected one in Hugging Face layout",
            ));
        }
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        read_json(&path)
    }

    /// One of the published shapes, with the published token ids.
    pub fn preset(preset: Preset) -> Self {
        let (hidden_size, intermediate_size, layers, heads, kv_heads, vocab_size) = match preset {
            Preset::B3 => (2048, 11008, 36, 16, 2, 151_936),
            Preset::B7 => (3584, 18944, 28, 28, 4, 152_064),
            Preset::B32 => (5120, 27648, 64, 40, 8, 152_064),
            Preset::B72 => (8192, 29568, 80, 64, 8, 152_064),
        };
        let text = TextConfig {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            mrope_section: [16, 24, 24],
            max_position_embeddings: 128_000,
            tie_word_embeddings: preset == Preset::B3,
            hidden_act: silu(),
        };
        let vision = VisionConfig {
            hidden_size: 1280,
            intermediate_size: if matches!(preset, Preset::B3 | Preset::B7) { 3420 } else { 3456 },
            out_hidden_size: hidden_size,
            tokens_per_second: 2.0,
            ..VisionConfig::default()
        };
        Self {
            text,
            vision,
            image_token_id: 151_655,
            video_token_id: 151_656,
            vision_start_token_id: 151_652,
            vision_end_token_id: Some(151_653),
            eos_token_ids: vec![151_645],
            pad_token_id: None,
        }
    }

    /// Checks that a model can be built: divisibility, matching widths, token ids inside the vocabulary.
    ///
    /// # Errors
    /// [`Error::Input`] with the two values that contradict each other.
    pub fn validate(&self) -> Result<()> {
        self.text.validate()?;
        self.vision.validate()?;
        if self.vision.out_hidden_size != self.text.hidden_size {
            return Err(Error::Input(format!(
                "vision out_hidden_size {} differs from hidden_size {}: vision embeddings would not fit among the text's",
                self.vision.out_hidden_size, self.text.hidden_size
            )));
        }
        let media = [
            ("image_token_id", self.image_token_id),
            ("video_token_id", self.video_token_id),
            ("vision_start_token_id", self.vision_start_token_id),
        ];
        let optional =
            [("vision_end_token_id", self.vision_end_token_id), ("pad_token_id", self.pad_token_id)];
        let optional = optional.into_iter().filter_map(|(name, id)| id.map(|id| (name, id)));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        for (name, id) in media.into_iter().chain(optional).chain(eos) {
            if id as usize >= self.text.vocab_size {
                return Err(Error::Input(format!(
                    "{name} {id} is outside the vocabulary of {} tokens",
                    self.text.vocab_size
                )));
            }
        }
        for (i, (name, id)) in media.iter().enumerate() {
            if let Some((other, _)) = media.iter().skip(i + 1).find(|(_, other)| other == id) {
                return Err(Error::Input(format!("{name} and {other} are the same token {id}")));
            }
        }
        Ok(())
    }
}

impl TryFrom<Map<String, Value>> for Config {
    type Error = String;

    fn try_from(mut file: Map<String, Value>) -> std::result::Result<Self, String> {
        file.retain(|_, value| !value.is_null());
        if let Some(kind) = file.get("model_type").filter(|kind| *kind != "qwen2_5_vl") {
            return Err(format!("model_type {kind}, expected \"qwen2_5_vl\""));
        }
        let text = merged_text(&file)?;
        if text.get("use_sliding_window").is_some_and(|on| *on != false) {
            return Err("use_sliding_window is on, which is not implemented; expected false".to_owned());
        }
        let vision = vision_section(&file)?;
        let token = |key: &str| -> std::result::Result<Option<u32>, String> {
            let Some(value) = file.get(key).or_else(|| text.get(key)) else { return Ok(None) };
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.map(Some).ok_or_else(|| format!("{key} is {value}, expected a token id"))
        };
        let media = |key: &str| {
            token(key)?.ok_or_else(|| format!("{key} is missing; without it media cannot be placed"))
        };
        let config = Self {
            image_token_id: media("image_token_id")?,
            video_token_id: media("video_token_id")?,
            vision_start_token_id: media("vision_start_token_id")?,
            vision_end_token_id: token("vision_end_token_id")?,
            eos_token_ids: eos(file.get("eos_token_id").or_else(|| text.get("eos_token_id")))?,
            pad_token_id: token("pad_token_id")?,
            text: serde_json::from_value(Value::Object(text.clone()))
                .map_err(|cause| format!("text: {cause}"))?,
            vision: serde_json::from_value(Value::Object(vision))
                .map_err(|cause| format!("vision_config: {cause}"))?,
        };
        config.validate().map_err(|cause| cause.to_string())?;
        if let Some(found) = text.get("head_dim").filter(|found| **found != config.text.head_dim()) {
            let TextConfig { hidden_size, num_attention_heads, .. } = config.text;
            return Err(format!(
                "head_dim {found}, expected hidden_size {hidden_size} / {num_attention_heads} heads"
            ));
        }
        Ok(config)
    }
}

impl From<Config> for Map<String, Value> {
    fn from(config: Config) -> Self {
        let mut file = match json!(config.text) {
            Value::Object(text) => text,
            _ => Map::new(),
        };
        let section = file.remove("mrope_section").unwrap_or_default();
        let mut vision = json!(config.vision);
        if config.vision.tokens_per_second.fract() == 0.0 {
            vision["tokens_per_second"] = json!(config.vision.tokens_per_second as u64);
        }
        let extra = json!({
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "rope_scaling": { "type": "mrope", "mrope_section": section },
            "use_sliding_window": false,
            // 4.51.3 applies its default of 4096 even when the switch above is off.
            "sliding_window": config.text.max_position_embeddings,
            "vision_config": vision,
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "vision_start_token_id": config.vision_start_token_id,
            "vision_end_token_id": config.vision_end_token_id,
            "pad_token_id": config.pad_token_id,
            "eos_token_id": match config.eos_token_ids.as_slice() {
                [] => Value::Null,
                [id] => json!(id),
                ids => json!(ids),
            },
        });
        if let Value::Object(extra) = extra {
            file.extend(extra.into_iter().filter(|(_, value)| !value.is_null()));
        }
        file
    }
}

/// The text fields, from the top level and from `text_config`, with `mrope_section` and `rope_theta` lifted out of the rope group.
fn merged_text(file: &Map<String, Value>) -> std::result::Result<Map<String, Value>, String> {
    let mut text = file.clone();
    text.remove("vision_config");
    if let Some(nested) = text.remove("text_config") {
        let Value::Object(nested) = nested else {
            return Err(format!("text_config is {nested}, expected a map"));
        };
        for (key, value) in nested.into_iter().filter(|(_, value)| !value.is_null()) {
            let described =
                ["model_type", "architectures", "torch_dtype", "dtype", "rope_scaling", "rope_parameters"];
            match text.get(&key) {
                Some(flat) if !described.contains(&key.as_str()) && !same(flat, &value) => {
                    return Err(format!("{key} is {flat} at the top level and {value} in text_config"));
                }
                _ => text.insert(key, value),
            };
        }
    }
    for group in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = text.remove(group) else { continue };
        let Value::Object(rope) = rope else { return Err(format!("{group} is {rope}, expected a map")) };
        for key in ["type", "rope_type"] {
            if let Some(kind) = rope.get(key).filter(|kind| **kind != "mrope" && **kind != "default") {
                return Err(format!(
                    "{group}.{key} {kind} is not implemented, expected \"mrope\" or \"default\""
                ));
            }
        }
        for key in ["mrope_section", "rope_theta"] {
            let Some(value) = rope.get(key).filter(|value| !value.is_null()) else { continue };
            match text.get(key) {
                Some(other) if !same(other, value) => {
                    return Err(format!("{key} is {other} and, in {group}, {value}"));
                }
                _ => text.insert(key.to_owned(), value.clone()),
            };
        }
    }
    Ok(text)
}

/// `vision_config` with `in_chans` renamed.
fn vision_section(file: &Map<String, Value>) -> std::result::Result<Map<String, Value>, String> {
    let mut vision = match file.get("vision_config") {
        Some(Value::Object(vision)) => vision.clone(),
        Some(other) => return Err(format!("vision_config is {other}, expected a map")),
        None => return Err("vision_config is missing".to_owned()),
    };
    vision.retain(|_, value| !value.is_null());
    if let Some(old) = vision.remove("in_chans") {
        match vision.get("in_channels") {
            Some(new) if !same(new, &old) => {
                return Err(format!("vision_config has in_chans {old} and in_channels {new}"));
            }
            _ => vision.insert("in_channels".to_owned(), old),
        };
    }
    Ok(vision)
}

fn eos(value: Option<&Value>) -> std::result::Result<Vec<u32>, String> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => serde_json::from_value(Value::Array(ids.clone())),
        Some(id) => serde_json::from_value(id.clone()).map(|id| vec![id]),
    }
    .map_err(|cause| format!("eos_token_id: {cause}"))
}

/// Equal as JSON, with `2` equal to `2.0`.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

fn nonzero(part: &str, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => Err(Error::Input(format!("{part} {name} is 0, expected at least 1"))),
        None => Ok(()),
    }
}

fn divides(name: &str, part: usize, whole_name: &str, whole: usize) -> Result<()> {
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(Error::Input(format!("{whole_name} {whole} is not a multiple of {name} {part}")))
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::Input(format!("{name} is {value}, expected a positive number")))
}

fn only_silu(name: &str, activation: &str) -> Result<()> {
    if activation == "silu" {
        return Ok(());
    }
    Err(Error::Input(format!("{name} \"{activation}\" is not implemented, expected \"silu\"")))
}
