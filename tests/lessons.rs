//! Supervised turns: what a conversation shows, and that its turns are independent.

use std::ops::Range;

use candle_core::Device;
use image::RgbImage;
use msjoe::checkpoint::random::{self, QwenSpec};
use msjoe::data::world::{
    Family, Length, NUMBERS, Sample, Scene, Script, Span, Spec, Split, World, vocabulary,
};
use msjoe::optim::AdamWConfig;
use msjoe::supervised::lessons::{DESCRIBE, Lesson, conversation};
use msjoe::supervised::reasoning::{is_alike, reasoning};
use msjoe::supervised::turns::{Conversation, Learn, TurnTrainer};
use msjoe::text::Dialogue;

fn clips() -> World {
    let spec = Spec {
        length: Length::Scenes(Span::new(8, 12)),
        scene_seconds: Span::new(2, 4),
        evidence_seconds: Span::new(2, 4),
        ..Spec::default()
    };
    World::new(spec, 1).unwrap()
}

/// The seconds that a lesson shows, in its order.
fn shown(script: &Script, lesson: &Conversation) -> Vec<usize> {
    let frames: Vec<RgbImage> = (0..script.seconds).map(|second| script.frame(second)).collect();
    let second = |image: &RgbImage| frames.iter().position(|frame| frame == image).unwrap();
    lesson.images.iter().map(second).collect()
}

fn is_asked(lesson: &Conversation, sample: &Sample) -> bool {
    let asked = Dialogue::Brief.answer(&sample.question);
    lesson.turns.iter().any(|(text, _)| *text == asked)
}

#[test]
fn following_misses_no_scene_of_a_clip_whole_or_cut() {
    let world = clips();
    let (mut cut, mut unseen, mut counted, mut side_by_side) = (0, 0, 0, 0);
    for number in 0..80 {
        let (script, lesson) =
            (world.script(Split::Train, number), conversation(&world, Lesson::Follow, number));
        let frames = shown(&script, &lesson);
        assert!(frames.is_sorted());
        let seen = |range: &Range<usize>| frames.iter().any(|frame| range.contains(frame));
        if frames.is_empty() {
            unseen += 1;
            assert!(world.samples(Split::Train, number).iter().all(|sample| is_asked(&lesson, sample)));
        } else if !script.scenes.iter().all(|scene| seen(&scene.range())) {
            cut += 1;
            // Every second of what was kept of a scene.
            for pair in frames.windows(2).filter(|p| script.scene_index(p[0]) == script.scene_index(p[1])) {
                assert_eq!(pair[1], pair[0] + 1, "video {number}: {frames:?}");
            }
            for sample in world.samples(Split::Train, number) {
                let answered = !sample.evidence.is_empty() && sample.evidence.iter().all(seen);
                assert_eq!(
                    is_asked(&lesson, &sample),
                    answered,
                    "video {number}: {}",
                    sample.question.text()
                );
            }
        }
        counted += usize::from(lesson.turns.iter().any(|(text, _)| text.contains("how many separate times")));
        // Two places one right after the other: `sand night` or `sand- night`.
        let adjacent = |(text, reply): &(String, String)| {
            let said = reply.trim_start_matches("<think>").split_once(", ").map_or("", |(said, _)| said);
            text.contains("how many separate times") && said.contains(' ')
        };
        side_by_side += usize::from(lesson.turns.iter().any(adjacent));
    }
    assert!((20..64).contains(&cut), "{cut} of 80 clips are cut");
    assert!((1..10).contains(&unseen), "nothing is seen of {unseen} of 80 clips");
    assert!(counted > 40, "{counted} of 80 clips ask for a number");
    assert!(side_by_side >= 8, "{side_by_side} of 80 clips count what lies side by side");
}

#[test]
fn sifted_clips_hold_lookalikes_and_long_scenes_and_ask_what_is_not_seen() {
    let world = World::new(Spec::default(), 1).unwrap();
    let (mut long, mut guessed, mut halves, mut in_vain) = (0, 0, 0, 0);
    // Scenes with what resembles the thing that is asked about, and scenes, of those that do not answer: shown ones, and all.
    let mut alike = [(0, 0); 2];
    for number in 0..100 {
        let (script, lesson) =
            (world.script(Split::Train, number), conversation(&world, Lesson::Sift, number));
        let frames = shown(&script, &lesson);
        assert!(frames.is_sorted());
        let seen = |range: &Range<usize>| frames.iter().any(|frame| range.contains(frame));
        let seconds = |scene: &Scene| frames.iter().filter(|second| scene.range().contains(second)).count();
        long += usize::from(script.scenes.iter().any(|scene| seconds(scene) > 4));
        for sample in world.samples(Split::Train, number) {
            let answered = !sample.evidence.is_empty() && sample.evidence.iter().all(seen);
            let resembles = |scene: &&Scene| scene.things.iter().any(|thing| is_alike(&sample, thing));
            let others = || {
                let answers =
                    |scene: &Scene| sample.evidence.iter().any(|range| scene.range().contains(&range.start));
                script.scenes.iter().filter(move |scene| !answers(scene))
            };
            let of_shown = others().filter(|scene| seconds(scene) > 0);
            if answered {
                let counts = [
                    (of_shown.clone().filter(resembles).count(), of_shown.count()),
                    (others().filter(resembles).count(), others().count()),
                ];
                for (sum, of) in alike.iter_mut().zip(counts) {
                    *sum = (sum.0 + of.0, sum.1 + of.1);
                }
            } else if is_asked(&lesson, &sample) {
                guessed += 1;
                halves += usize::from(sample.evidence.iter().any(seen));
                assert!(!matches!(sample.family, Family::Count | Family::Global));
            }
        }
        let vain = |(text, reply): &&(String, String)| text.starts_with("describe ") && reply == "neither";
        in_vain += lesson.turns.iter().filter(vain).count();
    }
    let [shown, all] = alike.map(|(alike, scenes)| alike as f64 / scenes as f64);
    assert!(long > 20, "{long} of 100 clips show a scene for more than 4 seconds");
    assert!(
        shown > 1.5 * all,
        "lookalikes in {shown} of the other scenes that are shown, in {all} of all others"
    );
    assert!(guessed > 60 && halves > 5, "{guessed} questions that nothing answers, {halves} of them half");
    assert!(in_vain > 60, "{in_vain} things are looked for in vain");
}

#[test]
fn a_turn_is_learned_as_if_it_were_alone() {
    let folder = tempfile::tempdir().unwrap();
    let tags = ["<think>", "</think>", "<query>", "</query>", "<answer>", "</answer>"];
    let mut words: Vec<String> = vocabulary().into_iter().map(str::to_owned).collect();
    words.push(DESCRIBE.to_owned());
    let spec = QwenSpec {
        max_positions: 2048,
        std: 0.3,
        words,
        tags: tags.map(str::to_owned).to_vec(),
        ..QwenSpec::default()
    };
    random::qwen2_5_vl(folder.path(), &spec, 3).unwrap();
    let loss = |conversation: &Conversation| {
        let mut trainer =
            TurnTrainer::new(folder.path(), &Device::Cpu, Learn::Text, AdamWConfig::default()).unwrap();
        let step = trainer.step(std::slice::from_ref(conversation), 0.0).unwrap();
        (step.loss, step.tokens as f64, step.length)
    };
    let world = clips();
    for lesson in [Lesson::Watch, Lesson::Ask] {
        let all = conversation(&world, lesson, 7);
        assert!(all.turns.len() > 2 && !all.images.is_empty());
        let alone =
            all.turns.iter().map(|turn| loss(&Conversation { turns: vec![turn.clone()], ..all.clone() }));
        let alone: Vec<_> = alone.collect();
        let tokens: f64 = alone.iter().map(|one| one.1).sum();
        let mean = alone.iter().map(|one| one.0 * one.1).sum::<f64>() / tokens;
        let (together, of_all, length) = loss(&all);
        assert_eq!(of_all, tokens);
        assert!((together - mean).abs() < 1e-5 * mean, "{together} of all, {mean} of each alone");
        // The frames go through the model once.
        assert!(length < alone.iter().map(|one| one.2).sum::<usize>() * 2 / 3, "{length} tokens");
        let reversed = Conversation { turns: all.turns.iter().rev().cloned().collect(), ..all.clone() };
        assert!((loss(&reversed).0 - together).abs() < 1e-5 * mean);
    }
}

#[test]
fn reasoning_says_what_the_frames_show_and_the_answer_follows_from_it() {
    let world = World::new(Spec::default(), 3).unwrap();
    let mut checked = [0; 6];
    for video in 0..60 {
        let script = world.script(Split::Train, video);
        let all: Vec<usize> = (0..script.seconds).collect();
        for sample in world.samples(Split::Train, video) {
            let said = reasoning(&script, &sample, &all);
            let option = &sample.question.options()[sample.answer];
            let follows = match sample.family {
                Family::Needle | Family::Category => said.starts_with(option.as_str()) && !said.contains(','),
                Family::Neighbour => said.contains(option.as_str()),
                Family::Order => match option.as_str() {
                    "both at once" => words(&said).all(|word| word == "both") && said.contains("both"),
                    "neither" => words(&said).next().is_none(),
                    first => words(&said).next().is_some_and(|word| first.ends_with(word)),
                },
                Family::Count => {
                    let (frames, numbered) = said.split_once(", ").unwrap();
                    let places: Vec<&str> = words(frames).collect();
                    let [.., number, last] = numbered.split(' ').collect::<Vec<_>>()[..] else { panic!() };
                    NUMBERS[places.len() - 1] == option && number == option && places.last() == Some(&last)
                }
                Family::Global => {
                    let count = |place: &str| said.split(' ').filter(|word| *word == place).count();
                    sample.question.options().iter().all(|other| count(option) >= count(other))
                }
            };
            assert!(follows, "{}: {said:?}, but {option}", sample.question.text());
            checked[sample.family as usize] += 1;
            // Frames that miss the evidence: it says so, and does not tell what is hidden.
            let blind: Vec<usize> = all
                .iter()
                .copied()
                .filter(|s| !sample.evidence.iter().any(|range| range.contains(s)))
                .collect();
            if !sample.evidence.is_empty() {
                let said = reasoning(&script, &sample, &blind);
                assert!(said == "neither" || said == ".".repeat(blind.len()), "{}", sample.question.text());
            }
        }
    }
    assert!(checked.iter().all(|count| *count >= 20), "{checked:?}");
}

/// The words of frames that show something.
fn words(said: &str) -> impl Iterator<Item = &str> {
    said.split([' ', '.', '-']).filter(|word| !word.is_empty())
}

/// A word or a point for every frame, and the answer that follows from them, in whatever is asked of any thing.
#[test]
fn drills_say_a_word_for_every_frame_and_answer_from_them() {
    let world = clips();
    let mut checked = [0; 2];
    for number in 0..60 {
        let lesson = conversation(&world, Lesson::Follow, number);
        for (text, reply) in &lesson.turns {
            let kind = usize::from(text.contains("which comes first"));
            if kind == 0 && !text.contains("how many separate times") {
                continue;
            }
            let (said, answer) =
                reply.strip_prefix("<think>").unwrap().split_once("</think><answer>").unwrap();
            let answer = answer.strip_suffix("</answer>").unwrap();
            let (frames, numbered) = said.split_once(", ").unwrap_or((said, ""));
            let points = frames.matches(['.', '-']).count();
            assert_eq!(words(frames).count() + points, lesson.images.len(), "{text}: {reply}");
            assert!(!frames.starts_with('-') && !frames.contains(".-"), "{reply}");
            if kind == 0 && !numbered.is_empty() {
                let numbers: Vec<&str> = numbered.split(' ').step_by(2).collect();
                assert_eq!(numbers, NUMBERS[..numbers.len()], "{reply}");
                assert!(numbered.split(' ').skip(1).step_by(2).eq(words(frames)), "{reply}");
                assert!(numbers.last() == Some(&answer), "{text}: {reply}");
                checked[0] += 1;
            } else if kind == 1 && points < lesson.images.len() {
                let first = words(frames).next().unwrap();
                assert!(answer.ends_with(first) || (first, answer) == ("both", "both at once"), "{reply}");
                checked[1] += 1;
            }
        }
    }
    assert!(checked.iter().all(|count| *count > 50), "{checked:?}");
}

/// What is next to a thing is what the clip shows next, on the side that is asked for.
#[test]
fn neighbours_are_on_the_side_that_is_asked_for() {
    let world = World::new(Spec::default(), 1).unwrap();
    let mut checked = [0; 2];
    for number in 0..60 {
        for (text, reply) in conversation(&world, Lesson::Sift, number).turns {
            let after = text.contains("what comes right after");
            if !after && !text.contains("what comes right before") {
                continue;
            }
            let (said, answer) =
                reply.strip_prefix("<think>").unwrap().split_once("</think><answer>").unwrap();
            let answer = answer.strip_suffix("</answer>").unwrap();
            // Where one scene alone was seen, it is a guess.
            let Some((first, second)) = said.split_once(", ") else { continue };
            let (named, beside) = if after { (first, second) } else { (second, first) };
            // `red car` of `red car on sand`.
            let (asked, _) = named.match_indices(' ').nth(1).map(|(end, _)| named.split_at(end)).unwrap();
            assert!(
                text.contains(&format!("the {asked}?")) && beside.contains(answer) && text.contains(answer),
                "{text}: {reply}"
            );
            checked[usize::from(after)] += 1;
        }
    }
    assert!(checked.iter().all(|count| *count > 20), "{checked:?}");
}
