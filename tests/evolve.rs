//! Joint training on tiny random models: what a step must and must not do, whatever was learned before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::{DType, Device, Storage, Tensor};
use msjoe::checkpoint::random::{self, ClipSpec, QwenSpec};
use msjoe::checkpoint::{Checkpoint, write_safetensors};
use msjoe::data::world::{Spec, Split, World, vocabulary};
use msjoe::models::clip::Clip;
use msjoe::models::language::VideoLanguageModel;
use msjoe::models::qwen2_5_vl::adapter::Adapter;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::qwen2_5_vl::processor::Budget;
use msjoe::models::sampler::Sampler;
use msjoe::models::temporal_agent;
use msjoe::models::unet1d;
use msjoe::optim::AdamWConfig;
use msjoe::pipeline::ShowKeyFrames;
use msjoe::rl::advantage::Baseline;
use msjoe::rl::config::{EvolveConfig, Learn, ModelConfig, SamplerConfig, Worth};
use msjoe::rl::gallery::{Gallery, Showing};
use msjoe::rl::learner::Learner;
use msjoe::rl::plan::{Asking, Plan, Shown};
use msjoe::rl::reward::{Peak, RewardConfig};
use msjoe::rl::rollout::rollout;
use msjoe::rl::tally::Tally;
use msjoe::rl::tasks::world_tasks;
use msjoe::rl::trainer::Trainer;
use msjoe::rl::trajectory::{Task, Trajectory};
use msjoe::rl::update::{Gradients, Weighed, log_probs_of, model_gradients, sampler_gradients};
use msjoe::select::draw_log_prob;
use msjoe::supervised::lessons::{Lesson, conversation};
use msjoe::supervised::turns::{Learn as Learned, TurnTrainer};
use tempfile::TempDir;

fn checkpoints(dir: &Path) {
    let words: Vec<String> = vocabulary().into_iter().map(str::to_owned).collect();
    let tags = ["<think>", "</think>", "<query>", "</query>", "<answer>", "</answer>"];
    let qwen = QwenSpec {
        hidden: 32,
        intermediate: 48,
        heads: 2,
        kv_heads: 1,
        vision_hidden: 16,
        vision_intermediate: 24,
        vision_depth: 1,
        vision_heads: 2,
        full_attention: vec![0],
        max_positions: 512,
        tied: true,
        std: 0.2,
        embedding_std: 0.3,
        words: words.clone(),
        tags: tags.map(str::to_owned).to_vec(),
        ..QwenSpec::default()
    };
    random::qwen2_5_vl(dir.join("mllm"), &qwen, 3).unwrap();
    std::fs::write(dir.join("mllm/msjoe.json"), r#"{ "dialogue": "brief" }"#).unwrap();
    let clip = ClipSpec {
        image_size: 28,
        vision_hidden: 16,
        vision_layers: 1,
        text_hidden: 16,
        text_layers: 1,
        projection: 8,
        words,
        ..ClipSpec::default()
    };
    random::clip(dir.join("clip"), &clip, 3).unwrap();
}

pub fn config() -> EvolveConfig {
    EvolveConfig {
        seed: 11,
        steps: 4,
        questions: 3,
        generations: 4,
        plan: Plan {
            key_frames: 4,
            previews: Some(2),
            query_tokens: 24,
            answer_tokens: 8,
            temperature: 1.0,
            ..Plan::default()
        },
        // A model this small is rarely right: what its queries find is what rewards differ by.
        reward: RewardConfig {
            info: 1.0,
            peak: Peak::Deviation { threshold: 2.0 },
            ..RewardConfig::default()
        },
        model: ModelConfig {
            rate: msjoe::rl::config::Rate { peak: 1e-2, warmup: 0, ..Default::default() },
            ..ModelConfig::default()
        },
        sampler: SamplerConfig {
            network: unet1d::Config {
                channels: vec![8, 8],
                stem: 4,
                groups: 2,
                kernel: 3,
                gain: 1.0,
                windows: vec![0, 2],
                apart: 0.0,
            },
            rate: msjoe::rl::config::Rate { peak: 1e-2, warmup: 0, ..Default::default() },
            ..SamplerConfig::default()
        },
        ..EvolveConfig::default()
    }
}

fn world() -> World {
    World::new(Spec::short(), 5).unwrap()
}

pub fn tasks() -> Vec<Task> {
    let tasks = world_tasks(&world(), Split::Train, 0..12);
    tasks.into_iter().filter(|task| task.footage.len() >= 8).collect()
}

pub fn learner(dir: &Path, config: &EvolveConfig) -> Learner {
    learner_of(dir, config, DType::F32)
}

fn learner_of(dir: &Path, config: &EvolveConfig, dtype: DType) -> Learner {
    let chat = Qwen2_5VlChat::load(dir.join("mllm"), dtype, &Device::Cpu).unwrap();
    let clip = Clip::load(&dir.join("clip"), DType::F32, &Device::Cpu).unwrap();
    let sampler = config.sampler.fresh(8, 1, &Device::Cpu).unwrap();
    let weights = Checkpoint::open(dir.join("mllm")).unwrap();
    Learner::new(chat, &weights, clip, sampler, config).unwrap()
}

/// A folder with the checkpoints, and the settings. The language model was taught the form of its turns, so that what it
/// says, and with it the reward, differs from one generation to the next.
pub fn setting() -> (&'static TempDir, EvolveConfig) {
    static TAUGHT: OnceLock<TempDir> = OnceLock::new();
    let dir = TAUGHT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        checkpoints(dir.path());
        teach(&dir.path().join("mllm"));
        dir
    });
    (dir, config())
}

fn teach(dir: &Path) {
    let mut trainer = TurnTrainer::new(dir, &Device::Cpu, Learned::Text, AdamWConfig::default()).unwrap();
    let world = world();
    let mut losses = vec![];
    for step in 0..120u64 {
        let one =
            |i| conversation(&world, if i % 2 == 0 { Lesson::Ask } else { Lesson::Watch }, 8 * step + i);
        let batch: Vec<_> = (0..8).map(one).collect();
        losses.push(trainer.step(&batch, 1e-2).unwrap().loss);
    }
    assert!(losses[119] < 0.5 * losses[0], "the lessons taught nothing: {} to {}", losses[0], losses[119]);
    write_safetensors(&dir.join("model.safetensors"), &trainer.parameters.detached(), None).unwrap();
}

fn trajectories(learner: &Learner, config: &EvolveConfig, tasks: &[Task]) -> Vec<Trajectory> {
    let mut gallery = Gallery::new(1 << 24);
    let groups =
        rollout(learner.policy(), &mut gallery, tasks, &config.plan, config.generations, config.seed)
            .unwrap();
    groups.into_iter().flatten().collect()
}

fn weighed(trajectories: &[Trajectory]) -> Vec<Weighed<'_>> {
    let advantage = |i: usize| [1.0, -0.5, 0.25, -0.75][i % 4];
    let one = |(i, trajectory)| Weighed { trajectory, advantage: advantage(i), old: None };
    trajectories.iter().enumerate().map(one).collect()
}

fn difference(a: &Gradients, b: &Gradients) -> f64 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let norm = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    let (mut off, mut all) = (0.0, 0.0);
    for (name, a) in a {
        off += norm(&(a - &b[name]).unwrap());
        all += norm(a);
    }
    assert!(all > 0.0, "no gradient at all");
    (off / all).sqrt()
}

fn values(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f32>> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    tensors.iter().map(|(name, tensor)| (name.clone(), flat(tensor))).collect()
}

#[test]
fn a_trajectory_does_not_depend_on_what_runs_beside_it() {
    let (dir, config) = setting();
    let learner = learner(dir.path(), &config);
    let tasks = tasks();
    let together = trajectories(&learner, &config, &tasks[..3]);
    let alone = trajectories(&learner, &config, &tasks[1..2]);
    for (a, b) in together[4..8].iter().zip(&alone) {
        assert_eq!(a.asked.as_ref().unwrap().completion.tokens, b.asked.as_ref().unwrap().completion.tokens);
        assert_eq!(a.selection.draw_order, b.selection.draw_order);
        assert_eq!(a.answered.completion.tokens, b.answered.completion.tokens);
    }
    let texts: std::collections::BTreeSet<_> =
        alone.iter().map(|t| t.asked.as_ref().unwrap().text.clone()).collect();
    assert!(texts.len() > 1, "generations of one question must differ, got {texts:?}");
}

#[test]
fn rollout_and_trainer_agree_and_the_first_ratio_is_one() {
    let (dir, config) = setting();
    let learner = learner(dir.path(), &config);
    let trajectories = trajectories(&learner, &config, &tasks()[..2]);
    let pupil = learner.pupil(&config).unwrap();
    let mut tally = Tally::default();
    model_gradients(&pupil, &weighed(&trajectories), &config.model, &mut tally).unwrap().unwrap();
    assert_eq!(tally.get("ratio"), Some(1.0));
    let gap = tally.get("sampling/sampling_logp_difference/max").unwrap();
    assert!(gap < 1e-4, "rollout and trainer differ by {gap}");

    // What the second update compares with: before the first the same, and a tenth of a nat off where it is moved by that.
    let mut old = log_probs_of(&learner.chat.model, &weighed(&trajectories), &pupil).unwrap();
    let ratio = |old: &[Vec<f32>]| {
        let with = |(one, old)| Weighed { old: Some(old), ..one };
        let weighed: Vec<Weighed> =
            weighed(&trajectories).into_iter().zip(old.iter().map(Vec::as_slice)).map(with).collect();
        let mut tally = Tally::default();
        model_gradients(&pupil, &weighed, &config.model, &mut tally).unwrap().unwrap();
        tally.get("ratio").unwrap()
    };
    assert!((ratio(&old) - 1.0).abs() < 1e-5, "{}", ratio(&old));
    old.iter_mut().flatten().for_each(|log_prob| *log_prob -= 0.1);
    assert!((ratio(&old) - 0.1f64.exp()).abs() < 1e-4, "{}", ratio(&old));
}

#[test]
fn micro_batches_add_up_to_one_batch() {
    let (dir, config) = setting();
    let learner = learner(dir.path(), &config);
    let trajectories = trajectories(&learner, &config, &tasks()[..2]);
    let weighed = weighed(&trajectories);
    for checkpointing in [false, true] {
        let model = ModelConfig { checkpointing, ..config.model.clone() };
        let gradients = |micro_batch_tokens: usize, micro_batches_at_once: usize| {
            let config = EvolveConfig { micro_batch_tokens, micro_batches_at_once, ..config.clone() };
            let pupil = learner.pupil(&config).unwrap();
            model_gradients(&pupil, &weighed, &model, &mut Tally::default()).unwrap().unwrap()
        };
        let off = difference(&gradients(1 << 20, 1), &gradients(1, 1));
        assert_eq!(difference(&gradients(1, 1), &gradients(1, 3)), 0.0, "side by side");
        assert!(off < 1e-5, "checkpointing {checkpointing}: {off}");
    }
}

#[test]
fn recomputed_layers_give_the_same_gradient() {
    let (dir, config) = setting();
    let learner = learner(dir.path(), &config);
    let trajectories = trajectories(&learner, &config, &tasks()[..1]);
    let pupil = learner.pupil(&config).unwrap();
    let gradients = |checkpointing: bool| {
        let model = ModelConfig { checkpointing, ..config.model.clone() };
        model_gradients(&pupil, &weighed(&trajectories), &model, &mut Tally::default()).unwrap().unwrap()
    };
    let off = difference(&gradients(true), &gradients(false));
    assert!(off < 1e-6, "{off}");
}

#[test]
fn trajectories_without_a_signal_change_nothing() {
    let (dir, config) = setting();
    let learner = learner(dir.path(), &config);
    let trajectories = trajectories(&learner, &config, &tasks()[..1]);
    let silent: Vec<Weighed> =
        weighed(&trajectories).into_iter().map(|one| Weighed { advantage: 0.0, ..one }).collect();
    let pupil = learner.pupil(&config).unwrap();
    assert!(model_gradients(&pupil, &silent, &config.model, &mut Tally::default()).unwrap().is_none());
    // Nor do those that were cut, where they are masked: an optimizer's step of zeros would still move by its moments.
    let short = EvolveConfig { plan: Plan { answer_tokens: 1, ..config.plan.clone() }, ..config.clone() };
    let cut = self::trajectories(&learner, &short, &tasks()[..1]);
    let mut masking = config.model.clone();
    assert!(model_gradients(&pupil, &weighed(&cut), &masking, &mut Tally::default()).unwrap().is_some());
    masking.grpo.mask_truncated = true;
    assert!(model_gradients(&pupil, &weighed(&cut), &masking, &mut Tally::default()).unwrap().is_none());
    let (sampler, parameters) = learner.student().unwrap();
    let drawn: Vec<(&Trajectory, f64)> = trajectories.iter().map(|trajectory| (trajectory, 0.0)).collect();
    let gradients =
        sampler_gradients(sampler, parameters, &drawn, &config.sampler, 2, &mut Tally::default()).unwrap();
    assert!(gradients.is_none());
}

#[test]
fn draws_kept_apart_are_as_probable_to_the_trainer_as_to_the_rollout() {
    let (dir, mut config) = setting();
    config.sampler.network.apart = 1.5;
    let learner = learner(dir.path(), &config);
    let trajectories = trajectories(&learner, &config, &tasks()[..3]);
    let drawn: Vec<(&Trajectory, f64)> = trajectories.iter().map(|trajectory| (trajectory, 1.0)).collect();
    let (sampler, parameters) = learner.student().unwrap();
    let mut tally = Tally::default();
    sampler_gradients(sampler, parameters, &drawn, &config.sampler, 2, &mut tally).unwrap().unwrap();
    let mean = |of: &dyn Fn(&Trajectory) -> f64| {
        trajectories.iter().map(of).sum::<f64>() / trajectories.len() as f64
    };
    let rolled = mean(&|trajectory| trajectory.selection.log_prob.unwrap());
    let trained = tally.get("sampler/log_prob").unwrap();
    assert!((rolled - trained).abs() < 1e-4, "{rolled} and {trained}");
    // The comparison can fail: without what keeps them apart the same draws are less probable.
    let plain = mean(&|trajectory| {
        let logits = learner.sampler.forward(trajectory.sight.as_ref().unwrap()).unwrap();
        draw_log_prob(&logits.to_vec1().unwrap(), &trajectory.selection.draw_order).unwrap()
    });
    assert!((plain - rolled).abs() > 0.01, "{plain} and {rolled}");
}

#[test]
fn a_frame_goes_through_the_vision_tower_once() {
    let (dir, config) = setting();
    let learner = learner(dir.path(), &config);
    let tasks = tasks();
    let mut gallery = Gallery::new(1 << 24);
    let mut roll = || {
        rollout(learner.policy(), &mut gallery, &tasks[..2], &config.plan, 4, 7).unwrap();
        (gallery.encoded, gallery.shown)
    };
    let (encoded, shown) = roll();
    assert!(encoded < shown, "{encoded} of {shown} slices were encoded");
    assert_eq!(roll(), (encoded, 2 * shown), "the second rollout shows the same frames and encodes none");
}

#[test]
fn features_of_a_frame_do_not_depend_on_what_is_encoded_beside_it() {
    let (dir, config) = setting();
    let chat = learner(dir.path(), &config).chat;
    let tasks = tasks();
    let showing = |task: &Task, frames: Vec<usize>, show| {
        let (width, height) = task.footage.dimensions;
        let size = chat.plan(width, height, &Budget::Slice { tokens: 32 }).unwrap();
        Showing { footage: task.footage.clone(), frames, size, show }
    };
    for show in [ShowKeyFrames::Images, ShowKeyFrames::Video] {
        let features = |showings: &[Showing]| {
            let shown = Gallery::new(1 << 24).show(&chat, showings).unwrap();
            let of_one = |(_, features): &(_, Vec<Tensor>)| {
                Tensor::cat(features, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            shown.iter().map(of_one).collect::<Vec<_>>()
        };
        let one = showing(&tasks[0], vec![5, 6], show);
        let alone = features(std::slice::from_ref(&one));
        let before = showing(&tasks[0], vec![0, 1, 2, 3, 4], show);
        // The first is of another video and, by its name, comes after; so many that several batches are needed.
        let many = showing(&tasks[tasks.len() - 1], (0..8).collect(), show);
        assert_eq!(features(&[many, before, one])[2], alone[0], "{show:?}");
    }
    // Each keeps its own memory and no more: the gallery counts its bytes by it.
    let one = showing(&tasks[0], vec![5, 6], ShowKeyFrames::Images);
    let shown = Gallery::new(1 << 24).show(&chat, &[one]).unwrap();
    for features in &shown[0].1 {
        let (storage, _) = features.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { panic!("expected the CPU") };
        assert_eq!(storage.as_slice::<f32>().unwrap().len(), features.elem_count());
    }
}

#[test]
fn both_ways_of_showing_key_frames_train() {
    let (dir, config) = setting();
    for show in [Shown::Images, Shown::Video] {
        let config = EvolveConfig { plan: Plan { show, ..config.plan.clone() }, ..config.clone() };
        let learner = learner(dir.path(), &config);
        let trajectories = trajectories(&learner, &config, &tasks()[..1]);
        let pupil = learner.pupil(&config).unwrap();
        let mut tally = Tally::default();
        model_gradients(&pupil, &weighed(&trajectories), &config.model, &mut tally).unwrap().unwrap();
        assert!(tally.get("sampling/sampling_logp_difference/max").unwrap() < 1e-4, "{show:?}");
    }
}

#[test]
fn a_step_changes_what_learns_and_nothing_else() {
    let (dir, config) = setting();
    for (model, sampler) in [(true, false), (false, true), (true, true)] {
        let mut config = config.clone();
        config.questions = 8; // so that some group has a signal
        config.model.learn = if model { Learn::Everything } else { Learn::Nothing };
        config.sampler.learn = sampler;
        config.sampler.worth = Worth::Reward(Baseline::GroupMean);
        let mut trainer = Trainer::new(config.clone(), learner(dir.path(), &config), tasks()).unwrap();
        let files = trainer.learner.files().unwrap();
        let before: BTreeMap<_, _> = files.iter().map(|(name, t)| (name.clone(), values(t))).collect();
        let tally = trainer.step().unwrap();
        assert!(tally.get("frac_reward_zero_std").unwrap() < 1.0, "the test needs a step with a signal");
        assert!(tally.get("reward_std") > Some(0.0) && tally.get("tokens_per_second") > Some(0.0));
        assert_eq!(tally.get("num_tokens"), None);
        let time = |names: &[&str]| -> f64 { names.iter().filter_map(|name| tally.get(name)).sum() };
        let parts = ["time/queries", "time/similarity", "time/frames", "time/answers"];
        assert!(
            parts.iter().all(|name| tally.get(name) > Some(0.0)) && time(&parts) <= time(&["time/rollout"])
        );
        assert_eq!(tally.get("time/log_probs").zip(tally.get("time/backward")).is_some(), model);
        assert!(tally.get("time/optimizer") > Some(0.0));
        assert!(time(&["time/rollout", "time/model", "time/sampler"]) <= time(&["step_time"]));
        let after = trainer.learner.files().unwrap();
        assert_eq!(after.contains_key("model"), model);
        assert_eq!(after.contains_key("sampler"), sampler);
        for (name, tensors) in &after {
            assert_ne!(before[name], values(tensors), "{name} did not change");
        }
    }
}

/// A sampler of stage 1 knows the draws it learned from: those of stage 2 are others, with the same seed.
#[test]
fn stages_draw_for_themselves() {
    let (dir, config) = setting();
    let first_step = |learn: Learn| {
        let mut config = config.clone();
        // No reply decides what is drawn, the seed alone.
        config.plan.asking = Asking::Question;
        config.questions = 8;
        config.model.learn = learn;
        let mut trainer = Trainer::new(config.clone(), learner(dir.path(), &config), tasks()).unwrap();
        trainer.step().unwrap().get("evidence_recall").unwrap()
    };
    let alone = first_step(Learn::Nothing);
    assert_eq!(alone, first_step(Learn::Nothing), "the seed decides");
    assert_ne!(alone, first_step(Learn::Everything));
}

#[test]
fn a_question_that_stands_in_for_unreadable_queries_earns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    checkpoints(dir.path());
    let mut config = config();
    config.reward.peak = Peak::Deviation { threshold: -100.0 };
    let mut trainer = Trainer::new(config.clone(), learner(dir.path(), &config), tasks()).unwrap();
    let tally = trainer.step().unwrap();
    assert_eq!(tally.get("queries/fallback"), Some(1.0), "an untaught model writes no query");
    assert_eq!(tally.get("rewards/info"), Some(0.0));
}

#[test]
fn adapters_learn_over_a_frozen_base_and_are_peft_files() {
    let (dir, mut config) = setting();
    config.model.learn = Learn::Adapters { rank: 4, alpha: 8.0, targets: None };
    config.model.grpo.beta = 0.04;
    config.questions = 8; // so that some group has a signal
    let mut trainer = Trainer::new(config.clone(), learner(dir.path(), &config), tasks()).unwrap();
    let base = values(
        &Checkpoint::open(dir.path().join("mllm")).unwrap().tensors(DType::F32, &Device::Cpu).unwrap(),
    );
    let before = values(&trainer.learner.files().unwrap()["adapter_model"]);
    let tally = trainer.step().unwrap();
    assert_eq!(tally.get("ratio"), Some(1.0));
    assert_eq!(tally.get("kl").map(|kl| kl.abs() < 1e-9), Some(true), "a fresh adapter is the reference");
    let after = values(&trainer.learner.files().unwrap()["adapter_model"]);
    assert!(before.keys().eq(after.keys()) && before != after);
    assert!(trainer.step().unwrap().get("kl").unwrap() > 0.0);

    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in trainer.learner.readable().unwrap() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let chat = Qwen2_5VlChat::load(dir.path().join("mllm"), DType::F32, &Device::Cpu).unwrap();
    let adapter = Adapter::load(folder.path(), &chat.model).unwrap();
    assert_eq!(
        values(&adapter.parameters().detached()),
        values(&trainer.learner.files().unwrap()["adapter_model"])
    );
    let now = Checkpoint::open(dir.path().join("mllm")).unwrap().tensors(DType::F32, &Device::Cpu).unwrap();
    assert_eq!(values(&now), base, "the base is untouched");
}

/// The way that training takes on a device: a base in half precision, f32 adapters, every operation a node of the graph.
#[test]
fn adapters_learn_over_a_base_in_half_precision() {
    let (dir, mut config) = setting();
    config.model.learn = Learn::Adapters { rank: 4, alpha: 8.0, targets: None };
    config.questions = 8;
    let mut steps = [DType::F32, DType::BF16].map(|dtype| {
        let mut trainer =
            Trainer::new(config.clone(), learner_of(dir.path(), &config, dtype), tasks()).unwrap();
        let before = values(&trainer.learner.files().unwrap()["adapter_model"]);
        let tally = trainer.step().unwrap();
        let after = values(&trainer.learner.files().unwrap()["adapter_model"]);
        // Of fresh factors the second ones alone move, since they are zero.
        let moved = |name: &&String| name.contains("lora_B") && before[*name] != after[*name];
        assert_eq!(after.keys().filter(moved).count(), after.len() / 2, "{dtype:?}");
        assert_eq!(trainer.learner.chat.model.text().dtype(), dtype);
        assert_eq!(tally.get("ratio"), Some(1.0));
        let apart = tally.get("sampling/sampling_logp_difference/max").unwrap();
        let bound = if dtype == DType::F32 { 1e-4 } else { 0.25 };
        assert!(apart < bound, "{dtype:?}: rollout and update differ by {apart}");
        trainer
    });
    // Resumed from its files, it goes on as if nothing had been.
    let half = &mut steps[1];
    let mut again =
        Trainer::new(config.clone(), learner_of(dir.path(), &config, DType::BF16), tasks()).unwrap();
    again.learner.restore(half.learner.files().unwrap()).unwrap();
    again.progress = half.progress;
    half.step().unwrap();
    again.step().unwrap();
    let files = |trainer: &Trainer| values(&trainer.learner.files().unwrap()["adapter_model"]);
    assert!(files(half) == files(&again), "the resumed run differs");

    config.model.learn = Learn::Everything;
    let chat = Qwen2_5VlChat::load(dir.path().join("mllm"), DType::BF16, &Device::Cpu).unwrap();
    let clip = Clip::load(&dir.path().join("clip"), DType::F32, &Device::Cpu).unwrap();
    let sampler = config.sampler.fresh(8, 1, &Device::Cpu).unwrap();
    let weights = Checkpoint::open(dir.path().join("mllm")).unwrap();
    let error = Learner::new(chat, &weights, clip, sampler, &config).err().unwrap().to_string();
    assert!(error.contains("\"everything\" needs f32, got bf16"), "{error}");
}

#[test]
fn a_temporal_agent_learns_in_place_of_the_network() {
    let (dir, mut config) = setting();
    config.model.learn = Learn::Nothing;
    config.sampler.network = unet1d::Config::default();
    config.sampler.agent = Some(temporal_agent::Config { heads: 2, window: 4, temperature: 0.1 });
    config.sampler.worth = Worth::Reward(Baseline::GroupMean);
    let mut trainer = Trainer::new(config.clone(), learner(dir.path(), &config), tasks()).unwrap();
    assert!(matches!(trainer.learner.sampler, Sampler::TemporalAgent(_)));
    let before = values(&trainer.learner.files().unwrap()["sampler"]);
    let tally = trainer.step().unwrap();
    assert!(tally.get("sampler/grad_norm").unwrap() > 0.0);
    let files = trainer.learner.files().unwrap();
    let after = values(&files["sampler"]);
    assert!(before.keys().eq(after.keys()) && before.iter().all(|(name, value)| after[name] != *value));

    // The checkpoint is TSPO's file, and what is resumed from it goes on as if nothing had been.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampler.safetensors");
    std::fs::write(&path, &trainer.learner.readable().unwrap()["sampler.safetensors"]).unwrap();
    assert!(matches!(Sampler::load(&path, &Device::Cpu).unwrap(), Sampler::TemporalAgent(_)));
    let written = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert!(written.contains_key("temporal.ffn_o.weight"));
    let mut resumed = Trainer::new(config.clone(), learner(dir.path(), &config), tasks()).unwrap();
    let moments = files["sampler-optimizer"].clone();
    let saved =
        [("sampler".to_owned(), written.into_iter().collect()), ("sampler-optimizer".to_owned(), moments)];
    resumed.learner.restore(saved.into()).unwrap();
    resumed.progress = trainer.progress;
    trainer.step().unwrap();
    resumed.step().unwrap();
    let all = |trainer: &Trainer| -> BTreeMap<String, _> {
        trainer
            .learner
            .files()
            .unwrap()
            .iter()
            .map(|(name, tensors)| (name.clone(), values(tensors)))
            .collect()
    };
    assert!(all(&trainer) == all(&resumed), "the resumed run differs");
    assert!(all(&trainer)["sampler"] != after, "the second step changed nothing");
}
