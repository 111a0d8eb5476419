//! The selection methods of the field: vectors of the published code, the rules that all of them keep, and their time.

use msjoe::select::{
    Aks, Bolt, Dpp, Draw, F2c, Features, Focus, Levels, Mdp3, QFrame, Qca, Resolution, Scores, Selection,
    Settings, Strategy, aks, bin_max, bolt, dpp, f2c, focus, greedy_map, inverse_transform, mdp3, q_frame,
    qca, select, uniform,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

// ---- vectors of the published code ----

/// All scores different.
fn a() -> Vec<f32> {
    (0..40).map(|i| ((17 * i + 5) % 41) as f32 / 40.).collect()
}

/// One smooth peak, with ties at 29 - d and 29 + d.
pub fn b() -> Vec<f32> {
    (0..64).map(|i| 1. / (1. + ((i as f32 - 29.) / 3.).powi(2))).collect()
}

#[test]
fn aks_vectors() {
    let aks = |scores: Vec<f32>, k, threshold, depth| aks(&scores, k, Aks { threshold, depth }).unwrap();
    assert_eq!(aks(a(), 8, 0.2, 3), [2, 9, 14, 21, 26, 31, 33, 38]);
    assert_eq!(aks(a(), 8, 0.8, 3), [2, 9, 14, 16, 21, 26, 31, 38]);
    assert_eq!(aks(a(), 8, 0.45, 3), [2, 9, 14, 16, 21, 26, 31, 38]);
    assert_eq!(aks(a(), 16, 0.8, 3), [2, 4, 6, 9, 11, 14, 16, 18, 21, 23, 26, 28, 31, 33, 35, 38]);
    assert_eq!(aks(a(), 8, 0.8, 2), [2, 9, 14, 16, 21, 26, 31, 38]);
    // The published code returns nothing here; ours stops halving at shares of one frame.
    assert_eq!(aks(a(), 8, 0.8, 5), [2, 9, 14, 16, 21, 26, 31, 38]);
    assert_eq!(aks(b(), 8, 0.2, 3), [25, 26, 27, 28, 29, 30, 31, 32]);
    assert_eq!(aks(b(), 8, 0.8, 3), [7, 15, 23, 29, 32, 40, 48, 56]);
    assert_eq!(aks(b(), 16, 0.2, 3), (21..=36).collect::<Vec<_>>());
}

#[test]
fn aks_completes_shares_that_do_not_add_up() {
    // Four parts with a share of 10 / 4, rounded down, and the two best of the rest.
    let settings = Aks { threshold: 0.8, depth: 2 };
    let (eight, mut expected) = (aks(&a(), 8, settings).unwrap(), aks(&a(), 8, settings).unwrap());
    let mut rest: Vec<usize> = (0..40).filter(|frame| !eight.contains(frame)).collect();
    rest.sort_by(|&x, &y| a()[y].total_cmp(&a()[x]));
    expected.extend(&rest[..2]);
    expected.sort_unstable();
    assert_eq!(aks(&a(), 10, settings).unwrap(), expected);
}

#[test]
fn bolt_vectors() {
    let marks = |scores: Vec<f32>, power| inverse_transform(&scores, 8, Bolt { power }).unwrap();
    assert_eq!(marks(a(), 1.), [4, 9, 14, 17, 22, 26, 31, 34]);
    assert_eq!(marks(a(), 2.5), [4, 9, 14, 16, 23, 26, 31, 33]);
    assert_eq!(marks(a(), 3.), [4, 9, 14, 16, 23, 26, 31, 33]);
    assert_eq!(marks(b(), 1.), [24, 26, 28, 29, 29, 30, 32, 34]);
    assert_eq!(marks(b(), 2.5), [27, 28, 28, 29, 29, 30, 30, 31]);
    assert_eq!(marks(b(), 3.), [27, 28, 28, 29, 29, 30, 30, 31]);
    // Ours has no frame twice: the best ones left stand in.
    assert_eq!(bolt(&a(), 8, Bolt { power: 1. }).unwrap(), marks(a(), 1.));
    assert_eq!(bolt(&b(), 8, Bolt { power: 1. }).unwrap(), [24, 26, 27, 28, 29, 30, 32, 34]);
    assert_eq!(bolt(&b(), 8, Bolt::default()).unwrap(), [25, 26, 27, 28, 29, 30, 31, 32]);
    // One or two frames lie inside the mass.
    assert_eq!(bolt(&b(), 1, Bolt::default()).unwrap(), [29]);
    assert_eq!(bolt(&[1., 0., 0., 0., 1., 0.], 2, Bolt::default()).unwrap(), [0, 4]);
    // All the mass on one frame: the rest covers the video.
    let mut one = vec![0.; 101];
    one[10] = 1.;
    assert_eq!(bolt(&one, 4, Bolt::default()).unwrap(), [10, 32, 55, 78]);
    let error = bolt(&a(), 3, Bolt { power: f64::NAN }).unwrap_err().to_string();
    assert_eq!(error, "bolt: expected a power above 0, got NaN");
}

#[test]
fn bin_max_vectors() {
    assert_eq!(uniform(40, 8), [0, 6, 11, 17, 22, 28, 33, 39]);
    assert_eq!(bin_max(&a(), 8).unwrap(), [2, 4, 14, 16, 21, 26, 31, 38]);
    // By the definition: the nearest centre, the lower of two.
    let mut rng = StdRng::seed_from_u64(1);
    for (n, k) in [(40, 8), (17, 4), (33, 32), (100, 7), (64, 1)] {
        let scores = random(&mut rng, n);
        let centres = uniform(n, k);
        let home = |frame: usize| (0..k).min_by_key(|&c| (centres[c].abs_diff(frame), c)).unwrap();
        let best = |c| {
            let bin = (0..n).filter(|&frame| home(frame) == c);
            bin.reduce(|best, frame| if scores[frame] > scores[best] { frame } else { best }).unwrap()
        };
        assert_eq!(bin_max(&scores, k).unwrap(), (0..k).map(best).collect::<Vec<_>>(), "{n} {k}");
    }
}

#[test]
fn dpp_vectors() {
    let near = |i: usize, j: usize| (-(i as f64 - j as f64).powi(2) / 8.).exp();
    let quality: Vec<f64> = (0..12).map(|i| 0.5 + 0.5 * f64::from((5 * i + 2) % 12) / 11.).collect();
    assert_eq!(greedy_map(&quality, 5, near).unwrap(), [9, 4, 1, 11, 6]);
    assert_eq!(greedy_map(&[1.; 12], 5, near).unwrap(), [0, 11, 6, 3, 9]);
    // The scale of the qualities does not matter; repeated items and those without length or quality are never taken.
    let scaled: Vec<f64> = quality.iter().map(|q| q * 1e-200).collect();
    assert_eq!(greedy_map(&scaled, 5, near).unwrap(), [9, 4, 1, 11, 6]);
    assert_eq!(greedy_map(&[1., 2., 1.], 3, |_, _| 1.).unwrap(), [1]);
    let alone = |i: usize, j: usize| f64::from(u8::from(i == j && i != 1));
    assert_eq!(greedy_map(&[1., 3., 2., 0.], 4, alone).unwrap(), [2, 0]);
    assert!(greedy_map(&[1., f64::NAN], 1, near).is_err() && greedy_map(&[-1., 1.], 1, near).is_err());
    assert!(greedy_map(&[1., 1.], 2, |_, _| f64::NAN).is_err());
}

// ---- what every method keeps ----

pub fn random(rng: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(0.0..1.0)).collect()
}

/// A walk through the embedding space, as a video is.
pub fn walk(rng: &mut StdRng, frames: usize, width: usize) -> Features {
    let mut at: Vec<f32> = (0..width).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut values = vec![];
    for _ in 0..frames {
        at.iter_mut().for_each(|x| *x = 0.9 * *x + rng.random_range(-0.4..0.4));
        values.extend_from_slice(&at);
    }
    Features::new(values, width).unwrap()
}

pub fn scores_of(similarity: Vec<f32>, features: Features, seed: u64) -> Scores {
    Scores {
        frames: similarity.len(),
        logits: Some(similarity.iter().map(|s| 3. * s).collect()),
        similarity: Some(vec![similarity]),
        features: Some(features),
        seed,
        ..Scores::default()
    }
}

pub fn check(strategy: Strategy, scores: &Scores, k: usize) -> Selection {
    let chosen = select(strategy, scores, k, Draw::TopK).unwrap();
    let what = format!("{strategy}, {k} of {}: {chosen:?}", scores.frames);
    assert!(chosen.frames.windows(2).all(|pair| pair[0] < pair[1]), "{what}");
    assert!(chosen.frames.iter().all(|&frame| frame < scores.frames), "{what}");
    let adaptive = scores.settings.resolution == Resolution::Adaptive;
    match strategy {
        Strategy::MaxInfo => assert!((1..=k).contains(&chosen.frames.len()), "{what}"),
        Strategy::QFrame | Strategy::F2c if adaptive => {
            assert!(chosen.frames.len() >= k && chosen.scales.len() == chosen.frames.len(), "{what}");
            assert!(chosen.tokens() <= k as f64 * (1. + 1e-5), "{what}");
        }
        _ => assert!(chosen.frames.len() == k && chosen.scales.is_empty(), "{what}"),
    }
    let mut order = chosen.draw_order.clone();
    order.sort_unstable();
    assert_eq!(order, chosen.frames, "{what}");
    assert!((chosen.weights.iter().sum::<f32>() - 1.).abs() < 1e-3, "{what}");
    assert!(chosen.weights.len() == scores.frames && chosen.weights.iter().all(|w| *w >= 0.), "{what}");
    let clips: Vec<usize> = chosen.clips.iter().cloned().flatten().collect();
    assert!(chosen.clips.windows(2).all(|pair| pair[0].end < pair[1].start), "{what}");
    assert!(if strategy == Strategy::F2c { clips == chosen.frames } else { clips.is_empty() }, "{what}");
    assert_eq!(chosen, select(strategy, scores, k, Draw::TopK).unwrap(), "{what}");
    chosen
}

#[test]
fn every_method_gives_k_frames_in_order() {
    let mut rng = StdRng::seed_from_u64(2);
    for round in 0..60 {
        let n = [1, 2, 3, 5, 8, 31, 64, 129, 300][round % 9];
        let similarity = match round % 4 {
            0 => random(&mut rng, n),
            1 => (0..n).map(|_| f32::from(rng.random_range(-2i8..2)) / 4.).collect(), // ties
            2 => (0..n).map(|i| ((i as f32) / 9.).sin() * 0.3).collect(),
            _ => (0..n).map(|i| f32::from(u8::from(i == n / 3))).collect(), // one peak
        };
        let mut features = walk(&mut rng, n, 5 + round % 20);
        if round % 5 == 0 {
            // Every frame three times.
            let rows: Vec<f32> = (0..n).flat_map(|i| features.row(i / 3 * 3).to_vec()).collect();
            features = Features::new(rows, features.width()).unwrap();
        }
        let mut scores = scores_of(similarity, features, round as u64);
        for resolution in [Resolution::Full, Resolution::Adaptive] {
            scores.settings.resolution = resolution;
            for strategy in Strategy::ALL {
                for k in [1, 2, 3, 7, 16, 33, 64, n].into_iter().filter(|&k| k <= n) {
                    check(strategy, &scores, k);
                }
            }
        }
    }
}

/// The scale of the scores does not matter, where the method brings them to [0, 1] (powers of two: no rounding).
#[test]
fn methods_on_a_unit_scale_know_no_other() {
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..20 {
        let similarity: Vec<f32> = (0..200).map(|_| f32::from(rng.random_range(0u8..=255)) / 256.).collect();
        let features = walk(&mut rng, 200, 10);
        let scores = scores_of(similarity.clone(), features.clone(), 0);
        let moved = scores_of(similarity.iter().map(|s| 0.25 * s - 0.5).collect(), features, 0);
        use Strategy::{Aks, BinMax, Bolt, Dpp, F2c, Qca, TopK};
        for strategy in [TopK, Bolt, Aks, BinMax, Dpp, Qca, F2c] {
            for k in [3, 16, 40] {
                assert_eq!(
                    check(strategy, &scores, k).frames,
                    check(strategy, &moved, k).frames,
                    "{strategy}"
                );
            }
        }
    }
}

/// As in the indices that AKS publishes for Video-MME: two frames in each of 32 equal parts, the best ones.
#[test]
fn aks_by_default_is_two_in_each_of_thirty_two_parts() {
    let mut rng = StdRng::seed_from_u64(12);
    let scores = random(&mut rng, 3200);
    let frames = aks(&scores, 64, Aks::default()).unwrap();
    for (part, pair) in frames.chunks(2).enumerate() {
        let here = &scores[part * 100..][..100];
        let best: Vec<usize> =
            msjoe::select::top_k(here, 2).unwrap().iter().map(|at| part * 100 + at).collect();
        assert_eq!(pair, best);
    }
}

#[test]
fn constant_scores_and_features_are_fine() {
    for value in [0., 0.25, -1., 1.] {
        for n in [1, 6, 100] {
            let features = Features::new(vec![1.; 4 * n], 4).unwrap();
            let scores = scores_of(vec![value; n], features, 3);
            for strategy in Strategy::ALL {
                for k in [1, 2, 5, 6, 50].into_iter().filter(|&k| k <= n) {
                    check(strategy, &scores, k);
                }
            }
        }
    }
    let constant = scores_of(vec![0.25; 100], Features::new(vec![0.; 300], 3).unwrap(), 3);
    for strategy in [Strategy::Bolt, Strategy::Aks] {
        assert_eq!(check(strategy, &constant, 7).frames, uniform(100, 7));
    }
    // Anchors in even spaces, each with a neighbour.
    assert_eq!(check(Strategy::F2c, &constant, 4).clips.len(), 2);
    // Nothing differs, so what is chosen covers the video.
    let widest = |frames: &[usize]| frames.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(widest(&check(Strategy::Dpp, &constant, 7).frames) <= 25);
    // Frames without any content are one frame.
    assert_eq!(check(Strategy::MaxInfo, &constant, 7).frames.len(), 1);
}

#[test]
fn every_method_refuses_scores_that_are_no_numbers() {
    let mut rng = StdRng::seed_from_u64(4);
    let features = walk(&mut rng, 20, 6);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut scores = random(&mut rng, 20);
        scores[13] = bad;
        let expected = |method: &str| format!("{method}: score 13 of 20 is {bad}, expected a finite number");
        for k in [4, 20] {
            let errors = [
                bolt(&scores, k, Bolt::default()),
                aks(&scores, k, Aks::default()),
                bin_max(&scores, k),
                q_frame(&scores, Levels::full(k), QFrame::default(), 0),
                mdp3(&scores, &features, k, Mdp3::default()),
                dpp(&scores, &features, k, Dpp::default()),
                qca(&scores, &features, k, Qca::default()),
                f2c(&scores, None, k, F2c::default()).map(|clips| clips.frames()),
            ];
            let names = ["bolt", "aks", "bin-max", "q-frame", "mdp3", "dpp", "qca", "f2c"];
            for (error, name) in errors.into_iter().zip(names) {
                assert_eq!(error.unwrap_err().to_string(), expected(name));
            }
        }
        let whole = scores_of(scores.clone(), features.clone(), 0);
        for strategy in Strategy::ALL.into_iter().filter(|s| s.reads_queries() && !s.reads_logits()) {
            let error = select(strategy, &whole, 4, Draw::TopK).unwrap_err().to_string();
            assert_eq!(error, format!("{strategy}: similarity of query 0 and frame 13 is {bad}"));
        }
        let mut look = |frames: &[usize]| Ok(frames.iter().map(|&frame| scores[frame]).collect());
        let every = Focus { extra: 20, ..Focus::default() };
        let error = focus(20, 4, &every, 0, &mut look).unwrap_err().to_string();
        assert_eq!(error, format!("focus: the score of frame 13 is {bad}, expected a finite number"));
        let error = Features::new(vec![0., bad, 1., 1.], 2).unwrap_err().to_string();
        assert_eq!(error, "features: those of frame 0 are not all finite");
    }
}

#[test]
fn features_must_be_there_and_fit() {
    assert_eq!(
        Features::new(vec![1.; 5], 2).unwrap_err().to_string(),
        "features: 5 values do not make rows of 2"
    );
    let mut scores = scores_of(vec![0.1; 9], Features::new(vec![1.; 16], 2).unwrap(), 0);
    for strategy in Strategy::ALL.into_iter().filter(|strategy| strategy.reads_features()) {
        let error = select(strategy, &scores, 3, Draw::TopK).unwrap_err().to_string();
        let expected = "features: expected one row per candidate frame (9), got 8";
        assert_eq!(error, format!("{strategy}: {expected}"));
    }
    scores.features = None;
    for strategy in Strategy::ALL {
        let result = select(strategy, &scores, 3, Draw::TopK);
        match strategy {
            // Clips do with the curve alone.
            Strategy::F2c => assert_eq!(result.unwrap().frames.len(), 3),
            _ if strategy.reads_features() => {
                let expected = format!("{strategy}: needs features of the frames, got none");
                assert_eq!(result.unwrap_err().to_string(), expected);
            }
            _ => assert_eq!(result.unwrap().frames.len(), 3),
        }
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let (scores, features) = (vec![0.5; 20], Features::new(vec![1.; 40], 2).unwrap());
    let all = scores_of(scores, features, 0);
    let error = |strategy, change: fn(&mut Settings)| {
        let mut scores = all.clone();
        change(&mut scores.settings);
        select(strategy, &scores, 5, Draw::TopK).unwrap_err().to_string()
    };
    assert_eq!(
        error(Strategy::QFrame, |s| s.q_frame.temperature = 0.),
        "q-frame: expected a temperature above 0, got 0"
    );
    assert_eq!(
        error(Strategy::Mdp3, |s| s.mdp3.lambda = 0.),
        "mdp3: expected lambda and the segment above 0, got 0 and 32"
    );
    assert_eq!(
        error(Strategy::Dpp, |s| s.dpp.relevance = f64::NAN),
        "dpp: expected a relevance from 0 to 100, got NaN"
    );
    assert_eq!(
        error(Strategy::MaxInfo, |s| s.max_info.rank = 0),
        "maxinfo: expected a rank above 0 and a tolerance from 0, got 0 and 0.3"
    );
    assert_eq!(error(Strategy::Focus, |s| s.focus.fps = 0.), "focus: expected fps above 0, got 0");
    assert_eq!(error(Strategy::Focus, |s| s.focus.zoom = 1.5), "focus: expected zoom from 0 to 1, got 1.5");
    assert_eq!(error(Strategy::Qca, |s| s.qca.segments = 0), "qca: expected at least 1 segment, got 0");
    assert!(error(Strategy::F2c, |s| s.f2c.anchors = 0.).starts_with("f2c: expected anchors above 0 to 1"));
}

// ---- time ----

/// Seconds that this thread has computed (wall-clock time where the system does not say).
pub fn seconds() -> f64 {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    let wall = START.elapsed().as_secs_f64();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let used = stat.split(' ').next().and_then(|used| used.parse::<f64>().ok());
    used.map_or(wall, |nanoseconds| nanoseconds * 1e-9)
}

/// 64 of ten thousand frames: printed, and held to 50 ms, and 1 s where features are compared.
#[test]
fn ten_thousand_frames_are_quick() {
    let mut rng = StdRng::seed_from_u64(8);
    let similarity: Vec<f32> = random(&mut rng, 10_000).iter().map(|s| 0.1 + 0.3 * s).collect();
    let scores = scores_of(similarity, walk(&mut rng, 10_000, 768), 1);
    for strategy in Strategy::ALL {
        let start = seconds();
        for _ in 0..5 {
            select(strategy, &scores, 64, Draw::TopK).unwrap();
        }
        let each = (seconds() - start) / 5.;
        println!("{strategy:8} {:8.2} ms", each * 1e3);
        let heavy = matches!(strategy, Strategy::Mdp3 | Strategy::Dpp | Strategy::MaxInfo | Strategy::Qca);
        // Without optimisation everything takes many times as long.
        let slack = if cfg!(debug_assertions) { 30. } else { 1. };
        assert!(each < slack * if heavy { 1. } else { 0.05 }, "{strategy}: {each} s");
    }
}
