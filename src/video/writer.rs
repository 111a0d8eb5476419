//! H.264 in MP4 from RGB frames.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use image::RgbImage;
use tempfile::TempPath;
use video_rs::ffmpeg::format::{Pixel, context::Output};
use video_rs::ffmpeg::{self, Dictionary, Packet, Rational, codec, color, encoder, ffi, frame};

use super::demux;
use crate::{Error, Result, checkpoint};

/// Writes an MP4 file with libx264 (yuv420p, BT.709, limited range); the file appears complete or not at all.
///
/// Dropped without [`finish`](Self::finish), it leaves nothing behind.
pub struct H264Writer {
    path: PathBuf,
    output: Output,
    encoder: encoder::video::Encoder,
    scaler: Scaler,
    size: (u32, u32),
    ticks: Rational,
    pushed: i64,
    // last: the unfinished file goes after FFmpeg has closed it
    temporary: TempPath,
}

impl H264Writer {
    /// Starts a file of `width` x `height` (both even) at `fps` frames per second.
    ///
    /// # Errors
    /// [`Error::Input`] for odd or zero sides or a rate not above 0; [`Error::Io`] when the folder cannot be written;
    /// [`Error::Video`] when this FFmpeg lacks libx264.
    pub fn create(path: impl AsRef<Path>, width: u32, height: u32, fps: Rational) -> Result<Self> {
        demux::initialise();
        let path = path.as_ref();
        if width == 0
            || height == 0
            || !width.is_multiple_of(2)
            || !height.is_multiple_of(2)
            || width.max(height) > 16384
        {
            return Err(Error::Input(format!(
                "H.264: expected even sides of 2 to 16384, got {width}x{height}"
            )));
        }
        if fps.0 <= 0 || fps.1 <= 0 {
            return Err(Error::Input(format!("H.264: expected a rate above 0, got {}/{}", fps.0, fps.1)));
        }
        let folder = checkpoint::parent(path);
        let temporary = checkpoint::temporary(0o666)
            .prefix(".")
            .suffix(".mp4.tmp")
            .tempfile_in(folder)
            .map_err(|error| Error::io(folder, error))?
            .into_temp_path();
        let failed = |error| Error::video(path, format!("cannot encode H.264: {error}"));
        let mut output = open_output(&temporary).map_err(failed)?;
        let encoder = open_encoder(width, height, fps).map_err(failed)?;
        let ticks = Rational(fps.1, fps.0);
        {
            let mut stream = output.add_stream_with(&encoder).map_err(failed)?;
            stream.set_time_base(ticks);
            stream.set_avg_frame_rate(fps);
        }
        output.write_header().map_err(failed)?;
        let scaler =
            Scaler::new(width, height).ok_or_else(|| Error::video(path, "swscale has no RGB to YUV"))?;
        Ok(Self {
            path: path.to_owned(),
            output,
            encoder,
            scaler,
            size: (width, height),
            ticks,
            pushed: 0,
            temporary,
        })
    }

    /// Adds a frame, shown for 1 / fps seconds.
    ///
    /// # Errors
    /// [`Error::Input`] for an image of another size; [`Error::Video`] when encoding or writing fails.
    pub fn push(&mut self, image: &RgbImage) -> Result<()> {
        if image.dimensions() != self.size {
            let ((width, height), (w, h)) = (self.size, image.dimensions());
            return Err(Error::Input(format!("H.264: expected a frame of {width}x{height}, got {w}x{h}")));
        }
        let mut frame = self.scaler.run(image);
        frame.set_pts(Some(self.pushed));
        self.pushed += 1;
        self.encoder.send_frame(&frame).map_err(|error| self.failed(error))?;
        self.write_packets()
    }

    /// Writes what is left and puts the file in place.
    ///
    /// # Errors
    /// [`Error::Input`] without a frame; [`Error::Video`] and [`Error::Io`] when writing fails.
    pub fn finish(mut self) -> Result<()> {
        if self.pushed == 0 {
            return Err(Error::Input(
                "H.264: expected at least one frame before finish, got none".to_owned(),
            ));
        }
        self.encoder.send_eof().map_err(|error| self.failed(error))?;
        self.write_packets()?;
        self.output.write_trailer().map_err(|error| self.failed(error))?;
        let Self { path, output, temporary, .. } = self;
        drop(output); // closes the file
        temporary.persist(&path).map_err(|error| Error::io(&path, error.error))
    }

    fn write_packets(&mut self) -> Result<()> {
        let stream_ticks = self.output.stream(0).map_or(self.ticks, |stream| stream.time_base());
        let mut packet = Packet::empty();
        while self.encoder.receive_packet(&mut packet).is_ok() {
            packet.set_stream(0);
            packet.set_duration(1);
            packet.rescale_ts(self.ticks, stream_ticks);
            packet.write_interleaved(&mut self.output).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn failed(&self, error: ffmpeg::Error) -> Error {
        Error::video(&self.path, format!("cannot write H.264: {error}"))
    }
}

fn open_output(path: &Path) -> std::result::Result<Output, ffmpeg::Error> {
    let invalid = |_| ffmpeg::Error::InvalidData;
    let name = CString::new([b"file:", path.as_os_str().as_encoded_bytes()].concat()).map_err(invalid)?;
    let mut context = std::ptr::null_mut();
    // SAFETY: both names are C strings; the context is wrapped, and with it freed, as soon as it exists.
    unsafe {
        let made = ffi::avformat_alloc_output_context2(
            &mut context,
            std::ptr::null_mut(),
            c"mp4".as_ptr(),
            name.as_ptr(),
        );
        if made < 0 {
            return Err(ffmpeg::Error::from(made));
        }
        let opened = ffi::avio_open(&mut (*context).pb, name.as_ptr(), ffi::AVIO_FLAG_WRITE);
        if opened < 0 {
            ffi::avformat_free_context(context);
            return Err(ffmpeg::Error::from(opened));
        }
        Ok(Output::wrap(context))
    }
}

fn open_encoder(
    width: u32,
    height: u32,
    fps: Rational,
) -> std::result::Result<encoder::video::Encoder, ffmpeg::Error> {
    let x264 = encoder::find_by_name("libx264").ok_or(ffmpeg::Error::EncoderNotFound)?;
    let mut settings = codec::Context::new_with_codec(x264).encoder().video()?;
    settings.set_width(width);
    settings.set_height(height);
    settings.set_format(Pixel::YUV420P);
    settings.set_time_base(Rational(fps.1, fps.0));
    settings.set_frame_rate(Some(fps));
    settings.set_colorspace(color::Space::BT709);
    settings.set_color_range(color::Range::MPEG);
    settings.set_color_primaries(color::Primaries::BT709);
    settings.set_color_transfer_characteristic(color::TransferCharacteristic::BT709);
    // mp4 keeps the parameter sets in its header
    settings.set_flags(codec::Flags::GLOBAL_HEADER);
    let mut options = Dictionary::new();
    options.set("preset", "veryfast");
    options.set("crf", "20");
    settings.open_as_with(x264, options)
}

/// RGB to yuv420p, BT.709 limited.
struct Scaler {
    context: *mut ffi::SwsContext,
    size: (u32, u32),
}

// SAFETY: the context is used through `&mut` only and bound to no thread.
unsafe impl Send for Scaler {}

impl Scaler {
    fn new(width: u32, height: u32) -> Option<Self> {
        let flags = ffi::SWS_BICUBIC | ffi::SWS_ACCURATE_RND | ffi::SWS_FULL_CHR_H_INP;
        let (w, h, null) = (width as i32, height as i32, std::ptr::null_mut());
        let (from, to) = (ffi::AVPixelFormat::AV_PIX_FMT_RGB24, ffi::AVPixelFormat::AV_PIX_FMT_YUV420P);
        // SAFETY: plain numbers in; the context is checked for null before it is used; the table is static.
        unsafe {
            let context = ffi::sws_getContext(w, h, from, w, h, to, flags, null, null, null.cast());
            if context.is_null() {
                return None;
            }
            let table = ffi::sws_getCoefficients(ffi::SWS_CS_ITU709);
            ffi::sws_setColorspaceDetails(context, table, 1, table, 0, 0, 1 << 16, 1 << 16);
            Some(Self { context, size: (width, height) })
        }
    }

    fn run(&mut self, image: &RgbImage) -> frame::Video {
        let mut frame = frame::Video::new(Pixel::YUV420P, self.size.0, self.size.1);
        let rows = [image.as_raw().as_ptr(), std::ptr::null(), std::ptr::null(), std::ptr::null()];
        let strides = [self.size.0 as i32 * 3, 0, 0, 0];
        // SAFETY: the image and the frame have the size that the context was made for; one plane in, three out.
        unsafe {
            let out = &mut *frame.as_mut_ptr();
            let height = self.size.1 as i32;
            ffi::sws_scale(
                self.context,
                rows.as_ptr(),
                strides.as_ptr(),
                0,
                height,
                out.data.as_ptr(),
                out.linesize.as_ptr(),
            );
        }
        frame.set_color_space(color::Space::BT709);
        frame.set_color_range(color::Range::MPEG);
        frame
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: made by sws_getContext, freed once.
        unsafe { ffi::sws_freeContext(self.context) };
    }
}
