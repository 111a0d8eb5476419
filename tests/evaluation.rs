//! Evaluations of the small trained models: resumed as if uninterrupted, counted exactly, equal to the single parts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use msjoe::benchmarks::{self, Benchmark};
use msjoe::data::world::Spec;
use msjoe::evaluation::{
    Column, Counts, Event, Form, Item, Journal, Models, Origin, Prediction, Seeds, Settings, Source, Work,
    by_video, columns, exhibits, full_size, main_group, methods, of_benchmark, of_file, of_world, results,
    run, write,
};
use msjoe::models::clip::Clip;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::qwen2_5_vl::mrope::{Media, Timing};
use msjoe::models::qwen2_5_vl::processor::Size;
use msjoe::models::sampler::Sight;
use msjoe::models::temporal_agent::{self, TemporalAgent};
use msjoe::models::unet1d::UNet1d;
use msjoe::rl::evaluate::{TOGETHER, evaluate};
use msjoe::rl::footage::Footage;
use msjoe::rl::gallery::Gallery;
use msjoe::rl::plan::{Asking, Choosing, Plan, Shown};
use msjoe::rl::rollout::Policy;
use msjoe::rl::trajectory::Task;
use msjoe::select::Selection;
use msjoe::text::query;
use msjoe::video::{H264Writer, Rational};

mod numbers;
mod selections;

fn toy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/toy").join(name)
}

fn models() -> Models {
    let sampler = UNet1d::load(toy("sampler.safetensors"), &Device::Cpu).unwrap();
    let clip = Clip::load(&toy("clip"), DType::F32, &Device::Cpu).unwrap();
    let width = clip.config().projection_dim;
    let agent = |seed| TemporalAgent::init(&temporal_agent::Config::default(), width, seed, &Device::Cpu);
    Models {
        chat: Qwen2_5VlChat::load(toy("mllm"), DType::F32, &Device::Cpu).unwrap(),
        clip: Some(clip),
        samplers: vec![sampler.into()],
        agents: vec![agent(1).unwrap().into(), agent(2).unwrap().into()],
        cache: None,
        memory: 1 << 28,
    }
}

fn settings() -> Settings {
    Settings {
        benchmark: "toy".into(),
        show: Shown::Images,
        previews: 2,
        query_tokens: 24,
        answer_tokens: 24,
        ..Settings::default()
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn grid(methods_: &[&str], sources: &[Source], frames: &[usize], seeds: u64) -> Vec<Column> {
    columns(
        &methods(&names(methods_), sources).unwrap(),
        frames,
        Seeds { draws: seeds, samplers: 1, agents: 2 },
    )
}

fn work<'a>(items: &'a [Item], columns: &'a [Column]) -> Work<'a> {
    Work { items, columns, data: None, together: 5 }
}

/// Runs until `stop` answers are there.
fn run_to(models: &Models, settings: &Settings, work: Work, folder: &Path, stop: usize) -> (Counts, Journal) {
    let mut journal = Journal::open(folder, settings).unwrap();
    let mut observe = |event: Event| match event {
        Event::Answered(done, _) if done >= stop => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let counts = run(models, settings, work, &mut journal, &mut observe).unwrap();
    (counts, journal)
}

fn timeless(predictions: &[Prediction]) -> Vec<Prediction> {
    let mut all = predictions.to_vec();
    all.iter_mut().flat_map(|one| &mut one.steps).for_each(|step| step.seconds = 0.0);
    all
}

#[test]
fn a_run_that_was_cut_off_equals_an_uninterrupted_one() {
    let (models, settings) = (models(), settings());
    let items = of_world(Spec::short(), 3, 12).unwrap().items;
    let columns =
        grid(&["uniform", "q-frame", "msjoe", "f2c-adaptive", "evidence"], &[Source::Model], &[2, 3], 2);
    assert_eq!(columns.len(), 2 * (1 + 2 + 1 + 1 + 1));
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (counts, uninterrupted) =
        run_to(&models, &settings, work(&items, &columns), whole.path(), usize::MAX);
    let told = (counts.wanted, counts.before, counts.answered, counts.failed, counts.interrupted);
    assert_eq!(told, (144, 0, 144, 0, false), "{:?}", counts.failures);

    let (counts, stopped) = run_to(&models, &settings, work(&items, &columns), parts.path(), 40);
    assert!(counts.interrupted && (40..50).contains(&counts.answered), "{counts:?}");
    assert_eq!(counts.left(), 144 - counts.answered);
    drop(stopped);
    // As a killed program leaves it: within the last line.
    let path = parts.path().join("predictions.jsonl");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
    let (resumed, journal) = run_to(&models, &settings, work(&items, &columns), parts.path(), usize::MAX);
    assert_eq!(journal.dropped, 1);
    assert_eq!((resumed.before, resumed.answered), (counts.answered - 1, 144 - counts.answered + 1));
    assert_eq!(timeless(&journal.predictions), timeless(&uninterrupted.predictions));
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.lines().count(), 144);
    drop(uninterrupted);

    let (again, journal) = run_to(&models, &settings, work(&items, &columns), whole.path(), usize::MAX);
    assert_eq!((again.before, again.answered), (144, 0), "nothing is answered twice");
    let found = results(&settings, &items, &columns, &journal, main_group(None)).unwrap();
    let q_frame = found.rows.iter().find(|row| row.method == "q-frame (model)").unwrap();
    assert_eq!((q_frame.seeds, q_frame.answers, q_frame.questions), (2, 24, 12));
    let evidence = found.rows.iter().find(|row| row.method == "evidence" && row.frames == 3).unwrap();
    assert_eq!(evidence.hit_rate, Some(1.0));
    write(&found, &items, &columns, &journal, None).unwrap();
    for name in ["table.md", "results.json", "report.html", "lmms-eval/uniform-2/results.json"] {
        assert!(whole.path().join(name).is_file(), "{name}");
    }
    let samples =
        std::fs::read_to_string(whole.path().join("lmms-eval/q-frame-model-3-seed1/samples_toy.jsonl"))
            .unwrap();
    let first: serde_json::Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!(samples.lines().count(), 12);
    assert_eq!(first["doc_id"], 0);
    assert!(["A", "B", "C", "D"].contains(&first["target"].as_str().unwrap()));
}

#[test]
fn batched_answers_are_those_of_the_rollout() {
    let (models, settings) = (models(), settings());
    let items = of_world(Spec::short(), 4, 10).unwrap().items;
    let tasks: Vec<Task> = by_video(&items)
        .concat()
        .into_iter()
        .filter_map(|item| match &item.origin {
            Origin::World(task) => Some(task.clone()),
            _ => None,
        })
        .collect();
    let sampler = models.samplers.first().cloned();
    let policy = Policy { chat: &models.chat, clip: models.clip.as_ref(), sampler: sampler.as_ref() };
    let rows = [
        ("uniform", None, Choosing::Uniform),
        ("top-k", Some(Source::Question), Choosing::TopK),
        ("msjoe", Some(Source::Model), Choosing::Spread),
    ];
    for (name, source, choosing) in rows {
        let asking = if source == Some(Source::Model) { Asking::Model } else { Asking::Question };
        let plan = Plan {
            key_frames: 4,
            previews: Some(2),
            query_tokens: 24,
            answer_tokens: 24,
            temperature: 0.0,
            asking,
            choosing,
            ..Plan::default()
        };
        let graded =
            evaluate(policy, &mut Gallery::new(1 << 26), &tasks, &plan, (0, TOGETHER), &mut |_| true)
                .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let columns = grid(&[name], &[source.unwrap_or(Source::Question)], &[4], 1);
        let (_, journal) = run_to(&models, &settings, work(&items, &columns), folder.path(), usize::MAX);
        let of_column = journal.of(columns[0]);
        for one in graded {
            let answer = of_column[one.id.as_str()];
            assert_eq!(
                (answer.right, answer.evidence_recall),
                (one.right, one.evidence_recall),
                "{name} {}",
                one.id
            );
        }
    }
}

#[test]
fn tspo_takes_the_largest_logits_of_each_of_its_agents() {
    let models = models();
    let items = of_world(Spec::short(), 5, 6).unwrap().items;
    let columns = grid(&["tspo"], &[Source::Question], &[3], 1);
    assert_eq!(columns.len(), models.agents.len());
    let folder = tempfile::tempdir().unwrap();
    let (_, journal) = run_to(&models, &settings(), work(&items, &columns), folder.path(), usize::MAX);
    let clip = models.clip.as_ref().unwrap();
    for (column, agent) in columns.iter().zip(&models.agents) {
        let of_column = journal.of(*column);
        for item in &items {
            let Origin::World(task) = &item.origin else { unreachable!() };
            let queries = clip.encode_texts(&query::of_question(&item.question).queries).unwrap();
            let sight = Sight::new(queries, task.footage.features(clip).unwrap()).unwrap();
            let logits = agent.forward(&sight).unwrap();
            let mut largest: Vec<usize> = (0..logits.elem_count()).collect();
            let logits = logits.to_vec1::<f32>().unwrap();
            largest.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            largest.truncate(3);
            largest.sort_unstable();
            assert_eq!(of_column[item.id.as_str()].key_frames, largest, "{}", item.id);
        }
    }
}

/// Two videos of 16 s, and one that is missing, in Video-MME's form; subtitles for the first.
fn benchmark() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["data", "subtitle"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    for (name, shade) in [("one", 40u8), ("two", 90)] {
        let mut video =
            H264Writer::create(dir.path().join(format!("data/{name}.mp4")), 112, 84, Rational::new(2, 1))
                .unwrap();
        for frame in 0..32u8 {
            let picture = image::RgbImage::from_fn(112, 84, |x, y| {
                image::Rgb([shade + 4 * frame, (x as u8 / 2).wrapping_mul(frame), y as u8])
            });
            video.push(&picture).unwrap();
        }
        video.finish().unwrap();
    }
    let question = |id: &str, video: &str| {
        serde_json::json!({
            "video_id": "1", "duration": "short", "domain": "Life", "sub_category": "Home", "videoID": video,
            "question_id": id, "task_type": "Counting Problem", "question": "What is shown?",
            "options": ["A. a red car.", "B. a blue boat.", "C. a dog.", "D. sand."], "answer": "B",
        })
    };
    let rows =
        [question("1-1", "one"), question("2-1", "two"), question("1-2", "one"), question("3-1", "gone")];
    std::fs::write(dir.path().join("videomme.json"), serde_json::to_vec(&rows).unwrap()).unwrap();
    let line = "1\n00:00:00,000 --> 00:00:16,000\na red car on sand and a blue boat on water\n\n";
    std::fs::write(dir.path().join("subtitle/one.srt"), line).unwrap();
    dir
}

#[test]
fn a_video_is_decoded_once_for_all_methods() {
    let (models, dir) = (models(), benchmark());
    let loaded = benchmarks::read(Benchmark::VideoMme, dir.path()).unwrap();
    let questions = of_benchmark(&loaded, dir.path(), None);
    assert_eq!(
        questions.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(),
        ["1-1", "2-1", "1-2"]
    );
    assert_eq!(questions.missing.iter().collect::<Vec<_>>(), [(&"gone".to_owned(), &1)]);
    assert_eq!(of_benchmark(&loaded, dir.path(), Some(2)).items.len(), 2);

    let methods = ["uniform", "top-k", "mdp3", "q-frame-adaptive", "f2c-adaptive"];
    let columns = grid(&methods, &Source::ALL, &[2, 4, 64], 1);
    let (mut shown, mut watched) = (settings(), vec![]);
    (shown.show, shown.form, shown.benchmark) = (Shown::Video, Form::Letter, "video-mme".into());
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), &shown).unwrap();
    let all = Work { data: Some(dir.path()), together: 1, ..work(&questions.items, &columns) };
    let mut observe = |event: Event| {
        if let Event::Watching(video, done, of) = event {
            watched.push((PathBuf::from(video).file_stem().unwrap().to_owned(), done, of));
        }
        ControlFlow::Continue(())
    };
    let counts = run(&models, &shown, all, &mut journal, &mut observe).unwrap();
    assert_eq!((counts.answered, counts.failed), (3 * 13 * 3, 0), "{:?}", counts.failures);
    let once: Vec<_> =
        ["one", "two"].iter().flat_map(|name| (1..=16).map(move |done| ((*name).into(), done, 16))).collect();
    assert_eq!(watched, once, "frames of the videos, in order, each once");
    for prediction in &journal.predictions {
        let Prediction { id, frames, key_frames, seconds, method, .. } = prediction;
        if method == "uniform" || method == "top-k" {
            assert_eq!(key_frames.len(), *frames.min(&16), "{id}: a short video gives all it has");
        }
        let times: Vec<f64> = key_frames.iter().map(|&frame| frame as f64).collect();
        assert_eq!(&times, seconds);
        assert!(prediction.steps.iter().all(|step| step.seconds >= 0.0));
    }

    // Subtitles are words of the prompt, for the one video that has them.
    let column = grid(&["uniform"], &[Source::Question], &[4], 1);
    let with = Settings { subtitles: true, ..shown.clone() };
    let other = tempfile::tempdir().unwrap();
    let one = Work { columns: &column, ..all };
    let (_, subtitled) = run_to(&models, &with, one, other.path(), usize::MAX);
    let tokens = |journal: &Journal, id: &str| journal.of(column[0])[id].steps.last().unwrap().prompt_tokens;
    assert!(tokens(&subtitled, "1-1") > tokens(&journal, "1-1"));
    assert_eq!(tokens(&subtitled, "2-1"), tokens(&journal, "2-1"));
    drop(journal);
    let error = Journal::open(folder.path(), &with).unwrap_err().to_string();
    assert!(error.contains("subtitles: the folder has false, now true"), "{error}");

    // The same video asked about by a plain file of questions.
    let line = |evidence: &str| {
        format!(
            r#"{{"video": "data/one.mp4", "question": "What?", "options": ["red", "blue"], "answer": "B", "family": "f"{evidence}}}"#
        )
    };
    let file = dir.path().join("own.jsonl");
    std::fs::write(&file, line("") + "\n" + &line(r#", "evidence": [{"start": 0, "end": 16}]"#)).unwrap();
    let own = of_file(&file, None).unwrap();
    assert_eq!(own.items[1].groups, [("family".to_owned(), "f".to_owned())]);
    let (plain, third) = (settings(), tempfile::tempdir().unwrap());
    let (counts, journal) = run_to(&models, &plain, work(&own.items, &column), third.path(), usize::MAX);
    assert_eq!(counts.answered, 2, "{:?}", counts.failures);
    let recalls: Vec<_> = journal.predictions.iter().map(|one| one.evidence_recall).collect();
    assert_eq!(recalls, [None, Some(1.0)]);
    assert_eq!(of_file(&file, Some(1)).unwrap().items.len(), 1);

    // A file that is no video costs its own questions only.
    std::fs::write(dir.path().join("data/two.mp4"), b"no video").unwrap();
    let broken = tempfile::tempdir().unwrap();
    let (counts, _) = run_to(&models, &shown, one, broken.path(), usize::MAX);
    assert_eq!((counts.answered, counts.failed, counts.left()), (2, 1, 1));
    let (what, cause) = counts.failures.first_key_value().unwrap();
    assert!(what.ends_with("two.mp4") && !cause.is_empty(), "{what}: {cause}");
}

#[test]
fn frames_of_several_sizes_are_shown_at_their_own_times() {
    let models = models();
    let items = of_world(Spec::short(), 5, 12).unwrap().items;
    let longest = items.iter().filter_map(|item| match &item.origin {
        Origin::World(task) => Some(task.footage.clone()),
        _ => None,
    });
    let footage: Arc<Footage> = longest.max_by_key(|footage| footage.len()).unwrap();
    assert!(footage.len() > 12, "{}", footage.len());
    let frames = vec![1, 2, 4, 7, 9, 12];
    let selection = Selection {
        frames: frames.clone(),
        weights: vec![],
        draw_order: frames,
        log_prob: None,
        scales: vec![1.0, 1.0, 1.0, 0.5, 0.5, 1.0],
        clips: vec![],
    };
    let settings = Settings { show: Shown::Video, ..settings() };
    let full = full_size(&models.chat, footage.dimensions, 6, true, &settings).unwrap();
    let shown = exhibits(&models.chat, &footage, &selection, full, &settings, false).unwrap();
    let of = |at: usize| (shown[at].showing.frames.clone(), shown[at].showing.size);
    let half = Size { width: full.width / 2, height: full.height / 2 };
    assert_eq!(shown.len(), 3);
    assert_eq!([of(0), of(1), of(2)], [(vec![1, 2, 4], full), (vec![7, 9], half), (vec![12], full)]);
    // Each clock begins at the last frame before: 1 and 4 s, 3 s after 4, 3 s after 9.
    let times: Vec<Vec<f64>> = (shown.iter())
        .map(|exhibit| {
            let grid = [exhibit.slices(), 2, 2];
            match exhibit.timed(vec![Media::Video { grid, timing: Timing::Uniform(1.0) }]).remove(0) {
                Media::Video { timing: Timing::Slices(times), .. } => times,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(times, [vec![1.0, 4.0], vec![3.0], vec![3.0]]);
}

#[test]
fn what_cannot_be_run_is_refused() {
    let known = "all, or any of uniform, msjoe, tspo, top-k, bolt";
    for bad in [&["best"][..], &[], &["uniform,bolt"]] {
        let error = methods(&names(bad), &[Source::Model]).unwrap_err().to_string();
        assert!(error.contains(known) && error.contains("evidence"), "{error}");
    }
    assert!(methods(&names(&["bolt"]), &[]).is_err(), "no source of queries");
    let error = "mine".parse::<Source>().unwrap_err().to_string();
    assert!(error.contains("question, model, both") && error.contains("mine"), "{error}");
    let all = methods(&names(&["all"]), &[Source::Question, Source::Model]).unwrap();
    assert_eq!(all.len(), 2 * 12 + 2, "every strategy once, those with queries with either source");
    let twice = grid(&["uniform", "bolt"], &[Source::Model, Source::Model], &[8, 8], 1);
    assert_eq!(twice.len(), 2, "asked for twice is asked for once");

    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), &settings()).unwrap();
    let error = Journal::open(folder.path(), &settings()).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
    drop(journal);
    std::fs::write(folder.path().join("predictions.jsonl"), "{\"id\": 1}\n").unwrap();
    assert_eq!(Journal::open(folder.path(), &settings()).unwrap().dropped, 1);
    std::fs::remove_file(folder.path().join("settings.json")).unwrap();
    let error = Journal::open(folder.path(), &settings()).unwrap_err().to_string();
    assert!(error.contains("expected settings.json"), "{error}");

    let (items, blind) = (of_world(Spec::short(), 3, 1).unwrap().items, Models { clip: None, ..models() });
    let mut journal = Journal::open(tempfile::tempdir().unwrap().path(), &settings()).unwrap();
    for (name, missing) in [("bolt", "CLIP"), ("maxinfo", "CLIP")] {
        let columns = grid(&[name], &[Source::Question], &[2], 1);
        let told =
            run(
                &blind,
                &settings(),
                work(&items, &columns),
                &mut journal,
                &mut |_| ControlFlow::Continue(()),
            );
        let error = told.unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
    }
    let unweighed = Models { samplers: vec![], agents: vec![], ..models() };
    for (name, missing) in
        [("msjoe", "a network per seed (1), got 0"), ("tspo", "a network per seed (2), got 0")]
    {
        let columns = grid(&[name], &[Source::Question], &[2], 1);
        let work = work(&items, &columns);
        let told = run(&unweighed, &settings(), work, &mut journal, &mut |_| ControlFlow::Continue(()));
        assert!(told.unwrap_err().to_string().contains(missing));
    }
    assert!(of_world(Spec::short(), 3, 0).unwrap_err().to_string().contains("got 0"));
}

#[test]
fn models_that_only_some_methods_need_do_not_divide_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let without = settings();
    let with = Settings { clip: Some("c".into()), samplers: vec!["s".into()], ..settings() };
    drop(Journal::open(folder.path(), &without).unwrap());
    drop(Journal::open(folder.path(), &with).unwrap());
    drop(Journal::open(folder.path(), &without).unwrap());
    let other = Settings { clip: Some("d".into()), ..with };
    let error = Journal::open(folder.path(), &other).unwrap_err().to_string();
    assert!(error.contains("clip: the folder has \"c\", now \"d\""), "the folder remembers: {error}");
    for name in ["t", "untrained"] {
        let other = Settings { samplers: vec![name.into()], ..settings() };
        assert!(Journal::open(folder.path(), &other).is_err(), "{name}");
    }
    let fresh = folder.path().join("fresh");
    assert!(Journal::open(&fresh, &Settings { fps: 0.0, ..settings() }).is_err());
    assert!(!fresh.exists(), "refused before anything is written");
}
