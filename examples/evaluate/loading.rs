//! Arguments, and what follows from them: models and settings.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use clap::Parser;
use msjoe::benchmarks::Benchmark;
use msjoe::data::feature_cache::{self, FeatureCache};
use msjoe::evaluation::{
    Column, Form, FrameRate, Models, Seeds, Settings, Source, asks, identity, needs_clip,
};
use msjoe::hub::Hub;
use msjoe::models::clip::Clip;
use msjoe::models::language::VideoLanguageModel;
use msjoe::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use msjoe::models::sampler::Sampler;
use msjoe::models::temporal_agent::{self, TemporalAgent};
use msjoe::models::unet1d::{self, UNet1d};
use msjoe::pipeline::{FrameTiming, ShowKeyFrames};
use msjoe::select::Strategy;
use msjoe::text::Dialogue;

use crate::cli::{Placement, Stop, fetch};

/// Compares selection methods on a benchmark.
#[derive(Parser)]
pub struct Args {
    /// video-mme, longvideobench, lvbench, mlvu, or toy (rendered in memory)
    #[arg(long)]
    pub benchmark: String,
    /// The benchmark's folder, or its annotation file; for toy, JSON lines of {video, question, options, answer} in place of
    /// the rendered world
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Methods, the first of which the others are compared with; all for every strategy
    #[arg(long, value_delimiter = ',', default_value = "uniform,top-k,msjoe")]
    pub methods: Vec<String>,
    /// Numbers of key frames K
    #[arg(long, value_delimiter = ',', default_value = "8")]
    pub frames: Vec<usize>,
    /// Where queries come from: question, model, both (one beside the other); a row for each that is named
    #[arg(long, value_delimiter = ',', default_value = "model")]
    pub queries: Vec<Source>,
    /// Show subtitles where the benchmark has them
    #[arg(long)]
    pub subtitles: bool,
    /// Language model: a known name, a Hub repository, or a folder [qwen2.5-vl-7b; toy: models/toy/mllm]
    #[arg(long)]
    pub mllm: Option<String>,
    /// Adapter folder for the language model, as PEFT writes it
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// CLIP [clip-vit-large-patch14; toy: models/toy/clip]
    #[arg(long)]
    pub clip: Option<String>,
    /// Trained sampler; several are the seeds of msjoe [untrained; toy: models/toy/sampler.safetensors]
    #[arg(long, value_delimiter = ',')]
    pub sampler: Vec<PathBuf>,
    /// Temporal agent; several are the seeds of tspo [untrained; toy: models/toy/agent.safetensors]
    #[arg(long, value_delimiter = ',')]
    pub agent: Vec<PathBuf>,
    /// Seeds of methods that are random
    #[arg(long, default_value_t = 1)]
    pub seeds: u64,
    /// Only the first questions
    #[arg(long)]
    pub limit: Option<usize>,
    /// Questions of the toy world
    #[arg(long, default_value_t = 300)]
    pub questions: usize,
    /// Seed of the toy world, whose test split is asked about
    #[arg(long, default_value_t = 1)]
    pub world_seed: u64,
    /// Folder of answers and results [runs/evaluate/<benchmark>]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Results as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Read, validate and count the benchmark's files, nothing else
    #[arg(long)]
    pub check: bool,
    /// Judge the frame lists of this JSON file by the annotation, nothing else
    #[arg(long)]
    pub selections: Option<PathBuf>,
    /// Frame rate behind --selections where neither annotation nor video tells: a rate, or "spacing" for that of each row
    #[arg(long)]
    pub video_fps: Option<FrameRate>,
    /// Candidate frames per second of video
    #[arg(long, default_value_t = 1.0)]
    pub fps: f64,
    /// Frames shown with the query turn [half of the largest K]
    #[arg(long)]
    pub previews: Option<usize>,
    /// Most visual tokens of all key frames together
    #[arg(long, default_value_t = 8192)]
    pub tokens: usize,
    /// How answers are asked for and read: dialogue (the checkpoint's own) or letter (the field's) [letter; dialogue for toy
    /// and for checkpoints trained by this crate]
    #[arg(long)]
    pub answers: Option<String>,
    /// Key frames as one video or as images [video; toy: images]
    #[arg(long)]
    pub show: Option<String>,
    /// Tell the model each slice's own time
    #[arg(long)]
    pub exact_times: bool,
    /// Questions that go through the language model together [1; toy: 48]
    #[arg(long)]
    pub together: Option<usize>,
    #[command(flatten)]
    pub placement: Placement,
    /// Compute CLIP features anew and keep none
    #[arg(long)]
    pub no_cache: bool,
}

/// Bytes of frames and features kept for the next method.
const MEMORY: usize = 1 << 30;

fn choice<T: Copy>(what: &str, given: &Option<String>, known: [(&str, T); 2]) -> Result<Option<T>> {
    let Some(given) = given else { return Ok(None) };
    let names = known.map(|(name, _)| name).join(" or ");
    let found = known.iter().find(|(name, _)| name == given);
    found
        .map(|found| Some(found.1))
        .ok_or_else(|| anyhow::anyhow!("--{what}: expected {names}, got {given:?}"))
}

/// The networks of `files` with their identities; without any file one that is untrained.
fn networks<T: Into<Sampler>>(
    files: Vec<PathBuf>,
    name: &str,
    load: impl Fn(Option<&Path>) -> msjoe::Result<T>,
) -> Result<(Vec<String>, Vec<Sampler>)> {
    if files.is_empty() {
        eprintln!("warning: no file of a {name} was given: an untrained {name} follows the similarities");
        return Ok((vec!["untrained".to_owned()], vec![load(None)?.into()]));
    }
    let identities = files.iter().map(|file| identity(file)).collect::<msjoe::Result<_>>()?;
    let networks = files.iter().map(|file| load(Some(file)).map(Into::into)).collect::<msjoe::Result<_>>()?;
    Ok((identities, networks))
}

impl Args {
    /// `given`, or the toy world's own file.
    fn files(&self, given: &[PathBuf], toy: &str) -> Vec<PathBuf> {
        match self.benchmark.as_str() {
            "toy" if given.is_empty() => vec![Path::new("models/toy").join(toy)],
            _ => given.to_vec(),
        }
    }

    fn samplers(&self) -> Vec<PathBuf> {
        self.files(&self.sampler, "sampler.safetensors")
    }

    fn agents(&self) -> Vec<PathBuf> {
        self.files(&self.agent, "agent.safetensors")
    }

    pub fn seeds(&self) -> Seeds {
        Seeds { draws: self.seeds, samplers: self.samplers().len(), agents: self.agents().len() }
    }

    pub fn together(&self, benchmark: Option<Benchmark>) -> usize {
        self.together.unwrap_or(if benchmark.is_none() { 48 } else { 1 })
    }

    /// The models that `columns` need, and the settings without the questions.
    pub fn load(
        &self,
        benchmark: Option<Benchmark>,
        columns: &[Column],
        stop: &Stop,
    ) -> Result<(Models, Settings)> {
        ensure!(!self.frames.is_empty() && !self.frames.contains(&0), "--frames: expected numbers above 0");
        let toy = benchmark.is_none();
        let form =
            choice("answers", &self.answers, [("dialogue", Form::Dialogue), ("letter", Form::Letter)])?;
        let show =
            choice("show", &self.show, [("images", ShowKeyFrames::Images), ("video", ShowKeyFrames::Video)])?;
        // Before gigabytes of weights are looked for.
        Settings { fps: self.fps, key_frame_tokens: self.tokens, ..Settings::default() }.check()?;
        let spec = |given: &Option<String>, of_toy: &str, name: &str| {
            given.clone().unwrap_or(if toy { of_toy.to_owned() } else { name.to_owned() })
        };
        let hub = Hub::from_env()?;
        let (device, dtype) = self.placement.open()?;
        let mllm = fetch(&hub, &spec(&self.mllm, "models/toy/mllm", "qwen2.5-vl-7b"), stop)?;
        let clip = match needs_clip(columns) {
            true => Some(fetch(&hub, &spec(&self.clip, "models/toy/clip", "clip-vit-large-patch14"), stop)?),
            false => None,
        };
        let chat = Qwen2_5VlChat::load_adapted(&mllm, self.adapter.as_deref(), dtype, &device)?;
        let clip = clip.map(|folder| Clip::load(&folder, DType::F32, &device)).transpose()?;
        let (sampler_files, samplers) = self.unets(columns, &device)?;
        let (agent_files, agents) = self.temporal_agents(columns, clip.as_ref(), &device)?;
        let own = toy || chat.dialogue == Dialogue::Brief;
        let form = form.unwrap_or(if own { Form::Dialogue } else { Form::Letter });
        let most = self.frames.iter().max().copied().unwrap_or_default();
        let settings = Settings {
            benchmark: benchmark.map_or("toy", Benchmark::name).to_owned(),
            questions: String::new(),
            mllm: identity(&mllm)?,
            adapter: self.adapter.as_deref().map(identity).transpose()?,
            clip: clip.as_ref().map(|clip| clip.revision().to_owned()),
            samplers: sampler_files,
            agents: agent_files,
            fps: self.fps,
            previews: self.previews.unwrap_or(most / 2),
            key_frame_tokens: self.tokens,
            show: show.unwrap_or(if toy { ShowKeyFrames::Images } else { ShowKeyFrames::Video }),
            timing: if self.exact_times { FrameTiming::Exact } else { FrameTiming::Uniform },
            // The small models need about 30 tokens, and were trained without a penalty.
            query_tokens: if toy { 48 } else { 512 },
            answer_tokens: match form {
                _ if toy => 48,
                Form::Letter => 32,
                Form::Dialogue => 256,
            },
            repetition_penalty: if toy { 1.0 } else { chat.sampling().repetition_penalty },
            form,
            subtitles: self.subtitles,
            ..Settings::default()
        };
        let cache = feature_cache::default_dir().filter(|_| !self.no_cache).map(FeatureCache::new);
        Ok((Models { chat, clip, samplers, agents, cache, memory: MEMORY }, settings))
    }

    fn unets(&self, columns: &[Column], device: &Device) -> Result<(Vec<String>, Vec<Sampler>)> {
        if !asks(columns, Strategy::Msjoe) {
            return Ok((vec![], vec![]));
        }
        networks(self.samplers(), "sampler", |file| match file {
            Some(file) => UNet1d::load(file, device),
            None => UNet1d::init(&unet1d::Config::default(), 0, device),
        })
    }

    fn temporal_agents(
        &self,
        columns: &[Column],
        clip: Option<&Clip>,
        device: &Device,
    ) -> Result<(Vec<String>, Vec<Sampler>)> {
        let Some(clip) = clip.filter(|_| asks(columns, Strategy::Tspo)) else {
            return Ok((vec![], vec![]));
        };
        let width = clip.config().projection_dim;
        networks(self.agents(), "temporal agent", |file| match file {
            Some(file) => TemporalAgent::load(file, device),
            None => TemporalAgent::init(&temporal_agent::Config::default(), width, 0, device),
        })
    }
}
