//! mRoPE positions: literal vectors, transformers 4.51.3 and 5.23.0 on random prompts, true slice times, bad input.

use msjoe::Error;
use msjoe::models::qwen2_5_vl::config::{Config, Preset};
use msjoe::models::qwen2_5_vl::mrope::{Media, PositionRule, Timing, positions};
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

const START: u32 = 150;
const END: u32 = 151;
const IMAGE: u32 = 152;
const VIDEO: u32 = 153;

fn config(tokens_per_second: f64) -> Config {
    let mut config = Config::preset(Preset::B3);
    config.vision_start_token_id = START;
    config.vision_end_token_id = Some(END);
    config.image_token_id = IMAGE;
    config.video_token_id = VIDEO;
    config.vision.tokens_per_second = tokens_per_second;
    config
}

fn video(grid: [usize; 3], seconds: f32) -> Media {
    Media::Video { grid, timing: Timing::Uniform(seconds) }
}

/// `before` tokens of which the last opens the video, its pads, `after` tokens.
fn prompt(before: usize, pads: usize, after: usize) -> Vec<u32> {
    let mut ids = vec![1; before];
    ids[before - 1] = START;
    ids.extend(vec![VIDEO; pads]);
    ids.extend(vec![1; after]);
    ids
}

#[test]
fn literal_vector() {
    let ids = prompt(3, 18, 3);
    let made = positions(&ids, &[video([3, 4, 6], 1.25)], &config(2.0), PositionRule::Max).unwrap();
    let axis = |i: usize| made.ids.iter().map(|id| id[i]).collect::<Vec<i64>>();
    let t = [0, 1, 2, 3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 5, 8, 8, 8, 8, 8, 8, 9, 10, 11];
    let h = [0, 1, 2, 3, 3, 3, 4, 4, 4, 3, 3, 3, 4, 4, 4, 3, 3, 3, 4, 4, 4, 9, 10, 11];
    let w = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4, 5, 9, 10, 11];
    assert_eq!((axis(0), axis(1), axis(2)), (t.to_vec(), h.to_vec(), w.to_vec()));
    assert_eq!(made.delta, -12);
}

/// 15 text tokens, a video of T x 13 x 24 merged tokens, 40 text tokens: first and last tail id, next id.
#[test]
fn tails_of_both_rules() {
    use PositionRule::{Extent, Max};
    let cases = [
        (32, 1.0, Max, [78, 117, 118]),
        (32, 2.0, Max, [140, 179, 180]),
        (4, 0.5, Max, [39, 78, 79]),
        (32, 28.1, Max, [1758, 1797, 1798]),
        (32, 1.0, Extent, [39, 78, 79]),
        (32, 2.0, Extent, [39, 78, 140]),
        (4, 0.5, Extent, [39, 78, 79]),
        (32, 28.1, Extent, [39, 78, 1758]),
    ];
    for (slices, seconds, rule, expected) in cases {
        let ids = prompt(15, slices * 13 * 24, 40);
        let made = positions(&ids, &[video([slices, 26, 48], seconds)], &config(2.0), rule).unwrap();
        let tail = &made.ids[ids.len() - 40..];
        let next = ids.len() as i64 + made.delta;
        assert_eq!([tail[0][0], tail[39][0], next], expected, "{slices} slices, {seconds} s, {rule:?}");
        assert!(tail.iter().all(|id| id[0] == id[1] && id[1] == id[2]));
    }
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    images: Vec<[usize; 3]>,
    videos: Vec<[usize; 3]>,
    seconds: Vec<f32>,
    tokens_per_second: f64,
    max: Expected,
    extent: Expected,
}

#[derive(Deserialize)]
struct Expected {
    delta: i64,
    last: [i64; 3],
    sha256: String,
}

#[test]
fn random_prompts_as_the_reference() {
    let golden: Golden = serde_json::from_str(include_str!("golden/qwen_positions.json")).unwrap();
    assert_eq!(golden.cases.len(), 41);
    for (i, case) in golden.cases.iter().enumerate() {
        let images = case.images.iter().map(|grid| Media::Image { grid: *grid });
        let videos = case.videos.iter().zip(&case.seconds).map(|(grid, seconds)| video(*grid, *seconds));
        let media: Vec<Media> = images.chain(videos).collect();
        for (rule, expected) in [(PositionRule::Max, &case.max), (PositionRule::Extent, &case.extent)] {
            let made = positions(&case.ids, &media, &config(case.tokens_per_second), rule).unwrap();
            assert_eq!(*made.ids.last().unwrap(), expected.last, "case {i}, {rule:?}");
            assert_eq!(made.delta, expected.delta, "case {i}, {rule:?}");
            let bytes = (0..3).flat_map(|axis| made.ids.iter().flat_map(move |id| id[axis].to_le_bytes()));
            let hash = Sha256::digest(bytes.collect::<Vec<u8>>());
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, expected.sha256, "case {i}, {rule:?}");
        }
    }
}

/// 0.12 fps: the reference's f32 product puts slice 15 at 499, exact arithmetic at 500.
#[test]
fn temporal_ids_are_rounded_as_in_f32() {
    let ids = prompt(1, 16, 0);
    let made =
        positions(&ids, &[video([16, 2, 2], (2f64 / 0.12) as f32)], &config(2.0), PositionRule::Max).unwrap();
    assert_eq!(made.ids[16], [1 + 499, 1, 1]);
}

#[test]
fn true_times_place_each_slice() {
    let ids = prompt(2, 4, 1);
    let timing = Timing::Slices(vec![0.0, 0.4, 10.75, 10.75]);
    let made = positions(&ids, &[Media::Video { grid: [4, 2, 2], timing }], &config(2.0), PositionRule::Max)
        .unwrap();
    let t: Vec<i64> = made.ids.iter().map(|id| id[0]).collect();
    assert_eq!(t, [0, 1, 2, 2, 2 + 21, 2 + 21, 24]);
}

proptest! {
    /// Whatever the timing, a video sampled evenly from 0 has the same positions in both modes (times exact in f32).
    #[test]
    fn true_times_agree_on_even_sampling(slices in 1usize..40, eighths in 0u16..200, rows in 1usize..5, columns in 1usize..5) {
        let seconds = f32::from(eighths) / 8.0;
        let grid = [slices, 2 * rows, 2 * columns];
        let ids = prompt(3, slices * rows * columns, 4);
        let times = (0..slices).map(|i| i as f64 * f64::from(seconds)).collect();
        let exact = Media::Video { grid, timing: Timing::Slices(times) };
        for rule in [PositionRule::Max, PositionRule::Extent] {
            let made = positions(&ids, &[video(grid, seconds)], &config(2.0), rule).unwrap();
            prop_assert_eq!(&made, &positions(&ids, std::slice::from_ref(&exact), &config(2.0), rule).unwrap());
            prop_assert_eq!(made.ids.len(), ids.len());
        }
    }

    /// Text counts up; under the default rule no text id is below an earlier id, and decoding goes on one above all.
    #[test]
    fn default_rule_never_goes_back(shapes in prop::collection::vec((1usize..4, 1usize..4, 1usize..4, 0usize..5), 0..4)) {
        let (mut ids, mut media) = (vec![1u32; 2], vec![]);
        for (t, h, w, text) in shapes {
            ids.push(START);
            ids.extend(vec![VIDEO; t * h * w]);
            ids.extend(vec![1; text]);
            media.push(video([t, 2 * h, 2 * w], 0.7));
        }
        let made = positions(&ids, &media, &config(2.0), PositionRule::Max).unwrap();
        let mut highest = -1;
        for (token, id) in ids.iter().zip(&made.ids) {
            if *token != VIDEO {
                prop_assert_eq!(*id, [highest + 1; 3]);
            }
            highest = highest.max(*id.iter().max().unwrap());
        }
        prop_assert_eq!(ids.len() as i64 + made.delta, highest + 1);
    }
}

#[test]
fn text_alone_counts_up() {
    let made = positions(&[1, 2, START, 4], &[], &config(2.0), PositionRule::Max).unwrap();
    assert_eq!(made.ids, (0..4).map(|i| [i; 3]).collect::<Vec<_>>());
    assert_eq!(made.delta, 0);
    assert_eq!(positions(&[], &[], &config(2.0), PositionRule::Extent).unwrap().delta, 0);
}

#[test]
fn bad_input_is_named() {
    let image = Media::Image { grid: [1, 4, 4] };
    let slices = |times: &[f64]| Media::Video { grid: [2, 2, 2], timing: Timing::Slices(times.to_vec()) };
    let two = vec![START, VIDEO, VIDEO];
    let cases: Vec<(Vec<u32>, Vec<Media>, &str)> = vec![
        (prompt(1, 3, 0), vec![video([1, 4, 4], 1.0)], "3 pad tokens, expected 4"),
        (prompt(1, 5, 0), vec![video([1, 4, 4], 1.0)], "5 pad tokens, expected 4"),
        (prompt(1, 4, 0), vec![], "no video was given"),
        (prompt(1, 4, 0), vec![image.clone()], "no video was given"),
        (vec![1, 2], vec![image.clone()], "1 images and 0 videos were given"),
        (vec![1, VIDEO, VIDEO], vec![slices(&[0.0, 1.0])], "does not follow the vision start token 150"),
        (vec![IMAGE], vec![image], "does not follow"),
        (prompt(1, 4, 0), vec![video([1, 3, 4], 1.0)], "multiples of 2"),
        (prompt(1, 4, 0), vec![video([0, 4, 4], 1.0)], "at least one slice"),
        (prompt(1, 4, 0), vec![video([usize::MAX, 4, 4], 1.0)], "too large"),
        (two.clone(), vec![video([2, 2, 2], -1.0)], "-1 s"),
        (two.clone(), vec![video([2, 2, 2], f32::NAN)], "NaN s"),
        (two.clone(), vec![video([2, 2, 2], f32::INFINITY)], "inf s"),
        (two.clone(), vec![slices(&[0.0])], "1 slice times for a video of 2"),
        (two.clone(), vec![slices(&[1.0, 0.5])], "go back from 1 s to 0.5 s"),
        (two.clone(), vec![slices(&[-1.0, 0.5])], "-1 s"),
        (two, vec![slices(&[0.0, f64::NAN])], "NaN s"),
    ];
    for (ids, media, words) in cases {
        match positions(&ids, &media, &config(2.0), PositionRule::Max) {
            Err(Error::Input(message)) => assert!(message.contains(words), "{message:?} lacks {words:?}"),
            other => panic!("{media:?}: {other:?}"),
        }
    }
}
