//! Pictures small enough for a page.

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};

use crate::error::{Error, Result};

/// Widest picture in pixels: twice what a page shows, for dense screens.
const WIDEST: u32 = 240;
const QUALITY: u8 = 72;

/// A JPEG file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file's bytes.
    pub jpeg: Vec<u8>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Picture {
    /// `image` as JPEG, brought down to 240 pixels on its longer side; about 8 kB.
    ///
    /// # Errors
    /// An image without pixels.
    pub fn of(image: &RgbImage) -> Result<Self> {
        let (width, height) = image.dimensions();
        let long = width.max(height).max(1);
        let scaled = |side: u32| if long > WIDEST { (side * WIDEST).div_ceil(long).max(1) } else { side };
        let small = resize(image, scaled(width), scaled(height), FilterType::Triangle);
        let mut jpeg = vec![];
        JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
            .encode_image(&small)
            .map_err(|cause| Error::Input(format!("picture of {width} by {height} pixels: {cause}")))?;
        Ok(Self { jpeg, width: small.width(), height: small.height() })
    }
}
