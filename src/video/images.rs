//! A folder of images as a video.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};

use crate::{Error, Result, checkpoint};

/// Extensions that count as images of a folder.
const EXTENSIONS: [&str; 9] = ["bmp", "gif", "jpeg", "jpg", "jpe", "png", "tif", "tiff", "webp"];

/// The image files of a folder in natural order: `frame2` comes before `frame10`. Hidden files are left out.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in checkpoint::files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if EXTENSIONS.contains(&extension.as_str()) && !name.starts_with('.') {
            files.push((name, path));
        }
    }
    if files.is_empty() {
        let known = EXTENSIONS.join(", ");
        return Err(Error::video(folder, format!("the folder has no images ({known})")));
    }
    files.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Decodes an image upright (Exif orientation applied), without its alpha.
pub(super) fn load(path: &Path) -> Result<RgbImage> {
    let unreadable = |error: image::ImageError| Error::video(path, format!("not a readable image: {error}"));
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let mut decoder = reader.map_err(|error| Error::io(path, error))?.into_decoder().map_err(unreadable)?;
    let orientation = decoder.orientation().map_err(unreadable)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// Compares runs of digits by value and everything else by character; equal values by the text itself.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some(x), Some(y)) = (left.chars().next(), right.chars().next()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (m, n);
            (m, left) = number(left);
            (n, right) = number(right);
            m.len().cmp(&n.len()).then_with(|| m.cmp(n))
        } else {
            left = &left[x.len_utf8()..];
            right = &right[y.len_utf8()..];
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// The digits at the start without leading zeros, and the rest.
fn number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (digits.trim_start_matches('0'), rest)
}
