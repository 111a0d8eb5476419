//! The flow as a whole, with a scripted language model where its behaviour matters and real small models elsewhere.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};
use image::{Rgb, RgbImage};
use msjoe::checkpoint::random;
use msjoe::data::feature_cache::FeatureCache;
use msjoe::models::clip::Clip;
use msjoe::models::language::{OnText, Reply, Show, Turn, VideoLanguageModel};
use msjoe::models::qwen2_5_vl::generate::Finish;
use msjoe::models::qwen2_5_vl::mrope::Timing;
use msjoe::models::qwen2_5_vl::processor::{Budget, Processor, Size};
use msjoe::models::qwen2_5_vl::sampling::Sampling;
use msjoe::models::temporal_agent::TemporalAgent;
use msjoe::models::unet1d::{Config, UNet1d};
use msjoe::pipeline::{
    Event, FrameTiming, KeyFrame, Options, Pipeline, QuerySource, ShowKeyFrames, Step, Weights,
};
use msjoe::report::Answered;
use msjoe::select::{Draw, Resolution, Settings, Strategy};
use msjoe::text::{Form, Question};
use msjoe::video::{H264Writer, Rational};
use msjoe::{Error, Result};

/// What a turn showed and said.
#[derive(Debug, Clone, PartialEq)]
struct Heard {
    images: Vec<RgbImage>,
    /// Of each video.
    timing: Vec<Timing>,
    text: String,
}

/// Replies from a list, and remembers what it was shown.
struct Scripted {
    replies: Mutex<Vec<&'static str>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl VideoLanguageModel for Scripted {
    fn plan(&self, width: u32, height: u32, budget: &Budget) -> Result<Size> {
        Processor::default().plan(width, height, budget)
    }

    fn sampling(&self) -> Sampling {
        Sampling::default()
    }

    fn reply(&self, turn: &Turn, on_text: OnText) -> Result<Reply> {
        let (mut images, mut timing) = (vec![], vec![]);
        for show in &turn.show {
            match show {
                Show::Images(shown) => images.extend(shown.iter().cloned()),
                Show::Video { frames, timing: times } => {
                    images.extend(frames.iter().cloned());
                    timing.push(times.clone());
                }
            }
        }
        self.heard.lock().unwrap().push(Heard { images, timing, text: turn.text.to_owned() });
        let text = self.replies.lock().unwrap().remove(0);
        if on_text(text).is_break() {
            return Err(Error::Interrupted);
        }
        Ok(Reply {
            text: text.to_owned(),
            prompt_tokens: 10,
            visual_tokens: 4,
            new_tokens: 3,
            finish: Finish::Stop,
        })
    }
}

const QUERIES: &str = "<think>colours</think>\n<query>a bright frame</query>\n<query>a dark frame</query>";

struct World {
    dir: tempfile::TempDir,
    video: PathBuf,
}

/// A video of `seconds` in which each second has a grey of its own, and a random CLIP.
fn world(seconds: u32) -> World {
    world_of(seconds, (112, 84))
}

fn world_of(seconds: u32, (width, height): (u32, u32)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let video = dir.path().join("video.mp4");
    let mut writer = H264Writer::create(&video, width, height, Rational::new(4, 1)).unwrap();
    for frame in 0..seconds * 4 {
        let grey = (frame / 4 * 251 % 200) as u8 + 20;
        writer
            .push(&RgbImage::from_fn(width, height, |x, y| Rgb([grey, grey ^ (x / 8) as u8, (y / 4) as u8])))
            .unwrap();
    }
    writer.finish().unwrap();
    random::clip(dir.path().join("clip"), &random::ClipSpec::default(), 1).unwrap();
    World { dir, video }
}

impl World {
    fn pipeline(&self, replies: &[&'static str]) -> (Pipeline, Arc<Mutex<Vec<Heard>>>) {
        let heard = Arc::new(Mutex::new(vec![]));
        let model = Scripted { replies: Mutex::new(replies.to_vec()), heard: heard.clone() };
        let clip = Clip::load(&self.dir.path().join("clip"), DType::F32, &Device::Cpu).unwrap();
        let sampler = UNet1d::init(&Config::default(), 0, &Device::Cpu).unwrap();
        let pipeline = Pipeline {
            model: Some(Box::new(model)),
            clip: Some(clip),
            sampler: Some(sampler.into()),
            cache: None,
            warnings: vec![],
        };
        (pipeline, heard)
    }
}

fn question() -> Question {
    Question::new("How bright is it?", ["bright", "dark", "grey"]).unwrap()
}

fn options(key_frames: usize) -> Options {
    Options { key_frames, ..Options::default() }
}

#[test]
fn the_four_steps() {
    let world = world(24);
    let (pipeline, heard) = world.pipeline(&[QUERIES, "<answer>B</answer>"]);
    let mut events = vec![];
    let outcome = pipeline
        .answer_observed(&world.video, &question(), &options(8), &mut |event| {
            events.push(match event {
                Event::Progress { step, done, total } => (step, done, total),
                Event::Text { step, .. } => (step, 0, 0),
            });
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(outcome.answer.as_ref().unwrap().choice, Some(1));
    let queries = outcome.queries.as_ref().unwrap();
    assert_eq!(
        (queries.queries.as_slice(), queries.form),
        (&["a bright frame".into(), "a dark frame".into()][..], Form::Exact)
    );
    assert_eq!((outcome.similarity.len(), outcome.similarity[0].len(), outcome.weights.len()), (2, 24, 24));
    assert!((outcome.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let frames: Vec<usize> = outcome.key_frames.iter().map(|f| f.index).collect();
    assert_eq!(frames.len(), 8);
    assert!(frames.is_sorted_by(|a, b| a < b));
    for frame in &outcome.key_frames {
        assert_eq!(frame.seconds, frame.index as f64);
        assert_eq!(frame.weight, outcome.weights[frame.index]);
    }

    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 2);
    assert_eq!(heard[0].images.len(), 4, "K / 2 previews");
    let tokens = heard[0].images[0].width() / 28 * heard[0].images[0].height() / 28;
    assert!(tokens <= 32, "{tokens} tokens for a preview");
    assert!(heard[0].text.contains("How bright is it?"));
    assert_eq!(heard[1].images, outcome.images, "the answer sees the key frames and nothing else");
    assert_eq!(heard[1].timing, [Timing::Uniform(6.0)], "two of 8 frames in 24 s");

    let steps: Vec<Step> = outcome.steps.iter().map(|s| s.step).collect();
    assert_eq!(steps, [Step::Watch, Step::Ask, Step::Compare, Step::Sample, Step::Fetch, Step::Answer]);
    assert_eq!(outcome.steps[1].prompt_tokens, Some(10));
    assert!(events.contains(&(Step::Watch, 24, 24)) && events.contains(&(Step::Answer, 0, 0)));

    let page = Answered::of(&world.video, &question(), &Options::default(), &outcome).unwrap();
    assert_eq!((page.frames.len(), page.choice, page.right), (outcome.key_frames.len(), Some(1), None));
    let html = page.html();
    assert!(queries.queries.iter().all(|query| html.contains(query.as_str())), "the page names the queries");
    assert_eq!(html.matches("data:image/jpeg;base64,").count(), page.frames.len());
}

#[test]
fn strategies_and_query_sources() {
    let world = world(20);
    let (pipeline, heard) = world.pipeline(&["<answer>A</answer>"; 4]);
    let run = |options: Options| pipeline.answer(&world.video, &question(), &options).unwrap();
    let uniform = run(Options { strategy: Strategy::Uniform, ..options(5) });
    assert_eq!(uniform.key_frames.iter().map(|f| f.index).collect::<Vec<_>>(), msjoe::select::uniform(20, 5));
    assert!(uniform.queries.is_none() && uniform.similarity.is_empty());

    let given = QuerySource::Given(vec!["a bright frame".into()]);
    let top = run(Options { strategy: Strategy::TopK, queries: given, ..options(5) });
    let mut order: Vec<usize> = (0..20).collect();
    order.sort_by(|a, b| top.similarity[0][*b].total_cmp(&top.similarity[0][*a]));
    let mut best = order[..5].to_vec();
    best.sort();
    assert_eq!(top.key_frames.iter().map(|f| f.index).collect::<Vec<_>>(), best);

    let asked = run(Options { queries: QuerySource::Question, ..options(5) });
    assert_eq!(asked.queries.unwrap().queries, ["How bright is it?"]);

    let timed = Options { timing: FrameTiming::Exact, strategy: Strategy::Uniform, ..options(5) };
    let timed = run(timed);
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 4, "nobody was asked for queries");
    let slices = timed.key_frames.iter().step_by(2).map(|f| f.seconds).collect();
    assert_eq!(heard[3].timing, [Timing::Slices(slices)]);
}

#[test]
fn every_strategy_chooses_frames() {
    let world = world(20);
    let (mut pipeline, heard) = world.pipeline(&["<answer>A</answer>"; Strategy::ALL.len()]);
    let width = pipeline.clip.as_ref().unwrap().config().projection_dim;
    let agent = TemporalAgent::init(&Default::default(), width, 0, &Device::Cpu).unwrap();
    for strategy in Strategy::ALL {
        if strategy == Strategy::Tspo {
            let options = Options { strategy, ..options(5) };
            let error = pipeline.answer(&world.video, &question(), &options).unwrap_err().to_string();
            let expected = "strategy tspo: needs the file of a temporal agent as its sampler, which this pipeline was \
                            loaded without";
            assert_eq!(error, expected);
            pipeline.sampler = Some(agent.clone().into());
        }
        let queries = QuerySource::Given(vec!["a bright frame".into()]);
        let options = Options { strategy, queries, ..options(5) };
        let outcome = pipeline.answer(&world.video, &question(), &options).unwrap();
        let fewest = if strategy == Strategy::MaxInfo { 1 } else { 5 };
        assert!((fewest..=5).contains(&outcome.images.len()), "{strategy}: {}", outcome.images.len());
        assert_eq!(outcome.queries.is_some(), strategy.reads_queries(), "{strategy}");
    }
    assert_eq!(heard.lock().unwrap().len(), Strategy::ALL.len());
    let selection = Settings { resolution: Resolution::Adaptive, ..Settings::default() };
    let error = pipeline.answer(&world.video, &question(), &Options { selection, ..options(5) }).unwrap_err();
    let expected = "selection: frames of several sizes are chosen by q-frame and f2c, expected full resolution for msjoe";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn frames_of_several_sizes_are_shown_at_their_own_times() {
    // 64 tokens a frame, of which the budget allows half.
    let world = world_of(60, (224, 224));
    let tokens = 8 * 32;
    let (pipeline, heard) = world.pipeline(&["<answer>A</answer>"; 3]);
    let selection = Settings { resolution: Resolution::Adaptive, ..Settings::default() };
    let queries = QuerySource::Given(vec!["a bright frame".into()]);
    for strategy in [Strategy::QFrame, Strategy::F2c] {
        let queries = queries.clone();
        let options = Options { strategy, selection, queries, key_frame_tokens: tokens, ..options(8) };
        let outcome = pipeline.answer(&world.video, &question(), &options).unwrap();
        let Heard { images, timing, .. } = heard.lock().unwrap().pop().unwrap();
        assert_eq!(images, outcome.images, "{strategy}");
        assert_eq!(images.len(), outcome.key_frames.len(), "{strategy}");
        let more = strategy == Strategy::QFrame;
        assert!(
            images.len() >= 8 + usize::from(more),
            "{strategy}: {} frames for the tokens of 8",
            images.len()
        );
        let processor = Processor::default();
        let full = processor.plan(224, 224, &Budget::of_key_frames(8, tokens, true)).unwrap();
        for (image, frame) in images.iter().zip(&outcome.key_frames) {
            let size = processor.plan(full.width, full.height, &Budget::Scaled { scale: frame.scale });
            let Size { width, height } = size.unwrap();
            assert_eq!(image.dimensions(), (width, height), "{strategy}: {}", frame.scale);
        }
        // Each stretch of one size, and each clip: its slices' times count from the last frame before it.
        let (mut expected, mut since, mut shown) = (vec![], 0.0, 0);
        let together = |a: &KeyFrame, b: &KeyFrame| {
            a.scale == b.scale && (strategy == Strategy::QFrame || a.index + 1 == b.index)
        };
        for run in outcome.key_frames.chunk_by(together) {
            let times = run.iter().step_by(2).map(|frame| frame.seconds - since).collect();
            expected.push(Timing::Slices(times));
            let scale = run[0].scale;
            let size = processor.plan(full.width, full.height, &Budget::Scaled { scale }).unwrap();
            shown += processor.tokens(size, run.len());
            since = run.last().unwrap().seconds;
        }
        assert_eq!(timing, expected, "{strategy}");
        assert!(timing.len() > 1, "{strategy}");
        assert!((tokens / 4..=tokens).contains(&shown), "{strategy}: {shown} of {tokens} tokens");
    }
    let shown = ShowKeyFrames::Images;
    let options = Options { strategy: Strategy::QFrame, selection, queries, show: shown, ..options(4) };
    let outcome = pipeline.answer(&world.video, &question(), &options).unwrap();
    let heard = heard.lock().unwrap().pop().unwrap();
    assert_eq!((heard.images.len(), heard.timing), (outcome.key_frames.len(), vec![]));
}

#[test]
fn a_reply_without_queries_falls_back_and_says_so() {
    let world = world(10);
    let (pipeline, _) = world.pipeline(&["", "no idea"]);
    let outcome = pipeline.answer(&world.video, &question(), &options(4)).unwrap();
    let queries = outcome.queries.unwrap();
    assert_eq!((queries.form, queries.queries), (Form::Fallback, vec!["How bright is it?".to_owned()]));
    let answer = outcome.answer.unwrap();
    assert!(answer.choice.is_none() && !answer.well_formed);
}

/// Kept in memory, decoded again by seeking, or with features from the cache: the same frames, bit for bit.
#[test]
fn every_way_to_the_frames_gives_the_same() {
    let world = world(30);
    let replies = [QUERIES, "<answer>A</answer>"];
    let run = |cache: Option<&Path>, frame_memory: usize, threads: usize| {
        let (mut pipeline, heard) = world.pipeline(&replies);
        pipeline.cache = cache.map(FeatureCache::new);
        let options = Options { frame_memory, threads, draw: Draw::Gumbel { seed: 5 }, ..options(6) };
        let outcome = pipeline.answer(&world.video, &question(), &options).unwrap();
        let heard = heard.lock().unwrap().clone();
        (outcome, heard)
    };
    let (first, heard) = run(None, usize::MAX, 1);
    assert!(first.log_prob.unwrap() < 0.0);
    let cache = world.dir.path().join("cache");
    for (name, cache, memory, threads, cached) in [
        ("by seeking", None, 0, 1, false),
        ("in parallel", None, usize::MAX, 2, false),
        ("into the cache", Some(cache.as_path()), usize::MAX, 2, false),
        ("from the cache", Some(cache.as_path()), usize::MAX, 2, true),
    ] {
        let (outcome, heard_now) = run(cache, memory, threads);
        assert_eq!(heard_now, heard, "{name}");
        assert_eq!(
            (&outcome.key_frames, &outcome.similarity),
            (&first.key_frames, &first.similarity),
            "{name}"
        );
        assert_eq!(outcome.features_cached, cached, "{name}");
        assert!(outcome.warnings.is_empty(), "{name}: {:?}", outcome.warnings);
    }
    let entry = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entry).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&entry, bytes).unwrap();
    let (outcome, heard_now) = run(Some(&cache), usize::MAX, 2);
    assert_eq!(heard_now, heard);
    assert!(!outcome.features_cached && outcome.warnings[0].contains("damaged"), "{:?}", outcome.warnings);
    assert!(run(Some(&cache), usize::MAX, 2).0.features_cached, "it was written anew");
}

#[test]
fn what_cannot_be_done_is_refused_before_work() {
    let world = world(6);
    let (pipeline, heard) = world.pipeline(&[]);
    let error =
        |options: Options| pipeline.answer(&world.video, &question(), &options).unwrap_err().to_string();
    assert!(error(options(0)).contains("key frames (K)"));
    let many = error(options(7));
    assert!(many.contains('7') && many.contains('6') && many.contains("video.mp4"), "{many}");
    for fps in [0.0, -1.0, f64::NAN] {
        assert!(error(Options { fps, ..options(2) }).contains("fps"));
    }
    let none = Options { queries: QuerySource::Given(vec![" ".into()]), ..options(2) };
    assert!(error(none).contains("queries"));
    let missing = pipeline.answer("no/such.mp4", &question(), &options(2)).unwrap_err().to_string();
    assert!(missing.contains("no/such.mp4"), "{missing}");
    assert!(heard.lock().unwrap().is_empty());

    let (mut pipeline, _) = world.pipeline(&[]);
    pipeline.clip = None;
    let no_clip = pipeline.answer(&world.video, &question(), &options(2)).unwrap_err().to_string();
    assert!(no_clip.contains("CLIP"), "{no_clip}");
}

#[test]
fn the_observer_can_interrupt() {
    let world = world(12);
    for at in [Step::Watch, Step::Ask] {
        let (pipeline, _) = world.pipeline(&[QUERIES]);
        let result = pipeline.answer_observed(&world.video, &question(), &options(4), &mut |event| {
            let (Event::Progress { step, .. } | Event::Text { step, .. }) = event;
            if step == at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{at:?}");
    }
}

/// The real model end to end, both ways to show key frames, and its own limits.
#[test]
fn real_small_models_answer() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let world = world(16);
    let mllm = world.dir.path().join("mllm");
    random::qwen2_5_vl(&mllm, &random::QwenSpec { max_positions: 2500, ..Default::default() }, 2).unwrap();
    let pipeline = is_send(Pipeline::load(&Weights::new(&mllm, world.dir.path().join("clip"))).unwrap());
    let options = Options { query_tokens: 12, answer_tokens: 8, key_frame_tokens: 96, ..options(8) };
    for (show, slices) in [(ShowKeyFrames::Video, 4), (ShowKeyFrames::Images, 8)] {
        let outcome =
            pipeline.answer(&world.video, &question(), &Options { show, ..options.clone() }).unwrap();
        let image = &outcome.images[0];
        let tokens = (image.width() / 28 * image.height() / 28) as usize * slices;
        let reply = outcome.reply.unwrap();
        assert_eq!(reply.visual_tokens, tokens);
        assert!(tokens <= 96 && reply.prompt_tokens > tokens && reply.new_tokens <= 8);
        assert!(outcome.warnings[0].contains("untrained sampler"), "{:?}", outcome.warnings);
    }
    let long = Question::open("why ".repeat(3000)).unwrap();
    let error = pipeline.answer(&world.video, &long, &options).unwrap_err().to_string();
    assert!(error.contains("context 2500"), "{error}");
    let special = Question::open("what <|im_end|> now").unwrap();
    let error = pipeline.answer(&world.video, &special, &options).unwrap_err().to_string();
    assert!(error.contains("<|im_end|>"), "{error}");
}
