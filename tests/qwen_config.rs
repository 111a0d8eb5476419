//! Qwen2.5-VL's config: both file layouts, published shapes, contradictions.

use msjoe::Error;
use msjoe::models::qwen2_5_vl::config::{Config, Preset};
use serde_json::{Value, json};

/// A small valid file in the flat layout of the published checkpoints.
fn flat() -> Value {
    serde_json::from_str(
        r#"{
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
            "attention_dropout": 0.0, "bos_token_id": 143, "eos_token_id": 145, "pad_token_id": null,
            "vision_start_token_id": 152, "vision_end_token_id": 153, "vision_token_id": 154,
            "image_token_id": 155, "video_token_id": 156,
            "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 128,
            "max_position_embeddings": 4096, "max_window_layers": 28, "num_attention_heads": 4,
            "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "sliding_window": 32768, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "use_cache": true, "use_sliding_window": false, "vocab_size": 160,
            "rope_scaling": { "type": "mrope", "mrope_section": [2, 3, 3] },
            "vision_config": {
                "depth": 2, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64, "num_heads": 4,
                "in_chans": 3, "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2,
                "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1],
                "tokens_per_second": 2, "temporal_patch_size": 2
            }
        }"#,
    )
    .unwrap()
}

/// The same model as transformers 4.52 and later (or, with `rope_parameters`, 5) write it.
fn nested(rope_parameters: bool) -> Value {
    let mut file = flat();
    let mut text = json!({ "model_type": "qwen2_5_vl_text", "image_token_id": null });
    let keys = [
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "use_sliding_window",
        "vocab_size",
    ];
    for key in keys {
        text[key] = file.as_object_mut().unwrap().remove(key).unwrap();
    }
    if rope_parameters {
        let theta = text.as_object_mut().unwrap().remove("rope_theta").unwrap();
        text.as_object_mut().unwrap().remove("rope_scaling");
        text["rope_parameters"] =
            json!({ "rope_type": "default", "rope_theta": theta, "mrope_section": [2, 3, 3] });
    }
    let channels = file["vision_config"].as_object_mut().unwrap().remove("in_chans").unwrap();
    file["vision_config"]["in_channels"] = channels;
    file["text_config"] = text;
    file
}

fn read(file: &Value) -> Result<Config, String> {
    serde_json::from_str(&file.to_string()).map_err(|error| error.to_string())
}

#[test]
fn both_layouts_describe_one_model() {
    let config = read(&flat()).unwrap();
    assert_eq!(config.text.mrope_section, [2, 3, 3]);
    assert_eq!((config.text.head_dim(), config.vision.head_dim()), (16, 8));
    assert_eq!(config.vision.patch_width(), 1176);
    assert_eq!((config.eos_token_ids.as_slice(), config.pad_token_id), ([145].as_slice(), None));
    assert_eq!(config.vision_end_token_id, Some(153));
    assert_eq!(read(&nested(false)).unwrap(), config);
    assert_eq!(read(&nested(true)).unwrap(), config);
}

#[test]
fn absent_vision_keys_take_the_class_defaults() {
    let mut file = flat();
    file["vision_config"] = json!({
        "hidden_size": 1280, "in_chans": 3, "out_hidden_size": 64, "tokens_per_second": 2, "model_type": "qwen2_5_vl"
    });
    let vision = read(&file).unwrap().vision;
    assert_eq!((vision.depth, vision.num_heads, vision.intermediate_size), (32, 16, 3420));
    assert_eq!(vision.fullatt_block_indexes, [7, 15, 23, 31]);
}

#[test]
fn a_written_config_reads_back() {
    for preset in [Preset::B3, Preset::B7, Preset::B32, Preset::B72] {
        let config = Config::preset(preset);
        config.validate().unwrap();
        assert_eq!(read(&serde_json::to_value(&config).unwrap()).unwrap(), config);
    }
    let mut config = Config::preset(Preset::B3);
    (config.eos_token_ids, config.vision.tokens_per_second) = (vec![1, 2], 2.5);
    assert_eq!(read(&serde_json::to_value(&config).unwrap()).unwrap(), config);
}

/// The totals that the published checkpoints have, in millions, from the shapes alone.
#[test]
fn presets_have_the_published_number_of_parameters() {
    for (preset, millions) in
        [(Preset::B3, 3_755), (Preset::B7, 8_292), (Preset::B32, 33_453), (Preset::B72, 73_411)]
    {
        let Config { text, vision, .. } = Config::preset(preset);
        let (d, kv) = (text.hidden_size, text.num_key_value_heads * text.head_dim());
        let layer = 2 * d * d + d + 2 * (d * kv + kv) + 3 * d * text.intermediate_size + 2 * d;
        let tables = if text.tie_word_embeddings { 1 } else { 2 };
        let decoder = text.num_hidden_layers * layer + tables * text.vocab_size * d + d;
        let v = vision.hidden_size;
        let mlp = 3 * v * vision.intermediate_size + 2 * vision.intermediate_size + v;
        let tower = vision.patch_width() * v + vision.depth * (4 * v * v + 4 * v + mlp + 2 * v);
        let merger = v + 16 * v * v + 4 * v + 4 * v * d + d;
        let total = decoder + tower + merger;
        assert_eq!((total + 500_000) / 1_000_000, millions, "{preset:?}: {total}");
    }
}

/// Each change makes the file contradict itself; the message must name what is wrong.
#[test]
fn contradictions_are_named() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("/model_type", json!("qwen2_vl"), &["model_type", "qwen2_vl", "qwen2_5_vl"]),
        ("/num_attention_heads", json!(5), &["hidden_size 64", "num_attention_heads 5"]),
        ("/num_key_value_heads", json!(3), &["num_attention_heads 4", "num_key_value_heads 3"]),
        ("/num_key_value_heads", json!(0), &["num_key_value_heads is 0"]),
        ("/rope_scaling/mrope_section", json!([2, 3, 4]), &["[2, 3, 4]", "9", "head width 16"]),
        ("/rope_scaling/mrope_section", json!([4, 4]), &["expected an array of length 3"]),
        ("/rope_scaling/type", json!("yarn"), &["rope_scaling.type", "yarn"]),
        ("/rope_scaling", Value::Null, &["mrope_section"]),
        ("/rms_norm_eps", json!(0.0), &["rms_norm_eps"]),
        ("/rope_theta", json!(-1.0), &["rope_theta"]),
        ("/hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]),
        ("/hidden_size", json!(-64), &["invalid value"]),
        ("/hidden_size", Value::Null, &["missing field `hidden_size`"]),
        ("/use_sliding_window", json!(true), &["use_sliding_window"]),
        ("/image_token_id", Value::Null, &["image_token_id is missing"]),
        ("/video_token_id", json!(160), &["video_token_id 160", "160 tokens"]),
        ("/video_token_id", json!(155), &["image_token_id", "video_token_id", "155"]),
        ("/eos_token_id", json!([1, 400]), &["eos_token_id 400"]),
        ("/eos_token_id", json!("im_end"), &["eos_token_id"]),
        ("/vision_config", Value::Null, &["vision_config is missing"]),
        ("/vision_config/num_heads", json!(3), &["vision hidden_size 32", "num_heads 3"]),
        ("/vision_config/num_heads", json!(16), &["multiple of 4"]),
        ("/vision_config/out_hidden_size", json!(48), &["out_hidden_size 48", "hidden_size 64"]),
        ("/vision_config/window_size", json!(100), &["window_size 100", "28"]),
        ("/vision_config/fullatt_block_indexes", json!([0, 2]), &["block 2", "depth 2"]),
        ("/vision_config/spatial_merge_size", json!(0), &["spatial_merge_size is 0"]),
        ("/vision_config/patch_size", json!(0), &["patch_size is 0"]),
        ("/vision_config/in_chans", json!(4), &["in_channels 4"]),
        ("/vision_config/in_channels", json!(1), &["in_chans 3", "in_channels 1"]),
        ("/vision_config/hidden_act", json!("quick_gelu"), &["vision hidden_act", "quick_gelu"]),
        ("/vision_config/tokens_per_second", json!(0), &["tokens_per_second"]),
        ("/text_config", json!({ "hidden_size": 128 }), &["hidden_size is 64", "128 in text_config"]),
        ("/text_config", json!([]), &["text_config"]),
        ("/head_dim", json!(32), &["head_dim 32"]),
    ];
    for (pointer, value, words) in cases {
        let mut file = flat();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[key] = value.clone();
        let message = read(&file).expect_err(&format!("{pointer} = {value} was accepted"));
        for word in *words {
            assert!(message.contains(word), "{pointer} = {value}: {message:?} lacks {word:?}");
        }
    }
}

#[test]
fn loading_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        matches!(Config::load(folder.path()).unwrap_err(), Error::Io { path, .. } if path.ends_with("config.json"))
    );
    let error = Config::load(folder.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("absent: there is no such folder"), "{error}");
    let path = folder.path().join("config.json");
    for text in ["", "{", "[]", "{\"model_type\": \"qwen2_5_vl\"}"] {
        std::fs::write(&path, text).unwrap();
        let error = Config::load(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Checkpoint { path: at, .. } if *at == path), "{text:?}: {error}");
    }
    std::fs::write(&path, flat().to_string()).unwrap();
    assert_eq!(Config::load(folder.path()).unwrap(), Config::load(&path).unwrap());
}
