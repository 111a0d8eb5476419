//! The selection methods against what their papers define, written out anew and slowly, and on videos made for the purpose.

use msjoe::select::{
    F2c, Features, FinalArms, Focus, Levels, MaxInfo, Mdp3, QFrame, Qca, Resolution, Strategy, f2c, focus,
    max_info, mdp3, q_frame, qca, weights,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::select_methods::{b, check, random, scores_of, walk};

#[test]
fn q_frame_spends_its_budget_over_three_sizes() {
    let levels = |full, half, quarter| Levels { full, half, quarter };
    assert_eq!(Levels::mixed(8, 128), levels(4, 8, 32)); // as published
    assert_eq!(Levels::mixed(8, 8), levels(8, 0, 0));
    assert_eq!(Levels::mixed(8, 200).tokens(), 8.);
    for k in 1..40 {
        for t in 1..300 {
            let levels = Levels::mixed(k, t);
            assert!(levels.tokens() <= k as f64 && levels.count() <= t, "{k} {t} {levels:?}");
            assert!(levels.count() >= k.min(t), "{k} {t} {levels:?}");
            if t >= 13 * k {
                assert_eq!(levels.tokens(), k as f64, "{k} {t} {levels:?}");
            }
        }
    }
    let order = q_frame(&b(), Levels::mixed(4, 64), QFrame::default(), 7).unwrap();
    let scales: Vec<f32> = (0..order.len()).map(|at| Levels::mixed(4, 64).scale(at)).collect();
    assert_eq!([&scales[..2], &scales[2..6], &scales[6..]].map(|part| part[0]), [1., 0.5, 0.25]);
    let mut scores =
        scores_of(b().iter().map(|s| s / 10.).collect(), Features::new(vec![1.; 64], 1).unwrap(), 7);
    scores.settings.resolution = Resolution::Adaptive;
    let chosen = check(Strategy::QFrame, &scores, 4);
    for (at, frame) in chosen.draw_order.iter().enumerate() {
        let place = chosen.frames.iter().position(|other| other == frame).unwrap();
        assert_eq!(chosen.scales[place], Levels::mixed(4, 64).scale(at));
    }
    assert!(chosen.log_prob.is_some_and(f64::is_finite) && chosen.clips.is_empty());
}

#[test]
fn q_frame_draws_by_the_tempered_softmax() {
    const N: u64 = 20_000;
    let logits = [0.3f32, -1.2, 2., 0., 0.9];
    let p = weights(&logits.map(|z| z / 0.8)).unwrap();
    let mut counts = [0f64; 5];
    for seed in 0..N {
        counts[q_frame(&logits, Levels::full(2), QFrame::default(), seed).unwrap()[0]] += 1.;
    }
    for (count, p) in counts.into_iter().zip(p.into_iter().map(f64::from)) {
        let error = (count / N as f64 - p) / (p * (1. - p) / N as f64).sqrt();
        assert!(error.abs() < 4., "{error} standard errors");
    }
}

/// Logarithm of a determinant, by elimination with pivots.
fn log_det(mut m: Vec<Vec<f64>>) -> f64 {
    let mut sum = 0.;
    for c in 0..m.len() {
        let p = (c..m.len()).max_by(|&a, &b| m[a][c].abs().total_cmp(&m[b][c].abs())).unwrap();
        m.swap(c, p);
        sum += m[c][c].abs().ln();
        let pivot = m[c].clone();
        for row in &mut m[c + 1..] {
            let f = row[c] / pivot[c];
            row.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= f * p);
        }
    }
    sum
}

fn log_det_of(frames: &[usize], kernel: impl Fn(usize, usize) -> f64) -> f64 {
    log_det(frames.iter().map(|&i| frames.iter().map(|&j| kernel(i, j)).collect()).collect())
}

#[test]
fn dpp_takes_the_largest_determinant_at_every_step() {
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..5 {
        let (features, scores) = (walk(&mut rng, 30, 12), random(&mut rng, 30));
        let (low, high) = scores.iter().fold((f32::MAX, f32::MIN), |(l, h), &s| (l.min(s), h.max(s)));
        let quality = |i: usize| (3. * f64::from((scores[i] - low) / (high - low))).exp();
        let kernel =
            |i: usize, j: usize| quality(i) * quality(j) * if i == j { 1. } else { features.cosine(i, j) };
        let mut expected: Vec<usize> = vec![];
        for _ in 0..6 {
            let worth = |i: usize| log_det_of(&[expected.as_slice(), &[i]].concat(), kernel);
            let open: Vec<usize> = (0..30).filter(|i| !expected.contains(i)).collect();
            expected.push(open.into_iter().max_by(|&i, &j| worth(i).total_cmp(&worth(j))).unwrap());
        }
        let scores = scores_of(scores, features.clone(), 0);
        assert_eq!(check(Strategy::Dpp, &scores, 6).draw_order, expected);
    }
}

/// MDP3 as the paper writes it, every determinant anew.
fn mdp3_by_definition(cosines: &[f32], features: &Features, k: usize, m: usize) -> Vec<usize> {
    let of = |d2: f64| [0.125, 0.25, 0.5, 1., 2.].iter().map(|a| (-d2 / (2. * a)).exp()).sum::<f64>();
    let kernel = |i: usize, j: usize| if i == j { 5. } else { of(2. - 2. * features.cosine(i, j)) };
    let fit = |i: usize| of(2. - 2. * f64::from(cosines[i])).ln();
    let worth = |set: &[usize]| 10. * set.iter().map(|&i| fit(i)).sum::<f64>() + log_det_of(set, kernel);
    let mut plans: Vec<Option<(f64, Vec<usize>)>> = vec![None; k + 1];
    plans[0] = Some((0., vec![]));
    for start in (0..cosines.len()).step_by(m) {
        let end = cosines.len().min(start + m);
        let mut next: Vec<Option<(f64, Vec<usize>)>> = vec![None; k + 1];
        for have in (0..=k).rev() {
            let Some((value, frames)) = plans[have].clone() else { continue };
            let last: Vec<usize> = frames.last().copied().into_iter().collect();
            let mut set = vec![];
            for more in 0..=(k - have).min(end - start) {
                if more > 0 {
                    let with = |i: usize| worth(&[last.as_slice(), &set, &[i]].concat());
                    let open: Vec<usize> = (start..end).filter(|i| !set.contains(i)).collect();
                    set.push(open.into_iter().max_by(|&i, &j| with(i).total_cmp(&with(j))).unwrap());
                }
                let value = value + if more > 0 { worth(&[last.as_slice(), &set].concat()) } else { 0. };
                if next[have + more].as_ref().is_none_or(|best| value > best.0) {
                    let mut sorted = set.clone();
                    sorted.sort_unstable();
                    next[have + more] = Some((value, [frames.as_slice(), &sorted].concat()));
                }
            }
        }
        plans = next;
    }
    plans[k].clone().unwrap().1
}

#[test]
fn mdp3_is_its_definition() {
    let mut rng = StdRng::seed_from_u64(6);
    for (n, k, m) in [(24, 5, 8), (30, 7, 8), (17, 9, 6), (20, 4, 32), (25, 12, 5)] {
        for _ in 0..3 {
            let features = walk(&mut rng, n, 16);
            let cosines: Vec<f32> = random(&mut rng, n).iter().map(|s| 0.1 + 0.3 * s).collect();
            let settings = Mdp3 { segment: Some(m), ..Mdp3::default() };
            let chosen = mdp3(&cosines, &features, k, settings).unwrap();
            assert_eq!(chosen, mdp3_by_definition(&cosines, &features, k, m), "{n} {k} {m}");
        }
    }
    let error = mdp3(&[0.5, 1.5], &Features::new(vec![1.; 2], 1).unwrap(), 1, Mdp3::default()).unwrap_err();
    assert_eq!(error.to_string(), "mdp3: expected cosines from -1 to 1, score 1 is 1.5");
}

/// `count` scenes in orthogonal directions, `each` frames of each, one after another; a little noise.
fn scenes(count: usize, each: usize, noise: f32) -> Features {
    let mut rng = StdRng::seed_from_u64(7);
    let frames = (0..count * each).map(|frame| frame / each);
    let row = |scene: usize| {
        (0..count).map(|d| f32::from(u8::from(d == scene)) + noise * rng.random_range(-1.0..1.0)).collect()
    };
    Features::new(frames.map(row).collect::<Vec<Vec<f32>>>().concat(), count).unwrap()
}

#[test]
fn max_info_takes_one_frame_per_direction() {
    let seen = |features: &Features, k| {
        let frames = max_info(features, k, MaxInfo::default()).unwrap();
        frames.into_iter().map(|frame| frame / 20).collect::<Vec<_>>()
    };
    for noise in [0., 0.01] {
        assert_eq!(seen(&scenes(8, 20, noise), 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        // More frames: each direction as often.
        assert_eq!(seen(&scenes(8, 20, noise), 16).chunks(2).filter(|pair| pair[0] == pair[1]).count(), 8);
    }
    // Fewer directions than the rank, and fewer frames asked for than directions.
    assert_eq!(seen(&scenes(3, 20, 0.), 6), [0, 0, 1, 1, 2, 2]);
    assert_eq!(seen(&scenes(8, 20, 0.1), 5).len(), 5);
    // Everything within the tolerance of the first few; nothing within a tolerance of zero.
    let lax = MaxInfo { tolerance: 10., ..MaxInfo::default() };
    assert_eq!(max_info(&scenes(12, 20, 0.1), 64, lax).unwrap().len(), 8);
    let strict = MaxInfo { tolerance: 0., ..MaxInfo::default() };
    assert_eq!(max_info(&scenes(12, 20, 0.1), 64, strict).unwrap().len(), 64);
}

#[test]
fn max_info_has_maximal_volume_and_keeps_its_tolerance() {
    let mut rng = StdRng::seed_from_u64(9);
    // Six directions in a space of six, and of sixty-four.
    for width in [6, 64] {
        let (inner, mix) = (walk(&mut rng, 150, 6), walk(&mut rng, 6, width));
        let row = |i: usize| -> Vec<f32> {
            let weight = |r: usize| inner.row(i)[r];
            (0..width).map(|d| (0..6).map(|r| weight(r) * mix.row(r)[d]).sum()).collect()
        };
        let features = Features::new((0..150).flat_map(row).collect(), width).unwrap();
        let gram = |i: usize, j: usize| -> f64 {
            features.row(i).iter().zip(features.row(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        let six = max_info(&features, 6, MaxInfo::default()).unwrap();
        assert_eq!(six.len(), 6);
        let volume = 0.5 * log_det_of(&six, gram);
        for at in 0..6 {
            for other in (0..150).filter(|frame| !six.contains(frame)) {
                let mut swapped = six.clone();
                swapped[at] = other;
                // No exchange gains more than the published 5 percent.
                assert!(0.5 * log_det_of(&swapped, gram) < volume + 1.0501f64.ln(), "{width}: {at} {other}");
            }
        }
        // Until every frame is made by the chosen with weights of at most 0.7 (fewer than half of the frames do that).
        let settings = MaxInfo { tolerance: 0.7, rank: 8 };
        let chosen = max_info(&features, 100, settings).unwrap();
        assert!((7..75).contains(&chosen.len()), "{width}: {}", chosen.len());
        // In coordinates of the six directions: the weights' squared length is det(G + f f') / det G - 1.
        let scatter = |frames: &[usize]| -> f64 {
            let sum = |a: usize, b: usize| -> f64 {
                frames.iter().map(|&i| gram(i, six[a]) * gram(i, six[b])).sum()
            };
            log_det((0..6).map(|a| (0..6).map(|b| sum(a, b)).collect()).collect())
        };
        let whole = scatter(&chosen);
        for frame in (0..150).filter(|frame| !chosen.contains(frame)) {
            let length = (scatter(&[chosen.as_slice(), &[frame]].concat()) - whole).exp() - 1.;
            assert!(length < 0.7f64.powi(2) * 1.01, "{width}: frame {frame}: {length}");
        }
    }
}

#[test]
fn qca_shares_by_variety_and_fit() {
    // The first half repeats one picture, the second half shows sixteen scenes.
    let still = [1.0f32].into_iter().chain([0.; 15]).collect::<Vec<_>>().repeat(160);
    let lively: Vec<f32> =
        (0..160).flat_map(|i| (0..16).map(move |d| f32::from(u8::from(d == i % 16)))).collect();
    let features = Features::new([still, lively].concat(), 16).unwrap();
    let in_second = |frames: &[usize]| frames.iter().filter(|&&frame| frame >= 160).count();
    let even = qca(&[0.5; 320], &features, 240, Qca::default()).unwrap();
    assert!(in_second(&even) > 120, "{even:?}");
    let mut scores = vec![0f32; 320];
    scores[..160].fill(1.);
    let fit = qca(&scores, &features, 240, Qca::default()).unwrap();
    assert!(in_second(&fit) < 120, "{fit:?}");
    // Inside a segment: the best frame, and then all the different scenes before any comes again.
    let one = Qca { segments: 1 };
    let mut scores = vec![0.6; 320];
    scores[170] = 0.7;
    let frames = qca(&scores, &features, 16, one).unwrap();
    assert!(frames.contains(&170));
    let rows: std::collections::BTreeSet<usize> =
        frames.iter().map(|&frame| features.row(frame).iter().position(|x| *x > 0.5).unwrap()).collect();
    assert_eq!(rows.len(), 16, "{frames:?}");
    // Frames below half of the best have no part while there are others.
    let mut scores = vec![0.1f32; 320];
    scores[40..60].fill(0.9);
    assert!(qca(&scores, &features, 16, one).unwrap().iter().all(|frame| (40..60).contains(frame)));
    // No score above zero: the threshold is given up.
    assert_eq!(qca(&[-1.; 320], &features, 16, one).unwrap().len(), 16);
}

/// The reference's formulas, each mean and covariance written out; no frame or segment ties.
fn qca_by_definition(scores: &[f64], features: &Features, k: usize, segments: usize) -> Vec<usize> {
    let (n, width) = (scores.len(), features.width());
    let mut parts: Vec<Vec<usize>> = vec![vec![]; segments];
    for frame in 0..n {
        let s = (0..segments).find(|s| parts[*s].len() < n / segments + usize::from(*s < n % segments));
        parts[s.unwrap()].push(frame);
    }
    let x = |frame: usize, d: usize| f64::from(features.row(frame)[d]);
    let mean = |part: &[usize], d| part.iter().map(|&f| x(f, d)).sum::<f64>() / part.len() as f64;
    let all: Vec<usize> = (0..n).collect();
    let softmax = |values: Vec<f64>, t: f64| -> Vec<f64> {
        let total: f64 = values.iter().map(|v| (v / t).exp()).sum();
        values.iter().map(|v| (v / t).exp() / total).collect()
    };
    let apart = |p: &Vec<usize>| (0..width).map(|d| (mean(p, d) - mean(&all, d)).powi(2)).sum::<f64>();
    let spread = |p: &Vec<usize>| {
        let one = |d| p.iter().map(|&f| (x(f, d) - mean(p, d)).powi(2)).sum::<f64>() / (p.len() - 1) as f64;
        (0..width).map(one).sum::<f64>()
    };
    let apart = softmax(parts.iter().map(apart).collect(), 0.5);
    let spread = softmax(parts.iter().map(spread).collect(), 0.5);
    let variety = softmax(apart.iter().zip(spread).map(|(a, b)| a + b).collect(), 0.5);
    let score = |p: &Vec<usize>| p.iter().map(|&f| scores[f]).sum::<f64>() / p.len() as f64;
    let fit = softmax(parts.iter().map(score).collect(), 1.);
    let weight: Vec<f64> = variety.iter().zip(fit).map(|(v, m)| 0.5 * v + 0.5 * m).collect();
    let share: Vec<f64> = weight.iter().map(|w| k as f64 * w / weight.iter().sum::<f64>()).collect();
    let mut order: Vec<usize> = (0..segments).collect();
    order.sort_by(|&a, &b| share[b].fract().total_cmp(&share[a].fract()));
    let left = k - share.iter().map(|s| *s as usize).sum::<usize>();
    let distance = |a: usize, b: usize| (0..width).map(|d| (x(a, d) - x(b, d)).powi(2)).sum::<f64>();
    let mut chosen = vec![];
    for (s, part) in parts.iter().enumerate() {
        let quota = share[s] as usize + usize::from(order[..left].contains(&s));
        let best = part.iter().copied().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        let mut threshold = 0.5 * scores[best];
        while part.iter().filter(|&&f| scores[f] >= threshold).count() < quota {
            threshold /= 2.;
        }
        let mut here = vec![best];
        while here.len() < quota {
            let far = |f: usize| here.iter().map(|&h| distance(f, h)).fold(f64::INFINITY, f64::min);
            let pool = part.iter().copied().filter(|&f| scores[f] >= threshold && !here.contains(&f));
            here.push(pool.max_by(|&a, &b| far(a).total_cmp(&far(b))).unwrap());
        }
        chosen.extend(&here[..quota.min(here.len())]);
    }
    chosen.sort_unstable();
    chosen
}

#[test]
fn qca_is_its_definition() {
    let mut rng = StdRng::seed_from_u64(10);
    for (n, k, segments) in [(100, 20, 7), (64, 16, 16), (90, 31, 4), (50, 3, 6)] {
        let (features, scores) = (walk(&mut rng, n, 9), random(&mut rng, n));
        let wide: Vec<f64> = scores.iter().map(|&s| f64::from(s)).collect();
        let chosen = qca(&scores, &features, k, Qca { segments }).unwrap();
        assert_eq!(chosen, qca_by_definition(&wide, &features, k, segments), "{n} {k} {segments}");
    }
}

#[test]
fn focus_looks_at_few_frames_and_finds_the_peak() {
    let n = 4800;
    let score = |frame: usize| 0.1 + 0.8 * (-((frame as f64 - 3000.) / 40.).powi(2)).exp() as f32;
    for final_arms in [FinalArms::Mean, FinalArms::Bound] {
        let settings = Focus { final_arms, ..Focus::default() };
        let (mut calls, mut seen) = (0, std::collections::BTreeSet::new());
        let mut look = |frames: &[usize]| {
            calls += 1;
            assert!(frames.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(frames.iter().all(|&frame| frame < n && seen.insert(frame)));
            Ok(frames.iter().map(|&frame| score(frame)).collect())
        };
        let found = focus(n, 32, &settings, 1, &mut look).unwrap();
        let scored: Vec<usize> = found.scored.iter().map(|one| one.0).collect();
        assert_eq!((calls, scored), (2, seen.into_iter().collect::<Vec<_>>()));
        // Three frames of each of 300 arms, and at most 16 of a quarter of them.
        assert!((900..900 + 75 * 16).contains(&found.scored.len()), "{}", found.scored.len());
        let near = found.frames.iter().filter(|frame| frame.abs_diff(3000) < 160).count();
        assert!(near >= if final_arms == FinalArms::Mean { 12 } else { 6 }, "{final_arms:?}: {near}");
        let mut again = |frames: &[usize]| Ok(frames.iter().map(|&frame| score(frame)).collect());
        assert_eq!(found, focus(n, 32, &settings, 1, &mut again).unwrap());
        assert_ne!(found.frames, focus(n, 32, &settings, 2, &mut again).unwrap().frames);
    }
}

#[test]
fn focus_passes_errors_on_and_looks_at_nothing_when_all_is_taken() {
    let mut never = |_: &[usize]| panic!("asked for a score");
    let all = focus(5, 5, &Focus::default(), 0, &mut never).unwrap();
    assert_eq!((all.frames, all.scored), (vec![0, 1, 2, 3, 4], vec![]));
    let mut short = |_: &[usize]| Ok(vec![0.5]);
    let error = focus(100, 5, &Focus::default(), 0, &mut short).unwrap_err().to_string();
    assert!(error.starts_with("focus: expected one score per frame ("), "{error}");
    let mut failing = |_: &[usize]| Err(msjoe::Error::Input("no such frame".to_owned()));
    let error = focus(100, 5, &Focus::default(), 0, &mut failing).unwrap_err().to_string();
    assert_eq!(error, "no such frame");
}

#[test]
fn clips_grow_around_the_peaks_within_the_tokens() {
    let bump = |i: f32, at: f32| (-((i - at) / 4.).powi(2)).exp();
    let scores: Vec<f32> = (0..200).map(|i| bump(i as f32, 50.) + 0.9 * bump(i as f32, 140.)).collect();
    let two = F2c { anchors: 0.25, ..F2c::default() };
    let clips = f2c(&scores, None, 8, two).unwrap();
    // Frames with at least half of their anchor's score: 50 +- 3 and 140 +- 3, and 14 frames fit the tokens of 8.
    assert_eq!(clips.clips, [47..54, 137..144]);
    assert!((f64::from(clips.scale).powi(2) * 14. - 8.).abs() < 1e-5);
    // At full size: the eight best beside the anchors.
    let full = f2c(&scores, None, 8, F2c { shrink: 1., ..two }).unwrap();
    assert_eq!((full.frames().len(), full.scale), (8, 1.));
    assert!(full.clips.len() == 2 && full.clips.iter().all(|clip| clip.contains(&50) || clip.contains(&140)));
    // The frames shrink no further than allowed, and a clip grows no longer.
    let wide = vec![0.5f32; 100].into_iter().chain([1.]).chain(vec![0.5; 100]).collect::<Vec<_>>();
    let scores = wide.iter().enumerate().map(|(i, s)| s - i as f32 * 1e-6).collect::<Vec<_>>();
    let flat = F2c { hold: 0., anchors: 0.1, longest: 1000, ..F2c::default() };
    let clips = f2c(&scores, None, 10, flat).unwrap();
    assert_eq!((clips.frames().len(), clips.scale), (40, 0.5));
    let short = f2c(&scores, None, 10, F2c { longest: 12, ..flat }).unwrap();
    assert_eq!(short.frames().len(), 12);
}

#[test]
fn anchors_that_show_the_same_are_thinned() {
    // Four equal peaks, three of which show one scene.
    let bump = |i: f32, at: f32| (-((i - at) / 2.).powi(2)).exp();
    let peaks = [(20., 1.), (60., 0.98), (100., 0.96), (140., 0.9)];
    let scores: Vec<f32> =
        (0..160).map(|i| peaks.iter().map(|(at, high)| high * bump(i as f32, *at)).sum()).collect();
    let row = |i: usize| if i < 120 { [1., 0.] } else { [0., 1.] };
    let features = Features::new((0..160).flat_map(row).collect(), 2).unwrap();
    let settings = F2c { anchors: 1., longest: 1, ..F2c::default() };
    assert_eq!(f2c(&scores, None, 2, settings).unwrap().frames(), [20, 60]);
    assert_eq!(f2c(&scores, Some(&features), 2, settings).unwrap().frames(), [20, 140]);
}
