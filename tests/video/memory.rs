//! The memory of sampling a video, measured in processes of their own.

use msjoe::video::{Fit, H264Writer, Rational, Request, Times, Video};
use tempfile::tempdir;

use super::clips::barcode;
use crate::memory::{CHILD, peak_of_child, print_peak};

const SIZE: (u32, u32) = (640, 360);

/// Reads all samples of a video and keeps none. Does nothing unless it was started by the test below.
#[test]
fn child_of_the_window_test() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let request = Request { times: Times::Fps(1.0), fits: vec![Fit::Native], threads: 2 };
    let stream = Video::open(&path).unwrap().samples(&request).unwrap();
    println!("samples {}", stream.map(Result::unwrap).count());
    print_peak();
}

/// A video six times as long takes no more memory than its packets' index: what is kept is a window of frames.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_bounded_by_a_window_and_not_by_the_video() {
    let folder = tempdir().unwrap();
    let peak = |seconds: usize| {
        let path = folder.path().join(format!("{seconds}.mp4"));
        let mut video = H264Writer::create(&path, SIZE.0, SIZE.1, Rational::new(2, 1)).unwrap();
        for number in 0..2 * seconds {
            video.push(&barcode(number, SIZE.0, SIZE.1)).unwrap();
        }
        video.finish().unwrap();
        peak_of_child("video::memory::child_of_the_window_test", path.to_str().unwrap())
    };
    let (short, long) = (peak(60), peak(360));
    let more = 300.0 * f64::from(SIZE.0 * SIZE.1 * 3);
    assert!(
        long - short < 0.1 * more,
        "{short:.3e} and {long:.3e} bytes; the other 300 frames have {more:.3e}"
    );
}
