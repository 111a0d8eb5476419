//! Whole runs of both stages: stopped, resumed and killed, they come to the same end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use candle_core::{DType, Device};
use msjoe::checkpoint::Checkpoint;
use msjoe::data::world::Spec;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::unet1d::UNet1d;
use msjoe::rl::config::{EvolveConfig, Rate};
use msjoe::rl::evaluate::Summary;
use msjoe::rl::evolve::{Event, Evolution, evolve};
use msjoe::rl::plan::Plan;
use msjoe::rl::run::{Build, Run};
use msjoe::rl::settings::{Data, Evaluation, Models, Pretraining, Settings};

use crate::evolve::setting;

/// Two steps of stage 1 and four of stage 2, each saved.
fn settings() -> Settings {
    let (dir, config) = setting();
    Settings {
        models: Models::new(dir.path().join("mllm"), dir.path().join("clip")),
        data: Data::World { seed: 5, spec: Spec::short(), videos: 12 },
        evaluation: Evaluation { every: 2, questions: 12, pass_rate_rollouts: 2, ..Evaluation::default() },
        save_every: 1,
        pretrain: Some(Pretraining {
            steps: 2,
            rate: Rate { peak: 1e-3, warmup: 1, ..Rate::default() },
            ..Pretraining::default()
        }),
        evolve: EvolveConfig {
            iterations: 2,
            resample: 1,
            plan: Plan { key_frames: 2, previews: Some(1), ..config.plan.clone() },
            ..config
        },
    }
}

/// What a run leaves that must not depend on how often it was stopped.
#[derive(PartialEq)]
struct End {
    weights_and_moments: BTreeMap<PathBuf, Vec<u8>>,
    lines_of_metrics: usize,
}

impl End {
    fn of(folder: &Path) -> Self {
        let mut weights_and_moments = BTreeMap::new();
        for last in ["step-000004", "sampler/step-000002"] {
            for entry in std::fs::read_dir(folder.join(last)).unwrap() {
                let path = entry.unwrap().path();
                // The state is progress, alarm and evaluations, without times.
                if path.extension().is_some_and(|extension| extension == "safetensors")
                    || path.ends_with("state.json")
                {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    weights_and_moments.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
        let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        Self { weights_and_moments, lines_of_metrics: metrics.lines().count() }
    }

    fn assert_equal(&self, other: &Self) {
        assert_eq!(self.lines_of_metrics, other.lines_of_metrics, "lines of metrics");
        let names = |end: &Self| end.weights_and_moments.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(self), names(other));
        for (name, bytes) in &self.weights_and_moments {
            assert!(*bytes == other.weights_and_moments[name], "{} differs", name.display());
        }
    }
}

fn created(folder: &Path, settings: &Settings) {
    drop(Run::create(folder, settings, &Build::new("cpu")).unwrap());
}

/// Runs to the end, stopped where `stops` say (the steps of either stage).
fn train(folder: &Path, stops: &[u64]) -> BTreeMap<u64, Summary> {
    let settings = settings();
    created(folder, &settings);
    // As a run leaves it that was killed before its first checkpoint.
    std::fs::write(folder.join("metrics.jsonl"), b"{\"step\":0,\"time\":1.0,\"x\":1.0}\n").unwrap();
    let mut report = None;
    for stop in stops.iter().copied().chain([u64::MAX]) {
        let run = Run::open(folder).unwrap();
        let mut go_on = |event: Event| !matches!(event, Event::Step { step, .. } if step >= stop);
        let done = evolve(settings.clone(), &run, &mut go_on);
        assert_eq!(done.is_ok(), stop == u64::MAX, "{done:?}");
        report = done.ok();
    }
    report.expect("a finished run has a report").evaluations
}

#[test]
fn the_start_is_a_checkpoint_though_nothing_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        evaluation: Evaluation { every: 0, ..settings().evaluation },
        save_every: 50,
        pretrain: None,
        ..settings()
    };
    created(folder.path(), &settings);
    let run = Run::open(folder.path()).unwrap();
    let mut stages = Evolution::new(settings, &mut |_| true).unwrap();
    let mut saved_before = None;
    let mut look = |event: Event| {
        if let Event::Step { step: 1, .. } = event {
            saved_before = run.latest().unwrap().map(|saved| (saved.step, saved.score));
        }
        false
    };
    stages.run(&run, &mut look).unwrap_err();
    assert_eq!(saved_before, Some((0, None)));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, resumed) = (folder.path().join("whole"), folder.path().join("resumed"));
    // Stopped in stage 1 first, then in stage 2.
    let (evaluations, again) = (train(&whole, &[]), train(&resumed, &[1, 3]));
    End::of(&whole).assert_equal(&End::of(&resumed));
    assert_eq!(evaluations, again, "the report of a resumed run is that of the whole");
    assert_eq!(evaluations.keys().copied().collect::<Vec<_>>(), [0, 2, 4]);

    for folder in [whole.clone(), whole.join("sampler"), resumed] {
        let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
        let accuracy = |summary: &Summary| format!("{:.1}", 100. * summary.accuracy);
        assert!(page.contains("Reward and its parts") && page.contains("seed 11"), "{}", folder.display());
        let stage_two = !folder.ends_with("sampler");
        assert!(!stage_two || evaluations.values().all(|summary| page.contains(&accuracy(summary))));
    }

    let last = whole.join("step-000004");
    Qwen2_5VlChat::load(&last, DType::F32, &Device::Cpu).expect("a checkpoint is a model folder");
    UNet1d::load(last.join("sampler.safetensors"), &Device::Cpu).expect("and holds a sampler file");
    let norm = |dir: &Path| {
        let tensors = Checkpoint::open(dir).unwrap().tensors(DType::F32, &Device::Cpu).unwrap();
        tensors["model.norm.weight"].to_vec1::<f32>().unwrap()
    };
    assert_ne!(norm(&last), norm(&setting().0.path().join("mllm")), "nothing was learned");
}

/// Not a test of its own: the program that [`a_run_killed_at_any_moment_comes_to_the_same_end`] starts and kills.
#[test]
#[ignore = "started by another test"]
fn killed() {
    let Ok(folder) = std::env::var("MSJOE_TEST_RUN") else { return };
    let run = Run::open(folder).unwrap();
    let settings: Settings = run.config().unwrap();
    evolve(settings, &run, &mut |_| true).unwrap();
}

#[test]
fn a_run_killed_at_any_moment_comes_to_the_same_end() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    train(&whole, &[]);
    created(&killed, &settings());
    // Ever longer, so that the run gets somewhere however slow the machine is.
    let (mut kills, mut wait) = (0, 0.1);
    loop {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "evolve_run::killed", "--ignored", "--nocapture"])
            .env("MSJOE_TEST_RUN", &killed)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(wait));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the run failed by itself: {status}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        (kills, wait) = (kills + 1, wait * 1.3);
    }
    assert!(kills >= 3, "the run was killed only {kills} times");
    End::of(&whole).assert_equal(&End::of(&killed));
}
