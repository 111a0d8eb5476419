//! Resampling as the reference processors do it: Pillow's antialiased bicubic on bytes.

use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{RgbImage, imageops};

use super::Fit;
use crate::{Error, Result};

/// Resizes with Pillow's `BICUBIC` (a = -0.5, support widened when shrinking, 8-bit intermediate).
///
/// Within one level of 255 of Pillow; an image that has the size already comes back as it is.
///
/// # Errors
/// [`Error::Input`] when a side is 0 or `image` is empty.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (from_width, from_height) = image.dimensions();
    if width == 0 || height == 0 || from_width == 0 || from_height == 0 {
        return Err(Error::Input(format!(
            "resize: expected sides above 0, got {from_width}x{from_height} to {width}x{height}"
        )));
    }
    if (from_width, from_height) == (width, height) {
        return Ok(image.clone());
    }
    let mut resized = RgbImage::new(width, height);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new()
        .resize(image, &mut resized, &options)
        .map_err(|error| Error::Input(format!("resize to {width}x{height}: {error}")))?;
    Ok(resized)
}

/// Brings an image to the size that `fit` asks for.
///
/// # Errors
/// As [`resize`].
pub fn fit(image: &RgbImage, fit: Fit) -> Result<RgbImage> {
    match fit {
        Fit::Native => Ok(image.clone()),
        Fit::Exact { width, height } => resize(image, width, height),
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
