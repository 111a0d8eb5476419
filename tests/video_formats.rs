//! Containers, codecs and timing: the right frame at the right time in each, in parallel as in sequence.

use std::path::Path;

use msjoe::video::{Times, Video};
use tempfile::tempdir;
use video_rs::ffmpeg::format::Pixel;

use crate::video::clips::{Clip, Rational, assert_shown, expected, number, samples, shown};

/// Opens the file and compares every way of asking with what was encoded. `end` in ticks of the clip.
fn check(clip: &Clip, path: &Path, end: i64) -> Video {
    let video = Video::open(path).unwrap();
    assert_eq!(video.info.frames, clip.pts.len());
    assert_eq!((video.info.width, video.info.height), clip.size);
    let tick = f64::from(clip.tick.0) / f64::from(clip.tick.1);
    let duration = (end - clip.pts[0]) as f64 * tick;
    assert!((video.info.duration - duration).abs() < 2e-3, "{} s, expected {duration}", video.info.duration);
    assert_eq!(video.warning(), None);

    let all: Vec<_> = clip.seconds().into_iter().enumerate().collect();
    let every = (0..clip.pts.len()).collect();
    assert_shown(&shown(&video, Times::Frames(every)), &all);
    // 10 fps hits frames exactly, 3.7 and 1 fall between, 60 repeats frames
    for (fps, num, den) in [(10.0, 1, 10), (3.7, 10, 37), (1.0, 1, 1), (60.0, 1, 60)] {
        assert_shown(&shown(&video, Times::Fps(fps)), &expected(clip, end, num, den));
    }
    // a delivered time asks for the same frame again; out of order; few frames far apart
    let times: Vec<f64> = samples(&video, Times::Fps(5.0), 1).iter().map(|s| s.seconds).rev().collect();
    for sample in samples(&video, Times::Seconds(times.clone()), 2) {
        assert_eq!(sample.seconds, times[sample.index]);
    }
    let last = clip.pts.len() - 1;
    assert_shown(&shown(&video, Times::Frames(vec![last / 2, last])), &[all[last / 2], all[last]]);
    video
}

fn check_regular(clip: &Clip) -> Video {
    let folder = tempdir().unwrap();
    let path = clip.write(folder.path());
    let step = clip.pts[1] - clip.pts[0];
    check(clip, &path, clip.pts[clip.pts.len() - 1] + step)
}

#[test]
fn h264_mp4_with_b_frames() {
    let video = check_regular(&Clip::h264(301));
    assert_eq!(video.info.codec, "h264");
    assert!((video.info.frame_rate - 25.0).abs() < 1e-3);
}

#[test]
fn h264_mkv() {
    check_regular(&Clip { container: "mkv", ..Clip::h264(251) });
}

#[test]
fn h264_mov_of_one_group() {
    check_regular(&Clip { container: "mov", gop: 1000, ..Clip::h264(201) });
}

#[test]
fn h264_mpeg_ts_starts_late() {
    check_regular(&Clip {
        container: "ts",
        tick: Rational(1, 90_000),
        pts: steps(200, 3600),
        ..Clip::h264(0)
    });
}

#[test]
fn h264_open_groups_are_not_cut() {
    let mut clip = Clip { container: "mkv", ..Clip::h264(260) };
    clip.options[2] = ("x264-params", "b-adapt=0:scenecut=0:open-gop=1:bframes=3:b-pyramid=strict:ref=4");
    check_regular(&clip);
}

#[test]
fn h264_gradual_refresh_is_not_cut() {
    let mut clip = Clip {
        container: "ts",
        tick: Rational(1, 90_000),
        pts: steps(200, 3600),
        b_frames: 0,
        ..Clip::h264(0)
    };
    clip.options[2] = ("x264-params", "intra-refresh=1:bframes=0");
    check_regular(&clip);
}

#[test]
fn h265_with_leading_pictures() {
    check_regular(&Clip {
        codec: "libx265",
        options: vec![
            ("preset", "ultrafast"),
            (
                "x265-params",
                "log-level=none:open-gop=1:keyint=20:min-keyint=20:bframes=4:b-adapt=0:scenecut=0",
            ),
        ],
        ..Clip::h264(260)
    });
}

#[test]
fn h265_ten_bit() {
    check_regular(&Clip {
        codec: "libx265",
        format: Pixel::YUV420P10LE,
        options: vec![("preset", "ultrafast"), ("x265-params", "log-level=none:keyint=30")],
        ..Clip::h264(90)
    });
}

#[test]
fn h264_ten_bit_of_odd_size() {
    let mut clip = Clip { format: Pixel::YUV444P10LE, size: (67, 51), ..Clip::h264(100) };
    clip.options[1] = ("crf", "12");
    check_regular(&clip);
}

#[test]
fn vp9_webm_with_hidden_frames() {
    check_regular(&Clip {
        container: "webm",
        codec: "libvpx-vp9",
        options: vec![
            ("deadline", "good"),
            ("cpu-used", "5"),
            ("auto-alt-ref", "1"),
            ("lag-in-frames", "16"),
            ("crf", "20"),
            ("b", "0"),
        ],
        ..Clip::h264(150)
    });
}

#[test]
fn vp8_webm_with_hidden_frames() {
    check_regular(&Clip {
        container: "webm",
        codec: "libvpx",
        options: vec![
            ("deadline", "good"),
            ("cpu-used", "5"),
            ("auto-alt-ref", "1"),
            ("lag-in-frames", "16"),
            ("b", "400k"),
        ],
        ..Clip::h264(150)
    });
}

#[test]
fn av1_mp4() {
    check_regular(&Clip {
        codec: "libaom-av1",
        options: vec![("usage", "realtime"), ("cpu-used", "8"), ("crf", "20")],
        gop: 20,
        ..Clip::h264(60)
    });
}

#[test]
fn gif() {
    // GIF counts hundredths of a second
    check_regular(&Clip {
        container: "gif",
        codec: "gif",
        options: vec![],
        format: Pixel::BGR8,
        tick: Rational(1, 100),
        pts: steps(60, 10),
        ..Clip::h264(0)
    });
}

#[test]
fn mjpeg_needs_no_other_frame() {
    check_regular(&Clip {
        container: "mkv",
        codec: "mjpeg",
        options: vec![("range", "full"), ("q", "2")],
        format: Pixel::YUVJ420P,
        b_frames: 0,
        ..Clip::h264(100)
    });
}

#[test]
fn mpeg4_avi_without_timestamps() {
    check_regular(&Clip {
        container: "avi",
        codec: "mpeg4",
        options: vec![("b", "2000k")],
        tick: Rational(1, 25),
        pts: steps(100, 1),
        b_frames: 2,
        gop: 12,
        ..Clip::h264(0)
    });
}

#[test]
fn mpeg2_program_stream() {
    check_regular(&Clip {
        container: "mpg",
        codec: "mpeg2video",
        options: vec![("b", "2000k")],
        tick: Rational(1, 25),
        pts: steps(150, 1),
        b_frames: 2,
        gop: 12,
        ..Clip::h264(0)
    });
}

#[test]
fn raw_h264_without_container() {
    let clip = Clip { container: "h264", tick: Rational(1, 25), pts: steps(120, 1), ..Clip::h264(0) };
    let folder = tempdir().unwrap();
    let path = clip.write(folder.path());
    let video = Video::open(&path).unwrap();
    assert_eq!(video.info.frames, 120);
    let numbers: Vec<_> = shown(&video, Times::Frames((0..120).collect())).iter().map(|s| s.0).collect();
    assert_eq!(numbers, (0..120).collect::<Vec<_>>());
}

#[test]
fn variable_frame_rate() {
    for container in ["mp4", "mkv"] {
        let gaps = [10, 40, 333, 5, 1001, 20, 80, 17];
        let mut clip = Clip { container, ..Clip::h264(0) };
        clip.pts =
            (0..150).scan(0, |at, n| Some(std::mem::replace(at, *at + gaps[n % gaps.len()]))).collect();
        let folder = tempdir().unwrap();
        let path = clip.write(folder.path());
        let end = Video::open(&path).unwrap().info.duration;
        let last = clip.pts[149];
        let end = (end * 1000.0).round() as i64;
        assert!(end > last && end <= last + 1001, "{container}: end {end} after {last}");
        check(&clip, &path, end);
    }
}

#[test]
fn late_start_counts_from_the_first_frame() {
    for container in ["mp4", "mkv"] {
        let pts = (0..80).map(|n| 7_320 + n * 40).collect();
        check_regular(&Clip { container, pts, ..Clip::h264(0) });
    }
}

#[test]
fn unknown_duration() {
    check_regular(&Clip { container: "mkv", muxer: vec![("live", "1")], ..Clip::h264(80) });
    check_regular(&Clip { container: "flv", b_frames: 0, ..Clip::h264(80) });
}

#[test]
fn ntsc_rate_is_exact() {
    // at 30000/1001 the frame shown at second 1001 k / 1000 is the one that starts there
    let clip = Clip { tick: Rational(1, 30_000), pts: steps(240, 1001), ..Clip::h264(0) };
    let folder = tempdir().unwrap();
    let path = clip.write(folder.path());
    let video = check(&clip, &path, 240 * 1001);
    let all: Vec<usize> = shown(&video, Times::Fps(30_000.0 / 1001.0)).iter().map(|s| s.0).collect();
    assert_eq!(all, (0..240).collect::<Vec<_>>());
}

#[test]
fn edit_list_hides_frames() {
    // 1 s cut from the front (inside a group) and 1 s from the end of 6 s
    let clip = Clip { gop: 60, tick: Rational(1, 12_800), pts: steps(150, 512), ..Clip::h264(0) };
    let folder = tempdir().unwrap();
    let path = clip.write(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|name| name == b"elst").unwrap() + 12;
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let (duration, start) = (word(&bytes, at), word(&bytes, at + 4));
    assert_eq!(duration, 6000);
    bytes[at..at + 4].copy_from_slice(&4000u32.to_be_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&(start + 12_800).to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    let video = Video::open(&path).unwrap();
    let numbers: Vec<_> = shown(&video, Times::Fps(25.0)).iter().map(|s| s.0).collect();
    assert_eq!(numbers, (25..125).collect::<Vec<_>>());
    assert_eq!(video.info.frames, 100);
    assert!((video.info.duration - 4.0).abs() < 1e-9);
}

#[test]
fn rotation_is_applied() {
    const ONE: i32 = 1 << 16;
    // clockwise quarter turns and mirrors, as phones write them: a b u c d v x y w
    type Turn = fn(&image::RgbImage) -> image::RgbImage;
    let cases: [([i32; 4], Turn); 7] = [
        ([0, ONE, -ONE, 0], image::imageops::rotate90),
        ([-ONE, 0, 0, -ONE], image::imageops::rotate180),
        ([0, -ONE, ONE, 0], image::imageops::rotate270),
        ([-ONE, 0, 0, ONE], image::imageops::flip_horizontal),
        ([ONE, 0, 0, -ONE], image::imageops::flip_vertical),
        ([0, ONE, ONE, 0], |i| image::imageops::flip_horizontal(&image::imageops::rotate90(i))),
        ([0, -ONE, -ONE, 0], |i| image::imageops::flip_horizontal(&image::imageops::rotate270(i))),
    ];
    let clip = Clip { size: (66, 50), ..Clip::h264(3) };
    let folder = tempdir().unwrap();
    let path = clip.write(folder.path());
    let upright = samples(&Video::open(&path).unwrap(), Times::Frames(vec![2]), 1).remove(0).images.remove(0);
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|name| name == b"tkhd").unwrap() + 44;
    for ([a, b, c, d], turn) in cases {
        let mut turned = bytes.clone();
        for (n, value) in [a, b, 0, c, d, 0, 0, 0, 1 << 30].into_iter().enumerate() {
            turned[at + 4 * n..][..4].copy_from_slice(&value.to_be_bytes());
        }
        std::fs::write(&path, turned).unwrap();
        let video = Video::open(&path).unwrap();
        let sample = samples(&video, Times::Frames(vec![2]), 1).remove(0);
        let expected = turn(&upright);
        assert_eq!((video.info.width, video.info.height), expected.dimensions());
        assert!(sample.images[0] == expected, "matrix {a} {b} {c} {d}");
        assert_eq!(number(&upright), 2);
    }
}

/// Presentation times at a constant rate.
fn steps(frames: i64, step: i64) -> Vec<i64> {
    (0..frames).map(|n| n * step).collect()
}
