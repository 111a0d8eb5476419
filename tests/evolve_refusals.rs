//! What is refused before the first step, and what stops a run after it.

use std::path::Path;

use candle_core::{DType, Device};
use msjoe::checkpoint::{Checkpoint, write_safetensors};
use msjoe::data::world::Spec;
use msjoe::models::qwen2_5_vl::Qwen2_5Vl;
use msjoe::models::sampler::Sampler;
use msjoe::models::{temporal_agent, unet1d};
use msjoe::rl::advantage::Baseline;
use msjoe::rl::alarm::{Alarm, AlarmConfig};
use msjoe::rl::config::{EvolveConfig, Learn, SamplerConfig, Worth};
use msjoe::rl::evolve::{Evolution, evolve};
use msjoe::rl::objective::LossType;
use msjoe::rl::plan::{Choosing, Plan};
use msjoe::rl::reinforce::Probability;
use msjoe::rl::run::{Build, Run};
use msjoe::rl::settings::{Data, Evaluation, Models, Pretraining, Settings};
use msjoe::rl::tally::Tally;
use msjoe::rl::trainer::Trainer;

use crate::evolve::{config, learner, setting, tasks};

#[test]
fn a_run_that_cannot_fit_is_refused_before_anything_is_loaded() {
    let (dir, config) = setting();
    let settings = |questions| Settings {
        models: Models::new(dir.path().join("mllm"), dir.path().join("no-such-clip")),
        data: Data::World { seed: 5, spec: Spec::short(), videos: 1 },
        evaluation: Evaluation::default(),
        save_every: 1,
        pretrain: None,
        evolve: EvolveConfig { questions, ..config.clone() },
    };
    let mut large = settings(1 << 34);
    let error = Evolution::new(large.clone(), &mut |_| true).err().unwrap().to_string();
    assert!(error.contains("no-such-clip"), "{error}");
    large.models.clip = dir.path().join("clip");
    for error in [large.plans().unwrap_err(), Evolution::new(large, &mut |_| true).err().unwrap()] {
        assert!(error.to_string().contains("the run needs"), "{error}");
    }
    let evaluation = Evaluation { choosing: Choosing::Evidence, ..Evaluation::default() };
    let peeking = Settings { evaluation, ..settings(2) };
    let error = Evolution::new(peeking, &mut |_| true).err().unwrap().to_string();
    assert!(
        error.contains("evaluation.choosing: expected \"draw\"") && error.contains("Evidence"),
        "{error}"
    );

    let placed = |device: &str, dtype: &str, learn: Learn| {
        let mut settings = settings(2);
        (settings.models.device, settings.models.dtype) = (device.into(), dtype.into());
        settings.evolve.model.learn = learn;
        settings.placement().map(|(_, dtype)| dtype).map_err(|error| error.to_string())
    };
    let adapters = || Learn::Adapters { rank: 2, alpha: 4.0, targets: None };
    assert_eq!(placed("cpu", "auto", adapters()), Ok(DType::F32));
    assert_eq!(placed("cpu", "bf16", adapters()), Ok(DType::BF16));
    assert!(placed("cpu", "bf16", Learn::Everything).unwrap_err().contains("needs f32, got bf16"));
    assert!(placed("gpu", "auto", adapters()).unwrap_err().contains("expected cpu or cuda[:N]"));
    assert!(placed("cpu", "f8", adapters()).unwrap_err().contains("expected auto, f32, bf16 or f16"));
}

fn refused(change: &dyn Fn(&mut EvolveConfig)) -> String {
    let mut config = config();
    change(&mut config);
    config.check().unwrap_err().to_string()
}

#[test]
fn contradictions_are_refused_before_the_first_step() {
    assert!(refused(&|c| c.generations = 1).contains("group-relative advantages need at least 2"));
    assert!(refused(&|c| c.steps = 0).contains("steps: expected at least 1"));
    assert!(refused(&|c| c.plan.choosing = Choosing::TopK).contains("key frames must be drawn"));
    assert!(refused(&|c| c.plan.temperature = 0.0).contains("teach nothing"));
    assert!(refused(&|c| c.plan.key_frames = 0).contains("key_frames"));
    let nothing = |c: &mut EvolveConfig| {
        c.model.learn = Learn::Nothing;
        c.sampler.learn = false;
    };
    assert!(refused(&nothing).contains("nothing learns"));
    assert!(refused(&|c| c.model.grpo.top_entropy = 0.5).contains("top_entropy"));
    assert!(
        refused(&|c| c.model.rate.floor = -1.0).contains("model.rate.schedule: the floor must be from 0")
    );
    assert!(refused(&|c| c.sampler.rate.floor = f64::NAN).contains("sampler.rate.schedule: the floor"));
    assert!(
        refused(&|c| c.sampler.rate.peak = 0.0)
            .contains("sampler.rate.schedule: the peak rate must be above 0")
    );
    assert!(refused(&|c| c.model.rate.warmup = 5).contains("5 steps of warm-up do not fit into a run of 4"));
    assert!(
        refused(&|c| c.sampler.reinforce.entropy_bonus = f64::NAN)
            .contains("entropy_bonus must be a finite number")
    );
    assert!(
        refused(&|c| c.plan.key_frame_tokens = 3).contains("at least one for each of the 4 temporal slices")
    );
    assert!(refused(&|c| c.model.grpo.loss = LossType::Cispo).contains("epsilon_high: \"cispo\""));
    assert!(
        refused(&|c| c.alarm.min_reward_share = 2.0)
            .contains("alarm.min_reward_share must be from 0 to 1, got 2")
    );
    let replaced = |c: &mut EvolveConfig| (c.sampler.worth, c.resample) = (Worth::Difficulty, 1);
    assert!(refused(&replaced).contains("resample: a pass rate gives every draw its worth"));
    let alone = |c: &mut EvolveConfig| (c.model.learn, c.generations) = (Learn::Nothing, 1);
    assert!(refused(&alone).contains("LeaveOneOut compares draws: expected at least 2, got 1"));
    assert!(refused(&|c| c.model.rate.max_grad_norm = 0.0).contains("model.rate.max_grad_norm"));
    assert!(refused(&|c| c.sampler.rate.adamw.beta2 = 1.0).contains("sampler.rate.adamw"));
    let adapters = |rank, targets: &str| Learn::Adapters { rank, alpha: 8.0, targets: Some(targets.into()) };
    let alpha = |alpha| Learn::Adapters { rank: 2, alpha, targets: None };
    assert!(
        refused(&|c| c.model.learn = alpha(f64::NAN))
            .contains("adapters.alpha: expected a number that is not 0, got NaN")
    );
    assert!(refused(&|c| c.model.learn = alpha(0.0)).contains("adapters.alpha"));
    assert!(refused(&|c| c.model.learn = adapters(0, "q_proj")).contains("rank: expected at least 1"));
    assert!(refused(&|c| c.model.learn = adapters(2, "(q_proj")).contains("no regular expression"));
}

#[test]
fn what_cannot_learn_is_refused_before_the_first_step() {
    let mut alone = config().sampler;
    alone.reinforce.probability = Probability::Independent;
    let network = |apart: f64| {
        let network = unet1d::Config { apart, ..alone.network.clone() };
        Sampler::from(unet1d::UNet1d::init(&network, 1, &Device::Cpu).unwrap())
    };
    alone.suits(&network(0.0)).unwrap();
    assert!(alone.suits(&network(1.0)).unwrap_err().to_string().contains("takes each frame for itself"));
    SamplerConfig { learn: false, ..alone.clone() }.suits(&network(1.0)).unwrap();

    let (dir, config) = setting();
    let many = EvolveConfig { questions: 4, ..config.clone() };
    let many =
        Trainer::new(many, learner(dir.path(), &config), tasks()[..3].to_vec()).err().unwrap().to_string();
    assert!(many.contains("at most the 3 questions of the training set in a step, got 4"), "{many}");
    let none = Trainer::new(config.clone(), learner(dir.path(), &config), vec![]).err().unwrap().to_string();
    assert!(none.contains("expected questions, got none"));
    let mut difficult = config.clone();
    difficult.sampler.worth = Worth::Difficulty;
    let mut unrated = Trainer::new(difficult, learner(dir.path(), &config), tasks()).unwrap();
    let unknown = unrated.step().unwrap_err().to_string();
    assert!(unknown.contains("needs a pass rate") && unrated.progress == Default::default(), "{unknown}");
}

/// Few enough frames for the shortest of the world's clips.
fn plan() -> Plan {
    Plan { key_frames: 2, previews: Some(1), ..config().plan }
}

/// A run over three questions of one video file.
fn of_files(dir: &Path, learn: Learn) -> Settings {
    let (models, config) = setting();
    let line = |id: usize, answer: &str| {
        format!(
            r#"{{"id":"{id}","video":"a.mp4","question":"What is it?","options":["one","two"],"answer":"{answer}"}}"#
        )
    };
    let lines = [line(1, "one"), line(2, "two"), line(3, "one")].join("\n");
    std::fs::write(dir.join("train.jsonl"), lines).unwrap();
    let (train, validation) = (dir.join("train.jsonl"), None);
    let mut settings = Settings {
        models: Models::new(models.path().join("mllm"), models.path().join("clip")),
        data: Data::Files { train, validation, fps: 1.0, cache: None },
        evaluation: Evaluation { every: 0, ..Evaluation::default() },
        save_every: 1,
        pretrain: None,
        evolve: config,
    };
    settings.evolve.model.learn = learn;
    settings
}

#[test]
fn what_can_be_refused_is_refused_before_a_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = |targets: &str| Learn::Adapters { rank: 2, alpha: 4.0, targets: Some(targets.into()) };
    let refused = |settings: &Settings| settings.refuse(&mut |_, _| true).unwrap_err().to_string();
    let planned = |settings: &Settings| settings.plans().unwrap_err().to_string();
    let targets = |targets| planned(&of_files(folder.path(), adapters(targets)));
    assert!(targets("q_proj").contains("means no module of the text model"), "{}", targets("q_proj"));
    let both = targets(".*(gate_proj|up_proj)");
    assert!(
        both.contains("means model.visual.blocks.0.mlp.gate_proj, and the vision tower is frozen"),
        "{both}"
    );

    let text = adapters(r".*language_model.*(q|v)_proj");
    let mut settings = of_files(folder.path(), text.clone());
    assert!(refused(&settings).contains("a.mp4"), "{}", refused(&settings));
    let mut video = msjoe::video::H264Writer::create(
        folder.path().join("a.mp4"),
        64,
        64,
        msjoe::video::Rational::new(1, 1),
    )
    .unwrap();
    (0..6)
        .for_each(|i| video.push(&image::RgbImage::from_pixel(64, 64, image::Rgb([40 * i, 9, 90]))).unwrap());
    video.finish().unwrap();
    let mut heard = vec![];
    settings
        .refuse(&mut |done, of| {
            heard.push((done, of));
            true
        })
        .unwrap();
    assert_eq!(heard, [(1, 3), (2, 3), (3, 3)]);
    assert!(matches!(settings.refuse(&mut |_, _| false), Err(msjoe::Error::Interrupted)));
    let names =
        |settings: &Settings| -> Vec<_> { settings.plans().unwrap().iter().map(|plan| plan.0).collect() };
    assert_eq!(names(&settings), ["stage 2, joint"]);
    settings.pretrain = Some(Pretraining::default());
    assert_eq!(names(&settings), ["stage 1, sampler", "stage 2, joint"]);
    settings.pretrain = None;
    settings.models.sampler = Some(folder.path().join("train.jsonl"));
    assert!(planned(&settings).contains("train.jsonl"), "{}", planned(&settings));
    settings.models.sampler = None;
    settings.evolve.questions = 4;
    assert!(refused(&settings).contains("at most the 3 questions"), "{}", refused(&settings));
    settings.evolve.questions = 3;
    settings.evolve.sampler.agent = Some(temporal_agent::Config { heads: 2, window: 4, temperature: 0.1 });
    assert!(refused(&settings).contains("either an agent or a network"), "{}", refused(&settings));
    settings.evolve.sampler.agent = None;
    settings.evolve.plan.previews = Some(7);
    assert!(refused(&settings).contains("7 previews were asked for"), "{}", refused(&settings));
    settings.evolve.plan.previews = Some(2);
    settings.evaluation.every = 1;
    assert!(refused(&settings).contains("expected validation questions"), "{}", refused(&settings));
    // Both files are read before a video is opened.
    std::fs::write(folder.path().join("a.mp4"), "no video").unwrap();
    std::fs::write(folder.path().join("other.jsonl"), "{}\n").unwrap();
    if let Data::Files { validation, .. } = &mut settings.data {
        *validation = Some(folder.path().join("other.jsonl"));
    }
    assert!(refused(&settings).contains("other.jsonl:1"), "{}", refused(&settings));
}

#[test]
fn stage_one_is_held_to_its_own_settings() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |settings: &Settings| settings.refuse(&mut |_, _| true).unwrap_err().to_string();
    let mut settings = of_files(folder.path(), Learn::Everything);
    settings.pretrain = Some(Pretraining {
        generations: 1,
        worth: Worth::Reward(Baseline::LeaveOneOut),
        ..Pretraining::default()
    });
    assert!(refused(&settings).contains("stage 1: ") && refused(&settings).contains("compares draws"));
    settings.pretrain = Some(Pretraining::default());
    settings.evaluation.pass_rate_temperature = 0.0;
    assert!(refused(&settings).contains("pass_rate_temperature: expected above 0"), "{}", refused(&settings));
    assert_eq!(settings.first_stage().unwrap().evolve.plan.temperature, 0.0);
}

#[test]
fn weights_have_one_set_of_names_to_train_by() {
    let (dir, config) = setting();
    let (from, to) = (dir.path().join("mllm"), tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(&from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    let known = Checkpoint::open(&from).unwrap().tensors(DType::F32, &Device::Cpu).unwrap();
    assert!(!known.contains_key("lm_head.weight"), "the test needs a tied checkpoint");
    // As transformers 4.52 or later writes it, with the copy of the table that some exporters add.
    let renamed = known.iter().map(|(name, tensor)| {
        let name = match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => format!("model.{name}"),
        };
        (name, tensor.clone())
    });
    let copy = ("lm_head.weight".to_owned(), known["model.embed_tokens.weight"].clone());
    write_safetensors(&to.path().join("model.safetensors"), &renamed.chain([copy]).collect(), None).unwrap();
    let weights = Qwen2_5Vl::weights(to.path()).unwrap();
    assert!(weights.names().eq(known.keys().map(String::as_str)));
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(to.path(), folder.path().join("mllm")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("clip"), folder.path().join("clip")).unwrap();
    let settings = Settings {
        models: Models::new(folder.path().join("mllm"), folder.path().join("clip")),
        data: Data::World { seed: 5, spec: Spec::short(), videos: 12 },
        evaluation: Evaluation { every: 0, ..Evaluation::default() },
        save_every: 1,
        pretrain: None,
        evolve: EvolveConfig { questions: 8, plan: plan(), ..config },
    };
    let tally = Evolution::new(settings, &mut |_| true).unwrap().trainer.step().unwrap();
    assert!(tally.get("grad_norm") > Some(0.0), "every parameter got its gradient");
}

#[test]
fn a_run_that_comes_apart_stops_and_names_its_checkpoints() {
    let (dir, config) = setting();
    let stopped = |change: &dyn Fn(&mut EvolveConfig)| {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            models: Models::new(dir.path().join("mllm"), dir.path().join("clip")),
            data: Data::World { seed: 5, spec: Spec::short(), videos: 12 },
            evaluation: Evaluation { every: 10, questions: 6, ..Evaluation::default() },
            save_every: 5,
            pretrain: None,
            evolve: EvolveConfig { steps: 10, questions: 8, plan: plan(), ..config.clone() },
        };
        change(&mut settings.evolve);
        let run = Run::create(folder.path(), &settings, &Build::new("cpu")).unwrap();
        let error = evolve(settings, &run, &mut |_| true).unwrap_err().to_string();
        assert!(
            error.contains("; last good checkpoint: ") && error.contains("; best by evaluation: "),
            "{error}"
        );
        assert!(run.best().unwrap().is_some_and(|saved| saved.step == 0), "the start is the best there is");
        let metrics = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        (error, metrics.lines().filter(|line| line.contains("\"reward\"")).count())
    };
    let (exploded, steps) = stopped(&|config| config.alarm.max_loss = 1e-12);
    assert!(exploded.starts_with("training stopped: alarm: the loss is "), "{exploded}");
    assert!(steps > 0, "the step that raised the alarm is on record");
    let (overflown, _) = stopped(&|config| config.model.rate.peak = 1e30);
    assert!(overflown.starts_with("training stopped: ") && overflown.contains("NaN"), "{overflown}");
}

#[test]
fn alarms_hear_explosions_and_collapses_and_nothing_else() {
    let step = |pairs: &[(&'static str, f64)]| {
        let mut tally = Tally::default();
        pairs.iter().for_each(|&(name, value)| tally.mean(name, value, 1.0));
        tally
    };
    let limits = AlarmConfig::default();
    let steps = |reward: &dyn Fn(u64) -> f64, norm: &dyn Fn(u64) -> f64| {
        let mut alarm = Alarm::default();
        (0..80).find_map(|i| {
            alarm
                .look(
                    &step(&[
                        ("reward", reward(i)),
                        ("reward_standard_error", 0.09),
                        ("grad_norm", norm(i)),
                        ("loss", 0.1),
                    ]),
                    &limits,
                )
                .err()
                .map(|e| (i, e.to_string()))
        })
    };
    assert_eq!(steps(&|i| 0.3 + 0.2 * ((i % 5) as f64 / 5.0), &|i| 0.5 + (i % 7) as f64), None);
    assert_eq!(steps(&|_| 0.0, &|_| 0.0), None);
    // A lucky first step is not what the rest is held to; a policy that comes apart after it is seen nevertheless.
    assert_eq!(steps(&|i| if i == 0 { 0.35 } else { 0.1 }, &|_| 1.0), None);
    let (at, fell) = steps(&|i| if i == 0 { 0.65 } else { 0.05 }, &|_| 1.0).unwrap();
    assert!((9..40).contains(&at) && fell.contains("from 0.650"), "{at}: {fell}");
    let (at, fell) = steps(&|i| if i < 40 { 0.6 } else { 0.1 }, &|_| 1.0).unwrap();
    assert!((40..70).contains(&at) && fell.contains("from 0.600"), "{at}: {fell}");
    let (at, grew) = steps(&|_| 0.5, &|i| if i == 30 { 2e3 } else { 1.0 }).unwrap();
    assert!(at == 30 && grew.contains("grad_norm is 2.000e3 after 1.000e0 on average"), "{at}: {grew}");
    let mut dead = Alarm::default();
    let at = (0..30).find(|&i| {
        let (reward, silent) = if i == 0 { (0.495, 0.125) } else { (0.1, 1.0) };
        let of_step = [("reward", reward), ("reward_standard_error", 0.11), ("frac_reward_zero_std", silent)];
        dead.look(&step(&of_step), &limits).is_err()
    });
    assert!(at.is_some_and(|at| (9..12).contains(&at)), "{at:?}");
    let loud = Alarm::default().look(&step(&[("loss", -2e3)]), &limits).unwrap_err().to_string();
    assert!(loud.contains("the loss is -2.000e3, expected at most 1e3"), "{loud}");
    let mut silent = Alarm::default();
    let warnings: Vec<u64> = (1..=30)
        .filter(|_| {
            silent.look(&step(&[("reward", 0.5), ("frac_reward_zero_std", 1.0)]), &limits).unwrap();
            silent.warning().is_some()
        })
        .collect();
    assert_eq!(warnings, [10, 20, 30]);
    let mut rated = Alarm::default();
    for _ in 0..10 {
        let of_step = [("reward", 0.5), ("frac_reward_zero_std", 1.0), ("sampler/grad_norm", 0.1)];
        rated.look(&step(&of_step), &limits).unwrap();
    }
    assert_eq!(rated.warning(), None, "draws that are worth something by a pass rate");
}
