//! Qwen2.5-VL's image processor: sizes, budgets, patch rows.

use std::collections::HashMap;

use image::RgbImage;
use msjoe::Error;
use msjoe::models::qwen2_5_vl::processor::{
    Budget, Patches, PixelLimits, Processor, Rule, Size, VideoBudget, smart_resize,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::{Digest, Sha256};

const PIXELS: &[u8] = include_bytes!("golden/qwen_pixels.safetensors");

/// `frame()` of golden/qwen_processor.py.
fn frame(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([0u32, 1, 2].map(|c| {
            let noise = (x * 31 + y * 17 + c * 7 + seed * 101) * (x + 3 * y + 5) % 23;
            ((x * (3 + c) + y * (5 - c) + 90 * ((x / 9 + y / 13 + seed) % 2) + noise) % 256) as u8
        }))
    })
}

fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

#[derive(Deserialize)]
struct Sizes {
    transformers: Vec<Resized>,
    transformers_5: Vec<Resized>,
    qwen_vl_utils: Vec<Resized>,
    videos: Vec<VideoSize>,
}

/// height, width, frames, settings, and the sizes of both passes.
type VideoSize = (u32, u32, usize, Options, [u32; 2], [u32; 2]);

/// height, width, factor, least and most pixels, `[height, width]` or nothing where the reference raises.
type Resized = (u32, u32, u32, f64, f64, Option<[u32; 2]>);

#[derive(Deserialize)]
struct Options {
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
    total_pixels: Option<u64>,
}

fn sizes() -> Sizes {
    serde_json::from_str(include_str!("golden/qwen_sizes.json")).unwrap()
}

#[test]
fn smart_resize_as_the_references() {
    let sizes = sizes();
    let tables = [
        (Rule::Transformers, sizes.transformers),
        (Rule::Transformers5, sizes.transformers_5),
        (Rule::QwenVlUtils, sizes.qwen_vl_utils),
    ];
    for (rule, table) in tables {
        assert!(table.len() > 300);
        for (height, width, factor, min, max, expected) in table {
            let made = smart_resize(size(width, height), factor, PixelLimits { min, max }, rule);
            // Where the reference returns an empty frame or takes limits that exclude each other, we refuse.
            let expected = expected.filter(|[h, w]| *h > 0 && *w > 0 && min <= max);
            match (made, expected) {
                (Ok(made), Some([h, w])) => assert_eq!(made, size(w, h), "{rule:?} {width} x {height}"),
                (Err(Error::Input(_)), None) => {}
                (made, expected) => {
                    panic!("{rule:?} {width} x {height} in {min} to {max}: {made:?}, reference {expected:?}")
                }
            }
        }
    }
}

#[test]
fn halves_go_to_even() {
    let unlimited = PixelLimits { min: 0.0, max: 1e12 };
    for (edge, expected) in
        [(42, 56), (70, 56), (98, 112), (126, 112), (154, 168), (182, 168), (350, 336), (406, 392)]
    {
        let made = smart_resize(size(edge, 280), 28, unlimited, Rule::Transformers).unwrap();
        assert_eq!(made, size(expected, 280));
    }
}

#[test]
fn video_sizes_as_qwen_vl_utils() {
    for (width, height, frames, options, image, video) in sizes().videos {
        let Options { min_pixels, max_pixels, total_pixels } = options;
        let budget = VideoBudget { min_pixels, max_pixels, total_pixels };
        let made = budget.frame_list_sizes(size(width, height), frames, 28).unwrap();
        assert_eq!(
            made,
            [size(image[0], image[1]), size(video[0], video[1])],
            "{width} x {height}, {frames}"
        );
        let planned =
            Processor::default().plan(image[0], image[1], &Budget::Video { frames, budget }).unwrap();
        assert_eq!(planned, made[1]);
    }
}

/// 1080p: frame size and tokens per frame pair.
#[test]
fn video_budgets_of_1080p() {
    let processor = Processor::default();
    let limited = |max_pixels| VideoBudget { max_pixels: Some(max_pixels), ..VideoBudget::default() };
    let default = VideoBudget::default();
    let cases = [
        (64, default, (1008, 560), 720),
        (64, limited(307_200), (728, 392), 364),
        (64, limited(235_200), (644, 336), 276),
        (4096, default, (420, 224), 120),
    ];
    for (frames, budget, (width, height), pair) in cases {
        let made = processor.plan(1920, 1080, &Budget::Video { frames, budget }).unwrap();
        assert_eq!(made, size(width, height));
        assert_eq!(processor.tokens(made, frames), pair * frames / 2);
    }
}

#[test]
fn previews_of_32_tokens() {
    let processor = Processor::default();
    let cases = [((1920, 1080), (7, 4)), ((1080, 1920), (4, 7)), ((640, 480), (6, 5)), ((512, 512), (5, 5))];
    for ((width, height), (columns, rows)) in cases {
        let made = processor.plan(width, height, &Budget::Slice { tokens: 32 }).unwrap();
        assert_eq!(made, size(columns * 28, rows * 28), "{width} x {height}");
    }
    // Never larger than what completes the last token, never smaller than one token.
    assert_eq!(processor.plan(30, 20, &Budget::Slice { tokens: 32 }).unwrap(), size(56, 28));
    assert_eq!(processor.plan(20_000, 100, &Budget::Slice { tokens: 32 }).unwrap(), size(32 * 28, 28));
}

proptest! {
    #[test]
    fn plans_keep_their_budget(width in 1u32..4000, height in 1u32..4000, tokens in 1usize..2000, frames in 1usize..80) {
        prop_assume!(width.max(height) <= 200 * width.min(height));
        let processor = Processor::default();
        for (budget, frames, slices) in [
            (Budget::Slice { tokens }, 1, 1),
            (Budget::Total { frames, tokens: tokens.max(frames) }, frames, frames.div_ceil(2)),
        ] {
            let made = processor.plan(width, height, &budget).unwrap();
            let most = if slices == 1 && frames == 1 { tokens } else { tokens.max(frames) };
            prop_assert!(processor.tokens(made, frames) <= most);
            prop_assert!(made.width % 28 == 0 && made.height % 28 == 0 && made.width > 0 && made.height > 0);
            prop_assert!(made.width < width + 28 && made.height < height + 28);
        }
    }

    /// With room for a few tokens on each edge the aspect ratio is kept: off by at most three quarters of a token on one edge.
    #[test]
    fn plans_keep_the_aspect_ratio(width in 300u32..4000, height in 300u32..4000, tokens in 30usize..800) {
        prop_assume!(width.max(height) <= 4 * width.min(height));
        let made = Processor::default().plan(width, height, &Budget::Slice { tokens }).unwrap();
        let (rows, columns) = (f64::from(made.height / 28), f64::from(made.width / 28));
        let bent = (columns / rows) / (f64::from(width) / f64::from(height));
        let allowed = ((rows + 0.75) / rows).max((columns + 0.75) / columns);
        prop_assert!(bent.max(1.0 / bent) <= allowed, "{made:?} bends {bent}");
    }
}

fn golden() -> (SafeTensors<'static>, HashMap<String, String>) {
    let (_, header) = SafeTensors::read_metadata(PIXELS).unwrap();
    (SafeTensors::deserialize(PIXELS).unwrap(), header.metadata().clone().unwrap())
}

/// Compares grid and, bit for bit, rows.
fn assert_patches(name: &str, made: &Patches) {
    let (tensors, notes) = golden();
    assert_eq!(notes["transformers"], "4.51.3");
    assert_eq!(notes["processor"], "Qwen2VLImageProcessor");
    let grid = tensors.tensor(&format!("{name}.grid")).unwrap();
    let grid: Vec<usize> =
        grid.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect();
    assert_eq!(made.grid.as_slice(), grid, "{name}");
    assert_eq!((made.width, made.rows.len()), (1176, grid.iter().product::<usize>() * 1176), "{name}");
    let bytes: Vec<u8> = made.rows.iter().flat_map(|x| x.to_le_bytes()).collect();
    if let Ok(rows) = tensors.tensor(&format!("{name}.rows")) {
        let first = bytes.chunks_exact(4).zip(rows.data().chunks_exact(4)).position(|(a, b)| a != b);
        assert_eq!(first, None, "{name}: first value that differs");
    }
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, notes[&format!("{name}.sha256")], "{name}");
}

#[test]
fn patch_rows_bit_for_bit() {
    let processor = Processor::default();
    let frames = |width, height, n| (0..n).map(|seed| frame(width, height, seed)).collect::<Vec<_>>();
    assert_patches("tiny", &processor.patches(&frames(28, 28, 3)).unwrap());
    assert_patches("video", &processor.patches(&frames(140, 84, 5)).unwrap());
    assert_patches("image", &processor.patches(&[frame(112, 56, 9)]).unwrap());
    // The reference repeats the last of an odd number of frames.
    let mut repeated = frames(140, 84, 5);
    repeated.push(repeated[4].clone());
    assert_patches("video", &processor.patches(&repeated).unwrap());
}

/// Images that need resizing: our size is the reference's, our pixels within one level, its pixels give its rows.
#[test]
fn resized_images() {
    let limits = PixelLimits { min: 3136.0, max: 4704.0 };
    let processor = Processor { limits, ..Processor::default() };
    let (tensors, _) = golden();
    for (name, width, height) in [("reduced", 150, 100), ("enlarged", 50, 31)] {
        let image = frame(width, height, 4);
        let size = processor.plan(width, height, &Budget::Image).unwrap();
        let pixels = tensors.tensor(&format!("{name}.pixels")).unwrap();
        assert_eq!(pixels.shape(), [size.height as usize, size.width as usize, 3], "{name}");
        let reference = RgbImage::from_raw(size.width, size.height, pixels.data().to_vec()).unwrap();
        assert_patches(name, &processor.patches(&[reference]).unwrap());
        let ours = msjoe::video::resize(&image, size.width, size.height).unwrap();
        let off: Vec<u8> = ours.as_raw().iter().zip(pixels.data()).map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = off.iter().map(|x| f64::from(*x)).sum::<f64>() / off.len() as f64;
        assert!(off.iter().all(|x| *x <= 1) && mean < 0.1, "{name}: {:?}, mean {mean}", off.iter().max());
    }
}

#[test]
fn patches_as_a_tensor() {
    let made = Processor::default().patches(&[frame(56, 28, 0)]).unwrap();
    assert_eq!((made.grid, Processor::default().tokens(size(56, 28), 1)), ([1, 2, 4], 2));
    let rows = made.rows.clone();
    let tensor = made.into_tensor(&candle_core::Device::Cpu).unwrap();
    assert_eq!(tensor.dims(), [8, 1176]);
    assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), rows);
}

fn load(text: &str) -> Result<Processor, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
    Processor::load(folder.path()).map_err(|error| {
        assert!(
            matches!(&error, Error::Checkpoint { path, .. } if path.ends_with("preprocessor_config.json"))
        );
        error.to_string()
    })
}

#[test]
fn processor_files() {
    let published = r#"{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}"#;
    let limits = PixelLimits { min: 3136.0, max: 12_845_056.0 };
    let expected = Processor { limits, ..Processor::default() };
    assert_eq!(load(published).unwrap(), expected);
    let newer = r#"{"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "min_pixels": null, "max_pixels": null,
        "do_resize": true, "rescale_factor": 0.00392156862745098, "do_convert_rgb": true, "resample": 3}"#;
    assert_eq!(load(newer).unwrap(), expected);
    assert_eq!(load("{}").unwrap(), Processor::default());
}

#[test]
fn bad_processor_files_are_named() {
    let cases = [
        ("", "EOF"),
        ("[1]", "invalid"),
        (r#"{"min_pixels": 10, "max_pixels": 9}"#, "max_pixels 9 is below min_pixels 10"),
        (r#"{"patch_size": 0}"#, "expected 1 to 1024"),
        (r#"{"do_rescale": false}"#, "do_rescale is off"),
        (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
        (r#"{"image_mean": [1, 0]}"#, "array of length 3"),
    ];
    for (text, words) in cases {
        let message = load(text).unwrap_err();
        assert!(message.contains(words), "{text}: {message:?} lacks {words:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Processor::load(folder.path()), Err(Error::Io { .. })));
}

#[test]
fn bad_frames_and_budgets_are_named() {
    let processor = Processor::default();
    let cases = [
        (processor.patches(&[]).map(drop), "no frames"),
        (processor.patches(&[RgbImage::new(0, 0)]).map(drop), "0 x 0"),
        (processor.patches(&[frame(30, 28, 0)]).map(drop), "multiples of 28"),
        (processor.patches(&[frame(28, 28, 0), frame(56, 28, 0)]).map(drop), "frame 1 has 56 x 28"),
        (processor.plan(0, 10, &Budget::Image).map(drop), "0 x 10 pixels is empty"),
        (processor.plan(27, 100, &Budget::Image).map(drop), "at least 28"),
        (processor.plan(5700, 28, &Budget::Slice { tokens: 9 }).map(drop), "aspect ratio"),
        (processor.plan(100, 100, &Budget::Slice { tokens: 0 }).map(drop), "0 visual tokens"),
        (processor.plan(100, 100, &Budget::Total { frames: 0, tokens: 9 }).map(drop), "0 frames"),
        (processor.plan(100, 100, &Budget::Total { frames: 9, tokens: 4 }).map(drop), "5 temporal slices"),
        (
            processor.plan(100, 100, &Budget::Video { frames: 0, budget: VideoBudget::default() }).map(drop),
            "0 frames",
        ),
        (
            VideoBudget { max_pixels: Some(784), ..VideoBudget::default() }.limits(2, 28).map(drop),
            "max_pixels 784 is below min_pixels 100352",
        ),
    ];
    for (made, words) in cases {
        match made {
            Err(Error::Input(message)) => assert!(message.contains(words), "{message:?} lacks {words:?}"),
            other => panic!("{words}: {other:?}"),
        }
    }
}
