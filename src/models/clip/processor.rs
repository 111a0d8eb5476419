//! From frames to normalised pixels, as `CLIPImageProcessor` of transformers 4.51.3 does it: the frame arrives resized
//! and cropped ([`crate::video::Fit::ShortEdgeCrop`]); here its levels are scaled by 1/255 and normalised.

use std::path::Path;

use image::RgbImage;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::read_json;
use crate::error::{Error, Result};

/// `preprocessor_config.json`; missing keys get the class defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct File {
    do_resize: bool,
    do_center_crop: bool,
    do_rescale: bool,
    do_normalize: bool,
    /// Pillow's number; 3 is bicubic.
    resample: u32,
    size: Value,
    crop_size: Value,
    rescale_factor: f64,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

impl Default for File {
    fn default() -> Self {
        Self {
            do_resize: true,
            do_center_crop: true,
            do_rescale: true,
            do_normalize: true,
            resample: 3,
            size: Value::Null,
            crop_size: Value::Null,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

/// Side of the square images, and the value of each of the 256 levels of each channel.
#[derive(Debug, Clone)]
pub struct Processor {
    size: u32,
    levels: [[f32; 256]; 3],
    description: String,
}

impl Processor {
    /// Reads `dir/preprocessor_config.json` where there is one, and takes the values of the published models
    /// otherwise. `image_size` is the side that the image tower expects.
    ///
    /// # Errors
    /// Another size than the tower's, or steps other than bicubic resize of the short edge, centre crop, rescale and
    /// normalise.
    pub fn load(dir: &Path, image_size: usize) -> Result<Self> {
        let path = dir.join("preprocessor_config.json");
        let file: File = if path.exists() { read_json(&path)? } else { File::default() };
        file.check(image_size).map_err(|cause| Error::checkpoint(&path, cause))?;
        let level = |c: usize, v: usize| {
            // The reference's roundings: the product in f64, then f32 throughout.
            let scaled = (v as f64 * file.rescale_factor) as f32;
            (scaled - file.image_mean[c] as f32) / file.image_std[c] as f32
        };
        let description = format!(
            "short-edge-crop {image_size}, bicubic, scale {:?}, mean {:?}, std {:?}",
            file.rescale_factor, file.image_mean, file.image_std
        );
        Ok(Self {
            size: image_size as u32,
            levels: std::array::from_fn(|c| std::array::from_fn(|v| level(c, v))),
            description,
        })
    }

    /// Side of the images in pixels.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// All that decides the pixel values of a frame, in words; part of the key of cached features.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Normalised pixels (B, 3, S, S), flat, of images that are S x S.
    ///
    /// # Errors
    /// An image of another size.
    pub fn pixel_values(&self, images: &[RgbImage]) -> Result<Vec<f32>> {
        let side = self.size;
        if let Some((i, image)) =
            images.iter().enumerate().find(|(_, image)| image.dimensions() != (side, side))
        {
            return Err(Error::Input(format!(
                "clip: image {i} is {} x {} pixels, expected {side} x {side} (short edge resized, centre cropped)",
                image.width(),
                image.height()
            )));
        }
        let area = (side * side) as usize;
        let mut values = vec![0f32; images.len() * 3 * area];
        values.par_chunks_mut(area).enumerate().for_each(|(plane, values)| {
            let (image, channel) = (&images[plane / 3], plane % 3);
            let levels = &self.levels[channel];
            let pixels = image.as_raw().chunks_exact(3);
            values.iter_mut().zip(pixels).for_each(|(value, pixel)| *value = levels[pixel[channel] as usize]);
        });
        Ok(values)
    }
}

impl File {
    fn check(&self, image_size: usize) -> std::result::Result<(), String> {
        let steps = [
            ("do_resize", self.do_resize),
            ("do_center_crop", self.do_center_crop),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ];
        if let Some((key, _)) = steps.iter().find(|(_, on)| !on) {
            return Err(format!(
                "{key} is false; only resize, centre crop, rescale and normalise together are supported"
            ));
        }
        if self.resample != 3 {
            return Err(format!("resample is {}, expected 3 (bicubic)", self.resample));
        }
        for (key, value) in [("size", &self.size), ("crop_size", &self.crop_size)] {
            let side = side(key, value)?.unwrap_or(image_size as u64);
            if side != image_size as u64 {
                return Err(format!(
                    "{key} is {side}, but vision_config.image_size in config.json is {image_size}"
                ));
            }
        }
        if let Some(std) = self.image_std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            return Err(format!("image_std holds {std}, expected positive numbers"));
        }
        let others = self.image_mean.iter().chain([&self.rescale_factor]);
        match others.into_iter().find(|x| !x.is_finite()) {
            Some(x) => Err(format!("image_mean and rescale_factor must be finite, got {x}")),
            None => Ok(()),
        }
    }
}

/// `size` is `n` or `{"shortest_edge": n}`, `crop_size` is `n` or a square `{"height": n, "width": n}`.
fn side(key: &str, value: &Value) -> std::result::Result<Option<u64>, String> {
    let keys: &[&str] = if key == "size" { &["shortest_edge"] } else { &["height", "width"] };
    let side = match value {
        Value::Null => return Ok(None),
        Value::Object(map) => {
            let sides: Vec<_> = keys.iter().map(|k| map.get(*k).and_then(Value::as_u64)).collect();
            if map.len() == keys.len() && sides.windows(2).all(|w| w[0] == w[1]) { sides[0] } else { None }
        }
        other => other.as_u64(),
    };
    match side {
        Some(side) => Ok(Some(side)),
        None => Err(format!("{key} is {value}, expected a number or {} of one value", keys.join(" and "))),
    }
}
