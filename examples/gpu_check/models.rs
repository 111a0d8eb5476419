//! The small models on both devices: the same inputs, the same numbers.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::generate::Options;
use msjoe::models::qwen2_5_vl::mrope::{Media, Timing};
use msjoe::models::qwen2_5_vl::{Prompt, Qwen2_5Vl};
use msjoe::models::unet1d::UNet1d;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::random::Source;
use crate::report::Report;

/// Of whole models in f32: rounding in another order through every layer.
const LIMIT: f64 = 1e-4;

pub fn check(device: &Device, folder: &Path, seed: u64, report: &mut Report) -> Result<()> {
    clip(device, &folder.join("clip"), seed, report)?;
    sampler(device, &folder.join("sampler.safetensors"), seed, report)?;
    language(device, &folder.join("mllm"), seed, report)
}

/// In bf16: at most twice the error of the CPU's own bf16, both against f32 on the CPU.
fn rounded(report: &mut Report, what: &str, f32: &Tensor, [cpu, gpu]: [&Tensor; 2]) -> Result<()> {
    report.check(&format!("{what}, bf16"), gpu, f32, (LIMIT, Some(cpu), 0.0))
}

fn same(report: &mut Report, what: &str, [cpu, gpu]: [&Tensor; 2]) -> Result<()> {
    report.check(what, gpu, cpu, (LIMIT, None, 0.0))
}

fn clip(device: &Device, folder: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let images: Vec<RgbImage> =
        (0..5).map(|_| RgbImage::from_fn(96, 72, |_, _| image::Rgb(rng.random()))).collect();
    let texts = ["a red kettle", "the door", "someone opens a green box on a table"].map(str::to_owned);
    let run = |device: &Device, dtype: DType| -> Result<[Tensor; 2]> {
        let model = Clip::load(folder, dtype, device)?;
        Ok([model.encode_images(&images)?, model.encode_texts(&texts)?])
    };
    let (cpu, gpu) = (run(&Device::Cpu, DType::F32)?, run(device, DType::F32)?);
    let (cpu_half, gpu_half) = (run(&Device::Cpu, DType::BF16)?, run(device, DType::BF16)?);
    for (i, what) in ["small CLIP, images", "small CLIP, texts"].into_iter().enumerate() {
        same(report, what, [&cpu[i], &gpu[i]])?;
        rounded(report, what, &cpu[i], [&cpu_half[i], &gpu_half[i]])?;
    }
    let similarity = |[images, texts]: &[Tensor; 2]| msjoe::similarity::similarity(texts, images);
    same(report, "small CLIP, similarity", [&similarity(&cpu)?, &similarity(&gpu)?])
}

fn sampler(device: &Device, file: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let matrix = (Source::new(seed).normal(&[5, 333], 0.2, DType::F32)?).clamp(-1.0, 1.0)?;
    let run = |device: &Device| -> Result<Tensor> {
        Ok(UNet1d::load(file, device)?.forward(&matrix.to_device(device)?)?)
    };
    same(report, "sampler, logits", [&run(&Device::Cpu)?, &run(device)?])
}

fn language(device: &Device, folder: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let mut source = Source::new(seed);
    let grid = [3, 6, 10];
    let run = |device: &Device, dtype: DType, pixels: &Tensor| -> Result<(Vec<Tensor>, Vec<u32>)> {
        let model = Qwen2_5Vl::load(folder, dtype, device)?;
        let features = model.vision(&pixels.to_device(device)?, &[grid])?;
        let mut input_ids = vec![11, 12, model.config.vision_start_token_id];
        let merge = model.config.vision.spatial_merge_size;
        let tokens = grid.iter().product::<usize>() / (merge * merge);
        input_ids.extend(std::iter::repeat_n(model.config.video_token_id, tokens));
        input_ids.extend([20, 21, 22, 23]);
        let media = vec![Media::Video { grid, timing: Timing::Uniform(1.5) }];
        let prompt = Prompt { input_ids, media, features: vec![features.clone()] };
        let logits = model.forward(&prompt)?;
        let options = Options { max_new_tokens: 24, ..Options::default() };
        let made = model.generate_group(&prompt, 3, &options, &mut |_, _| ControlFlow::Continue(()))?;
        Ok((vec![features, logits], made.into_iter().flat_map(|made| made.tokens).collect()))
    };
    let width = Qwen2_5Vl::load(folder, DType::F32, &Device::Cpu)?.config.vision.patch_width();
    let pixels = source.normal(&[grid.iter().product(), width], 1.0, DType::F32)?;
    let (cpu, cpu_tokens) = run(&Device::Cpu, DType::F32, &pixels)?;
    let (gpu, gpu_tokens) = run(device, DType::F32, &pixels)?;
    // What is generated may differ then: a token follows from the last digits of two logits.
    let (cpu_half, _) = run(&Device::Cpu, DType::BF16, &pixels)?;
    let (gpu_half, _) = run(device, DType::BF16, &pixels)?;
    for (i, what) in ["small Qwen2.5-VL, vision", "small Qwen2.5-VL, logits"].into_iter().enumerate() {
        same(report, what, [&cpu[i], &gpu[i]])?;
        rounded(report, what, &cpu[i], [&cpu_half[i], &gpu_half[i]])?;
    }
    let other = cpu_tokens.iter().zip(&gpu_tokens).filter(|(a, b)| a != b).count()
        + cpu_tokens.len().abs_diff(gpu_tokens.len());
    report.judge("small Qwen2.5-VL, other tokens of a group of 3", other as f64, 0.0);
    Ok(())
}
