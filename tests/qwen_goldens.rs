//! Qwen2.5-VL against transformers 4.51.3 on tiny random checkpoints (golden/qwen.py): vision embeddings, positions, logits
//! and greedy tokens in f32; bf16 by comparison with the reference's own bf16 run; damaged checkpoints.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use msjoe::models::qwen2_5_vl::generate::{Finish, Options};
use msjoe::models::qwen2_5_vl::mrope::{Media, Timing};
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};

/// Absolute, on values of order 1; measured differences are below 1.2e-5.
const TOLERANCE: f64 = 5e-5;

type Tensors = HashMap<String, Tensor>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What the reference computed, and a check that it was the reference we name.
fn expected(name: &str) -> Tensors {
    let path = folder(name).join("expected.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let notes = header.metadata().clone().unwrap();
    assert_eq!((notes["transformers"].as_str(), notes["attention"].as_str()), ("4.51.3", "eager"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// `noise()` of golden/qwen.py.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let value = |i: usize| {
        let mut x = (i as u32).wrapping_add(seed.wrapping_mul(0x9E37_79B9));
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        x ^= x >> 16;
        (x >> 9) as f32 / (1u32 << 22) as f32 - 1.0
    };
    (0..count).map(value).collect()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Worst and mean absolute difference.
fn distance(a: &Tensor, b: &Tensor) -> (f64, f64) {
    assert_eq!(a.dims(), b.dims());
    let flat = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let off: Vec<f64> = flat(a).iter().zip(flat(b)).map(|(a, b)| (a - b).abs()).collect();
    assert!(off.iter().all(|x| x.is_finite()));
    (off.iter().copied().fold(0.0, f64::max), off.iter().sum::<f64>() / off.len() as f64)
}

fn assert_close(what: &str, ours: &Tensor, reference: &Tensor, tolerance: f64) {
    let (worst, _) = distance(ours, reference);
    assert!(worst <= tolerance, "{what}: worst difference {worst:e}, allowed {tolerance:e}");
}

/// One case of a checkpoint: the prompt with features from our vision tower, and the tower's output per kind.
struct Case {
    prompt: Prompt,
    vision: Vec<(&'static str, Tensor)>,
}

fn case(model: &Qwen2_5Vl, golden: &Tensors, name: &str) -> Case {
    let get = |key: &str| golden.get(&format!("{name}.{key}"));
    let seed = 2 * (1 + ["text", "image", "video", "mixed"].iter().position(|x| *x == name).unwrap()) as u32;
    let input_ids: Vec<u32> = integers(get("input_ids").unwrap()).iter().map(|id| *id as u32).collect();
    let width = model.config.vision.patch_width();
    let seconds: Vec<f32> = get("second_per_grid_ts").map_or(vec![], |x| x.to_vec1().unwrap());
    let (mut vision, mut images, mut videos) = (vec![], vec![], vec![]);
    for (kind, key, seed) in [("image", "image_grid_thw", seed), ("video", "video_grid_thw", seed + 1)] {
        let Some(grids) = get(key) else { continue };
        let grids: Vec<[usize; 3]> =
            grids.to_vec2::<i64>().unwrap().iter().map(|g| [g[0], g[1], g[2]].map(|x| x as usize)).collect();
        let rows: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();
        let pixels = Tensor::from_vec(noise(rows * width, seed), (rows, width), &Device::Cpu).unwrap();
        let embeds = model.vision(&pixels, &grids).unwrap();
        let mut at = 0;
        for (i, &grid) in grids.iter().enumerate() {
            let tokens = grid.iter().product::<usize>() / 4;
            let features = embeds.narrow(0, at, tokens).unwrap();
            at += tokens;
            match kind {
                "image" => images.push((Media::Image { grid }, features)),
                _ => videos.push((Media::Video { grid, timing: Timing::Uniform(seconds[i]) }, features)),
            }
        }
        vision.push((kind, embeds));
    }
    // The order of the placeholders.
    let (mut images, mut videos) = (images.into_iter(), videos.into_iter());
    let runs = input_ids.chunk_by(|a, b| a == b).filter_map(|run| {
        let queue = if run[0] == model.config.image_token_id { &mut images } else { &mut videos };
        let pad = run[0] == model.config.image_token_id || run[0] == model.config.video_token_id;
        if pad { queue.next() } else { None }
    });
    let (media, features): (Vec<_>, Vec<_>) = runs.collect::<Vec<_>>().into_iter().unzip();
    Case { prompt: Prompt { input_ids, media, features }, vision }
}

/// All that the reference recorded for one case, in f32.
fn check(model: &Qwen2_5Vl, golden: &Tensors, checkpoint: &str, name: &str) {
    let get = |key: &str| &golden[&format!("{name}.{key}")];
    let what = |part: &str| format!("{checkpoint}, {name}: {part}");
    let Case { prompt, vision } = case(model, golden, name);
    for (kind, embeds) in &vision {
        assert_close(&what(kind), embeds, get(&format!("vision_embeds_{kind}")), TOLERANCE);
    }
    let positions = model.positions(&prompt).unwrap();
    let axes = (0..3).flat_map(|axis| positions.ids.iter().map(move |id| id[axis]));
    assert_eq!(axes.collect::<Vec<i64>>(), integers(get("position_ids")), "{}", what("positions"));
    assert_eq!(vec![positions.delta], integers(get("rope_delta")), "{}", what("delta"));
    let logits = model.forward(&prompt).unwrap();
    assert_close(&what("logits"), &logits, get("logits"), TOLERANCE);

    let stop_tokens = model.config.eos_token_ids.clone();
    let options = Options { max_new_tokens: 12, stop_tokens: stop_tokens.clone(), ..Options::default() };
    let made = model.generate(&[prompt], &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let tokens: Vec<i64> = made[0].tokens.iter().map(|id| i64::from(*id)).collect();
    assert_eq!(tokens, integers(get("greedy")), "{}", what("greedy"));
    let stopped = tokens.last().is_some_and(|id| stop_tokens.contains(&(*id as u32)));
    assert_eq!(made[0].finish == Finish::Stop, stopped, "{}", what("finish"));
}

fn check_all(checkpoint: &str, cases: &[&str]) {
    let model = Qwen2_5Vl::load(folder(checkpoint), DType::F32, &Device::Cpu).unwrap();
    let golden = expected(checkpoint);
    let recorded = golden.keys().filter(|key| key.ends_with(".greedy")).count();
    assert_eq!(recorded, cases.len());
    for name in cases {
        check(&model, &golden, checkpoint, name);
    }
}

#[test]
fn text_image_video_and_interleaved_media() {
    check_all("qwen_base", &["text", "image", "video", "mixed"]);
}

#[test]
fn grouped_queries_in_old_named_shards() {
    let model = folder("qwen_gqa");
    assert!(
        model.join("model-00002-of-00004.safetensors").is_file() && !model.join("model.safetensors").exists()
    );
    check_all("qwen_gqa", &["text", "mixed"]);
}

#[test]
fn tied_embeddings_under_new_names() {
    let tensors =
        candle_core::safetensors::load(folder("qwen_tied").join("model.safetensors"), &Device::Cpu).unwrap();
    assert!(
        tensors.contains_key("model.language_model.norm.weight") && !tensors.contains_key("lm_head.weight")
    );
    check_all("qwen_tied", &["image", "video"]);
}

/// Our bf16 run may be off by at most twice what the reference's own bf16 run is off, both against the reference's f32.
#[test]
fn bf16_is_as_close_as_the_references_bf16() {
    let golden = expected("qwen_base");
    let model = Qwen2_5Vl::load(folder("qwen_base"), DType::BF16, &Device::Cpu).unwrap();
    let Case { prompt, vision } = case(&model, &golden, "video");
    let logits = model.forward(&prompt).unwrap();
    for (key, ours) in [("vision_embeds_video", &vision[0].1), ("logits", &logits)] {
        let exact = &golden[&format!("video.{key}")];
        let (worst, mean) = distance(ours, exact);
        let (their_worst, their_mean) = distance(&golden[&format!("video.{key}_bf16")], exact);
        assert!(their_mean > 1e-4, "{key}: the reference's bf16 run is not one");
        let figures =
            format!("{key}: worst {worst:.4}, mean {mean:.5}; reference {their_worst:.4}, {their_mean:.5}");
        assert!(worst <= 2.0 * their_worst && mean <= 2.0 * their_mean, "{figures}");
    }
}

/// f16 has three more bits of mantissa than bf16 and must be closer to f32.
#[test]
fn f16_is_closer_than_the_references_bf16() {
    let golden = expected("qwen_base");
    let model = Qwen2_5Vl::load(folder("qwen_base"), DType::F16, &Device::Cpu).unwrap();
    let Case { prompt, .. } = case(&model, &golden, "video");
    let (worst, _) = distance(&model.forward(&prompt).unwrap(), &golden["video.logits"]);
    let (bf16, _) = distance(&golden["video.logits_bf16"], &golden["video.logits"]);
    assert!(worst <= bf16 / 2.0, "f16 worst {worst}, the reference's bf16 {bf16}");
}

/// The goldens see what they are meant to see: other positions, or another window, change the result measurably.
#[test]
fn goldens_are_sensitive() {
    let golden = expected("qwen_base");
    let mut model = Qwen2_5Vl::load(folder("qwen_base"), DType::F32, &Device::Cpu).unwrap();
    let Case { mut prompt, .. } = case(&model, &golden, "video");
    prompt.media[0] = Media::Video { grid: [3, 10, 6], timing: Timing::Uniform(1.2) };
    let (worst, _) = distance(&model.forward(&prompt).unwrap(), &golden["video.logits"]);
    assert!(worst > 1e-2, "another slice interval moved the logits by {worst} only");
    let edited = tempfile::tempdir().unwrap();
    copy(&folder("qwen_base"), edited.path());
    let config = std::fs::read_to_string(edited.path().join("config.json")).unwrap();
    std::fs::write(
        edited.path().join("config.json"),
        config.replace("\"window_size\": 112", "\"window_size\": 56"),
    )
    .unwrap();
    model = Qwen2_5Vl::load(edited.path(), DType::F32, &Device::Cpu).unwrap();
    let Case { vision, .. } = case(&model, &golden, "video");
    let (worst, _) = distance(&vision[0].1, &golden["video.vision_embeds_video"]);
    assert!(worst > 1e-2, "another window moved the vision embeddings by {worst} only");
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A copy of a checkpoint with one tensor changed (or removed) under the name it is stored by.
fn damaged(checkpoint: &str, name: &str, change: impl Fn(Tensor) -> Option<Tensor>) -> String {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder(checkpoint), dir.path());
    let path = dir.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let tensor = tensors.remove(name).unwrap();
    if let Some(changed) = change(tensor) {
        tensors.insert(name.to_owned(), changed);
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = Qwen2_5Vl::load(dir.path(), DType::F32, &Device::Cpu).map(drop).unwrap_err();
    assert!(matches!(error, msjoe::Error::Checkpoint { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn damaged_checkpoints_are_named() {
    let missing = damaged("qwen_base", "visual.merger.mlp.2.bias", |_| None);
    assert!(missing.contains("visual.merger.mlp.2.bias is missing"), "{missing}");
    let head = damaged("qwen_base", "lm_head.weight", |_| None);
    assert!(head.contains("lm_head.weight"), "{head}");
    let shape = damaged("qwen_base", "model.layers.1.self_attn.k_proj.weight", |x| x.i(..30).ok());
    assert!(
        shape.contains("k_proj.weight") && shape.contains("[30, 64]") && shape.contains("[32, 64]"),
        "{shape}"
    );
    let nan = damaged("qwen_base", "model.norm.weight", |x| (x * f64::NAN).ok());
    assert!(nan.contains("model.norm.weight") && nan.contains("not finite"), "{nan}");
    let layer = damaged("qwen_tied", "model.language_model.layers.0.mlp.up_proj.weight", |_| None);
    assert!(layer.contains("layers.0.mlp.up_proj.weight"), "{layer}");
    let dir = tempfile::tempdir().unwrap();
    copy(&folder("qwen_gqa"), dir.path());
    std::fs::remove_file(dir.path().join("model-00003-of-00004.safetensors")).unwrap();
    let shard = Qwen2_5Vl::load(dir.path(), DType::F32, &Device::Cpu).map(drop).unwrap_err().to_string();
    assert!(shard.contains("model-00003-of-00004.safetensors"), "{shard}");
    let dir = tempfile::tempdir().unwrap();
    copy(&folder("qwen_base"), dir.path());
    let path = dir.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    tensors.insert("model.layers.9.extra".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let extra = Qwen2_5Vl::load(dir.path(), DType::F32, &Device::Cpu).map(drop).unwrap_err().to_string();
    assert!(extra.contains("model.layers.9.extra"), "{extra}");
}
