//! Videos: sampling, sizes, colours, writing. Containers and codecs are in `video_formats`, bad input in `video::bad`.

use std::path::Path;

use image::RgbImage;
use msjoe::Error;
use msjoe::checkpoint::write_folder;
use msjoe::video::{
    Fit, H264Writer, QwenSampling, Rational, Request, Times, Video, fit, resize, resize_float,
};
use safetensors::SafeTensors;
use tempfile::tempdir;
use video_rs::ffmpeg::format::Pixel;

use clips::{Clip, barcode, number, samples};

mod bad;
pub mod clips;
mod memory;

const GOLDEN: &[u8] = include_bytes!("golden/video_resize.safetensors");

fn golden_image(golden: &SafeTensors, name: &str) -> RgbImage {
    let view = golden.tensor(name).unwrap();
    let [height, width, 3] = view.shape()[..] else { panic!("{name}: {:?}", view.shape()) };
    RgbImage::from_raw(width as u32, height as u32, view.data().to_vec()).unwrap()
}

/// Largest and mean difference in levels of 255.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!(a.dimensions(), b.dimensions());
    let gaps: Vec<u8> = a.as_raw().iter().zip(b.as_raw()).map(|(x, y)| x.abs_diff(*y)).collect();
    let mean = gaps.iter().map(|&gap| f64::from(gap)).sum::<f64>() / gaps.len() as f64;
    (gaps.into_iter().max().unwrap(), mean)
}

#[test]
fn resize_is_that_of_pillow_and_torchvision() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let mut compared = 0;
    for name in golden.names() {
        let [source, reference @ ("pillow" | "torchvision"), size] = name.split('.').collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let (width, height) = size.split_once('x').unwrap();
        let image = golden_image(&golden, &format!("{source}.image"));
        let (width, height) = (width.parse().unwrap(), height.parse().unwrap());
        if reference == "pillow" {
            assert!(resize(&image, width, height).unwrap() == golden_image(&golden, name), "{name}");
        } else {
            let ours = resize_float(&image, width, height).unwrap();
            let (most, mean) = difference(&ours, &golden_image(&golden, name));
            assert!(most <= 1 && mean < 0.01, "{name}: at most {most}, on average {mean}");
        }
        compared += 1;
    }
    assert_eq!(compared, 28);
}

#[test]
fn short_edge_crop_is_that_of_clip() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    for source in ["wide", "tall"] {
        let image = golden_image(&golden, &format!("{source}.image"));
        for edge in [16, 31, 32, 61, 80] {
            let ours = fit(&image, Fit::ShortEdgeCrop(edge)).unwrap();
            assert!(ours == golden_image(&golden, &format!("{source}.clip.{edge}")), "{source} to {edge}");
        }
    }
}

#[test]
fn qwen_sampling_is_that_of_the_reference() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let rows: Vec<f64> = golden
        .tensor("qwen.rows")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| f64::from_le_bytes(*b))
        .collect();
    let indices: Vec<usize> = golden
        .tensor("qwen.indices")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| i32::from_le_bytes(*b) as usize)
        .collect();
    let mut rest = &indices[..];
    for row in rows.chunks(4) {
        let [total, video_fps, fps, n] = row[..] else { unreachable!() };
        let sampling = QwenSampling { fps, ..QwenSampling::default() };
        let (expected, others) = rest.split_at(n as usize);
        assert_eq!(
            sampling.indices(total as usize, video_fps).unwrap(),
            expected,
            "{total} frames at {video_fps}"
        );
        rest = others;
    }
    assert!(rest.is_empty() && rows.len() > 4 * 50);
    // a fixed number is brought to an even one, ties to even
    let fixed = |n| QwenSampling { nframes: Some(n), ..QwenSampling::default() }.nframes(100, 25.0);
    assert_eq!((fixed(5).unwrap(), fixed(7).unwrap(), fixed(8).unwrap()), (4, 8, 8));
    assert!(matches!(fixed(1), Err(Error::Input(_))) && matches!(fixed(102), Err(Error::Input(_))));
    assert!(matches!(QwenSampling::default().nframes(1, 25.0), Err(Error::Input(_))));
}

#[test]
fn qwen_times_pick_the_frames_of_the_indices() {
    let folder = tempdir().unwrap();
    let path = Clip::h264(151).write(folder.path());
    let video = Video::open(&path).unwrap();
    let expected = QwenSampling::default().indices(151, 25.0).unwrap();
    assert_eq!(expected.len(), 12);
    let shown = samples(&video, Times::Qwen(QwenSampling::default()), 2);
    assert_eq!(shown.iter().map(|s| number(&s.images[0])).collect::<Vec<_>>(), expected);
}

#[test]
fn one_pass_gives_every_size() {
    let folder = tempdir().unwrap();
    let path = Clip { size: (130, 74), ..Clip::h264(101) }.write(folder.path());
    let video = Video::open(&path).unwrap();
    let fits = vec![Fit::ShortEdgeCrop(32), Fit::Exact { width: 56, height: 28 }, Fit::Native];
    let request = Request { times: Times::Fps(2.0), fits: fits.clone(), threads: 0 };
    let native = samples(&video, Times::Fps(2.0), 1);
    let all: Vec<_> = video.samples(&request).unwrap().map(Result::unwrap).collect();
    assert_eq!((all.len(), native.len()), (9, 9));
    for (sample, native) in all.iter().zip(&native) {
        assert_eq!((sample.index, sample.seconds), (native.index, native.seconds));
        for (image, &size) in sample.images.iter().zip(&fits) {
            assert!(*image == fit(&native.images[0], size).unwrap());
        }
    }
    assert_eq!(
        video.sample_times(&Times::Fps(2.0)).unwrap(),
        all.iter().map(|s| s.seconds).collect::<Vec<_>>()
    );
}

#[test]
fn rates_mean_what_is_written() {
    let folder = tempdir().unwrap();
    // one frame each second for 40 s: at 0.1 fps sample 1 is frame 10, although the f64 0.1 is a little more than 1/10
    let pts = (0..40).map(|n| n * 1000).collect();
    let path = Clip { pts, b_frames: 0, ..Clip::h264(0) }.write(folder.path());
    let video = Video::open(&path).unwrap();
    let numbers =
        |fps| samples(&video, Times::Fps(fps), 1).iter().map(|s| number(&s.images[0])).collect::<Vec<_>>();
    assert_eq!(numbers(0.1), [0, 10, 20, 30]);
    assert_eq!(numbers(1.0), (0..40).collect::<Vec<_>>());
    assert_eq!(numbers(1.0 / 3.0), (0..40).step_by(3).collect::<Vec<_>>());
    assert_eq!(numbers(1e-9), [0]);
}

#[test]
fn readers_may_leave_early_and_read_slowly() {
    let folder = tempdir().unwrap();
    let path = Clip::h264(301).write(folder.path());
    let video = Video::open(&path).unwrap();
    for threads in [0, 1, 4] {
        let request = Request { times: Times::Fps(25.0), fits: vec![Fit::Native], threads };
        let mut stream = video.samples(&request).unwrap();
        assert_eq!(stream.size_hint(), (0, Some(301)));
        for n in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert_eq!(number(&stream.next().unwrap().unwrap().images[0]), n);
        }
        drop(stream); // must not hang
    }
    fn is_send<T: Send>(_: &T) {}
    is_send(
        &video.samples(&Request { times: Times::Fps(1.0), fits: vec![Fit::Native], threads: 1 }).unwrap(),
    );
}

/// A flat frame of the given limited- or full-range code values, read back as RGB.
fn flat(options: Vec<(&'static str, &'static str)>, format: Pixel, yuv: [u16; 3]) -> [u8; 3] {
    let mut clip = Clip { size: (64, 64), format, ..Clip::h264(2) };
    clip.options = [("preset", "ultrafast"), ("qp", "1")].into_iter().chain(options).collect();
    let folder = tempdir().unwrap();
    let path = clip.write_frames(folder.path(), |frame, _| {
        for (plane, value) in yuv.into_iter().enumerate() {
            if format == Pixel::YUV420P10LE {
                let bytes = value.to_le_bytes();
                frame.data_mut(plane).chunks_exact_mut(2).for_each(|pair| pair.copy_from_slice(&bytes));
            } else {
                frame.data_mut(plane).fill(value as u8);
            }
        }
    });
    samples(&Video::open(&path).unwrap(), Times::Frames(vec![1]), 1)[0].images[0].get_pixel(32, 32).0
}

/// RGB of 8-bit code values by the defining equations.
fn rgb([y, u, v]: [u16; 3], kr: f64, kb: f64, full: bool) -> [f64; 3] {
    let (y, scale) =
        if full { (f64::from(y), 255.0) } else { ((f64::from(y) - 16.0) * 255.0 / 219.0, 224.0) };
    let chroma = |c: u16| (f64::from(c) - 128.0) / scale * 255.0;
    let (red, blue) = (y + 2.0 * (1.0 - kr) * chroma(v), y + 2.0 * (1.0 - kb) * chroma(u));
    [red, (y - kr * red - kb * blue) / (1.0 - kr - kb), blue]
}

#[test]
fn colours_follow_the_flags() {
    let yuv = [120, 90, 160];
    let (bt601, bt709, bt2020) = ((0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593));
    let cases = [
        (vec![("colorspace", "bt709"), ("range", "limited")], bt709, false),
        (vec![("colorspace", "bt601"), ("range", "limited")], bt601, false),
        (vec![("colorspace", "bt2020"), ("range", "limited")], bt2020, false),
        (vec![("colorspace", "bt709"), ("range", "full")], bt709, true),
        (vec![], bt601, false),
    ];
    for (flags, (kr, kb), full) in cases {
        for format in [Pixel::YUV420P, Pixel::YUV420P10LE] {
            let stored = if format == Pixel::YUV420P10LE { yuv.map(|code| code * 4) } else { yuv };
            let got = flat(flags.clone(), format, stored);
            for (got, want) in got.into_iter().zip(rgb(yuv, kr, kb, full)) {
                // 10-bit full range puts 4 x code at code * 4 / 1023, a little above code / 255
                let slack = if full && format == Pixel::YUV420P10LE { 2.0 } else { 1.6 };
                assert!(
                    (f64::from(got) - want).abs() < slack,
                    "{flags:?} {format:?}: {got}, expected {want}"
                );
            }
        }
    }
}

#[test]
fn folders_of_images_are_videos() {
    let folder = tempdir().unwrap();
    for n in [0usize, 1, 2, 9, 10, 11, 100] {
        let extension = ["png", "bmp", "tiff"][n % 3];
        barcode(n, 60, 45).save(folder.path().join(format!("frame{n}.{extension}"))).unwrap();
    }
    std::fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    std::fs::write(folder.path().join(".hidden.png"), "no image").unwrap();
    let video = Video::open(folder.path()).unwrap();
    assert_eq!((video.info.frames, video.info.duration, video.info.codec.as_str()), (7, 7.0, "images"));
    let numbers = |video: &Video, times, threads| {
        samples(video, times, threads).iter().map(|s| (number(&s.images[0]), s.seconds)).collect::<Vec<_>>()
    };
    let all = [0, 1, 2, 9, 10, 11, 100].into_iter().zip((0..7).map(f64::from)).collect::<Vec<_>>();
    assert_eq!(numbers(&video, Times::Fps(1.0), 1), all);
    assert_eq!(numbers(&video, Times::Fps(1.0), 3), all);
    assert_eq!(numbers(&video, Times::Fps(0.5), 2), [all[0], all[2], all[4], all[6]]);
    assert_eq!(numbers(&video, Times::Frames(vec![5, 3]), 2), [all[3], all[5]]);
    let slow = Video::open_images(folder.path(), 2.5).unwrap();
    assert_eq!(slow.info.duration, 17.5);
    assert_eq!(samples(&slow, Times::Fps(1.0), 2).len(), 18);
}

#[test]
fn content_hashes_tell_contents_apart() {
    let folder = tempdir().unwrap();
    let path = Clip::h264(5).write(folder.path());
    let video = Video::open(&path).unwrap();
    let hash = video.content_hash().unwrap();
    assert_eq!(hash.len(), 64);
    let copy = folder.path().join("copy.mp4");
    std::fs::copy(&path, &copy).unwrap();
    assert_eq!(Video::open(&copy).unwrap().content_hash().unwrap(), hash);

    let images = tempdir().unwrap();
    barcode(1, 8, 8).save(images.path().join("a.png")).unwrap();
    let before = Video::open(images.path()).unwrap().content_hash().unwrap();
    std::fs::rename(images.path().join("a.png"), images.path().join("b.png")).unwrap();
    let renamed = Video::open(images.path()).unwrap().content_hash().unwrap();
    barcode(2, 8, 8).save(images.path().join("b.png")).unwrap();
    let changed = Video::open(images.path()).unwrap().content_hash().unwrap();
    assert!(before != renamed && renamed != changed && before != changed);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn written_videos_come_back() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("made.mp4");
    let mut writer = H264Writer::create(&path, 96, 64, Rational(30_000, 1001)).unwrap();
    for n in 0..100 {
        writer.push(&barcode(n, 96, 64)).unwrap();
        assert!(!path.exists());
    }
    writer.finish().unwrap();
    assert_eq!(names(folder.path()), ["made.mp4"]);
    let video = Video::open(&path).unwrap();
    assert_eq!((video.info.width, video.info.height, video.info.frames), (96, 64, 100));
    assert!((video.info.duration - 100.0 * 1001.0 / 30_000.0).abs() < 1e-4);
    for (n, sample) in samples(&video, Times::Frames((0..100).collect()), 2).iter().enumerate() {
        assert_eq!(number(&sample.images[0]), n);
        assert!((sample.seconds - n as f64 * 1001.0 / 30_000.0).abs() < 1e-4);
        // the matrix is flagged, so colours survive up to the codec's loss
        assert!(difference(&sample.images[0], &barcode(n, 96, 64)).1 < 3.0);
    }
}

#[test]
fn unfinished_videos_leave_nothing() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("made.mp4");
    std::fs::write(&path, "what was there").unwrap();
    let mut writer = H264Writer::create(&path, 32, 32, Rational(25, 1)).unwrap();
    writer.push(&barcode(1, 32, 32)).unwrap();
    let wrong = writer.push(&barcode(1, 34, 32)).unwrap_err().to_string();
    assert!(wrong.contains("32x32") && wrong.contains("34x32"), "{wrong}");
    drop(writer);
    assert_eq!(names(folder.path()), ["made.mp4"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"what was there");

    let refused = |width, height, fps| H264Writer::create(&path, width, height, fps).err().unwrap();
    assert!(matches!(refused(33, 32, Rational(25, 1)), Error::Input(_)));
    assert!(matches!(refused(0, 32, Rational(25, 1)), Error::Input(_)));
    assert!(matches!(refused(32, 32, Rational(0, 1)), Error::Input(_)));
    let empty = H264Writer::create(&path, 32, 32, Rational(25, 1)).unwrap();
    assert!(matches!(empty.finish(), Err(Error::Input(_))));
    let nowhere = folder.path().join("missing/made.mp4");
    assert!(H264Writer::create(&nowhere, 32, 32, Rational(25, 1)).is_err());
    assert_eq!(names(folder.path()), ["made.mp4"]);
}

#[cfg(unix)]
#[test]
fn files_and_folders_have_the_mode_that_the_umask_gives() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mode = |name: &str| std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    let mut writer = H264Writer::create(path("video.mp4"), 32, 32, Rational::new(1, 1)).unwrap();
    writer.push(&RgbImage::new(32, 32)).unwrap();
    writer.finish().unwrap();
    let fill = |folder: &Path| std::fs::write(folder.join("inside"), "").map_err(|e| Error::io(folder, e));
    write_folder(&path("made"), fill).unwrap();
    assert_eq!(mode("video.mp4"), mode("file"));
    assert_eq!(mode("made"), mode("folder"));
    assert!(path("made/inside").is_file());

    let there = || std::fs::read_dir(dir.path()).unwrap().count();
    assert!(write_folder(&path("other"), |_| Err(Error::Interrupted)).is_err());
    assert!(write_folder(&path("made"), fill).is_err(), "there is one already");
    assert_eq!(there(), 4, "nothing is left behind");
}
