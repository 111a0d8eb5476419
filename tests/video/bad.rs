//! Bad input: an error that names file and cause, or what decodes plus a warning; never a panic.

use std::path::Path;

use msjoe::Error;
use msjoe::video::{Fit, Request, Times, Video, resize};
use tempfile::tempdir;

use super::clips::{Clip, barcode, number, samples};

/// The message of opening `path`, which must name it.
fn refused(path: &Path) -> String {
    let error = Video::open(path).err().unwrap_or_else(|| panic!("{} opens", path.display()));
    assert!(matches!(error, Error::Video { .. }), "{error}");
    let message = error.to_string();
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    message
}

/// A minimal sound file: 16-bit mono silence.
fn wav(samples: u32) -> Vec<u8> {
    let bytes = samples * 2;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + bytes).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data");
    wav.extend(bytes.to_le_bytes());
    wav.resize(wav.len() + bytes as usize, 0);
    wav
}

#[test]
fn files_that_are_no_videos() {
    let folder = tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(refused(&folder.path().join("missing.mp4")).contains("No such file"));
    assert!(refused(&at("empty.mp4", b"")).contains("empty"));
    let text = "It was a bright cold day in April, and the clocks were striking thirteen.\n".repeat(100);
    for name in ["text.mp4", "text.mkv", "text.txt", "text"] {
        refused(&at(name, text.as_bytes()));
    }
    assert!(refused(&at("sound.wav", &wav(8000))).contains("no video"));
    let noise: Vec<u8> = (0u32..100_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    refused(&at("noise.mp4", &noise));
    refused(&at("zero byte\u{1F3A5}.mp4", &[0; 4096]));
    assert!(refused(folder.path()).contains("no images"));
}

#[test]
fn streams_without_frames() {
    let folder = tempdir().unwrap();
    // the header of a video, and nothing of its frames
    let path = Clip { muxer: vec![("movflags", "faststart")], ..Clip::h264(20) }.write(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let data = bytes.windows(4).position(|name| name == b"mdat").unwrap() + 4;
    std::fs::write(&path, &bytes[..data]).unwrap();
    refused(&path);
    // frames of zeros
    let mut blank = bytes.clone();
    blank[data..].fill(0);
    std::fs::write(&path, &blank).unwrap();
    refused(&path);
    // the index is at the end, and cut off
    let path = Clip::h264(20).write(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() * 3 / 4]).unwrap();
    assert!(refused(&path).contains("cut off"));
}

#[test]
fn truncated_files_give_what_decodes_and_a_warning() {
    for (container, muxer) in [("mp4", vec![("movflags", "faststart")]), ("mkv", vec![])] {
        let folder = tempdir().unwrap();
        let path = Clip { container, muxer, ..Clip::h264(200) }.write(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() * 6 / 10]).unwrap();
        let video = Video::open(&path).unwrap();
        let request = Request { times: Times::Fps(25.0), fits: vec![Fit::Native], threads: 3 };
        let mut stream = video.samples(&request).unwrap();
        let all: Vec<_> = stream.by_ref().map(Result::unwrap).collect();
        let warning = stream.warning().unwrap_or_else(|| panic!("{container}: no warning"));
        assert!(warning.contains("ends early"), "{warning}");
        assert!((20..180).contains(&all.len()), "{container}: {} frames", all.len());
        for (n, sample) in all.iter().enumerate().take(all.len() - 4) {
            assert_eq!(number(&sample.images[0]), n, "{container}");
        }
        assert!(all == samples(&video, Times::Fps(25.0), 1));
    }
}

#[test]
fn damage_in_the_middle_is_reported() {
    let folder = tempdir().unwrap();
    let path = Clip { muxer: vec![("movflags", "faststart")], ..Clip::h264(200) }.write(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 600].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let video = Video::open(&path).unwrap();
    let request = Request { times: Times::Fps(25.0), fits: vec![Fit::Native], threads: 2 };
    let mut stream = video.samples(&request).unwrap();
    let count = stream.by_ref().map(Result::unwrap).count();
    assert_eq!(count, 200);
    assert!(stream.warning().is_some_and(|warning| warning.contains("could not be decoded")));
}

#[test]
fn requests_outside_the_video() {
    let folder = tempdir().unwrap();
    let path = Clip::h264(50).write(folder.path());
    let video = Video::open(&path).unwrap();
    let refused = |times: Times| {
        let request = Request { times: times.clone(), fits: vec![Fit::Native], threads: 1 };
        let error = video.samples(&request).err().unwrap_or_else(|| panic!("{times:?} is accepted"));
        assert!(matches!(error, Error::Input(_)), "{error}");
        assert_eq!(video.sample_times(&times).unwrap_err().to_string(), error.to_string());
        error.to_string()
    };
    for fps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        assert!(refused(Times::Fps(fps)).contains("fps"));
    }
    assert!(refused(Times::Seconds(vec![0.5, 2.0])).contains("got 2"));
    assert!(refused(Times::Seconds(vec![-0.1])).contains("-0.1"));
    refused(Times::Seconds(vec![f64::NAN]));
    assert!(refused(Times::Frames(vec![0, 50])).contains("below 50"));
    let none = Request { times: Times::Fps(1.0), fits: vec![], threads: 1 };
    assert!(matches!(video.samples(&none), Err(Error::Input(_))));
    let nothing = Request { times: Times::Seconds(vec![]), fits: vec![Fit::Native], threads: 0 };
    assert_eq!(video.samples(&nothing).unwrap().count(), 0);
    for fit in [Fit::ShortEdgeCrop(0), Fit::Exact { width: 0, height: 5 }] {
        let request = Request { times: Times::Fps(1.0), fits: vec![fit], threads: 1 };
        let answer = video.samples(&request).and_then(|samples| samples.collect::<Result<Vec<_>, _>>());
        assert!(matches!(answer, Err(Error::Input(_))));
    }
    assert!(matches!(resize(&barcode(0, 4, 4), 0, 4), Err(Error::Input(_))));
    for seconds in [0.0, -1.0, f64::NAN] {
        assert!(matches!(Video::open_images(folder.path(), seconds), Err(Error::Input(_))));
    }
}

#[test]
fn unreadable_images_are_named() {
    let folder = tempdir().unwrap();
    barcode(0, 8, 8).save(folder.path().join("a.png")).unwrap();
    std::fs::write(folder.path().join("b.png"), "no image").unwrap();
    let video = Video::open(folder.path()).unwrap();
    let request = Request { times: Times::Fps(1.0), fits: vec![Fit::Native], threads: 2 };
    let mut stream = video.samples(&request).unwrap();
    assert!(stream.next().unwrap().is_ok());
    let error = stream.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("b.png"), "{error}");
    assert!(stream.next().is_none());
    std::fs::write(folder.path().join("a.png"), "no image").unwrap();
    assert!(Video::open(folder.path()).unwrap_err().to_string().contains("a.png"));
}
