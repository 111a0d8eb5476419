//! Decoded frame to RGB: colour matrix and range as flagged, rotation applied, pixels otherwise as stored.
//!
//! Choices, made once for the whole crate:
//! - swscale with accurate rounding, full chroma interpolation and bicubic chroma upsampling;
//! - the frame's own matrix (BT.601, BT.709, SMPTE 240M, FCC, BT.2020) and range; an unflagged frame counts as limited
//!   range BT.601 whatever its size, as in swscale itself and the readers built on it;
//! - transfer functions and primaries are left alone: HDR is not tone-mapped;
//! - alpha is dropped; sample aspect ratio is left to the caller: pixels are those stored.

use std::path::Path;

use image::RgbImage;
use video_rs::ffmpeg::{ffi, format::Pixel, frame};

use super::orientation::Orientation;
use crate::{Error, Result};

/// What a scaler was made for: pixel format, width, height, matrix, full range.
type Source = (i32, i32, i32, i32, bool);

/// Converts frames of one stream; keeps the swscale context between frames of equal format.
pub(super) struct Converter {
    context: *mut ffi::SwsContext,
    source: Option<Source>,
    rgb: frame::Video,
    orientation: Orientation,
}

impl Converter {
    pub fn new(orientation: Orientation) -> Self {
        Self { context: std::ptr::null_mut(), source: None, rgb: frame::Video::empty(), orientation }
    }

    /// The frame as displayed.
    pub fn convert(&mut self, frame: &frame::Video, path: &Path) -> Result<RgbImage> {
        self.prepare(frame).ok_or_else(|| {
            Error::video(path, format!("swscale cannot convert {} to RGB", format_name(frame)))
        })?;
        // SAFETY: the context was made for this size and format, `rgb` has the same size in RGB24 with padded rows.
        let rows = unsafe {
            let (input, output) = (&*frame.as_ptr(), &mut *self.rgb.as_mut_ptr());
            ffi::sws_scale(
                self.context,
                input.data.as_ptr().cast(),
                input.linesize.as_ptr(),
                0,
                input.height,
                output.data.as_ptr(),
                output.linesize.as_ptr(),
            )
        };
        if rows != frame.height() as i32 {
            return Err(Error::video(path, format!("swscale gave {rows} of {} rows", frame.height())));
        }
        Ok(self.orientation.apply(self.rgb.data(0), self.rgb.stride(0), (frame.width(), frame.height())))
    }

    fn prepare(&mut self, frame: &frame::Video) -> Option<()> {
        // SAFETY: plain integers of a live frame.
        let raw = unsafe { &*frame.as_ptr() };
        let full =
            raw.color_range == ffi::AVColorRange::AVCOL_RANGE_JPEG || format_name(frame).contains("yuvj");
        let source = (raw.format, raw.width, raw.height, matrix(raw.colorspace), full);
        if self.source == Some(source) {
            return Some(());
        }
        self.release();
        if raw.width <= 0 || raw.height <= 0 {
            return None;
        }
        self.context = open_scaler(source)?;
        self.source = Some(source);
        self.rgb = frame::Video::new(Pixel::RGB24, raw.width as u32, raw.height as u32);
        // SAFETY: `rgb` is a live frame; only whether its buffer exists is asked.
        (!unsafe { self.rgb.is_empty() }).then_some(())
    }

    fn release(&mut self) {
        // SAFETY: the context is null or was made by sws_getContext and is not used after this.
        unsafe { ffi::sws_freeContext(self.context) };
        self.context = std::ptr::null_mut();
        self.source = None;
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        self.release();
    }
}

fn open_scaler((format, width, height, matrix, full): Source) -> Option<*mut ffi::SwsContext> {
    let flags = ffi::SWS_BICUBIC | ffi::SWS_ACCURATE_RND | ffi::SWS_FULL_CHR_H_INT | ffi::SWS_FULL_CHR_H_INP;
    let null = std::ptr::null_mut();
    // SAFETY: `format` comes from a frame of the same FFmpeg whose headers made the enum; the coefficient tables are
    // static; a context whose details cannot be set is freed.
    unsafe {
        let format = std::mem::transmute::<i32, ffi::AVPixelFormat>(format);
        let rgb = ffi::AVPixelFormat::AV_PIX_FMT_RGB24;
        let context =
            ffi::sws_getContext(width, height, format, width, height, rgb, flags, null, null, null.cast());
        if context.is_null() {
            return None;
        }
        let table = ffi::sws_getCoefficients(matrix);
        let unit = 1 << 16;
        // -1 means that the format has no matrix or range to set (RGB sources), which is fine
        ffi::sws_setColorspaceDetails(context, table, i32::from(full), table, 1, 0, unit, unit);
        Some(context)
    }
}

/// swscale's number of a colour matrix.
fn matrix(space: ffi::AVColorSpace) -> i32 {
    use ffi::AVColorSpace::*;
    match space {
        AVCOL_SPC_BT709 => ffi::SWS_CS_ITU709,
        AVCOL_SPC_FCC => ffi::SWS_CS_FCC,
        AVCOL_SPC_SMPTE240M => ffi::SWS_CS_SMPTE240M,
        AVCOL_SPC_BT2020_NCL | AVCOL_SPC_BT2020_CL => ffi::SWS_CS_BT2020,
        _ => ffi::SWS_CS_DEFAULT,
    }
}

fn format_name(frame: &frame::Video) -> String {
    // SAFETY: av_get_pix_fmt_name returns a static string, or null for an unknown format.
    unsafe {
        let format = std::mem::transmute::<i32, ffi::AVPixelFormat>((*frame.as_ptr()).format);
        let name = ffi::av_get_pix_fmt_name(format);
        if name.is_null() {
            return "an unknown pixel format".to_owned();
        }
        std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}
