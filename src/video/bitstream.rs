//! What the first bytes of a packet tell: can decoding start here, does it show a frame.

/// How the units of a packet are delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// A big-endian length of so many bytes before each unit (mp4, mkv).
    Length(usize),
    /// Start codes 00 00 01 (MPEG-TS, raw streams).
    StartCode,
}

/// Codec families by what a keyframe promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    H264(Framing),
    Hevc(Framing),
    Vp8,
    /// Every packet flagged as key restarts the decoder completely.
    CleanKeys,
    /// Keyframes promise nothing we can rely on (GIF, unknown codecs): one pass from the start.
    Unsafe,
}

/// Reader of packets of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bitstream(Family);

impl Bitstream {
    /// For a codec by FFmpeg's name and its configuration record.
    pub fn new(codec: &str, extradata: &[u8]) -> Self {
        let framing = |at: usize| match extradata {
            [1, ..] if extradata.len() > at => Framing::Length(usize::from(extradata[at] & 3) + 1),
            _ => Framing::StartCode,
        };
        Self(match codec {
            "h264" => Family::H264(framing(4)),
            "hevc" => Family::Hevc(framing(21)),
            "vp8" => Family::Vp8,
            "vp9" | "av1" | "mpeg1video" | "mpeg2video" | "mjpeg" | "prores" | "dnxhd" | "rawvideo"
            | "v210" | "png" | "huffyuv" | "theora" => Family::CleanKeys,
            _ => Family::Unsafe,
        })
    }

    /// Whether frames presented from this key packet on never refer to anything before it.
    ///
    /// H.264: an IDR picture (a mere recovery point is not trusted). HEVC: any random access point; its leading
    /// pictures are presented before it and belong to the range before.
    pub fn restarts(&self, data: &[u8]) -> bool {
        match self.0 {
            Family::H264(framing) => Units::new(framing, data).any(|unit| unit[0] & 0x1f == 5),
            Family::Hevc(framing) => {
                Units::new(framing, data).any(|unit| (16..=21).contains(&(unit[0] >> 1 & 0x3f)))
            }
            Family::Vp8 | Family::CleanKeys => true,
            Family::Unsafe => false,
        }
    }

    /// Whether the packet puts a frame on display (VP8 keeps some only as references).
    pub fn shows(&self, data: &[u8]) -> bool {
        !matches!((self.0, data), (Family::Vp8, [first, ..]) if first & 0x10 == 0)
    }

    /// Whether pictures marked as unreferenced may be left out of decoding without changing any other.
    pub fn has_disposable(&self) -> bool {
        matches!(self.0, Family::H264(_))
    }
}

/// NAL units of a packet, each with at least its header byte.
struct Units<'a> {
    framing: Framing,
    rest: &'a [u8],
}

impl<'a> Units<'a> {
    fn new(framing: Framing, data: &'a [u8]) -> Self {
        Self { framing, rest: data }
    }

    fn next_length(&mut self, width: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(width)?;
        let length = head.iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
        let (unit, rest) = rest.split_at(length.min(rest.len()));
        self.rest = rest;
        Some(unit)
    }

    fn next_start_code(&mut self) -> Option<&'a [u8]> {
        let at = self.rest.windows(3).position(|code| code == [0, 0, 1])?;
        self.rest = &self.rest[at + 3..];
        Some(self.rest)
    }
}

impl<'a> Iterator for Units<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let unit = match self.framing {
                Framing::Length(width) => self.next_length(width)?,
                Framing::StartCode => self.next_start_code()?,
            };
            if !unit.is_empty() {
                return Some(unit);
            }
        }
    }
}
