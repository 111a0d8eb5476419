//! Videos made for the tests: every frame carries its number in black and white blocks.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
pub use msjoe::video::Rational;
use msjoe::video::{Fit, Request, Sample, Times, Video};
use video_rs::ffmpeg::format::Pixel;
use video_rs::ffmpeg::software::scaling;
use video_rs::ffmpeg::{self, Dictionary, Packet, codec, color, encoder, frame};

const BLOCKS: (u32, u32) = (4, 3);

/// A picture with `number` (below 4096) written as 4 x 3 blocks, lowest bit first.
pub fn barcode(number: usize, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let bit = (y * BLOCKS.1 / height) * BLOCKS.0 + x * BLOCKS.0 / width;
        let on = number >> bit & 1 == 1;
        Rgb(if on { [235, 225, 230] } else { [20, 30, 25] })
    })
}

/// The number in a picture.
pub fn number(image: &RgbImage) -> usize {
    let (width, height) = image.dimensions();
    let mut number = 0;
    for bit in 0..BLOCKS.0 * BLOCKS.1 {
        let (column, row) = (bit % BLOCKS.0, bit / BLOCKS.0);
        let x = (2 * column + 1) * width / (2 * BLOCKS.0);
        let y = (2 * row + 1) * height / (2 * BLOCKS.1);
        let value = image.get_pixel(x, y).0[1];
        assert!(!(90..=165).contains(&value), "block {bit} is neither black nor white: {value}");
        number |= usize::from(value > 127) << bit;
    }
    number
}

/// How to encode a clip.
#[derive(Clone)]
pub struct Clip {
    pub container: &'static str,
    pub codec: &'static str,
    pub options: Vec<(&'static str, &'static str)>,
    pub muxer: Vec<(&'static str, &'static str)>,
    pub format: Pixel,
    pub size: (u32, u32),
    pub tick: Rational,
    /// Presentation time of each frame in ticks.
    pub pts: Vec<i64>,
    pub gop: u32,
    pub b_frames: usize,
}

impl Clip {
    /// H.264 in MP4 with B-frames at 25 frames per second.
    pub fn h264(frames: i64) -> Self {
        Self {
            container: "mp4",
            codec: "libx264",
            options: vec![("preset", "ultrafast"), ("crf", "18"), ("x264-params", "b-adapt=0:scenecut=0")],
            muxer: vec![],
            format: Pixel::YUV420P,
            size: (64, 48),
            tick: Rational(1, 1000),
            pts: (0..frames).map(|n| n * 40).collect(),
            gop: 30,
            b_frames: 3,
        }
    }

    /// Presentation times in seconds from the first frame.
    pub fn seconds(&self) -> Vec<f64> {
        let tick = f64::from(self.tick.0) / f64::from(self.tick.1);
        self.pts.iter().map(|pts| (pts - self.pts[0]) as f64 * tick).collect()
    }

    /// Ticks from the frame at `pts` to the next; the last is shown as long as the one before.
    fn duration(&self, pts: i64) -> i64 {
        let n = self.pts.partition_point(|&other| other < pts).min(self.pts.len() - 2);
        self.pts[n + 1] - self.pts[n]
    }

    /// Encodes barcodes into `folder` and returns the file.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let (width, height) = self.size;
        self.write_frames(folder, |encoder_frame, n| {
            let mut scaler = scaling::Context::get(
                Pixel::RGB24,
                width,
                height,
                self.format,
                width,
                height,
                scaling::Flags::BICUBIC | scaling::Flags::ACCURATE_RND,
            )
            .unwrap();
            let mut rgb = frame::Video::new(Pixel::RGB24, width, height);
            let picture = barcode(n, width, height);
            let stride = rgb.stride(0);
            for (row, line) in picture.as_raw().chunks(width as usize * 3).enumerate() {
                rgb.data_mut(0)[row * stride..][..line.len()].copy_from_slice(line);
            }
            scaler.run(&rgb, encoder_frame).unwrap();
        })
    }

    /// Encodes what `draw` puts into each frame.
    pub fn write_frames(&self, folder: &Path, mut draw: impl FnMut(&mut frame::Video, usize)) -> PathBuf {
        ffmpeg::init().unwrap();
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
        let path = folder.join(format!("clip.{}", self.container));
        let mut output = ffmpeg::format::output(&path).unwrap();
        let mut encoder = self.open_encoder();
        output.add_stream_with(&encoder).unwrap().set_time_base(self.tick);
        output.write_header_with(dictionary(&self.muxer)).unwrap();
        for n in 0..=self.pts.len() {
            if let Some(&pts) = self.pts.get(n) {
                let mut frame = frame::Video::new(self.format, self.size.0, self.size.1);
                draw(&mut frame, n);
                frame.set_pts(Some(pts));
                encoder.send_frame(&frame).unwrap();
            } else {
                encoder.send_eof().unwrap();
            }
            let ticks = output.stream(0).unwrap().time_base();
            let mut packet = Packet::empty();
            while encoder.receive_packet(&mut packet).is_ok() {
                packet.set_stream(0);
                packet.set_duration(self.duration(packet.pts().unwrap()));
                packet.rescale_ts(self.tick, ticks);
                packet.write_interleaved(&mut output).unwrap();
            }
        }
        output.write_trailer().unwrap();
        path
    }

    fn open_encoder(&self) -> encoder::video::Encoder {
        let found = encoder::find_by_name(self.codec).unwrap_or_else(|| panic!("no encoder {}", self.codec));
        let mut settings = codec::Context::new_with_codec(found).encoder().video().unwrap();
        settings.set_width(self.size.0);
        settings.set_height(self.size.1);
        settings.set_format(self.format);
        settings.set_time_base(self.tick);
        settings.set_gop(self.gop);
        settings.set_max_b_frames(self.b_frames);
        for (key, value) in &self.options {
            match (*key, *value) {
                ("colorspace", "bt709") => settings.set_colorspace(color::Space::BT709),
                ("colorspace", "bt601") => settings.set_colorspace(color::Space::SMPTE170M),
                ("colorspace", "bt2020") => settings.set_colorspace(color::Space::BT2020NCL),
                ("range", "full") => settings.set_color_range(color::Range::JPEG),
                ("range", "limited") => settings.set_color_range(color::Range::MPEG),
                _ => {}
            }
        }
        if matches!(self.container, "mp4" | "mkv" | "mov" | "webm") {
            settings.set_flags(codec::Flags::GLOBAL_HEADER);
        }
        let own: Vec<_> =
            self.options.iter().filter(|(k, _)| !["colorspace", "range"].contains(k)).copied().collect();
        settings.open_as_with(found, dictionary(&own)).unwrap()
    }
}

fn dictionary(pairs: &[(&str, &str)]) -> Dictionary<'static> {
    let mut dictionary = Dictionary::new();
    for (key, value) in pairs {
        dictionary.set(key, value);
    }
    dictionary
}

/// Every sample of a request at native size.
pub fn samples(video: &Video, times: Times, threads: usize) -> Vec<Sample> {
    let request = Request { times, fits: vec![Fit::Native], threads };
    video.samples(&request).unwrap().map(Result::unwrap).collect()
}

/// Number and time of every sample, the same for one thread and for three.
pub fn shown(video: &Video, times: Times) -> Vec<(usize, f64)> {
    let sequential = samples(video, times.clone(), 1);
    assert!(sequential == samples(video, times, 3), "parallel decoding gives other frames than sequential");
    sequential.iter().map(|sample| (number(&sample.images[0]), sample.seconds)).collect()
}

/// The frames on display at k * num / den seconds, from first principles.
pub fn expected(clip: &Clip, end: i64, num: i64, den: i64) -> Vec<(usize, f64)> {
    let tick = (i64::from(clip.tick.0), i64::from(clip.tick.1));
    let reaches = |pts: i64, k: i64| (pts - clip.pts[0]) * tick.0 * den <= k * num * tick.1;
    let seconds = clip.seconds();
    let shown = |k| (0..clip.pts.len()).rfind(|&n| reaches(clip.pts[n], k)).unwrap();
    (0..).take_while(|&k| !reaches(end, k)).map(|k| (shown(k), seconds[shown(k)])).collect()
}

/// Compares numbers exactly and times to a microsecond (containers round to their own ticks).
pub fn assert_shown(got: &[(usize, f64)], want: &[(usize, f64)]) {
    let numbers = |list: &[(usize, f64)]| list.iter().map(|&(n, _)| n).collect::<Vec<_>>();
    assert_eq!(numbers(got), numbers(want));
    for (got, want) in got.iter().zip(want) {
        assert!((got.1 - want.1).abs() < 1e-6, "frame {}: shown at {}, expected {}", want.0, got.1, want.1);
    }
}
