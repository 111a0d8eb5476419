//! Adapter files against PEFT's own (golden/peft_round_trip.py, both generations of module names), merging, bad files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use msjoe::checkpoint::peft::export::merged;
use msjoe::checkpoint::peft::{self, LoraConfig, Names};
use msjoe::models::qwen2_5_vl::adapter::Adapter;
use msjoe::models::qwen2_5_vl::mrope::Media;
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::{Error, parity};
use serde_json::{Map, Value, json};

use crate::backward::folder;
use crate::nn::relative;

/// Absolute, on logits of order 1.
const TOLERANCE: f32 = 5e-5;

fn golden(layout: &str) -> PathBuf {
    folder("peft").join(layout)
}

fn base(dtype: DType) -> Qwen2_5Vl {
    Qwen2_5Vl::load(folder("qwen_gqa"), dtype, &Device::Cpu).unwrap()
}

fn load(dir: impl AsRef<Path>) -> Qwen2_5Vl {
    let base = base(DType::F32);
    base.with_adapter(&Adapter::load(dir, &base).unwrap()).unwrap().detached()
}

struct Expected(HashMap<String, Tensor>);

impl Expected {
    fn read(layout: &str) -> Self {
        let path = golden(layout).join("expected.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let notes = header.metadata().clone().unwrap();
        let versions = if layout == "legacy" { ("4.51.3", "0.15.2") } else { ("4.57.6", "0.18.1") };
        assert_eq!((notes["transformers"].as_str(), notes["peft"].as_str()), versions);
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn logits(&self, model: &Qwen2_5Vl) -> Tensor {
        let ids: Vec<i64> = self.0["input_ids"].to_vec1().unwrap();
        let grid = [1, 4, 4];
        let prompt = Prompt {
            input_ids: ids.into_iter().map(|id| id as u32).collect(),
            media: vec![Media::Image { grid }],
            features: vec![model.vision(&self.0["pixel_values"], &[grid]).unwrap()],
        };
        model.forward(&prompt).unwrap()
    }

    fn off(&self, model: &Qwen2_5Vl, key: &str) -> f32 {
        worst(&self.logits(model), &self.0[key])
    }
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn logits_of_pefts_adapters() {
    for layout in ["legacy", "current"] {
        let expected = Expected::read(layout);
        assert!(expected.off(&base(DType::F32), "base_logits") < TOLERANCE, "{layout}");
        assert!(worst(&expected.0["logits"], &expected.0["base_logits"]) > 0.1, "{layout} changes nothing");
        let off = expected.off(&load(golden(layout)), "logits");
        assert!(off < TOLERANCE, "{layout}: {off:e}");
    }
}

/// The goldens see what they are meant to see: the other scale, or no patterns, change the logits.
#[test]
fn goldens_are_sensitive() {
    let expected = Expected::read("legacy");
    for change in [("use_rslora", json!(false)), ("alpha_pattern", json!({})), ("lora_alpha", json!(7))] {
        let dir = edited("legacy", |fields, _| {
            fields.insert(change.0.to_owned(), change.1.clone());
        });
        let off = expected.off(&load(dir.path()), "logits");
        assert!(off > 1e-2, "{}: {off:e}", change.0);
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    let base = base(DType::F32);
    for layout in ["legacy", "current"] {
        let theirs = Adapter::load(golden(layout), &base).unwrap();
        for names in [Names::Current, Names::Legacy] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("new/folder");
            std::fs::create_dir(dir.path().join("new")).unwrap();
            theirs.save(&out, names).unwrap();
            let ours = Adapter::load(&out, &base).unwrap();
            assert_eq!(ours.config, theirs.config);
            for ((name, a), (other, b)) in ours.parameters().iter().zip(theirs.parameters().iter()) {
                assert_eq!((name, worst(a, b)), (other, 0.0));
            }
            let file =
                candle_core::safetensors::load(out.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
            let prefix = match names {
                Names::Current => "base_model.model.model.language_model.layers.",
                Names::Legacy => "base_model.model.model.layers.",
            };
            let text: Vec<&String> = file.keys().filter(|name| name.contains(".layers.")).collect();
            assert!(!text.is_empty() && text.iter().all(|name| name.starts_with(prefix)), "{text:?}");
            let same_layout = (names == Names::Legacy) == (layout == "legacy");
            let stored = golden(layout).join("adapter_model.safetensors");
            if same_layout {
                let stored = candle_core::safetensors::load(stored, &Device::Cpu).unwrap();
                let sorted = |names: &HashMap<String, Tensor>| {
                    names.keys().cloned().collect::<std::collections::BTreeSet<_>>()
                };
                assert_eq!(sorted(&file), sorted(&stored));
            }
        }
    }
}

#[test]
fn the_configuration_has_the_fields_of_peft() {
    let read = |path: PathBuf| -> Map<String, Value> {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let theirs = read(golden("current").join("adapter_config.json"));
    let dir = tempfile::tempdir().unwrap();
    let config = LoraConfig::read(&golden("current").join("adapter_config.json")).unwrap();
    config.write(&dir.path().join("adapter_config.json")).unwrap();
    let ours = read(dir.path().join("adapter_config.json"));
    let names =
        |fields: &Map<String, Value>| fields.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (name, value) in &theirs {
        // Dropout is part of training; the order of a list of targets means nothing.
        if name != "lora_dropout" && name != "target_modules" {
            assert_eq!(&ours[name], value, "{name}");
        }
    }
}

#[test]
fn merged_weights_equal_the_adapter() {
    for layout in ["legacy", "current"] {
        let expected = Expected::read(layout);
        let base = base(DType::F32);
        let adapter = Adapter::load(golden(layout), &base).unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapter.export_merged(folder("qwen_gqa"), dir.path().join("whole")).unwrap();
        let model = Qwen2_5Vl::load(dir.path().join("whole"), DType::F32, &Device::Cpu).unwrap();
        // The base is stored in f32 here, so only the order of the sums differs.
        assert!(expected.off(&model, "logits") < TOLERANCE, "{layout}");
        for name in ["config.json", "generation_config.json"] {
            let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
            assert_eq!(read(&dir.path().join("whole")), read(&folder("qwen_gqa")), "{name}");
        }
        let split = dir.path().join("split");
        merged(&folder("qwen_gqa"), &adapter.deltas().unwrap(), &split, 60_000).unwrap();
        let shards = std::fs::read_dir(&split)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".safetensors"));
        assert!(shards.count() >= 4);
        let other = Qwen2_5Vl::load(&split, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(worst(&expected.logits(&model), &expected.logits(&other)), 0.0);
        // The modules that have no adapter are the base's, bit for bit.
        let tensors =
            |dir: &Path| msjoe::checkpoint::Checkpoint::open(dir).unwrap().tensors(DType::F32, &Device::Cpu);
        let (new, old) = (tensors(&split).unwrap(), tensors(&folder("qwen_gqa")).unwrap());
        assert_eq!(new.keys().collect::<Vec<_>>(), old.keys().collect::<Vec<_>>());
        let changed = new.iter().filter(|(name, x)| relative(x, &old[*name]) > 0.0).count();
        assert_eq!(2 * changed, adapter.parameters().len());
    }
}

#[test]
fn exports_do_not_overwrite_and_name_what_is_missing() {
    let base = base(DType::F32);
    let adapter = Adapter::load(golden("current"), &base).unwrap();
    let error = adapter.export_merged(folder("qwen_gqa"), folder("qwen_gqa")).unwrap_err().to_string();
    assert!(error.contains("is in the way"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let delta = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let run = |name: &str, out: &str| {
        let deltas = BTreeMap::from([(name.to_owned(), delta.clone())]);
        merged(&folder("qwen_gqa"), &deltas, &dir.path().join(out), 1 << 20).unwrap_err().to_string()
    };
    let error = run("model.language_model.layers.9.mlp.up_proj", "a");
    assert!(error.contains("layers.9.mlp.up_proj"), "{error}");
    let error = run("model.language_model.layers.0.mlp.up_proj", "b");
    assert!(error.contains("up_proj.weight") && error.contains("[2, 2]"), "{error}");
    // No model where the export failed.
    assert!(!dir.path().join("b/config.json").exists());
}

#[test]
fn parity_runs_an_adapter() {
    let expected = Expected::read("legacy");
    let inputs = ["input_ids", "pixel_values", "image_grid_thw"]
        .map(|name| (name.to_owned(), expected.0[name].clone()));
    let made = parity::qwen2_5_vl(&load(golden("legacy")), inputs.into(), &Default::default()).unwrap();
    assert!(worst(&made["logits"], &expected.0["logits"]) < TOLERANCE);
}

type Tensors = BTreeMap<String, Tensor>;

/// A copy of a golden adapter with its configuration and tensors changed.
fn edited(layout: &str, change: impl FnOnce(&mut Map<String, Value>, &mut Tensors)) -> tempfile::TempDir {
    let text = std::fs::read_to_string(golden(layout).join("adapter_config.json")).unwrap();
    let mut fields: Map<String, Value> = serde_json::from_str(&text).unwrap();
    let stored = golden(layout).join("adapter_model.safetensors");
    let mut tensors: Tensors =
        candle_core::safetensors::load(stored, &Device::Cpu).unwrap().into_iter().collect();
    change(&mut fields, &mut tensors);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), serde_json::to_string(&fields).unwrap()).unwrap();
    msjoe::checkpoint::write_safetensors(&dir.path().join("adapter_model.safetensors"), &tensors, None)
        .unwrap();
    dir
}

fn refused(dir: &Path, words: &str) {
    let error = Adapter::load(dir, &base(DType::F32)).map(drop).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. } | Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains(words), "{:?} lacks {words:?}", error.to_string());
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let cases = [
        ("peft_type", json!("IA3"), "peft_type is IA3"),
        ("use_dora", json!(true), "use_dora is true"),
        ("bias", json!("all"), "bias is \"all\""),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save is [\"lm_head\"]"),
        ("layer_replication", json!([[0, 1]]), "layer_replication"),
        ("target_parameters", json!(["a"]), "target_parameters"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out is true"),
        ("layers_to_transform", json!(0), "layers_to_transform is 0"),
        ("trainable_token_indices", json!([1]), "trainable_token_indices"),
        ("lora_bias", json!(true), "lora_bias"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights is \"pissa\""),
        ("r", json!(0), "rank of at least 1"),
        ("r", json!("8"), "r is \"8\""),
        ("use_rslora", json!("true"), "use_rslora is \"true\", expected true or false"),
        ("r", Value::Null, "r is missing"),
        ("lora_alpha", json!("x"), "lora_alpha is \"x\""),
        ("target_modules", Value::Null, "target_modules is missing"),
        ("target_modules", json!("all-linear"), "all-linear"),
        ("target_modules", json!(3), "target_modules is 3"),
        ("rank_pattern", json!({"q_proj": "x"}), "rank_pattern: q_proj is \"x\""),
        ("rank_pattern", json!([1]), "rank_pattern is [1]"),
        ("target_modules", json!(["q_proj", "k_proj"]), "which target_modules does not mean"),
        ("exclude_modules", json!(null), "layers.0.mlp.gate_proj, but its factors are missing"),
        ("rank_pattern", json!({"q_proj": 5}), "q_proj: A [3, 48] and B [48, 3], expected [5, 48]"),
    ];
    for (field, value, words) in cases {
        let dir = edited("current", |fields, _| {
            fields.insert(field.to_owned(), value);
        });
        refused(dir.path(), words);
    }
}

#[test]
fn accepted_variants() {
    // bf16 factors, unknown and missing optional fields, harmless initialisations.
    let dir = edited("current", |fields, tensors| {
        fields.insert("a_later_field".to_owned(), json!({"x": 1}));
        fields.insert("init_lora_weights".to_owned(), json!("gaussian"));
        for name in ["alpha_pattern", "use_dora", "bias", "peft_version", "loftq_config"] {
            fields.remove(name);
        }
        for tensor in tensors.values_mut() {
            *tensor = tensor.to_dtype(DType::BF16).unwrap();
        }
    });
    let expected = Expected::read("current");
    let off = relative(&expected.logits(&load(dir.path())), &expected.0["logits"]);
    assert!(off > 1e-4 && off < 0.02, "{off}");
}

#[test]
fn damaged_files_are_named() {
    let key = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight";
    let with = |change: &dyn Fn(&mut Tensors)| edited("current", |_, tensors| change(tensors));
    let rename = |to: &str| {
        with(&|tensors| {
            let tensor = tensors.remove(key).unwrap();
            tensors.insert(to.to_owned(), tensor);
        })
    };
    refused(
        with(&|tensors| drop(tensors.remove(key))).path(),
        "layers.1.self_attn.q_proj has lora_B, but no lora_A",
    );
    let b = key.replace("lora_A", "lora_B");
    refused(with(&|tensors| drop(tensors.remove(&b))).path(), "has lora_A, but no lora_B");
    refused(
        rename("language_model.q_proj.lora_A.weight").path(),
        "language_model.q_proj.lora_A.weight: expected",
    );
    refused(
        rename(&key.replace("lora_A", "lora_magnitude_vector")).path(),
        "lora_magnitude_vector.weight: expected",
    );
    let elsewhere = |module: &str| {
        with(&|tensors| {
            for factor in ["lora_A", "lora_B"] {
                let tensor = tensors[&key.replace("lora_A", factor)].clone();
                tensors.insert(format!("base_model.model.{module}.{factor}.weight"), tensor);
            }
        })
    };
    refused(elsewhere("model.language_model.layers.7.self_attn.q_proj").path(), "layers.7.self_attn.q_proj");
    refused(elsewhere("lm_head").path(), "lm_head");
    refused(elsewhere("model.layers.1.self_attn.q_proj").path(), "is there twice");
    let change = |change: &dyn Fn(&Tensor) -> Tensor| {
        with(&|tensors| {
            let tensor = change(&tensors[key]);
            tensors.insert(key.to_owned(), tensor);
        })
    };
    refused(change(&|x| (x * f64::NAN).unwrap()).path(), "not finite");
    refused(change(&|x| x.narrow(0, 0, 2).unwrap()).path(), "no rank in common");
    refused(change(&|x| x.narrow(1, 0, 40).unwrap()).path(), "expected [3, 48]");
    refused(change(&|x| x.flatten_all().unwrap()).path(), "is no factor");
    refused(with(&|tensors| tensors.clear()).path(), "holds no factors");
    let dir = edited("current", |_, _| ());
    std::fs::write(dir.path().join("adapter_model.safetensors"), b"not safetensors").unwrap();
    refused(dir.path(), "adapter_model.safetensors");
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), b"").unwrap();
    refused(dir.path(), "adapter_model.bin is a pickle");
    std::fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    refused(dir.path(), "adapter_config.json");
    let error = peft::read("/nowhere", &Device::Cpu).map(drop).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
}
