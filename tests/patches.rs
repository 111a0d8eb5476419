//! Dense labels: both towers learn what is in each patch, and learn nothing from labels of other patches.

use candle_core::{DType, Device};
use image::{Rgb, RgbImage};
use msjoe::checkpoint::random::{self, ClipSpec, QwenSpec};
use msjoe::data::world::{Spec, Split, World};
use msjoe::models::clip::Clip;
use msjoe::optim::AdamWConfig;
use msjoe::supervised::contrastive::ContrastiveTrainer;
use msjoe::supervised::lessons::{LABELS, rasters};
use msjoe::supervised::patches::{PatchBatch, PatchTrainer, Tower};
use msjoe::supervised::turns::{Learn, TurnTrainer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PATCH: u32 = 14;
const GRID: u32 = 4;

/// Frames of patches in one of two greys and, by row, one of two tints: either label can be told from the patch alone.
fn batch(seed: u64) -> PatchBatch {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut images, mut labels) = (vec![], vec![]);
    for _ in 0..8 {
        let of_image: Vec<[u32; 2]> =
            (0..GRID * GRID).map(|_| [rng.random_range(0..2), rng.random_range(0..3)]).collect();
        images.push(RgbImage::from_fn(PATCH * GRID, PATCH * GRID, |x, y| {
            let [grey, tint] = of_image[(y / PATCH * GRID + x / PATCH) as usize];
            Rgb([(60 + 120 * grey) as u8, (80 * tint) as u8, 90])
        }));
        labels.push(of_image);
    }
    PatchBatch { images, labels }
}

/// Mean loss of the last five of many steps; `deranged` gives every image the labels of the next.
fn learned(tower: &str, deranged: bool) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let config = AdamWConfig::default();
    let mut trainer = if tower == "clip" {
        let spec = ClipSpec {
            image_size: (PATCH * GRID) as usize,
            patch: PATCH as usize,
            vision_hidden: 16,
            vision_layers: 1,
            ..ClipSpec::default()
        };
        random::clip(folder.path(), &spec, 3).unwrap();
        let ContrastiveTrainer { clip, parameters, .. } =
            ContrastiveTrainer::new(folder.path(), &Device::Cpu, config).unwrap();
        PatchTrainer::new(Tower::Clip(Box::new(clip)), &parameters, [2, 3], config)
    } else {
        let spec = QwenSpec {
            vision_hidden: 16,
            vision_intermediate: 24,
            vision_depth: 2,
            vision_heads: 2,
            full_attention: vec![1],
            patch: PATCH as usize,
            merge: 2,
            ..QwenSpec::default()
        };
        random::qwen2_5_vl(folder.path(), &spec, 3).unwrap();
        let TurnTrainer { chat, parameters, .. } =
            TurnTrainer::new(folder.path(), &Device::Cpu, Learn::All, config).unwrap();
        PatchTrainer::new(Tower::Qwen(Box::new(chat)), &parameters, [2, 3], config)
    }
    .unwrap();
    let mut last = 0.0;
    for step in 0..60 {
        let mut batch = batch(step);
        if deranged {
            batch.labels.rotate_left(1);
        }
        let losses = trainer.step(&batch, 1e-2).unwrap().losses;
        last += if step >= 55 { (losses[0] + losses[1]) / 5.0 } else { 0.0 };
    }
    last
}

#[test]
fn towers_learn_the_labels_of_their_patches_and_no_others() {
    let unknown = 2.0_f64.ln() + 3.0_f64.ln();
    for tower in ["clip", "qwen"] {
        let (right, wrong) = (learned(tower, false), learned(tower, true));
        assert!(right < 0.2 * unknown, "{tower}: {right} of {unknown}");
        assert!(wrong > 0.9 * unknown, "{tower}, control: {wrong} of {unknown}");
    }
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    random::clip(folder.path(), &ClipSpec { image_size: 56, patch: 14, ..ClipSpec::default() }, 3).unwrap();
    let ContrastiveTrainer { clip, parameters, .. } =
        ContrastiveTrainer::new(folder.path(), &Device::Cpu, AdamWConfig::default()).unwrap();
    let tower = Tower::Clip(Box::new(clip));
    let mut trainer = PatchTrainer::new(tower, &parameters, [2, 3], AdamWConfig::default()).unwrap();
    let mut few = batch(0);
    few.labels[0].pop();
    let error = trainer.step(&few, 1e-3).unwrap_err().to_string();
    assert!(error.contains("127 labels for 128 patches"), "{error}");
}

#[test]
fn a_raster_shows_each_thing_at_its_place() {
    let world = World::new(Spec::default(), 1).unwrap();
    let (mut things, mut empty) = (0, 0);
    for video in 0..20 {
        let script = world.script(Split::Train, video);
        for second in (0..script.seconds).step_by(17) {
            let raster = script.raster(second, 56);
            let scene = script.scene_at(second);
            for thing in &scene.things {
                let [x, y] = thing.centre((second - scene.start) as f32).map(|part| (part * 56.0) as usize);
                assert_eq!(raster[y * 56 + x], Some(thing));
                things += 1;
            }
            empty += usize::from(raster.iter().filter(|cell| cell.is_none()).count() > 56 * 56 / 4);
        }
    }
    assert!(things > 100 && empty > 100, "{things} things, {empty} rasters with room");
    let batch = rasters(&world, 0, 8, 4, 8);
    assert_eq!((batch.images.len(), batch.labels[0].len()), (8, 64));
    let fits = |label: &[u32; 2]| (0..2).all(|kind| (label[kind] as usize) < LABELS[kind]);
    assert!(batch.labels.iter().flatten().all(fits));
}

#[test]
fn patch_states_of_an_image_depend_on_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    random::clip(folder.path(), &ClipSpec { image_size: 56, patch: 14, ..ClipSpec::default() }, 3).unwrap();
    let clip = Clip::load(folder.path(), DType::F32, &Device::Cpu).unwrap();
    let images = batch(1).images;
    let states = clip.patch_states(&images).unwrap();
    assert_eq!(states.dim(0).unwrap(), 8 * 16);
    let alone = clip.patch_states(&images[3..4]).unwrap();
    let same = (states.narrow(0, 48, 16).unwrap() - alone).unwrap().abs().unwrap().max_all().unwrap();
    assert!(same.to_scalar::<f32>().unwrap() < 1e-5, "patches of one image depend on another");
}
