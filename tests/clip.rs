//! CLIP against the reference (tests/golden/clip.py, transformers 4.51.3), its equivalences, and bad checkpoints.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use msjoe::models::clip::{Clip, ClipTokenizer, Config, Processor};
use msjoe::video::{Fit, fit};
use msjoe::{Error, Result};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip").join(name)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(name).join("expected.safetensors"), &Device::Cpu).unwrap()
}

fn load(name: &str) -> Clip {
    Clip::load(&golden(name), DType::F32, &Device::Cpu).unwrap()
}

fn texts(name: &str) -> Vec<String> {
    serde_json::from_str(&std::fs::read_to_string(golden(name).join("texts.json")).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Largest difference as a share of the largest expected value.
fn relative_error(got: &Tensor, want: &Tensor) -> f32 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (values(got), values(want));
    let largest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
    got.iter().zip(&want).fold(0f32, |a, (g, w)| if (g - w).abs() <= a { a } else { (g - w).abs() }) / largest
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "relative error {error:e} exceeds {tolerance:e}");
}

fn images(tensor: &Tensor) -> Vec<RgbImage> {
    let (b, h, w, _) = tensor.dims4().unwrap();
    let image = |i| tensor.get(i).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    (0..b).map(|i| RgbImage::from_raw(w as u32, h as u32, image(i)).unwrap()).collect()
}

/// `count` images with other contents each.
fn many_images(side: u32, count: usize) -> Vec<RgbImage> {
    let level = |i: usize, x: u32, y: u32, c: u32| {
        ((x * (3 + c) + y * (5 + i as u32) + (x * y * (c + 1)) % 97) % 256) as u8
    };
    (0..count)
        .map(|i| {
            RgbImage::from_fn(side, side, |x, y| {
                image::Rgb([level(i, x, y, 0), level(i, x, y, 1), level(i, x, y, 2)])
            })
        })
        .collect()
}

fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
    tensor.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

const MODELS: [&str; 2] = ["large", "legacy"];

#[test]
fn goldens_are_from_the_pinned_reference() {
    for name in MODELS {
        let bytes = std::fs::read(golden(name).join("expected.safetensors")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["transformers"], "4.51.3");
    }
}

#[test]
fn image_features_equal_the_reference() {
    for name in MODELS {
        let want = expected(name);
        assert_close(&load(name).image_embeds(&want["pixel_values"]).unwrap(), &want["image_embeds"], 1e-5);
    }
}

#[test]
fn text_features_equal_the_reference() {
    for name in MODELS {
        let want = expected(name);
        assert_close(&load(name).text_embeds(&rows(&want["input_ids"])).unwrap(), &want["text_embeds"], 1e-5);
    }
}

#[test]
fn raw_images_and_texts_give_the_features_of_the_reference() {
    for name in MODELS {
        let (clip, want) = (load(name), expected(name));
        assert_close(&clip.encode_images(&images(&want["images"])).unwrap(), &want["image_embeds"], 1e-5);
        assert_close(&clip.encode_texts(&texts(name)).unwrap(), &want["text_embeds"], 1e-5);
    }
}

#[test]
fn cosines_equal_the_reference() {
    for name in MODELS {
        let (clip, want) = (load(name), expected(name));
        let frames = clip.encode_images(&images(&want["images"])).unwrap();
        let queries = clip.encode_texts(&texts(name)).unwrap();
        let got = msjoe::similarity::similarity(&queries, &frames).unwrap();
        assert_close(&got, &want["similarity"], 1e-5);
    }
}

#[test]
fn token_ids_equal_the_reference() {
    for name in MODELS {
        let (clip, want) = (load(name), expected(name));
        let lengths: Vec<i64> = want["lengths"].to_vec1().unwrap();
        for ((text, row), length) in texts(name).iter().zip(rows(&want["input_ids"])).zip(lengths) {
            assert_eq!(clip.tokenize(text).unwrap(), row[..length as usize], "{name}: {text:?}");
        }
    }
}

#[test]
fn a_vocabulary_with_merges_gives_the_tokenizer_of_tokenizer_json() {
    // Both checkpoints share one vocabulary and differ in the tokenizer files and the positions.
    let whole = ClipTokenizer::load(&golden("large"), 77).unwrap().unwrap();
    let rebuilt = ClipTokenizer::load(&golden("legacy"), 77).unwrap().unwrap();
    let more = ["Ünïcode\u{3000}spaces\n\n", "<|startoftext|>x<|endoftext|>", "3.14159 & more ...", "I'LL"];
    for text in texts("large").iter().map(String::as_str).chain(more) {
        assert_eq!(whole.encode(text).unwrap(), rebuilt.encode(text).unwrap(), "{text:?}");
    }
}

#[test]
fn pixel_values_equal_the_reference_bit_by_bit() {
    for name in MODELS {
        let (clip, want) = (load(name), expected(name));
        let got = clip.processor().pixel_values(&images(&want["images"])).unwrap();
        assert_eq!(got, values(&want["pixel_values"]));
    }
}

#[test]
fn cropped_images_normalise_to_the_pixel_values_of_the_reference() {
    let file = golden("processor.safetensors");
    let want = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let processor = Processor::load(folder.path(), 32).unwrap();
    let mut checked = 0;
    for (name, cropped) in want.iter().filter(|(name, _)| name.ends_with(".cropped")) {
        let image = images(&cropped.unsqueeze(0).unwrap());
        let pixels = &want[&name.replace("cropped", "pixel_values")];
        assert_eq!(processor.pixel_values(&image).unwrap(), values(pixels), "{name}");
        checked += 1;
    }
    assert_eq!(checked, 7);
}

/// The whole way from a frame to CLIP's pixels, odd sizes and upscaling included.
#[test]
fn frames_are_resized_and_cropped_as_the_reference_does() {
    let want = candle_core::safetensors::load(golden("processor.safetensors"), &Device::Cpu).unwrap();
    let mut checked = 0;
    for (name, source) in want.iter().filter(|(name, _)| name.ends_with(".source")) {
        let source = &images(&source.unsqueeze(0).unwrap())[0];
        let got = fit(source, Fit::ShortEdgeCrop(32)).unwrap();
        let want = images(&want[&name.replace("source", "cropped")].unsqueeze(0).unwrap());
        assert!(got == want[0], "{name}: not the pixels of Pillow");
        checked += 1;
    }
    assert_eq!(checked, 7);
}

#[test]
fn a_batch_equals_single_images() {
    let clip = load("large");
    let images = many_images(56, clip.image_batch() + 3);
    let batch = clip.encode_images(&images).unwrap();
    let singles: Vec<_> =
        images.iter().map(|image| clip.encode_images(std::slice::from_ref(image)).unwrap()).collect();
    assert_close(&batch, &Tensor::cat(&singles, 0).unwrap(), 1e-6);
}

#[test]
fn a_stream_equals_a_batch_bit_by_bit() {
    let clip = load("legacy");
    let batch = clip.image_batch();
    for count in [0, 1, batch, 2 * batch + 1] {
        let images = many_images(40, count);
        let batch = clip.encode_images(&images).unwrap();
        let mut stream = clip.stream();
        images.into_iter().for_each(|image| stream.push(image).unwrap());
        let stream = stream.finish().unwrap();
        assert_eq!(batch.dims(), [count, 20]);
        assert_eq!(values(&batch), values(&stream));
    }
}

#[test]
fn texts_together_equal_texts_alone() {
    let (clip, texts) = (load("large"), texts("large"));
    let together = clip.encode_texts(&texts).unwrap();
    let alone: Vec<_> =
        texts.iter().map(|text| clip.encode_texts(std::slice::from_ref(text)).unwrap()).collect();
    assert_close(&together, &Tensor::cat(&alone, 0).unwrap(), 1e-6);
}

#[test]
fn what_follows_the_end_of_text_changes_nothing() {
    for name in MODELS {
        let clip = load(name);
        let ids = clip.tokenize("a photo of a red car").unwrap();
        let padded = |id: u32| ids.iter().copied().chain([id; 5]).collect::<Vec<u32>>();
        let end = *ids.last().unwrap();
        let got = clip.text_embeds(&[ids.clone(), padded(end), padded(0), padded(17)]).unwrap();
        let got: Vec<Vec<f32>> = got.to_vec2().unwrap();
        got.iter().for_each(|row| assert_eq!(*row, got[0]));
    }
}

#[test]
fn a_row_without_end_of_text_is_read_at_its_first_token() {
    let clip = load("large");
    let got = clip.text_embeds(&[vec![5, 6, 7], vec![5]]).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(got[0], got[1]);
}

#[test]
fn no_images_and_no_texts_give_no_rows() {
    let clip = load("large");
    assert_eq!(clip.encode_images(&[]).unwrap().dims(), [0, 24]);
    assert_eq!(clip.encode_texts(&[]).unwrap().dims(), [0, 24]);
}

#[test]
fn half_precision_stays_near_single_precision() {
    let want = expected("large");
    let exact = &want["image_embeds"];
    for (dtype, tolerance) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        let clip = Clip::load(&golden("large"), dtype, &Device::Cpu).unwrap();
        let got = clip.image_embeds(&want["pixel_values"]).unwrap();
        assert_eq!(got.dtype(), DType::F32);
        assert_close(&got, exact, tolerance);
        assert!(relative_error(&got, exact) > 1e-5, "{dtype:?} must not run in f32");
    }
}

#[test]
fn clip_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&load("large"));
}

// ---- the revision ----

/// A copy of a golden checkpoint that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "expected.safetensors" {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn edit_weights(folder: &Path, edit: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_iter().collect();
    edit(&mut tensors);
    msjoe::checkpoint::write_safetensors(&path, &tensors, None).unwrap();
}

fn try_load(folder: &Path) -> Result<Clip> {
    Clip::load(folder, DType::F32, &Device::Cpu)
}

#[test]
fn the_revision_names_weights_config_processor_and_dtype() {
    let original = load("large").revision().to_owned();
    assert_eq!(original, load("large").revision());
    assert_eq!(try_load(copy("large").path()).unwrap().revision(), original);
    assert_eq!(original.len(), 32);

    let bf16 = Clip::load(&golden("large"), DType::BF16, &Device::Cpu).unwrap();
    assert_ne!(bf16.revision(), original);

    let folder = copy("large");
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.iter_mut().rev().nth(2).unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(try_load(folder.path()).unwrap().revision(), original);

    let folder = copy("large");
    edit_json(&folder.path().join("config.json"), |config| {
        config["vision_config"]["layer_norm_eps"] = json!(1e-4)
    });
    assert_ne!(try_load(folder.path()).unwrap().revision(), original);

    let folder = copy("large");
    edit_json(&folder.path().join("preprocessor_config.json"), |config| {
        config["image_mean"] = json!([0.5, 0.5, 0.5])
    });
    assert_ne!(try_load(folder.path()).unwrap().revision(), original);
}

// ---- configs ----

#[test]
fn missing_keys_of_the_config_get_the_class_defaults() {
    let config: Config = serde_json::from_value(json!({
        "vision_config": {"patch_size": 14}, "text_config_dict": {"hidden_size": 768}, "text_config": {"eos_token_id": 2},
    }))
    .unwrap();
    assert_eq!((config.vision_config.patch_size, config.vision_config.hidden_size), (14, 768));
    assert_eq!((config.text_config.hidden_size, config.text_config.vocab_size), (768, 49408));
    // What `text_config_dict` leaves out is the class default, not the value of `text_config`.
    assert_eq!((config.text_config.eos_token_id, config.projection_dim), (49407, 512));
    config.check().unwrap();
}

#[test]
fn the_text_is_pooled_at_the_first_end_of_text() {
    let mut config = Config::deserialize_defaults().text_config;
    assert_eq!(config.pooled(&[49406, 320, 49407, 49407]), Some(2));
    assert_eq!(config.pooled(&[49406, 320]), None);
    config.eos_token_id = 2;
    assert_eq!(config.pooled(&[49406, 320, 2, 49407, 49407]), Some(3));
    assert_eq!(config.pooled(&[]), None);
}

trait Defaults {
    fn deserialize_defaults() -> Self;
}

impl Defaults for Config {
    fn deserialize_defaults() -> Self {
        serde_json::from_str("{}").unwrap()
    }
}

// ---- bad input ----

#[track_caller]
fn assert_refused(folder: &Path, parts: &[&str]) {
    let error = try_load(folder).expect_err("must be refused");
    assert!(matches!(error, Error::Checkpoint { .. } | Error::Io { .. }), "{error:?}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not mention {part:?}");
    }
    assert!(text.contains(&*folder.to_string_lossy()), "{text:?} does not name the folder");
}

#[test]
fn configs_that_contradict_themselves_are_refused() {
    let cases = [
        (
            "vision_config",
            "hidden_size",
            json!(33),
            vec!["vision_config.hidden_size 33", "num_attention_heads 4"],
        ),
        (
            "text_config",
            "num_attention_heads",
            json!(5),
            vec!["text_config.hidden_size 24", "num_attention_heads 5"],
        ),
        ("vision_config", "image_size", json!(57), vec!["image_size 57", "patch_size 14"]),
        ("vision_config", "patch_size", json!(0), vec!["patch_size is 0"]),
        ("text_config", "num_hidden_layers", json!(0), vec!["num_hidden_layers is 0"]),
        ("vision_config", "num_channels", json!(1), vec!["num_channels is 1"]),
        ("vision_config", "layer_norm_eps", json!(-1.0), vec!["layer_norm_eps is -1"]),
        ("vision_config", "hidden_act", json!("tanh"), vec!["tanh", "quick_gelu"]),
        ("vision_config", "hidden_size", json!("big"), vec!["big"]),
    ];
    for (tower, key, value, parts) in cases {
        let folder = copy("large");
        edit_json(&folder.path().join("config.json"), |config| config[tower][key] = value);
        assert_refused(folder.path(), &parts);
    }
}

#[test]
fn a_config_of_another_model_is_refused() {
    let folder = copy("large");
    edit_json(&folder.path().join("config.json"), |config| {
        config["vision_config"]["num_hidden_layers"] = json!(5)
    });
    assert_refused(folder.path(), &["vision_model.encoder.layers.4.", "missing"]);
    edit_json(&folder.path().join("config.json"), |config| {
        config["vision_config"]["num_hidden_layers"] = json!(3)
    });
    assert_refused(folder.path(), &["vision_model.encoder.layers.3.", "16 tensor(s)"]);
    edit_json(&folder.path().join("config.json"), |config| {
        config["vision_config"]["num_hidden_layers"] = json!(4);
        config["projection_dim"] = json!(25);
    });
    assert_refused(folder.path(), &["visual_projection.weight", "[24, 32]", "[25, 32]"]);
}

#[test]
fn damaged_weights_are_refused() {
    let name = "text_model.encoder.layers.1.mlp.fc1.weight";
    let folder = copy("large");
    edit_weights(folder.path(), |tensors| drop(tensors.remove(name)));
    assert_refused(folder.path(), &[name, "missing"]);

    let folder = copy("large");
    edit_weights(folder.path(), |tensors| {
        let tensor = tensors[name].narrow(0, 0, 95).unwrap();
        tensors.insert(name.to_owned(), tensor);
    });
    assert_refused(folder.path(), &[name, "[95, 24]", "[96, 24]"]);

    for bad in [f32::NAN, f32::INFINITY] {
        let folder = copy("large");
        edit_weights(folder.path(), |tensors| {
            let mut values = values(&tensors[name]);
            values[7] = bad;
            tensors.insert(name.to_owned(), Tensor::from_vec(values, (96, 24), &Device::Cpu).unwrap());
        });
        assert_refused(folder.path(), &[name, "not finite"]);
    }

    let folder = copy("large");
    edit_weights(folder.path(), |tensors| {
        tensors.insert("text_model.extra".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    });
    assert_refused(folder.path(), &["text_model.extra"]);

    let folder = copy("large");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(folder.path(), &[]);
}

#[test]
fn the_position_buffers_of_old_files_are_ignored() {
    let folder = copy("large");
    edit_weights(folder.path(), |tensors| {
        for (tower, len) in [("text", 77), ("vision", 17)] {
            let ids = Tensor::arange(0i64, len, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            tensors.insert(format!("{tower}_model.embeddings.position_ids"), ids);
        }
    });
    let want = expected("large");
    let got = try_load(folder.path()).unwrap().image_embeds(&want["pixel_values"]).unwrap();
    assert_close(&got, &want["image_embeds"], 1e-5);
}

#[test]
fn missing_files_are_named() {
    assert_refused(&golden("nowhere"), &["not a folder"]);
    let folder = copy("large");
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_refused(folder.path(), &["config.json"]);
}

#[test]
fn processors_that_do_something_else_are_refused() {
    let cases = [
        ("size", json!({"shortest_edge": 224}), vec!["size is 224", "image_size in config.json is 56"]),
        ("size", json!({"height": 56, "width": 56}), vec!["shortest_edge"]),
        ("crop_size", json!({"height": 56, "width": 57}), vec!["crop_size"]),
        ("resample", json!(2), vec!["resample is 2", "bicubic"]),
        ("do_center_crop", json!(false), vec!["do_center_crop is false"]),
        ("image_std", json!([0.2, 0.0, 0.2]), vec!["image_std holds 0"]),
        ("image_mean", json!([0.5]), vec!["preprocessor_config.json"]),
    ];
    for (key, value, parts) in cases {
        let folder = copy("large");
        edit_json(&folder.path().join("preprocessor_config.json"), |config| config[key] = value);
        assert_refused(folder.path(), &parts);
    }
}

#[test]
fn sizes_of_old_processor_files_are_plain_numbers() {
    let (folder, want) = (copy("large"), expected("large"));
    let old = json!({"crop_size": 56, "size": 56, "resample": 3, "do_resize": true, "do_normalize": true,
        "do_center_crop": true, "feature_extractor_type": "CLIPFeatureExtractor"});
    std::fs::write(folder.path().join("preprocessor_config.json"), old.to_string()).unwrap();
    let clip = try_load(folder.path()).unwrap();
    assert_eq!(
        clip.processor().pixel_values(&images(&want["images"])).unwrap(),
        values(&want["pixel_values"])
    );
}

#[test]
fn damaged_tokenizers_are_refused_and_missing_ones_only_when_needed() {
    let folder = copy("large");
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
    assert_refused(folder.path(), &["tokenizer.json"]);

    let folder = copy("legacy");
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\nabc\n").unwrap();
    assert_refused(folder.path(), &["merges.txt", "line 2"]);

    let folder = copy("legacy");
    edit_json(&folder.path().join("vocab.json"), |vocab| {
        drop(vocab.as_object_mut().unwrap().remove("<|endoftext|>"))
    });
    assert_refused(folder.path(), &["vocab.json", "<|endoftext|>"]);

    let folder = copy("large");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let clip = try_load(folder.path()).unwrap();
    let error = clip.encode_texts(&["a car".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn a_tokenizer_of_another_model_is_refused_when_it_shows() {
    let folder = copy("large");
    edit_json(&folder.path().join("config.json"), |config| config["text_config"]["eos_token_id"] = json!(3));
    let error = try_load(folder.path()).unwrap().encode_texts(&["a car".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("eos_token_id 3"), "{error}");
    let folder = copy("large");
    edit_json(&folder.path().join("config.json"), |config| config["text_config"]["vocab_size"] = json!(573));
    edit_weights(folder.path(), |tensors| {
        let name = "text_model.embeddings.token_embedding.weight";
        let tensor = tensors[name].narrow(0, 0, 573).unwrap();
        tensors.insert(name.to_owned(), tensor);
    });
    let error = try_load(folder.path()).unwrap().encode_texts(&["a car".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("gives token 573"), "{error}");
}

#[test]
fn inputs_of_the_wrong_size_are_refused() {
    let clip = load("large");
    let mut frames = many_images(56, 2);
    frames.push(RgbImage::new(56, 55));
    let error = clip.encode_images(&frames).unwrap_err();
    assert!(error.to_string().contains("image 2 is 56 x 55 pixels, expected 56 x 56"), "{error}");

    let pixels = Tensor::zeros((1, 3, 56, 42), DType::F32, &Device::Cpu).unwrap();
    let error = clip.image_embeds(&pixels).unwrap_err();
    assert!(error.to_string().contains("[1, 3, 56, 42], expected (B, 3, 56, 56)"), "{error}");

    for (row, part) in [(vec![], "has 0 tokens"), (vec![1; 78], "has 78 tokens"), (vec![574], "holds 574")] {
        let error = clip.text_embeds(&[vec![1, 573], row]).unwrap_err();
        assert!(error.to_string().contains(part) && error.to_string().contains("row 1"), "{error}");
    }
}
