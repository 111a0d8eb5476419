//! A contact sheet.

use std::path::Path;

use anyhow::{Context, Result};
use image::{RgbImage, imageops};

/// Tiles of one size in rows of `columns`, each pixel `zoom` times as large.
pub fn sheet(tiles: &[RgbImage], columns: usize, zoom: u32, path: &Path) -> Result<()> {
    let Some((width, height)) = tiles.first().map(RgbImage::dimensions) else { return Ok(()) };
    let (width, height) = (zoom * width, zoom * height);
    let rows = tiles.len().div_ceil(columns) as u32;
    let mut image = RgbImage::new((width + 4) * columns as u32, (height + 4) * rows);
    for (at, tile) in tiles.iter().enumerate() {
        let (x, y) = ((at % columns) as u32 * (width + 4), (at / columns) as u32 * (height + 4));
        let large = imageops::resize(tile, width, height, imageops::FilterType::Nearest);
        imageops::replace(&mut image, &large, i64::from(x), i64::from(y));
    }
    image.save(path).with_context(|| path.display().to_string())
}
