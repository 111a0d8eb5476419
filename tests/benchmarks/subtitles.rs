//! Subtitle files in their three forms, and subtitles between frames.

use msjoe::benchmarks::Place;
use msjoe::benchmarks::subtitles::{self, Piece, insert, shown};

use super::{assert_said, fixture, folder};

#[test]
fn srt_files() {
    let read = subtitles::read(fixture("kite_-1.srt")).unwrap();
    let lines: Vec<(f64, f64, &str)> =
        read.lines.iter().map(|line| (line.start, line.end, line.text.as_str())).collect();
    assert_eq!(lines, [(1., 3.5, "Ahoy, 2 < 3"), (5.25, 5.5, "short"), (60., 3600., "long")]);
    assert_said(
        &read.refused,
        &[
            (Place::Line(7), "expected an end after the start, got 9 s to 8 s"),
            (Place::Line(18), "expected hh:mm:ss,mmm --> hh:mm:ss,mmm, got \"later --> soon\""),
        ],
    );
    assert_eq!(shown(&read.lines, &[5.25, 2., 2.5, 60., 100.]), ["Ahoy, 2 < 3", "short", "long"]);
    assert!(shown(&read.lines, &[5.1, 3.5, 5.5]).is_empty(), "an end is outside, and nothing is widened");
    let (_folder, path) = folder("a.txt", "");
    assert!(
        subtitles::read(&path)
            .unwrap_err()
            .to_string()
            .ends_with("expected subtitles that end in .srt or .json")
    );
}

#[test]
fn subtitles_of_long_video_bench_go_between_the_frames() {
    let read = subtitles::read(fixture("harbour01_en.json")).unwrap();
    assert_said(
        &read.refused,
        &[(Place::Row(4), "expected start, end and line, or timestamp and text, got")],
    );
    let lines = read.in_video(100., 12.);
    let times: Vec<(f64, f64, &str)> =
        lines.iter().map(|line| (line.start, line.end, line.text.as_str())).collect();
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(
        matches!(times[..], [(a, b, "The bell."), (c, _, "Clang")] if close(a, 1.) && close(b, 3.) && close(c, 4.1))
    );
    let pieces = insert(&lines, &[0., 2., 2.5, 4.6, 8.]);
    use Piece::{Frame, Text};
    assert_eq!(pieces, [Frame(0), Frame(1), Text("The bell."), Frame(2), Text("Clang"), Frame(3), Frame(4)]);
    // A second around 4.2 is what counts for the short one; no frame, no subtitle.
    assert_eq!(insert(&lines, &[0., 3., 4.8]), [Frame(0), Frame(1), Frame(2)]);
    assert_eq!(insert(&[], &[1., 2.]), [Frame(0), Frame(1)]);
    assert_eq!(insert(&lines, &[]), []);
    let read = subtitles::read(fixture("@cook.x-7.json")).unwrap();
    assert_said(
        &read.refused,
        &[
            (Place::Row(3), "expected an end after the start, got 4 s to 2 s"),
            (Place::Row(4), "expected an object"),
        ],
    );
    let lines = read.in_video(0., 300.5);
    assert_eq!(
        (lines[0].text.as_str(), lines[1].end),
        ("Salt first.", 300.5),
        "an open end is that of the video"
    );
    assert_eq!(insert(&lines, &[1., 299.]), [Frame(0), Text("Salt first."), Text("Enjoy!"), Frame(1)]);
}
