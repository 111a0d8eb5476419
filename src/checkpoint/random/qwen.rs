//! A random Qwen2.5-VL.

use std::path::Path;

use candle_core::DType;
use serde_json::{Value, json};

use super::bpe::{Vocabulary, plain_token, special_token};
use super::weights::Weights;
use super::{IMAGE_MEAN, IMAGE_STD, create, require, write_json};
use crate::Result;
use crate::text::chat_template;

/// The special tokens in the published order; ids follow the vocabulary.
const SPECIALS: [&str; 14] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

const WINDOW: usize = 112;

/// Sizes of a random Qwen2.5-VL checkpoint. The defaults run a two-turn demo in seconds on two CPU cores.
#[derive(Debug, Clone, PartialEq)]
pub struct QwenSpec {
    /// Width of the decoder.
    pub hidden: usize,
    /// Width of the decoder's MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads; `hidden / heads` must be a multiple of 8.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of the vision tower.
    pub vision_hidden: usize,
    /// Width of the vision tower's MLP.
    pub vision_intermediate: usize,
    /// Blocks of the vision tower.
    pub vision_depth: usize,
    /// Heads of the vision tower; `vision_hidden / vision_heads` must be a multiple of 4.
    pub vision_heads: usize,
    /// Edge of a patch in pixels.
    pub patch: usize,
    /// Patches along each edge of a merged token.
    pub merge: usize,
    /// Blocks that attend beyond a window.
    pub full_attention: Vec<usize>,
    /// Longest prompt, in tokens.
    pub max_positions: usize,
    /// Least and most pixels of an image, for the preprocessor.
    pub pixels: [usize; 2],
    /// No `lm_head.weight`: logits are taken with the embedding table.
    pub tied: bool,
    /// Files the weights are spread over; 1 writes no index.
    pub shards: usize,
    /// F32, BF16 or F16.
    pub dtype: DType,
    /// Standard deviation of the weights (norms: around 1).
    pub std: f64,
    /// Standard deviation of the token embeddings.
    pub embedding_std: f64,
    /// Words that get a token of their own; none for a few hundred common ones.
    pub words: Vec<String>,
    /// Marks such as `<answer>` that get a token of their own and are text like any other.
    pub tags: Vec<String>,
    /// The chat template; `None` for the published models'.
    pub template: Option<String>,
}

impl Default for QwenSpec {
    fn default() -> Self {
        Self {
            hidden: 64,
            intermediate: 128,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            vision_hidden: 32,
            vision_intermediate: 64,
            vision_depth: 2,
            vision_heads: 2,
            patch: 14,
            merge: 2,
            full_attention: vec![1],
            max_positions: 32_768,
            pixels: [3136, 12_845_056],
            tied: false,
            shards: 1,
            dtype: DType::F32,
            std: 0.05,
            embedding_std: 0.05,
            words: vec![],
            tags: vec![],
            template: None,
        }
    }
}

/// Writes a checkpoint folder: config, weights (published names), tokenizer with chat template, preprocessor and
/// generation settings. Existing files of these names are replaced.
///
/// # Errors
/// [`Error::Input`](crate::Error::Input) for sizes no model can have, or the folder cannot be written.
pub fn qwen2_5_vl(dir: impl AsRef<Path>, spec: &QwenSpec, seed: u64) -> Result<()> {
    let dir = dir.as_ref();
    validate(spec)?;
    create(dir)?;
    let vocabulary = Vocabulary::with_blanks(&spec.words);
    let base = vocabulary.tokens.len();
    // as in the published files, the embedding table is longer than the vocabulary
    let vocab_size = (base + SPECIALS.len() + spec.tags.len() + 1).next_multiple_of(16);
    let id = |token: &str| SPECIALS.iter().position(|t| *t == token).map_or(0, |place| base + place);
    weights(spec, vocab_size, seed)?.write(dir, spec.shards)?;
    vocabulary.write(dir, &[])?;
    write_json(dir, "tokenizer.json", &tokenizer(&vocabulary, &spec.tags))?;
    write_json(dir, "tokenizer_config.json", &tokenizer_config(spec, base))?;
    write_json(dir, "preprocessor_config.json", &preprocessor(spec))?;
    let generation = json!({
        "bos_token_id": id("<|endoftext|>"), "pad_token_id": id("<|endoftext|>"),
        "eos_token_id": [id("<|im_end|>"), id("<|endoftext|>")],
        "do_sample": true, "repetition_penalty": 1.05, "temperature": 1e-6, "transformers_version": "4.51.3"
    });
    write_json(dir, "generation_config.json", &generation)?;
    write_json(dir, "config.json", &config(spec, vocab_size, id))
}

fn validate(spec: &QwenSpec) -> Result<()> {
    let head_dim = spec.hidden.checked_div(spec.heads).unwrap_or(0);
    let vision_head = spec.vision_hidden.checked_div(spec.vision_heads).unwrap_or(0);
    require(
        head_dim > 0 && head_dim * spec.heads == spec.hidden && head_dim.is_multiple_of(8),
        format!("QwenSpec: hidden {} over {} heads must give a multiple of 8", spec.hidden, spec.heads),
    )?;
    require(
        spec.kv_heads > 0 && spec.heads.is_multiple_of(spec.kv_heads),
        format!("QwenSpec: kv_heads {} must divide heads {}", spec.kv_heads, spec.heads),
    )?;
    require(
        vision_head > 0
            && vision_head * spec.vision_heads == spec.vision_hidden
            && vision_head.is_multiple_of(4),
        format!(
            "QwenSpec: vision_hidden {} over {} heads must give a multiple of 4",
            spec.vision_hidden, spec.vision_heads
        ),
    )?;
    let sizes =
        [spec.intermediate, spec.layers, spec.vision_intermediate, spec.vision_depth, spec.max_positions];
    require(!sizes.contains(&0), "QwenSpec: no size may be 0")?;
    require(
        spec.patch > 0 && spec.merge > 0 && WINDOW.is_multiple_of(spec.patch * spec.merge),
        format!("QwenSpec: patch {} x merge {} must divide {WINDOW}", spec.patch, spec.merge),
    )?;
    require(spec.shards > 0, "QwenSpec: shards must be at least 1")?;
    require(
        spec.full_attention.iter().all(|&block| block < spec.vision_depth),
        format!("QwenSpec: full_attention {:?} beyond {} blocks", spec.full_attention, spec.vision_depth),
    )?;
    require(
        matches!(spec.dtype, DType::F32 | DType::BF16 | DType::F16),
        format!("QwenSpec: dtype must be F32, BF16 or F16, got {:?}", spec.dtype),
    )
}

fn weights(spec: &QwenSpec, vocab_size: usize, seed: u64) -> Result<Weights> {
    let mut w = Weights::new(seed, spec.std, spec.dtype);
    let (d, kv) = (spec.hidden, spec.hidden / spec.heads * spec.kv_heads);
    w.normal_of("model.embed_tokens.weight", &[vocab_size, d], spec.embedding_std)?;
    w.scale("model.norm.weight", d)?;
    if !spec.tied {
        w.normal("lm_head.weight", &[vocab_size, d])?;
    }
    for layer in 0..spec.layers {
        let at = format!("model.layers.{layer}");
        w.scale(format!("{at}.input_layernorm.weight"), d)?;
        w.scale(format!("{at}.post_attention_layernorm.weight"), d)?;
        w.linear(&format!("{at}.self_attn.q_proj"), d, d)?;
        w.linear(&format!("{at}.self_attn.k_proj"), d, kv)?;
        w.linear(&format!("{at}.self_attn.v_proj"), d, kv)?;
        w.normal(format!("{at}.self_attn.o_proj.weight"), &[d, d])?;
        w.normal(format!("{at}.mlp.gate_proj.weight"), &[spec.intermediate, d])?;
        w.normal(format!("{at}.mlp.up_proj.weight"), &[spec.intermediate, d])?;
        w.normal(format!("{at}.mlp.down_proj.weight"), &[d, spec.intermediate])?;
    }
    let v = spec.vision_hidden;
    w.normal("visual.patch_embed.proj.weight", &[v, 3, 2, spec.patch, spec.patch])?;
    for block in 0..spec.vision_depth {
        let at = format!("visual.blocks.{block}");
        w.scale(format!("{at}.norm1.weight"), v)?;
        w.scale(format!("{at}.norm2.weight"), v)?;
        w.linear(&format!("{at}.attn.qkv"), v, 3 * v)?;
        w.linear(&format!("{at}.attn.proj"), v, v)?;
        w.linear(&format!("{at}.mlp.gate_proj"), v, spec.vision_intermediate)?;
        w.linear(&format!("{at}.mlp.up_proj"), v, spec.vision_intermediate)?;
        w.linear(&format!("{at}.mlp.down_proj"), spec.vision_intermediate, v)?;
    }
    w.scale("visual.merger.ln_q.weight", v)?;
    let merged = v * spec.merge.pow(2);
    w.linear("visual.merger.mlp.0", merged, merged)?;
    w.linear("visual.merger.mlp.2", merged, d)?;
    Ok(w)
}

/// The flat layout of the published files.
fn config(spec: &QwenSpec, vocab_size: usize, id: impl Fn(&str) -> usize) -> Value {
    let half = spec.hidden / spec.heads / 2;
    let time = half / 4;
    let space = (half - time) / 2;
    let dtype = match spec.dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": id("<|endoftext|>"),
        "eos_token_id": id("<|im_end|>"),
        "pad_token_id": id("<|endoftext|>"),
        "vision_start_token_id": id("<|vision_start|>"),
        "vision_end_token_id": id("<|vision_end|>"),
        "vision_token_id": id("<|vision_pad|>"),
        "image_token_id": id("<|image_pad|>"),
        "video_token_id": id("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "initializer_range": 0.02,
        "intermediate_size": spec.intermediate,
        "max_position_embeddings": spec.max_positions,
        "max_window_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": { "type": "mrope", "mrope_section": [time, space, space] },
        "sliding_window": spec.max_positions,
        "use_sliding_window": false,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": dtype,
        "transformers_version": "4.51.3",
        "use_cache": true,
        "vocab_size": vocab_size,
        "vision_config": vision_config(spec)
    })
}

fn vision_config(spec: &QwenSpec) -> Value {
    json!({
        "model_type": "qwen2_5_vl",
        "depth": spec.vision_depth,
        "hidden_act": "silu",
        "hidden_size": spec.vision_hidden,
        "intermediate_size": spec.vision_intermediate,
        "num_heads": spec.vision_heads,
        "in_chans": 3,
        "out_hidden_size": spec.hidden,
        "patch_size": spec.patch,
        "spatial_merge_size": spec.merge,
        "spatial_patch_size": spec.patch,
        "temporal_patch_size": 2,
        "window_size": WINDOW,
        "fullatt_block_indexes": spec.full_attention,
        "tokens_per_second": 2
    })
}

fn tokenizer(vocabulary: &Vocabulary, tags: &[String]) -> Value {
    let base = vocabulary.tokens.len();
    let specials = SPECIALS.iter().zip(base..).map(|(token, id)| special_token(id, token));
    let tags = tags.iter().zip(base + SPECIALS.len()..).map(|(token, id)| plain_token(id, token));
    let added: Vec<Value> = specials.chain(tags).collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            bytes,
        ] },
        "post_processor": bytes,
        "decoder": bytes,
        "model": vocabulary.model(json!({
            "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "", "ignore_merges": false
        })),
    })
}

fn tokenizer_config(spec: &QwenSpec, base: usize) -> Value {
    let specials = SPECIALS.iter().zip(base..).map(|(token, id)| (id, special_token(id, token)));
    let tags = spec.tags.iter().zip(base + SPECIALS.len()..).map(|(token, id)| (id, plain_token(id, token)));
    let entries = specials.chain(tags).map(|(id, mut entry)| {
        if let Some(entry) = entry.as_object_mut() {
            entry.shift_remove("id");
        }
        (id.to_string(), entry)
    });
    let decoder: serde_json::Map<String, Value> = entries.collect();
    json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIALS[1..],
        "bos_token": null,
        "chat_template": spec.template.as_deref().unwrap_or(chat_template::QWEN2_5_VL),
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": spec.max_positions,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": false,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": null
    })
}

fn preprocessor(spec: &QwenSpec) -> Value {
    json!({
        "min_pixels": spec.pixels[0],
        "max_pixels": spec.pixels[1],
        "patch_size": spec.patch,
        "temporal_patch_size": 2,
        "merge_size": spec.merge,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor"
    })
}
