//! A random CLIP.

use std::path::Path;

use candle_core::DType;
use serde_json::{Value, json};

use super::bpe::{Vocabulary, special_token};
use super::weights::Weights;
use super::{IMAGE_MEAN, IMAGE_STD, create, require, write_json};
use crate::Result;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Sizes of a random CLIP checkpoint. The defaults encode a few hundred frames a second on two CPU cores.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSpec {
    /// Edge of the input picture in pixels; a multiple of `patch`.
    pub image_size: usize,
    /// Edge of a patch in pixels.
    pub patch: usize,
    /// Width of the vision tower.
    pub vision_hidden: usize,
    /// Layers of the vision tower.
    pub vision_layers: usize,
    /// Heads of the vision tower.
    pub vision_heads: usize,
    /// Width of the text tower.
    pub text_hidden: usize,
    /// Layers of the text tower.
    pub text_layers: usize,
    /// Heads of the text tower.
    pub text_heads: usize,
    /// Width of the common space.
    pub projection: usize,
    /// F32, BF16 or F16.
    pub dtype: DType,
    /// Standard deviation of the weights (norms: around 1).
    pub std: f64,
    /// Standard deviation of the token and position embeddings.
    pub embedding_std: f64,
    /// Words that get a token of their own; none for a few hundred common ones.
    pub words: Vec<String>,
    /// Longest text in tokens.
    pub positions: usize,
}

impl Default for ClipSpec {
    fn default() -> Self {
        Self {
            image_size: 112,
            patch: 14,
            vision_hidden: 64,
            vision_layers: 2,
            vision_heads: 4,
            text_hidden: 48,
            text_layers: 2,
            text_heads: 4,
            projection: 32,
            dtype: DType::F32,
            std: 0.1,
            embedding_std: 0.1,
            words: vec![],
            positions: 77,
        }
    }
}

/// Writes a checkpoint folder: config, weights, tokenizer and preprocessor. Existing files of these names are replaced.
///
/// # Errors
/// [`Error::Input`](crate::Error::Input) for sizes no model can have, or the folder cannot be written.
pub fn clip(dir: impl AsRef<Path>, spec: &ClipSpec, seed: u64) -> Result<()> {
    let dir = dir.as_ref();
    validate(spec)?;
    create(dir)?;
    let vocabulary = Vocabulary::with_word_ends(&spec.words);
    weights(spec, vocabulary.tokens.len() + 2, seed)?.write(dir, 1)?;
    vocabulary.write(dir, &[START, END])?;
    write_json(dir, "tokenizer.json", &tokenizer(&vocabulary))?;
    let tokenizer_config = json!({
        "add_prefix_space": false,
        "bos_token": START,
        "clean_up_tokenization_spaces": true,
        "do_lower_case": true,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": spec.positions,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END
    });
    write_json(dir, "tokenizer_config.json", &tokenizer_config)?;
    let preprocessor = json!({
        "crop_size": spec.image_size,
        "do_center_crop": true,
        "do_normalize": true,
        "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "resample": 3,
        "size": spec.image_size
    });
    write_json(dir, "preprocessor_config.json", &preprocessor)?;
    write_json(dir, "config.json", &config(spec, vocabulary.tokens.len()))
}

fn validate(spec: &ClipSpec) -> Result<()> {
    let towers = [
        ("vision", spec.vision_hidden, spec.vision_layers, spec.vision_heads),
        ("text", spec.text_hidden, spec.text_layers, spec.text_heads),
    ];
    for (tower, hidden, layers, heads) in towers {
        require(
            hidden > 0 && layers > 0 && heads > 0 && hidden.is_multiple_of(heads),
            format!(
                "ClipSpec: {tower} tower of width {hidden}, {layers} layers and {heads} heads: none may be 0, and the heads must divide the width"
            ),
        )?;
    }
    require(
        spec.patch > 0 && spec.image_size > 0 && spec.image_size.is_multiple_of(spec.patch),
        format!("ClipSpec: image_size {} must be a multiple of patch {}", spec.image_size, spec.patch),
    )?;
    require(spec.positions > 2, "ClipSpec: positions must leave room for more than the two marks")?;
    require(spec.projection > 0, "ClipSpec: projection must not be 0")?;
    require(
        matches!(spec.dtype, DType::F32 | DType::BF16 | DType::F16),
        format!("ClipSpec: dtype must be F32, BF16 or F16, got {:?}", spec.dtype),
    )
}

fn weights(spec: &ClipSpec, vocab_size: usize, seed: u64) -> Result<Weights> {
    let mut w = Weights::new(seed, spec.std, spec.dtype);
    let (t, v) = (spec.text_hidden, spec.vision_hidden);
    let patches = (spec.image_size / spec.patch).pow(2);
    w.scalar("logit_scale", 2.6592)?;
    w.normal_of("text_model.embeddings.token_embedding.weight", &[vocab_size, t], spec.embedding_std)?;
    w.normal_of("text_model.embeddings.position_embedding.weight", &[spec.positions, t], spec.embedding_std)?;
    encoder(&mut w, "text_model", t, spec.text_layers)?;
    w.layer_norm("text_model.final_layer_norm", t)?;
    w.normal("text_projection.weight", &[spec.projection, t])?;
    w.normal("vision_model.embeddings.class_embedding", &[v])?;
    w.normal("vision_model.embeddings.patch_embedding.weight", &[v, 3, spec.patch, spec.patch])?;
    w.normal_of("vision_model.embeddings.position_embedding.weight", &[patches + 1, v], spec.embedding_std)?;
    w.layer_norm("vision_model.pre_layrnorm", v)?;
    encoder(&mut w, "vision_model", v, spec.vision_layers)?;
    w.layer_norm("vision_model.post_layernorm", v)?;
    w.normal("visual_projection.weight", &[spec.projection, v])?;
    Ok(w)
}

fn encoder(w: &mut Weights, tower: &str, width: usize, layers: usize) -> Result<()> {
    for layer in 0..layers {
        let at = format!("{tower}.encoder.layers.{layer}");
        w.layer_norm(&format!("{at}.layer_norm1"), width)?;
        w.layer_norm(&format!("{at}.layer_norm2"), width)?;
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            w.linear(&format!("{at}.self_attn.{projection}"), width, width)?;
        }
        w.linear(&format!("{at}.mlp.fc1"), width, 4 * width)?;
        w.linear(&format!("{at}.mlp.fc2"), 4 * width, width)?;
    }
    Ok(())
}

/// `eos_token_id` 2 is the published file's: the reference then takes the highest id for the end of text.
fn config(spec: &ClipSpec, base: usize) -> Value {
    let tower = |hidden: usize, layers: usize, heads: usize| {
        json!({
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": spec.projection,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "attention_dropout": 0.0
        })
    };
    let with = |mut tower: Value, more: Value| {
        if let (Some(tower), Value::Object(more)) = (tower.as_object_mut(), more) {
            tower.extend(more);
        }
        tower
    };
    let text = json!({
        "model_type": "clip_text_model", "vocab_size": base + 2, "max_position_embeddings": spec.positions,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1
    });
    let vision = json!({
        "model_type": "clip_vision_model", "image_size": spec.image_size, "patch_size": spec.patch, "num_channels": 3
    });
    json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "logit_scale_init_value": 2.6592,
        "projection_dim": spec.projection,
        "text_config": with(tower(spec.text_hidden, spec.text_layers, spec.text_heads), text),
        "vision_config": with(tower(spec.vision_hidden, spec.vision_layers, spec.vision_heads), vision),
        "torch_dtype": match spec.dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        },
        "transformers_version": "4.51.3"
    })
}

fn tokenizer(vocabulary: &Vocabulary) -> Value {
    let base = vocabulary.tokens.len();
    let (start, end) = (base, base + 1);
    let mut model = vocabulary.model(json!({
        "unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>"
    }));
    // unlike Qwen's, CLIP's own vocabulary holds its marks
    if let Some(vocab) = model.get_mut("vocab").and_then(Value::as_object_mut) {
        vocab.extend([(START.to_owned(), json!(start)), (END.to_owned(), json!(end))]);
    }
    let pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special_token(start, START), special_token(end, END)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Removed", "invert": true },
            bytes,
        ] },
        "post_processor": {
            "type": "RobertaProcessing", "sep": [END, end], "cls": [START, start], "trim_offsets": false,
            "add_prefix_space": false
        },
        "decoder": bytes,
        "model": model,
    })
}
