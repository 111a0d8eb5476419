//! The toy world: every claim of a question checked against the script by other code than wrote it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use image::RgbImage;
use msjoe::data::world::{
    Category, Colour, Family, Kind, Length, Noun, Phrase, Place, Scene, Script, Size, Span, Spec, Split,
    Thing, Wording, World, vocabulary,
};
use msjoe::video::{Fit, Request, Times, Video};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

mod chance;
mod text_only;

fn world() -> World {
    World::new(Spec::default(), 1).unwrap()
}

fn short() -> World {
    World::new(Spec::short(), 1).unwrap()
}

fn hash(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_same_seed_gives_the_same_pixels_and_questions_on_every_machine() {
    let (world, large) = (world(), World::new(Spec { side: 84, ..Spec::default() }, 1).unwrap());
    let frames = |world: &World| {
        let script = world.script(Split::Train, 7);
        let seconds: Vec<usize> = (0..script.seconds).step_by(11).collect();
        hash(seconds.iter().flat_map(|&second| script.frame(second).into_raw()).collect::<Vec<u8>>())
    };
    let questions = serde_json::to_string(&world.dataset(Split::Test, 60)).unwrap();
    let got = [frames(&world), frames(&large), hash(questions)];
    assert_eq!(got, ["73ea5055a85c30c1", "2024ba66e349f434", "9566853534554476"]);
}

#[test]
fn frames_do_not_depend_on_who_paints_them_when() {
    let script = world().script(Split::Validation, 3);
    let alone: Vec<RgbImage> = (0..40).map(|second| script.frame(second)).collect();
    let threads: Vec<RgbImage> = (0..40).into_par_iter().rev().map(|second| script.frame(second)).collect();
    assert!(alone.iter().eq(threads.iter().rev()));
    assert!((1..40).all(|second| alone[second] != alone[second - 1]), "noise and motion change every second");
    assert_eq!(script.frame(script.seconds + 9).dimensions(), (56, 56));
    assert_eq!(script.scene_index(script.seconds + 9), script.scenes.len() - 1);
}

#[test]
fn splits_and_seeds_share_no_video() {
    let mut seen = BTreeMap::new();
    for seed in [1, 2] {
        let world = World::new(Spec::default(), seed).unwrap();
        for split in Split::ALL {
            for index in 0..100 {
                let script = world.script(split, index);
                let text: Vec<String> = (0..script.seconds).map(|second| script.caption(second)).collect();
                assert_eq!(seen.insert(text, script.id.clone()), None, "{}", script.id);
            }
        }
    }
    let ids: BTreeSet<&String> = seen.values().collect();
    assert_eq!(ids.len(), 600);
}

#[test]
fn scripts_keep_to_their_spec() {
    let (long, short) = (world(), short());
    let mut lengths = BTreeSet::new();
    for index in 0..300 {
        let script = long.script(Split::Train, index);
        assert!((120..=600).contains(&script.seconds));
        assert_eq!(script.families, Family::ALL, "{}", script.id);
        check_timeline(&script, 2..=20);
        let clip = short.script(Split::Train, index);
        lengths.insert(clip.scenes.len());
        check_timeline(&clip, 2..=6);
    }
    assert_eq!(lengths, (1..=8).collect());
}

fn check_timeline(script: &Script, seconds: std::ops::RangeInclusive<usize>) {
    let mut end = 0;
    for (at, scene) in script.scenes.iter().enumerate() {
        assert_eq!(scene.start, end, "{}", script.id);
        end += scene.seconds;
        assert!(seconds.contains(&scene.seconds), "{}: scene {at} lasts {} s", script.id, scene.seconds);
        assert!((1..=3).contains(&scene.things.len()));
        let nouns: BTreeSet<Noun> = scene.things.iter().map(|thing| thing.noun).collect();
        assert_eq!(nouns.len(), scene.things.len(), "{}: a noun twice in scene {at}", script.id);
        assert!(at == 0 || script.scenes[at - 1].place != scene.place, "{}: scene {at}", script.id);
        for second in scene.range() {
            assert_eq!(script.scene_index(second), at);
        }
    }
    assert_eq!(end, script.seconds);
}

#[test]
fn things_stay_in_the_picture_and_apart() {
    let script = world().script(Split::Train, 5);
    let mut moved = 0;
    for scene in &script.scenes {
        for second in 0..scene.seconds {
            let boxes = |thing: &Thing| (thing.centre(second as f32), thing.radius);
            for (at, thing) in scene.things.iter().enumerate() {
                let ([x, y], radius) = boxes(thing);
                assert!(
                    x - radius > -1e-4 && x + radius < 1.0001 && y - radius > -1e-4 && y + radius < 1.0001
                );
                moved += usize::from(thing.centre(second as f32) != thing.position);
                for other in &scene.things[..at] {
                    let ([a, b], r) = boxes(other);
                    assert!((x - a).abs().max((y - b).abs()) > radius + r - 1e-4, "{}", script.id);
                }
            }
        }
    }
    assert!(moved > 100);
}

/// What a frame shows is what the script says: each thing's colour is found around its centre, and nowhere without it.
#[test]
fn pictures_show_what_the_script_says() {
    let near = |pixel: &image::Rgb<u8>, colour: Colour| {
        pixel.0.iter().zip(colour.rgb()).all(|(&value, want)| value.abs_diff(want) <= 34)
    };
    let world = world();
    let (mut of_noun, mut most_strays) = (BTreeMap::<(Noun, Size), Vec<usize>>::new(), 0);
    for index in 0..40 {
        let script = world.script(Split::Train, index);
        for scene in &script.scenes {
            let frame = script.frame(scene.start + 1);
            let things: Vec<_> = scene.things.iter().map(|thing| (thing, thing.centre(1.))).collect();
            let mut found = vec![0; things.len()];
            let mut strays = BTreeMap::new();
            for (column, row, pixel) in frame.enumerate_pixels() {
                let at = [column, row].map(|place| (place as f32 + 0.5) / 56.);
                let inside = |thing: &Thing, centre: &[f32; 2]| {
                    (0..2).all(|axis| (at[axis] - centre[axis]).abs() < thing.radius * 1.2)
                };
                for colour in Colour::ALL.into_iter().filter(|&colour| near(pixel, colour)) {
                    let own = |(thing, centre): &(&Thing, [f32; 2])| {
                        thing.colour == colour && inside(thing, centre)
                    };
                    match things.iter().position(own) {
                        Some(at) => found[at] += 1,
                        None => *strays.entry(colour).or_insert(0) += 1,
                    }
                }
            }
            // White is also in the stars of the night and on snow.
            strays.remove(&Colour::White);
            most_strays = strays.values().copied().fold(most_strays, usize::max);
            for ((thing, _), found) in things.iter().zip(found) {
                of_noun.entry((thing.noun, thing.size)).or_default().push(found);
            }
        }
    }
    assert!(most_strays < 12, "{most_strays} pixels of a colour that is not there");
    assert_eq!(of_noun.len(), 24);
    for ((noun, size), found) in of_noun {
        let least = if size == Size::Small { 18 } else { 45 };
        let (min, mean) = (found.iter().min().unwrap(), found.iter().sum::<usize>() / found.len());
        assert!(mean > least && *min > least / 3, "{size:?} {noun:?}: {min} to {mean} pixels");
    }
}

#[test]
fn noise_has_the_deviation_of_the_spec() {
    let spec = Spec { noise: 12., motion: 0., ..Spec::default() };
    let quiet = World::new(Spec { noise: 0., ..spec.clone() }, 4).unwrap().script(Split::Train, 0);
    let noisy = World::new(spec, 4).unwrap().script(Split::Train, 0);
    let (mut sum, mut squares, mut count) = (0., 0., 0.);
    for second in 0..20 {
        for (a, b) in noisy.frame(second).as_raw().iter().zip(quiet.frame(second).as_raw()) {
            if (60..196).contains(b) {
                let difference = f64::from(*a) - f64::from(*b);
                (sum, squares, count) = (sum + difference, squares + difference * difference, count + 1.);
            }
        }
    }
    let (mean, deviation): (f64, f64) = (sum / count, (squares / count).sqrt());
    assert!(mean.abs() < 0.3 && (deviation - 12.).abs() < 0.4, "{mean} +- {deviation}");
}

/// The scenes that hold a thing of which `fits` is true.
fn holding(script: &Script, fits: impl Fn(Kind) -> bool) -> Vec<usize> {
    let holds = |scene: &Scene| scene.things.iter().any(|thing| fits(thing.kind()));
    script.scenes.iter().enumerate().filter(|(_, scene)| holds(scene)).map(|(at, _)| at).collect()
}

fn kind(words: &str) -> Kind {
    let mut found = Colour::ALL.into_iter().flat_map(|colour| Noun::ALL.map(|noun| Kind { colour, noun }));
    found.find(|kind| kind.to_string() == words).unwrap_or_else(|| panic!("{words:?} is no thing"))
}

/// The answer and evidence of a question from its words and the script alone; panics where the question has no or two.
fn solve(script: &Script, text: &str) -> (String, Vec<Range<usize>>, Vec<String>) {
    let ranges = |scenes: &[usize]| scenes.iter().map(|&at| script.scenes[at].range()).collect::<Vec<_>>();
    let an = |words: &str| format!("{} {words}", if words.starts_with('a') { "an" } else { "a" });
    let only = |scenes: Vec<usize>| -> usize {
        assert_eq!(scenes.len(), 1, "{}: {text}", script.id);
        scenes[0]
    };
    if let Some(name) = text.strip_prefix("what colour is the ") {
        let name = name.strip_suffix('?').unwrap();
        let nouns: Vec<Noun> = (Noun::ALL.into_iter())
            .filter(|noun| noun.name() == name || noun.category().name() == name)
            .collect();
        let at = only(holding(script, |kind| nouns.contains(&kind.noun)));
        let things: Vec<&Thing> =
            script.scenes[at].things.iter().filter(|thing| nouns.contains(&thing.noun)).collect();
        assert_eq!(things.len(), 1, "{}: {text}", script.id);
        let subjects = nouns.iter().map(|noun| an(noun.name())).collect();
        return (things[0].colour.name().into(), ranges(&[at]), subjects);
    }
    if let Some(rest) = text.strip_prefix("what comes right ") {
        let (side, thing) = rest.strip_suffix('?').unwrap().split_once(" the ").unwrap();
        let named = only(holding(script, |other| other == kind(thing)));
        let beside = if side == "after" { named + 1 } else { named - 1 };
        let things = &script.scenes[beside].things;
        assert_eq!(things.len(), 1, "{}: {text}", script.id);
        return (things[0].kind().to_string(), ranges(&[beside, named]), vec![an(thing)]);
    }
    if let Some(rest) = text.strip_prefix("which comes first, the ") {
        let (a, b) = rest.strip_suffix('?').unwrap().split_once(" or the ").unwrap();
        let (first, second) = [a, b].map(|words| holding(script, |other| other == kind(words))).into();
        assert!(first.len() <= 1 && second.len() == first.len(), "{}: {text}", script.id);
        let answer = match (first.first(), second.first()) {
            (None, _) => "neither",
            (x, y) if x == y => "both at once",
            (x, y) => [a, b][usize::from(x > y)],
        };
        let scenes: BTreeSet<usize> = first.into_iter().chain(second).collect();
        return (answer.into(), ranges(&scenes.into_iter().collect::<Vec<_>>()), vec![an(a), an(b)]);
    }
    if let Some(rest) = text.strip_prefix("how many separate times is the ") {
        let thing = rest.strip_suffix(" shown?").unwrap();
        let scenes = holding(script, |other| other == kind(thing));
        assert!(scenes.windows(2).all(|pair| pair[1] > pair[0] + 1), "{}: {text}", script.id);
        let places: BTreeSet<Place> = scenes.iter().map(|&at| script.scenes[at].place).collect();
        assert_eq!(places.len(), scenes.len(), "{}: {text}", script.id);
        let answer = ["one", "two", "three", "four"][scenes.len() - 1];
        return (answer.into(), ranges(&scenes), vec![an(thing)]);
    }
    assert_eq!(text, "which place is shown most?");
    let mut seconds: Vec<(usize, Place)> = Place::ALL.map(|place| (0, place)).into();
    script.scenes.iter().for_each(|scene| seconds[scene.place as usize].0 += scene.seconds);
    seconds.sort();
    let [.., (second, _), (most, place)] = seconds[..] else { unreachable!() };
    assert!(most as f64 >= 0.4 * script.seconds as f64 && most as f64 >= 1.6 * second as f64);
    (place.name().into(), vec![], vec![])
}

#[test]
fn every_question_has_one_answer_and_its_evidence() {
    for world in [world(), short()] {
        for split in Split::ALL {
            for index in 0..250 {
                let script = world.script(split, index);
                let samples = world.samples(split, index);
                let families: Vec<Family> = samples.iter().map(|sample| sample.family).collect();
                assert_eq!(families, script.families);
                for sample in samples {
                    let (answer, evidence, subjects) = solve(&script, sample.question.text());
                    let options = sample.question.options();
                    assert_eq!(options.len(), 4);
                    assert_eq!(options[sample.answer], answer, "{}: {}", sample.id, sample.question);
                    let mut given = sample.evidence.clone();
                    if sample.family != Family::Neighbour {
                        given.sort_by_key(|range| range.start);
                    }
                    assert_eq!(given, evidence, "{}", sample.id);
                    assert_eq!(sample.subjects, subjects, "{}", sample.id);
                    assert_eq!((sample.split, sample.video), (split, index));
                }
            }
        }
    }
}

#[test]
fn count_piles_up_on_one_long_occurrence() {
    let samples = world().dataset(Split::Test, 1200);
    for sample in samples.iter().filter(|sample| sample.family == Family::Count) {
        let mut lengths: Vec<usize> = sample.evidence.iter().map(Range::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        assert!(lengths[0] >= 12, "{}: {lengths:?}", sample.id);
        assert!(lengths[1..].iter().all(|length| (3..=8).contains(length)), "{}: {lengths:?}", sample.id);
    }
}

#[test]
fn a_dataset_is_a_prefix_of_a_longer_one() {
    let world = short();
    let (few, many) = (world.dataset(Split::Train, 100), world.dataset(Split::Train, 1000));
    assert_eq!(few[..], many[..100]);
    assert!(world.dataset(Split::Train, 0).is_empty());
}

#[test]
fn captions_say_what_there_is() {
    let thing = |noun, colour, size| Thing {
        noun,
        colour,
        size,
        radius: 0.1,
        position: [0.5; 2],
        velocity: [0.; 2],
        bounds: [[0.5; 2]; 2],
        tilt: 0.,
        tint: [0; 3],
    };
    let scene = |place, things| Scene { start: 0, seconds: 2, place, things, look: 0 };
    let hammer = thing(Noun::Hammer, Colour::Red, Size::Large);
    let star = thing(Noun::Star, Colour::Blue, Size::Small);
    let grass = scene(Place::Grass, vec![hammer.clone(), star.clone()]);
    let full = |scene: &Scene| Phrase::full(scene).to_string();
    assert_eq!(full(&grass), "a red hammer and a small blue star on grass");
    let apple = scene(Place::Night, vec![thing(Noun::Apple, Colour::Green, Size::Large)]);
    assert_eq!(full(&apple), "a green apple at night");
    assert!(Phrase::full(&grass).is_true(&grass) && !Phrase::full(&grass).is_true(&apple));

    let phrase = |things: &[(Option<Colour>, Noun, Option<Size>)], place, wording| Phrase {
        things: things.to_vec(),
        place,
        wording,
    };
    let cases = [
        (phrase(&[(None, Noun::Apple, None)], None, Wording::Plain), "an apple", [false, true]),
        (phrase(&[(None, Noun::Hammer, None)], None, Wording::Bare), "hammer", [true, false]),
        (phrase(&[], Some(Place::Night), Wording::PlaceFirst), "night", [false, true]),
        (
            phrase(
                &[(Some(Colour::Blue), Noun::Star, Some(Size::Small))],
                Some(Place::Grass),
                Wording::PlaceFirst,
            ),
            "grass with a small blue star",
            [true, false],
        ),
        (phrase(&[(Some(Colour::Red), Noun::Star, None)], None, Wording::Plain), "a red star", [false; 2]),
        (phrase(&[(None, Noun::Star, Some(Size::Large))], None, Wording::Plain), "a large star", [false; 2]),
        (
            phrase(&[(None, Noun::Star, None), (None, Noun::Star, None)], None, Wording::Plain),
            "a star and a star",
            [false; 2],
        ),
        (
            phrase(&[(None, Noun::Star, None), (None, Noun::Hammer, None)], Some(Place::Sand), Wording::Bare),
            "star and hammer on sand",
            [false; 2],
        ),
    ];
    for (phrase, words, truth) in cases {
        assert_eq!(phrase.to_string(), words);
        assert_eq!([&grass, &apple].map(|scene| phrase.is_true(scene)), truth, "{words}");
    }
}

#[test]
fn phrases_are_true_and_various_and_name_no_category() {
    let script = world().script(Split::Train, 2);
    let mut rng = StdRng::seed_from_u64(3);
    let (mut seen, mut elsewhere, mut count) = (BTreeSet::new(), 0, 0);
    for second in 0..script.seconds {
        for _ in 0..4 {
            let phrase = script.phrase(second, &mut rng);
            let scene = script.scene_at(second);
            assert!(phrase.is_true(scene));
            elsewhere += script.scenes.iter().filter(|other| phrase.is_true(other)).count();
            count += 1;
            // Word by word: nothing is said that the scene does not have.
            let text = phrase.to_string();
            for word in text.split(' ') {
                let there = ["a", "an", "and", "on", "at", "with", scene.place.name()].contains(&word)
                    || scene.things.iter().any(|thing| {
                        [thing.noun.name(), thing.colour.name(), thing.size.name()].contains(&word)
                    });
                assert!(there, "{text:?} at {second}: {}", script.caption(second));
                assert!(Category::ALL.iter().all(|category| category.name() != word));
            }
            seen.insert(text);
        }
    }
    assert!(seen.len() > 200, "{} phrases", seen.len());
    assert!(elsewhere > count, "some phrases are true of other scenes as well");
}

#[test]
fn the_vocabulary_is_complete() {
    let words: BTreeSet<&str> = vocabulary().into_iter().collect();
    let mut said = BTreeSet::new();
    let mut read = |text: &str| {
        for word in text.split([' ', '\n']) {
            said.insert(word.trim_end_matches(['?', ',']).to_owned());
        }
    };
    let mut rng = StdRng::seed_from_u64(0);
    let world = world();
    for index in 0..60 {
        let script = world.script(Split::Train, index);
        for sample in world.samples(Split::Train, index) {
            read(sample.question.text());
            sample.question.options().iter().chain(&sample.subjects).for_each(|text| read(text));
        }
        for scene in &script.scenes {
            read(&script.caption(scene.start));
            read(&script.phrases(scene.start, &mut rng));
        }
    }
    assert_eq!(said, words.iter().map(|word| word.to_string()).collect());
    assert!(words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase())));
}

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let count = a.as_raw().len() as f64;
    10. * (255. * 255. * count / squares.sum::<f64>()).log10()
}

#[test]
fn an_encoded_video_shows_the_same_seconds() {
    let folder = tempfile::tempdir().unwrap();
    for (world, fps) in [(short(), 4), (World::new(Spec { side: 84, ..Spec::short() }, 2).unwrap(), 1)] {
        let script = world.script(Split::Test, 4);
        let path = folder.path().join("clip.mp4");
        script.write_video(&path, fps).unwrap();
        let video = Video::open(&path).unwrap();
        assert_eq!(video.info.frames, script.seconds * fps);
        let request = Request { times: Times::Fps(1.), fits: vec![Fit::Native], threads: 1 };
        let frames: Vec<_> = video.samples(&request).unwrap().map(Result::unwrap).collect();
        assert_eq!(frames.len(), script.seconds);
        for (second, sample) in frames.iter().enumerate() {
            assert!((sample.seconds - second as f64).abs() < 1e-6);
            let shown = &sample.images[0];
            let own = psnr(shown, &script.frame(second));
            assert!(own > 24., "second {second}: {own:.1} dB");
            let best = (0..script.seconds)
                .max_by(|&a, &b| psnr(shown, &script.frame(a)).total_cmp(&psnr(shown, &script.frame(b))))
                .unwrap();
            assert_eq!(best, second);
        }
    }
    let script = short().script(Split::Test, 0);
    let error = script.write_video(folder.path().join("none.mp4"), 0).unwrap_err().to_string();
    assert_eq!(error, "world: expected 1 to 240 frames per second, got 0");
}

#[test]
fn short_worlds_ask_what_fits() {
    let world = short();
    for index in 0..500 {
        let script = world.script(Split::Train, index);
        assert!(!script.families.contains(&Family::Count) || script.scenes.len() >= 7, "{}", script.id);
        assert!(!script.families.contains(&Family::Neighbour) || script.scenes.len() >= 3);
    }
    // One scene: no neighbour, no order, no count.
    let one = Spec { length: Length::Scenes(Span::new(1, 1)), ..Spec::short() };
    let one = World::new(one, 1).unwrap();
    assert_eq!(one.families(), [Family::Needle, Family::Category, Family::Global]);
    assert_eq!(one.dataset(Split::Train, 9).len(), 9);
}

#[test]
fn specs_outside_of_their_ranges_are_refused() {
    let default = Spec::default;
    let cases = [
        (Spec { length: Length::Seconds(Span::new(9, 5)), ..default() }, "length (seconds) is 9 to 5"),
        (
            Spec { length: Length::Seconds(Span::new(2, 90_000)), ..default() },
            "length (seconds) is 2 to 90000",
        ),
        (Spec { length: Length::Scenes(Span::new(0, 5)), ..default() }, "length (scenes) is 0 to 5"),
        (Spec { scene_seconds: Span::new(0, 5), ..default() }, "scene_seconds is 0 to 5"),
        (
            Spec { scene_seconds: Span::new(3, 5), evidence_seconds: Span::new(3, 4), ..default() },
            "twice the shortest",
        ),
        (
            Spec { evidence_seconds: Span::new(1, 8), ..default() },
            "evidence_seconds is 1 to 8, expected a range within 2 to 20",
        ),
        (
            Spec {
                length: Length::Seconds(Span::new(3, 9)),
                scene_seconds: Span::new(4, 20),
                evidence_seconds: Span::new(4, 8),
                ..default()
            },
            "a video of 3 s is shorter than the shortest scene, 4 s",
        ),
        (Spec { things: Span::new(1, 4), ..default() }, "things is 1 to 4"),
        (Spec { side: 57, ..default() }, "side is 57"),
        (Spec { side: 300, ..default() }, "side is 300"),
        (Spec { small: 0.05, ..default() }, "small is 0.05"),
        (Spec { large: 0.2, ..default() }, "large is 0.2"),
        (Spec { noise: -1., ..default() }, "noise is -1"),
        (Spec { noise: f32::NAN, ..default() }, "noise is NaN"),
        (Spec { motion: 0.7, ..default() }, "motion is 0.7"),
        (Spec { distractors: 1.1, ..default() }, "distractors is 1.1"),
        (Spec { tint: 99, ..default() }, "tint is 99"),
    ];
    for (spec, message) in cases {
        let error = World::new(spec, 1).unwrap_err().to_string();
        assert!(error.starts_with("world: ") && error.contains(message), "{error:?} lacks {message:?}");
    }
}

#[test]
fn a_spec_is_read_from_toml() {
    for spec in [Spec::default(), Spec::short()] {
        let text = toml::to_string(&spec).unwrap();
        assert_eq!(toml::from_str::<Spec>(&text).unwrap(), spec, "{text}");
    }
    let spec: Spec = toml::from_str("noise = 2.0\nlength = { scenes = { min = 2, max = 4 } }").unwrap();
    assert_eq!(spec, Spec { noise: 2., length: Length::Scenes(Span::new(2, 4)), ..Spec::default() });
    assert!(toml::from_str::<Spec>("nois = 2.0").unwrap_err().to_string().contains("nois"));
    assert!("dev".parse::<Split>().unwrap_err().to_string().contains("expected train, validation or test"));
    assert_eq!("test".parse::<Split>().unwrap(), Split::Test);
}
