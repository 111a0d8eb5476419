//! Rotation and mirroring that a file asks for.

use image::RgbImage;

/// Where the pixel axes point after the display matrix: (x', y') = (a x + c y, b x + d y), each of -1, 0, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orientation {
    a: i8,
    b: i8,
    c: i8,
    d: i8,
}

impl Orientation {
    /// As stored.
    pub const UPRIGHT: Self = Self { a: 1, b: 0, c: 0, d: 1 };

    /// From FFmpeg's display matrix (row major, 16.16). `None` for anything but quarter turns and mirrors.
    pub fn from_matrix(matrix: &[i32; 9]) -> Option<Self> {
        let near = |value: i32| {
            let unit = f64::from(value) / 65536.0;
            let sign = unit.round();
            ((unit - sign).abs() < 0.02 && sign.abs() <= 1.0).then_some(sign as i8)
        };
        let [a, b, c, d] = [near(matrix[0])?, near(matrix[1])?, near(matrix[3])?, near(matrix[4])?];
        (a * a + b * b == 1 && c * c + d * d == 1 && a * c + b * d == 0).then_some(Self { a, b, c, d })
    }

    /// Size after turning.
    pub fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.a == 0 { (height, width) } else { (width, height) }
    }

    /// Copies the rows of an RGB image, `stride` bytes apart, into their turned place.
    pub fn apply(self, pixels: &[u8], stride: usize, size: (u32, u32)) -> RgbImage {
        let (width, height) = (size.0 as usize, size.1 as usize);
        let (out_width, out_height) = self.size(size);
        let mut out = vec![0; width * height * 3];
        let row_bytes = out_width as isize * 3;
        // bytes in `out` for one step right and one step down in `pixels`
        let right = isize::from(self.a) * 3 + isize::from(self.b) * row_bytes;
        let down = isize::from(self.c) * 3 + isize::from(self.d) * row_bytes;
        let start = (if right < 0 { -right * (width as isize - 1) } else { 0 })
            + (if down < 0 { -down * (height as isize - 1) } else { 0 });
        for (y, row) in pixels.chunks(stride).take(height).enumerate() {
            let mut at = start + down * y as isize;
            if self == Self::UPRIGHT {
                out[at as usize..][..width * 3].copy_from_slice(&row[..width * 3]);
                continue;
            }
            for pixel in row[..width * 3].chunks_exact(3) {
                out[at as usize..][..3].copy_from_slice(pixel);
                at += right;
            }
        }
        RgbImage::from_raw(out_width, out_height, out).unwrap_or_default()
    }
}
