//! What the examples that run the pipeline share: arguments, loading with progress, Ctrl-C, and how errors end.
#![allow(dead_code)] // each example uses its part

pub mod sheet;
pub mod training;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use candle_core::{DType, Device};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use msjoe::data::feature_cache;
use msjoe::hub::{self, Hub};
use msjoe::pipeline::{Event, Options, Pipeline, QuerySource, Step, Weights};
use msjoe::select::{Draw, Resolution, Settings, Strategy};
use msjoe::text::Question;

/// The video and the question.
#[derive(Args)]
pub struct Ask {
    /// Video file, or a folder of images (one per second)
    #[arg(long)]
    pub video: PathBuf,
    /// The question
    #[arg(long)]
    pub question: String,
    /// An option of a multiple-choice question, "A. red"; repeat for each
    #[arg(long = "option")]
    pub options: Vec<String>,
    /// Key frames K
    #[arg(long, default_value_t = 32)]
    pub frames: usize,
    /// Candidate frames per second of video
    #[arg(long, default_value_t = 1.0)]
    pub fps: f64,
    /// How key frames are chosen: msjoe, tspo, top-k, uniform, bolt, aks, q-frame, bin-max, mdp3, dpp, maxinfo, focus, qca or f2c
    #[arg(long, default_value = "msjoe")]
    pub strategy: Strategy,
    /// With q-frame and f2c: frames of several sizes, for the tokens of K full ones
    #[arg(long)]
    pub adaptive: bool,
    /// A visual query of your own instead of the model's; repeat for more
    #[arg(long = "query")]
    pub queries: Vec<String>,
    /// Draw the key frames at random with this seed; without it they are spread over the weights, or taken one by one where the sampler keeps them apart. q-frame and focus draw
    /// in any case, without it with seed 0
    #[arg(long)]
    pub seed: Option<u64>,
    /// Most visual tokens of all key frames together
    #[arg(long, default_value_t = Options::default().key_frame_tokens)]
    pub tokens: usize,
    /// Decoding threads; 0 is one per core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Most tokens of the answer
    #[arg(long, default_value_t = Options::default().answer_tokens)]
    pub answer_tokens: usize,
    /// Most tokens of the query turn
    #[arg(long, default_value_t = Options::default().query_tokens)]
    pub query_tokens: usize,
}

/// The models.
#[derive(Args)]
pub struct Models {
    /// Language model: a known name, a Hub repository org/name[@revision], or a folder
    #[arg(long, default_value = "qwen2.5-vl-7b")]
    pub mllm: String,
    /// Adapter folder for the language model, as PEFT writes it
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// CLIP: a known name, a Hub repository, or a folder
    #[arg(long, default_value = "clip-vit-large-patch14")]
    pub clip: String,
    /// Trained sampler (safetensors), a U-Net or, for tspo, a temporal agent; without it an untrained U-Net follows the
    /// similarities
    #[arg(long)]
    pub sampler: Option<PathBuf>,
    #[command(flatten)]
    pub placement: Placement,
    /// Compute CLIP features anew and keep none
    #[arg(long)]
    pub no_cache: bool,
}

/// Where the models run.
#[derive(Args)]
pub struct Placement {
    /// cpu or cuda[:N]
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Precision of the language model: auto, f32, bf16 or f16
    #[arg(long, default_value = "auto")]
    dtype: String,
}

impl Placement {
    pub fn open(&self) -> Result<(Device, DType)> {
        let device = msjoe::device::device(&self.device)?;
        let dtype = msjoe::device::dtype(&self.dtype, &device)?;
        Ok((device, dtype))
    }
}

impl Ask {
    pub fn question(&self) -> Result<Question> {
        Ok(Question::new(self.question.clone(), self.options.clone())?)
    }

    pub fn pipeline_options(&self) -> Result<Options> {
        let resolution = if self.adaptive { Resolution::Adaptive } else { Resolution::Full };
        let options = Options {
            strategy: self.strategy,
            key_frames: self.frames,
            fps: self.fps,
            draw: self.seed.map_or(Draw::Spread, |seed| Draw::Gumbel { seed }),
            queries: match (self.queries.is_empty(), self.strategy) {
                (false, _) => QuerySource::Given(self.queries.clone()),
                // As published.
                (true, Strategy::Tspo) => QuerySource::Question,
                (true, _) => QuerySource::Model,
            },
            selection: Settings { resolution, ..Settings::default() },
            key_frame_tokens: self.tokens,
            threads: self.threads,
            answer_tokens: self.answer_tokens,
            query_tokens: self.query_tokens,
            ..Options::default()
        };
        // Before gigabytes of weights are looked for.
        options.validate()?;
        anyhow::ensure!(self.video.exists(), "{}: no such file or folder", self.video.display());
        Ok(options)
    }
}

impl Models {
    /// Loads what the strategy needs; `answers` when the language model is to answer as well.
    pub fn load(&self, options: &Options, answers: bool, stop: &Stop) -> Result<Pipeline> {
        anyhow::ensure!(
            options.strategy != Strategy::Tspo || self.sampler.is_some(),
            "--strategy tspo: expected --sampler with the file of a temporal agent, got none"
        );
        let hub = Hub::from_env()?;
        let needs_clip = options.strategy != Strategy::Uniform;
        let asks = options.strategy.reads_queries() && options.queries == QuerySource::Model;
        let needs_model = answers || asks;
        let fetch = |spec: &str| fetch(&hub, spec, stop);
        let (device, dtype) = self.placement.open()?;
        let weights = Weights {
            mllm: needs_model.then(|| fetch(&self.mllm)).transpose()?,
            adapter: self.adapter.clone().filter(|_| needs_model),
            clip: needs_clip.then(|| fetch(&self.clip)).transpose()?,
            sampler: self.sampler.clone(),
            cache: if self.no_cache { None } else { feature_cache::default_dir() },
            device,
            dtype,
        };
        Ok(Pipeline::load(&weights)?)
    }
}

/// The folder of a model, downloaded with progress if need be.
pub fn fetch(hub: &Hub, spec: &str, stop: &Stop) -> Result<PathBuf> {
    let bar = bar("bytes");
    let resolved = hub::resolve(hub, spec, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(progress.file.clone());
        stop.flow()
    })?;
    bar.finish_and_clear();
    resolved.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(resolved.folder)
}

/// Set by Ctrl-C; the running step ends at its next frame, token or block.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn on_ctrl_c() -> Result<Self> {
        let stop = Self::default();
        let flag = stop.0.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
        Ok(stop)
    }

    pub fn flow(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// An observer that shows progress on stderr while it is a terminal.
pub fn observer(stop: &Stop) -> impl FnMut(Event) -> ControlFlow<()> + use<> {
    let (bar, stop) = (bar("frames"), stop.clone());
    let (mut current, mut tokens) = (Step::Watch, 0);
    move |event| {
        let step = match event {
            Event::Progress { step, .. } | Event::Text { step, .. } => step,
        };
        if step != current {
            (current, tokens) = (step, 0);
            bar.reset();
        }
        match event {
            Event::Progress { done, total, .. } => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("{step:?}"));
                if done == total {
                    bar.finish_and_clear();
                }
            }
            Event::Text { .. } => {
                tokens += 1;
                bar.set_message(format!("{step:?}: {tokens} tokens"));
            }
        }
        stop.flow()
    }
}

fn bar(unit: &str) -> ProgressBar {
    let form = match unit {
        "bytes" => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}",
        _ => "{bar:30} {pos}/{len} {per_sec} {eta} left  {msg}",
    };
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// Runs an example: an error goes to stderr and ends with exit code 1. Warnings come back in results; the library's log is
/// shown when `RUST_LOG` asks for it.
pub fn run(main: impl FnOnce() -> Result<()>) -> std::process::ExitCode {
    run_telling("error", main)
}

/// As [`run`] for long work, whose warnings (a damaged video, fields without a meaning) come back in no result: `level` is
/// shown unless `RUST_LOG` says otherwise.
pub fn run_telling(level: &str, main: impl FnOnce() -> Result<()>) -> std::process::ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
