//! Packets of one video stream, from the start or from a cut.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::Once;

use video_rs::ffmpeg::{self, Packet, Rational, codec, ffi, format, media};

use super::index::Cut;
use crate::{Error, Result};

/// Reads that may fail in a row before the rest of a file counts as lost.
const MOST_FAILURES: usize = 1000;
/// Distance in packets up to which reading on is cheaper than seeking.
const NEAR: usize = 256;

/// An open file and its place in the best video stream.
pub(super) struct Demuxer {
    input: format::context::Input,
    path: PathBuf,
    stream: usize,
    /// Number of the packet that `read` gives next, in file order within the stream.
    next: usize,
    pending: Option<Packet>,
    seekable: bool,
    /// Whether a read failed for another reason than the end of the file.
    pub damaged: bool,
    /// End of the latest packet of any stream, in seconds.
    reached: f64,
}

/// Makes FFmpeg ready once per process and stops it from writing to stderr: the library never prints.
pub(super) fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // fails never: it only registers components and error texts
        let _ = ffmpeg::init();
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    });
}

impl Demuxer {
    /// Opens `path` at the stream that `av_find_best_stream` chooses.
    pub fn open(path: &Path) -> Result<Self> {
        initialise();
        let input = open_input(path)?;
        let best = input
            .streams()
            .best(media::Type::Video)
            .filter(|stream| !stream.disposition().contains(format::stream::Disposition::ATTACHED_PIC));
        let Some(stream) = best.map(|stream| stream.index()) else {
            let count = input.nb_streams();
            return Err(Error::video(
                path,
                format!("no video in this file ({count} streams of sound, text or cover pictures)"),
            ));
        };
        Ok(Self {
            input,
            path: path.to_owned(),
            stream,
            next: 0,
            pending: None,
            seekable: true,
            damaged: false,
            reached: f64::NEG_INFINITY,
        })
    }

    fn stream(&self) -> Result<format::stream::Stream<'_>> {
        self.input.stream(self.stream).ok_or_else(|| Error::video(&self.path, "the video stream vanished"))
    }

    /// Codec parameters of the stream, to open a decoder with.
    pub fn parameters(&self) -> Result<codec::Parameters> {
        Ok(self.stream()?.parameters())
    }

    /// Seconds per tick.
    pub fn time_base(&self) -> Result<Rational> {
        Ok(self.stream()?.time_base())
    }

    /// Frames per second as the container states or estimates it; 0 when unknown.
    pub fn frame_rate(&self) -> Result<f64> {
        let stream = self.stream()?;
        let rate = [stream.avg_frame_rate(), stream.rate()];
        Ok(rate.into_iter().find(|r| r.0 > 0 && r.1 > 0).map_or(0.0, f64::from))
    }

    /// The nine numbers of the display matrix, where the file has one.
    pub fn display_matrix(&self) -> Result<Option<[i32; 9]>> {
        for data in self.stream()?.side_data() {
            // SAFETY: `data` points into the stream's side data, alive while `self.input` is.
            let kind = unsafe { (*data.as_ptr()).type_ };
            if kind == ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX && data.data().len() >= 36 {
                let mut matrix = [0; 9];
                for (number, bytes) in matrix.iter_mut().zip(data.data().chunks_exact(4)) {
                    *number = i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
                return Ok(Some(matrix));
            }
        }
        Ok(None)
    }

    /// Packets the container's own index lists; 0 when it has none.
    pub fn listed_packets(&self) -> Result<usize> {
        let stream = self.stream()?;
        // SAFETY: the stream pointer belongs to the open input and is only read.
        let count = unsafe { ffi::avformat_index_get_entries_count(stream.as_ptr()) };
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Short names of the container format.
    pub fn format_name(&self) -> String {
        self.input.format().name().to_owned()
    }

    /// Next packet of the stream; `None` at the end of what can be read.
    pub fn read(&mut self) -> Option<Packet> {
        let packet = self.pending.take().or_else(|| self.read_file());
        self.next += usize::from(packet.is_some());
        packet
    }

    fn read_file(&mut self) -> Option<Packet> {
        let mut failures = 0;
        while failures < MOST_FAILURES {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) => {
                    self.note_end(&packet);
                    if packet.stream() == self.stream {
                        return Some(packet);
                    }
                }
                Err(ffmpeg::Error::Eof) => return None,
                Err(ffmpeg::Error::InvalidData) => {
                    self.damaged = true;
                    failures += 1;
                }
                Err(_) => {
                    self.damaged = true;
                    return None;
                }
            }
        }
        None
    }

    /// Remembers how far the packets of any stream reach.
    fn note_end(&mut self, packet: &Packet) {
        let (Some(start), Some(stream)) = (packet.pts().or(packet.dts()), self.input.stream(packet.stream()))
        else {
            return;
        };
        let end = (start as f64 + packet.duration() as f64) * f64::from(stream.time_base());
        self.reached = self.reached.max(end);
    }

    /// Seconds that the container's header promises beyond the last packet read, where the header can be trusted.
    pub fn missing_seconds(&self) -> f64 {
        let name = self.format_name();
        let trusted = ["matroska", "avi", "flv"].iter().any(|format| name.contains(format));
        let length = self.input.duration();
        if !trusted || length <= 0 {
            return 0.0;
        }
        // these formats count from zero, not from the first frame
        length as f64 / f64::from(ffi::AV_TIME_BASE) - self.reached
    }

    /// Number of the packet that comes next.
    pub fn position(&self) -> usize {
        self.next
    }

    /// Goes to the packet of `cut`, so that `read` gives it next.
    pub fn go_to(&mut self, cut: &Cut) -> Result<()> {
        let ahead = cut.packet.checked_sub(self.next);
        if ahead.is_none_or(|packets| packets > NEAR) && cut.packet > 0 && self.seekable {
            if self.seek(cut) {
                return Ok(());
            }
            // A container whose seeks miss: from here on only forward, by counting packets.
            self.reopen()?;
            self.seekable = false;
        }
        if cut.packet < self.next {
            self.reopen()?;
        }
        while self.next < cut.packet && self.read().is_some() {}
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        let seekable = self.seekable;
        *self = Self { seekable, ..Self::open(&self.path)? };
        Ok(())
    }

    /// Seeks and proves by timestamp that the packet found is the wanted one.
    fn seek(&mut self, cut: &Cut) -> bool {
        // mov indexes decoding times, the others presentation times
        let ticks = if self.format_name().contains("mov") { cut.dts.unwrap_or(cut.pts) } else { cut.pts };
        self.pending = None;
        let flags = ffi::AVSEEK_FLAG_BACKWARD;
        // SAFETY: the context is open and the stream index is one of its streams.
        let found = unsafe { ffi::av_seek_frame(self.input.as_mut_ptr(), self.stream as i32, ticks, flags) };
        if found < 0 {
            return false;
        }
        while let Some(packet) = self.read_file() {
            let pts = packet.pts().unwrap_or(i64::MIN);
            if packet.is_key() && pts == cut.pts {
                self.pending = Some(packet);
                self.next = cut.packet;
                return true;
            }
            if packet.is_key() && pts > cut.pts {
                break;
            }
        }
        false
    }
}

/// `avformat_open_input` with a path of any bytes; the `file:` prefix keeps a colon in a name from being a protocol.
fn open_input(path: &Path) -> Result<format::context::Input> {
    let name = [b"file:", path.as_os_str().as_encoded_bytes()].concat();
    let name = CString::new(name).map_err(|_| Error::video(path, "the path contains a zero byte"))?;
    let mut context = std::ptr::null_mut();
    // SAFETY: `name` is a C string; FFmpeg allocates the context, or leaves it null and returns an error.
    let opened = unsafe {
        ffi::avformat_open_input(&mut context, name.as_ptr(), std::ptr::null(), std::ptr::null_mut())
    };
    if opened < 0 {
        return Err(Error::video(path, unreadable(opened)));
    }
    // SAFETY: `context` was opened above and is owned by the wrapper from here on, which closes it.
    let mut input = unsafe { format::context::Input::wrap(context) };
    // SAFETY: the context is open.
    let found = unsafe { ffi::avformat_find_stream_info(input.as_mut_ptr(), std::ptr::null_mut()) };
    if found < 0 {
        return Err(Error::video(path, unreadable(found)));
    }
    if input.format().name() == "tty" {
        return Err(Error::video(path, "this is text, not a video"));
    }
    Ok(input)
}

fn unreadable(code: i32) -> String {
    let error = ffmpeg::Error::from(code);
    format!(
        "FFmpeg cannot read this as a video ({error}); it is damaged, cut off before its index, or no video"
    )
}

/// Name of a codec, such as `h264`.
pub(super) fn codec_name(parameters: &codec::Parameters) -> String {
    // SAFETY: the parameters are alive; avcodec_get_name returns a static C string for any id.
    unsafe {
        CStr::from_ptr(ffi::avcodec_get_name((*parameters.as_ptr()).codec_id)).to_string_lossy().into_owned()
    }
}

/// Codec configuration record of the stream (avcC, hvcC, ...), empty where there is none.
pub(super) fn extradata(parameters: &codec::Parameters) -> &[u8] {
    // SAFETY: extradata is null or points to extradata_size bytes owned by the parameters, which outlive the slice.
    unsafe {
        let parameters = &*parameters.as_ptr();
        if parameters.extradata.is_null() || parameters.extradata_size <= 0 {
            return &[];
        }
        std::slice::from_raw_parts(parameters.extradata, parameters.extradata_size as usize)
    }
}
