//! Without looking for the answer it cannot be found: balance, words alone, what is shown at all.

use std::collections::{BTreeMap, BTreeSet};

use msjoe::data::world::{Colour, Family, Kind, Sample, Split};

use super::{holding, short, text_only, world};

/// The part of `counts` in which each key occurs.
fn parts<K: Ord + std::fmt::Debug>(keys: impl Iterator<Item = K>) -> BTreeMap<K, f64> {
    let mut counts = BTreeMap::new();
    keys.for_each(|key| *counts.entry(key).or_insert(0.) += 1.);
    let total: f64 = counts.values().sum();
    counts.values_mut().for_each(|count| *count /= total);
    counts
}

#[test]
fn families_answers_and_options_are_balanced() {
    for world in [world(), short()] {
        let samples = world.dataset(Split::Test, 6000);
        assert_eq!(world.families(), Family::ALL);
        for (at, sample) in samples.iter().enumerate() {
            assert_eq!(sample.family, Family::ALL[at % 6]);
        }
        let ids: BTreeSet<&String> = samples.iter().map(|sample| &sample.id).collect();
        assert_eq!(ids.len(), samples.len());
        let even = |parts: BTreeMap<String, f64>, names: usize, family: Family| {
            assert_eq!(parts.len(), names, "{family:?}: {parts:?}");
            let share = 1. / names as f64;
            let off = 4.5 * (share * (1. - share) / 1000.).sqrt();
            assert!(parts.values().all(|part| (part - share).abs() < off), "{family:?}: {parts:?}");
        };
        for family in Family::ALL {
            let of_family = || samples.iter().filter(|sample| sample.family == family);
            even(parts(of_family().map(|sample| sample.answer.to_string())), 4, family);
            let right = of_family().map(|sample| sample.question.options()[sample.answer].clone());
            match family {
                Family::Count => even(parts(right), 4, family),
                Family::Needle | Family::Category | Family::Global => even(parts(right), 6, family),
                Family::Neighbour => assert_eq!(parts(right).len(), 72),
                Family::Order => {
                    let role = |text: &str, sample: &str| {
                        let (first, second) = sample.split_once(" or the ").unwrap();
                        let named = [first.ends_with(text), second.starts_with(text)];
                        ["first", "second"].iter().zip(named).find(|(_, named)| *named).map(|(role, _)| *role)
                    };
                    let roles = of_family().zip(right).map(|(sample, right)| {
                        role(&right, sample.question.text()).map_or(right.clone(), str::to_owned)
                    });
                    even(parts(roles), 4, family);
                }
            }
        }
    }
}

#[test]
fn wrong_options_are_shown_as_well() {
    let world = world();
    for sample in world.dataset(Split::Test, 1200) {
        let script = world.script(sample.split, sample.video);
        let shown = |option: &String| match sample.family {
            Family::Needle | Family::Category => {
                !holding(&script, |kind| kind.colour.name() == option).is_empty()
            }
            Family::Neighbour => !holding(&script, |kind| kind.to_string() == *option).is_empty(),
            Family::Global => script.scenes.iter().any(|scene| scene.place.name() == option),
            Family::Order | Family::Count => true,
        };
        assert!(sample.question.options().iter().all(shown), "{}: {}", sample.id, sample.question);
    }
}

/// Strategies that look at the video without looking for the answer.
#[test]
fn what_is_shown_at_all_or_most_answers_nothing() {
    let world = world();
    let samples = world.dataset(Split::Test, 9000);
    let mut script = world.script(Split::Test, 0);
    let mut right: BTreeMap<(&str, Family), f64> = BTreeMap::new();
    for (at, sample) in samples.iter().enumerate() {
        if at > 0 && samples[at - 1].video != sample.video {
            script = world.script(sample.split, sample.video);
        }
        let times = |option: &String| -> f64 {
            let fits = |kind: Kind| {
                kind.to_string() == *option || kind.colour.name() == option || kind.noun.name() == option
            };
            let place = script.scenes.iter().filter(|scene| scene.place.name() == option).count();
            (holding(&script, fits).len() + place) as f64
        };
        let times: Vec<f64> = sample.question.options().iter().map(times).collect();
        let share = |chosen: &dyn Fn(f64) -> bool| {
            let chosen: Vec<usize> = (0..4).filter(|&at| chosen(times[at])).collect();
            let chosen = if chosen.is_empty() { vec![0, 1, 2, 3] } else { chosen };
            if chosen.contains(&sample.answer) { 1. / chosen.len() as f64 } else { 0. }
        };
        let (most, least) =
            (times.iter().copied().fold(0., f64::max), times.iter().copied().fold(f64::MAX, f64::min));
        let results = [
            ("at all", share(&|n| n > 0.)),
            ("most", share(&|n| n == most)),
            ("least", share(&|n| n == least)),
        ];
        for (name, share) in results {
            *right.entry((name, sample.family)).or_default() += share / 1500.;
        }
    }
    for ((name, family), accuracy) in right {
        // Chance is 0.25 with a standard error of 0.011.
        let expected = match (family, name) {
            // The place that is shown most is what global asks for.
            (Family::Global, "most" | "least") => continue,
            // Three quarters of the pairs are shown, and of those two of three answers name one; the rest is chance.
            (Family::Order, "least") => 0.17..0.21,
            (Family::Order, _) => 0.28..0.345,
            _ => 0.21..0.29,
        };
        assert!(expected.contains(&accuracy), "{name} in {family:?}: {accuracy:.3}");
    }
}

#[test]
fn the_words_alone_answer_nothing() {
    let world = world();
    let (train, test) = (world.dataset(Split::Train, 9000), world.dataset(Split::Test, 9000));
    let accuracy = text_only::accuracy(&train, &test);
    let [all, families @ ..] = &accuracy[..] else { unreachable!() };
    assert!((all - 0.25).abs() < 0.02, "text alone: {accuracy:?}");
    assert!(families.iter().all(|part| (part - 0.25).abs() < 0.04), "text alone: {accuracy:?}");
}

/// The same predictor on data that leaks a little: it must notice, or the test above means nothing.
#[test]
fn the_text_only_predictor_finds_leaks() {
    let leaky = |leak: &dyn Fn(&Sample) -> Option<usize>| {
        let world = world();
        let make = |split| -> Vec<_> {
            let mut samples = world.dataset(split, 3000);
            samples.iter_mut().step_by(2).for_each(|sample| {
                sample.answer = leak(sample).unwrap_or(sample.answer);
            });
            samples
        };
        text_only::accuracy(&make(Split::Train), &make(Split::Test))[0]
    };
    let position = leaky(&|_| Some(2));
    let option = leaky(&|sample| {
        let options = sample.question.options();
        options.iter().position(|option| ["red", "neither", "two", "grass"].contains(&option.as_str()))
    });
    let both = leaky(&|sample| {
        let options = sample.question.options();
        let noun = sample.question.text().trim_end_matches('?').rsplit(' ').next()?;
        let colour = Colour::ALL[noun.len() % 6].name();
        options.iter().position(|option| option == colour)
    });
    assert!(position > 0.5 && option > 0.33 && both > 0.29, "{position} {option} {both}");
}
