//! The packet index of a file: what is displayed when, and where decoding can start. Nothing but the first frame is decoded.

use std::path::Path;

use video_rs::ffmpeg::{Packet, Rational, ffi, packet};

use super::bitstream::Bitstream;
use super::decode::FrameDecoder;
use super::demux::{self, Demuxer};
use super::timeline::Timeline;
use crate::{Error, Result};

/// Frames per second of a stream that states none.
const DEFAULT_RATE: f64 = 25.0;

/// Seconds by which a header may promise more than there is.
const SLACK: f64 = 0.25;

/// A packet from which decoding gives every frame presented at or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Number of the packet in file order within the stream.
    pub packet: usize,
    /// Presentation time in ticks of the stream; the minimum for the start of the file.
    pub pts: i64,
    /// Decoding time in ticks, where known.
    pub dts: Option<i64>,
}

/// By what a decoded frame is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Its timestamp: every packet has one, all different.
    Timestamp,
    /// Its number in the decoder's output: the container does not say enough.
    Ordinal,
}

/// Everything known about a file before its frames are decoded.
#[derive(Debug)]
pub(super) struct Index {
    pub timeline: Timeline,
    /// What identifies each frame of the timeline: stream ticks, or output numbers.
    pub ids: Vec<i64>,
    pub identity: Identity,
    /// Timestamp of the first displayed frame in stream ticks.
    pub origin: i64,
    pub cuts: Vec<Cut>,
    pub packets: usize,
    /// Whether unreferenced pictures nobody wants may be left undecoded.
    pub disposable: bool,
    /// Size of the first frame as stored, before rotation.
    pub size: (u32, u32),
    pub matrix: Option<[i32; 9]>,
    pub codec: String,
    pub frame_rate: f64,
    pub warning: Option<String>,
}

/// What the index keeps of a packet.
struct Entry {
    pts: Option<i64>,
    dts: Option<i64>,
    duration: i64,
    /// Decoding can start here.
    restart: bool,
    /// It puts a frame on display.
    shown: bool,
    damaged: bool,
}

struct Scan {
    entries: Vec<Entry>,
    /// Timestamp and size of the first frame that the decoder puts out.
    first: Option<(Option<i64>, (u32, u32))>,
    progressive: bool,
}

impl Index {
    /// Reads every packet of the file once.
    pub fn build(path: &Path) -> Result<Self> {
        let mut demuxer = Demuxer::open(path)?;
        let parameters = demuxer.parameters()?;
        let codec = demux::codec_name(&parameters);
        let bitstream = Bitstream::new(&codec, demux::extradata(&parameters));
        let mut scan = scan(&mut demuxer, &bitstream, path)?;
        let stated = demuxer.frame_rate()?;
        let warning = truncation(&demuxer, &mut scan)?;
        let Some((first, size)) = scan.first else {
            return Err(nothing_decodes(path, &scan.entries, &codec));
        };
        let tick = demuxer.time_base()?;
        let step = frame_ticks(tick, stated);
        let (ids, times, identity, end) = match timestamps(&scan.entries, first, step) {
            Some((times, end)) => (times.clone(), times, Identity::Timestamp, end),
            None => {
                let times = decoded_timestamps(path, scan.entries.len(), step)?;
                let end = times.last().map_or(0, |last| last.saturating_add(step));
                ((0..times.len() as i64).collect(), times, Identity::Ordinal, end)
            }
        };
        let origin = *times.first().ok_or_else(|| nothing_decodes(path, &scan.entries, &codec))?;
        let timeline = Timeline {
            tick: (i64::from(tick.0), i64::from(tick.1)),
            frames: times.iter().map(|pts| pts.saturating_sub(origin)).collect(),
            end: end.saturating_sub(origin),
        };
        let seconds = timeline.seconds(timeline.end);
        let counted = times.len() as f64 / seconds.max(f64::MIN_POSITIVE);
        Ok(Self {
            cuts: cuts(&scan.entries, identity),
            packets: scan.entries.len(),
            disposable: bitstream.has_disposable() && scan.progressive && identity == Identity::Timestamp,
            matrix: demuxer.display_matrix()?,
            frame_rate: if stated > 0.0 { stated } else { counted },
            timeline,
            ids,
            identity,
            origin,
            size,
            codec,
            warning,
        })
    }
}

fn scan(demuxer: &mut Demuxer, bitstream: &Bitstream, path: &Path) -> Result<Scan> {
    let mut decoder = Some(FrameDecoder::open(demuxer, 1, path)?);
    let mut scan = Scan { entries: Vec::new(), first: None, progressive: true };
    while let Some(packet) = demuxer.read() {
        scan.entries.push(entry(&packet, bitstream));
        if let Some(probe) = &mut decoder {
            probe.send(Some(&packet));
            scan.first = first_frame(probe, &mut scan.progressive);
        }
        if scan.first.is_some() {
            decoder = None;
        }
    }
    if let Some(mut probe) = decoder {
        probe.send(None);
        scan.first = first_frame(&mut probe, &mut scan.progressive);
    }
    Ok(scan)
}

fn first_frame(probe: &mut FrameDecoder, progressive: &mut bool) -> Option<(Option<i64>, (u32, u32))> {
    let frame = probe.receive()?;
    *progressive = !frame.is_interlaced();
    Some((frame.pts(), (frame.width(), frame.height())))
}

fn entry(packet: &Packet, bitstream: &Bitstream) -> Entry {
    let data = packet.data().unwrap_or(&[]);
    // SAFETY: the packet is alive; flags is a plain integer with bits the safe wrapper does not name.
    let flags = unsafe { (*packet::Ref::as_ptr(packet)).flags };
    let discarded = flags & ffi::AV_PKT_FLAG_DISCARD != 0;
    Entry {
        pts: packet.pts(),
        dts: packet.dts(),
        duration: packet.duration(),
        restart: packet.is_key() && !discarded && packet.pts().is_some() && bitstream.restarts(data),
        shown: !discarded && bitstream.shows(data),
        damaged: packet.is_corrupt(),
    }
}

/// Finds out whether the file ends early; a half-read last packet is left out.
fn truncation(demuxer: &Demuxer, scan: &mut Scan) -> Result<Option<String>> {
    let cut_off = scan.entries.last().is_some_and(|last| last.damaged);
    if cut_off {
        scan.entries.pop();
    }
    let read = scan.entries.len();
    let listed = demuxer.listed_packets()?;
    if demuxer.format_name().contains("mov") && listed > read {
        return Ok(Some(format!("the file ends early: its index lists {listed} frames, {read} can be read")));
    }
    let missing = demuxer.missing_seconds();
    if missing > SLACK + longest_gap(&scan.entries) as f64 * f64::from(demuxer.time_base()?) {
        return Ok(Some(format!(
            "the file ends early: {missing:.1} s are missing, {read} frames can be read"
        )));
    }
    if cut_off || demuxer.damaged {
        return Ok(Some(format!("the file is damaged or ends early: {read} frames can be read")));
    }
    Ok(None)
}

/// Longest time in ticks between neighbouring frames: how long the last may be shown without the packets saying so.
fn longest_gap(entries: &[Entry]) -> i64 {
    let mut times: Vec<i64> = entries.iter().filter_map(|entry| entry.pts).collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0)
}

/// Displayed timestamps in order and the end of display, when the packets alone tell them.
fn timestamps(entries: &[Entry], first: Option<i64>, step: i64) -> Option<(Vec<i64>, i64)> {
    let first = first?;
    let mut shown = Vec::with_capacity(entries.len());
    for entry in entries.iter().filter(|entry| entry.shown) {
        shown.push((entry.pts?, entry.duration));
    }
    shown.sort_unstable();
    // what is presented before the first frame that comes out cannot be decoded
    let start = shown.partition_point(|&(pts, _)| pts < first);
    shown.drain(..start);
    if shown.windows(2).any(|pair| pair[0].0 == pair[1].0) || shown.first()?.0 != first {
        return None;
    }
    let &(last, duration) = shown.last()?;
    let gap = shown.len().checked_sub(2).map(|before| last.saturating_sub(shown[before].0));
    let duration = if duration > 0 { duration } else { gap.unwrap_or(step) };
    Some((shown.iter().map(|&(pts, _)| pts).collect(), last.saturating_add(duration)))
}

/// Timestamps of the frames a decoder puts out, made ascending, for containers that say too little.
fn decoded_timestamps(path: &Path, packets: usize, step: i64) -> Result<Vec<i64>> {
    let mut demuxer = Demuxer::open(path)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut decoder = FrameDecoder::open(&demuxer, threads, path)?;
    let mut times: Vec<i64> = Vec::new();
    let mut more = true;
    while more {
        let packet = if demuxer.position() < packets { demuxer.read() } else { None };
        more = packet.is_some();
        decoder.send(packet.as_ref());
        while let Some(frame) = decoder.receive() {
            let expected = times.last().map_or(0, |last| last.saturating_add(step));
            let stated = frame.timestamp().filter(|&at| times.last().is_none_or(|&last| at > last));
            times.push(stated.unwrap_or(expected));
        }
    }
    Ok(times)
}

/// Places where decoding can start: the beginning, and the restarts of a regular stream in order.
fn cuts(entries: &[Entry], identity: Identity) -> Vec<Cut> {
    let mut cuts = vec![Cut { packet: 0, pts: i64::MIN, dts: None }];
    if identity == Identity::Ordinal {
        return cuts;
    }
    for (packet, entry) in entries.iter().enumerate().skip(1) {
        if let (true, Some(pts)) = (entry.restart, entry.pts) {
            if pts <= cuts[cuts.len() - 1].pts {
                return cuts[..1].to_vec(); // time runs backwards: only one pass is certain
            }
            cuts.push(Cut { packet, pts, dts: entry.dts });
        }
    }
    cuts
}

/// Ticks between frames at the stated rate.
fn frame_ticks(tick: Rational, rate: f64) -> i64 {
    let rate = if rate > 0.0 { rate } else { DEFAULT_RATE };
    ((f64::from(tick.1) / f64::from(tick.0.max(1)) / rate).round() as i64).max(1)
}

fn nothing_decodes(path: &Path, entries: &[Entry], codec: &str) -> Error {
    match entries.len() {
        0 => Error::video(path, format!("the {codec} stream has no frames")),
        n => Error::video(path, format!("none of the {n} packets of the {codec} stream can be decoded")),
    }
}
