//! Resampling as the reference processors do it.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{RgbImage, imageops};

use super::{Fit, resample};
use crate::{Error, Result};

/// Resizes with Pillow's `BICUBIC` (a = -0.5, support widened when shrinking, 8-bit intermediate), bit for bit.
///
/// What transformers 4.51.3 does with images. An image that has the size already comes back as it is.
///
/// # Errors
/// [`Error::Input`] when a side is 0 or above 32768, or `image` is empty.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check(image, width, height)?;
    if image.dimensions() == (width, height) {
        return Ok(image.clone());
    }
    let [from_width, from_height] = [image.width(), image.height()].map(|side| side as usize);
    let pixels = resample::bicubic(image.as_raw(), from_width, from_height, width as usize, height as usize);
    Ok(RgbImage::from_raw(width, height, pixels).unwrap_or_default())
}

/// Resizes with torchvision's antialiased `BICUBIC`: the same filter in float32, rounded once at the end.
///
/// What qwen-vl-utils 0.0.14 does with the frames of a video. Differs from [`resize`] where hard edges ring beyond black
/// or white between the passes. Within one level of 255 of torchvision 0.22.
///
/// # Errors
/// As [`resize`].
pub fn resize_float(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check(image, width, height)?;
    if image.dimensions() == (width, height) {
        return Ok(image.clone());
    }
    let failed = |error: &dyn std::fmt::Display| Error::Input(format!("resize to {width}x{height}: {error}"));
    let floats: Vec<u8> = image.as_raw().iter().flat_map(|&value| f32::from(value).to_ne_bytes()).collect();
    let source = ImageRef::new(image.width(), image.height(), &floats, PixelType::F32x3);
    let source = source.map_err(|error| failed(&error))?;
    let mut resized = Image::new(width, height, PixelType::F32x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new().resize(&source, &mut resized, &options).map_err(|error| failed(&error))?;
    let rounded = |bytes: &[u8; 4]| f32::from_ne_bytes(*bytes).round_ties_even().clamp(0.0, 255.0) as u8;
    let pixels = resized.buffer().as_chunks().0.iter().map(rounded).collect();
    Ok(RgbImage::from_raw(width, height, pixels).unwrap_or_default())
}

fn check(image: &RgbImage, width: u32, height: u32) -> Result<()> {
    const LONGEST: u32 = 32_768;
    let (from_width, from_height) = image.dimensions();
    let sides = [width, height, from_width, from_height];
    if sides.contains(&0) || width.max(height) > LONGEST {
        return Err(Error::Input(format!(
            "resize: expected sides of 1 to {LONGEST}, got {from_width}x{from_height} to {width}x{height}"
        )));
    }
    Ok(())
}

/// Brings an image to the size that `fit` asks for.
///
/// # Errors
/// As [`resize`].
pub fn fit(image: &RgbImage, fit: Fit) -> Result<RgbImage> {
    match fit {
        Fit::Native => Ok(image.clone()),
        Fit::Exact { width, height } => resize(image, width, height),
        Fit::ExactFloat { width, height } => resize_float(image, width, height),
        Fit::ShortEdgeCrop(edge) => short_edge_crop(image, edge),
    }
}

/// CLIPImageProcessor of transformers 4.51.3: shortest edge to `edge`, the long one truncated, centre crop rounded down.
fn short_edge_crop(image: &RgbImage, edge: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let (short, long) = (width.min(height), width.max(height));
    if edge == 0 || short == 0 {
        return Err(Error::Input(format!(
            "crop: expected sides above 0, got {width}x{height} to a short edge of {edge}"
        )));
    }
    let long = u64::from(edge) * u64::from(long) / u64::from(short);
    let long = u32::try_from(long).map_err(|_| {
        Error::Input(format!("crop: {width}x{height} at a short edge of {edge} is too long: {long} pixels"))
    })?;
    let (width, height) = if width <= height { (edge, long) } else { (long, edge) };
    let resized = resize(image, width, height)?;
    Ok(imageops::crop_imm(&resized, (width - edge) / 2, (height - edge) / 2, edge, edge).to_image())
}
