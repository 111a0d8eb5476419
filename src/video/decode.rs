//! One decoder: packets in, frames in presentation order out.

use std::path::Path;

use video_rs::ffmpeg::codec::{self, threading};
use video_rs::ffmpeg::{Codec, Discard, Packet, decoder, ffi, frame};

use super::demux::{self, Demuxer};
use crate::{Error, Result};

/// A video decoder that counts what it could not decode instead of stopping there.
pub(super) struct FrameDecoder {
    decoder: decoder::Video,
    /// Packets that the decoder refused since it was opened.
    pub failures: usize,
}

impl FrameDecoder {
    /// Opens a decoder for the stream of `demuxer`, with frame threads when `threads` is above 1.
    pub fn open(demuxer: &Demuxer, threads: usize, path: &Path) -> Result<Self> {
        let parameters = demuxer.parameters()?;
        let name = demux::codec_name(&parameters);
        let failed = |error| Error::video(path, format!("the {name} decoder cannot be opened: {error}"));
        // SAFETY: the parameters are alive; the codec returned is static or null.
        let codec = unsafe { ffi::avcodec_find_decoder((*parameters.as_ptr()).codec_id) };
        if codec.is_null() {
            return Err(Error::video(path, format!("this FFmpeg has no decoder for {name}")));
        }
        // SAFETY: the pointer is a registered codec, which lives as long as the process.
        let codec = unsafe { Codec::wrap(codec) };
        let mut context = codec::Context::from_parameters(parameters).map_err(failed)?;
        let kind = if threads > 1 { threading::Type::Frame } else { threading::Type::None };
        context.set_threading(threading::Config { kind, count: threads, ..Default::default() });
        let mut decoder = context.decoder();
        decoder.set_packet_time_base(demuxer.time_base()?);
        let decoder = decoder.open_as(codec).and_then(|opened| opened.video()).map_err(failed)?;
        Ok(Self { decoder, failures: 0 })
    }

    /// Hands over a packet, or the end of the stream. Take every frame with [`receive`](Self::receive) before the next.
    pub fn send(&mut self, packet: Option<&Packet>) {
        let sent = match packet {
            Some(packet) => self.decoder.send_packet(packet),
            None => self.decoder.send_eof(),
        };
        self.failures += usize::from(packet.is_some() && sent.is_err());
    }

    /// Next frame, or `None` until another packet is sent.
    pub fn receive(&mut self) -> Option<frame::Video> {
        let mut frame = frame::Video::empty();
        self.decoder.receive_frame(&mut frame).ok().map(|()| frame)
    }

    /// Lets the decoder pass over pictures that no other refers to, or not, from the next packet on.
    pub fn skip_disposable(&mut self, skip: bool) {
        self.decoder.skip_frame(if skip { Discard::NonReference } else { Discard::Default });
    }

    /// Forgets everything sent so far: the next packet starts anew.
    pub fn flush(&mut self) {
        self.decoder.flush();
    }
}
