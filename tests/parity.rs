//! `msjoe::parity`: the goldens through named tensors, and one test per bad input.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use msjoe::Error;
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::Qwen2_5Vl;
use msjoe::models::qwen2_5_vl::generate::Options;
use msjoe::parity;

type Tensors = HashMap<String, Tensor>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn qwen() -> Qwen2_5Vl {
    Qwen2_5Vl::load(folder("qwen_gqa"), DType::F32, &Device::Cpu).unwrap()
}

fn options() -> Options {
    Options { max_new_tokens: 3, ..Options::default() }
}

fn integers(values: &[i64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn floats(shape: (usize, usize)) -> Tensor {
    Tensor::rand(-1f32, 1f32, shape, &Device::Cpu).unwrap()
}

/// An image of 2 tokens and a video of 2 slices with 1 token each (patch width 96); the video comes first in the prompt.
fn valid() -> Tensors {
    let grids = |rows: &[i64]| integers(rows).reshape(((), 3)).unwrap();
    [
        ("input_ids", integers(&[7, 150, 153, 153, 151, 150, 152, 152, 151, 9])),
        ("pixel_values", floats((8, 96))),
        ("image_grid_thw", grids(&[1, 2, 4])),
        ("pixel_values_videos", floats((8, 96))),
        ("video_grid_thw", grids(&[2, 2, 2])),
        ("second_per_grid_ts", Tensor::new(&[1.5f32], &Device::Cpu).unwrap()),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into()
}

#[test]
fn outputs_of_both_kinds_of_media() {
    let (model, inputs) = (qwen(), valid());
    let made = parity::qwen2_5_vl(&model, inputs.clone(), &options()).unwrap();
    let shapes: Vec<_> = made.iter().map(|(name, x)| (name.as_str(), x.dtype(), x.dims().to_vec())).collect();
    let expected = [
        ("greedy", DType::I64, vec![3]),
        ("logits", DType::F32, vec![10, 160]),
        ("position_ids", DType::I64, vec![3, 10]),
        ("vision_embeds_image", DType::F32, vec![2, 48]),
        ("vision_embeds_video", DType::F32, vec![2, 48]),
    ];
    assert_eq!(shapes, expected);
    let t = made["position_ids"].to_vec2::<i64>().unwrap()[0].clone();
    assert_eq!(t, [0, 1, 2, 5, 6, 7, 8, 8, 10, 11]);
    let video = model.vision(&inputs["pixel_values_videos"], &[[2, 2, 2]]).unwrap();
    let same = (video - &made["vision_embeds_video"]).unwrap().abs().unwrap().max_all().unwrap();
    assert_eq!(same.to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn text_alone_and_no_new_tokens() {
    let inputs = HashMap::from([("input_ids".to_owned(), integers(&[3, 4, 5]))]);
    let options = Options { max_new_tokens: 0, ..Options::default() };
    let made = parity::qwen2_5_vl(&qwen(), inputs, &options).unwrap();
    assert_eq!(made.keys().map(String::as_str).collect::<Vec<_>>(), ["greedy", "logits", "position_ids"]);
    assert_eq!(made["greedy"].dims(), [0]);
}

#[test]
fn absent_slice_interval_is_one_second() {
    let model = qwen();
    let mut inputs = valid();
    inputs.insert("second_per_grid_ts".to_owned(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
    let given = parity::qwen2_5_vl(&model, inputs.clone(), &options()).unwrap();
    inputs.remove("second_per_grid_ts");
    let absent = parity::qwen2_5_vl(&model, inputs, &options()).unwrap();
    let logits = |made: &parity::Outputs| made["logits"].to_vec2::<f32>().unwrap();
    assert_eq!(logits(&given), logits(&absent));
}

/// `None` removes the tensor.
type Change = (&'static str, Option<Tensor>, &'static str);

fn assert_refused(what: &str, made: msjoe::Result<parity::Outputs>, words: &str) {
    match made {
        Err(Error::Input(message)) => assert!(message.contains(words), "{what}: {message:?} lacks {words:?}"),
        other => panic!("{what}: expected {words:?}, got {other:?}"),
    }
}

#[test]
fn bad_qwen_inputs_are_named() {
    let one = |values: &[i64]| Some(integers(values));
    let grid = |values: &[i64]| Some(integers(values).reshape(((), 3)).unwrap());
    let nan = Tensor::full(f32::NAN, (8, 96), &Device::Cpu).unwrap();
    let two = Tensor::new(&[1f32, 1.0], &Device::Cpu).unwrap();
    let changes: Vec<Change> = vec![
        ("input_ids", None, "input_ids is missing, expected i64 (L)"),
        ("input_ids", Some(floats((1, 4))), "input_ids is f32 [1, 4]"),
        ("input_ids", Some(integers(&[1, 2]).reshape((1, 2)).unwrap()), "input_ids is i64 [1, 2]"),
        ("input_ids", one(&[]), "input_ids is i64 [0]"),
        ("input_ids", one(&[1, 160]), "token 160 is outside the vocabulary of 160"),
        ("input_ids", one(&[1, -1]), "token -1"),
        ("input_ids", one(&[1, 2, 3]), "no pad tokens for"),
        ("input_ids", one(&[150, 153, 153, 151, 150, 152, 152, 152, 151]), "3 pad tokens, expected 2"),
        ("input_ids", one(&[150, 153, 153, 151, 150, 152, 152, 150, 152, 152]), "no image was given"),
        ("pixel_values", None, "image_grid_thw without pixel_values"),
        ("pixel_values", Some(floats((8, 97))), "pixel_values is f32 [8, 97], expected f32 (N, 96)"),
        ("pixel_values", Some(floats((7, 96))), "pixel_values has 7 rows, expected 8"),
        ("pixel_values", Some(nan), "pixel_values: value 0 is NaN"),
        ("image_grid_thw", None, "pixel_values without image_grid_thw"),
        ("image_grid_thw", grid(&[1, 3, 4]), "multiples of 2"),
        ("image_grid_thw", grid(&[1, -2, 4]), "negative"),
        ("image_grid_thw", grid(&[0, 2, 4]), "at least one slice"),
        ("image_grid_thw", one(&[1, 2, 4]), "image_grid_thw is i64 [3], expected i64 (count, 3)"),
        ("video_grid_thw", grid(&[1, 2, 2]), "pixel_values_videos has 8 rows, expected 4"),
        ("video_grid_thw", grid(&[i64::MAX, 2, 2]), "expected 18446744073709551615"),
        ("second_per_grid_ts", Some(two), "second_per_grid_ts has 2 values for 1 videos"),
        ("second_per_grid_ts", Some(Tensor::new(&[-1f32], &Device::Cpu).unwrap()), "video time -1 s"),
        ("attention_mask", one(&[1]), "unknown input tensors [\"attention_mask\"]"),
    ];
    let model = qwen();
    for (name, tensor, words) in changes {
        let mut inputs = valid();
        match tensor {
            Some(tensor) => inputs.insert(name.to_owned(), tensor),
            None => inputs.remove(name),
        };
        assert_refused(name, parity::qwen2_5_vl(&model, inputs, &options()), words);
    }
    let mut inputs = valid();
    inputs.retain(|name, _| name == "input_ids" || name == "second_per_grid_ts");
    let made = parity::qwen2_5_vl(&model, inputs, &options());
    assert_refused("seconds", made, "second_per_grid_ts without pixel_values_videos");
}

#[test]
fn clip_goldens_and_bad_inputs() {
    let dir = folder("clip/legacy");
    let model = Clip::load(&dir, DType::F32, &Device::Cpu).unwrap();
    let side = model.image_size() as usize;
    let pixels = Tensor::rand(-1f32, 1f32, (2, 3, side, side), &Device::Cpu).unwrap();
    let end = i64::from(*model.tokenize("a dog").unwrap().last().unwrap());
    let ids = integers(&[1, 2, end, 3, end, end, 4, 5, end]).reshape((3, 3)).unwrap();
    let inputs: Tensors =
        [("pixel_values", pixels.clone()), ("input_ids", ids)].map(|(name, x)| (name.to_owned(), x)).into();
    let made = parity::clip(&model, inputs.clone()).unwrap();
    assert_eq!(made["similarity"].dims(), [3, 2]);
    assert_eq!((made["image_embeds"].dim(0).unwrap(), made["text_embeds"].dim(0).unwrap()), (2, 3));
    // The cosine of the first pair, by hand.
    let row = |name: &str| made[name].to_vec2::<f32>().unwrap()[0].clone();
    let (a, b) = (row("text_embeds"), row("image_embeds"));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    assert!((cosine - f64::from(made["similarity"].to_vec2::<f32>().unwrap()[0][0])).abs() < 1e-6);

    let changes: Vec<Change> = vec![
        ("pixel_values", None, "pixel_values is missing, expected f32 (B, 3, H, W)"),
        ("pixel_values", Some(pixels.narrow(1, 0, 2).unwrap()), "pixel_values is f32 [2, 2,"),
        ("pixel_values", Some(pixels.to_dtype(DType::F64).unwrap()), "pixel_values is f64"),
        ("input_ids", Some(integers(&[1, 2])), "input_ids is i64 [2], expected i64 (Q, L)"),
        ("input_ids", Some(integers(&[1, 1 << 40]).reshape((1, 2)).unwrap()), "outside the vocabulary"),
        ("attention_mask", Some(integers(&[1])), "unknown input tensors"),
    ];
    for (name, tensor, words) in changes {
        let mut inputs = inputs.clone();
        match tensor {
            Some(tensor) => inputs.insert(name.to_owned(), tensor),
            None => inputs.remove(name),
        };
        assert_refused(name, parity::clip(&model, inputs), words);
    }
}
