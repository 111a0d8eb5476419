//! What the command is told.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use clap::Parser;
use msjoe::data::world::Split;
use msjoe::rl::difficulty::{Estimation, Filter};
use msjoe::rl::plan::Plan;
use serde_json::json;

use crate::cli::Placement;

/// Estimates pass rates and writes them beside the questions
#[derive(Parser)]
pub struct Arguments {
    /// Questions, JSON lines of {video, question, options, answer}
    #[arg(long, required_unless_present = "world", conflicts_with = "world")]
    pub data: Option<PathBuf>,
    /// Questions of the toy world instead
    #[arg(long)]
    pub world: bool,
    /// Seed of the toy world
    #[arg(long, default_value_t = 1)]
    pub world_seed: u64,
    /// Split of the toy world: train, validation or test
    #[arg(long, default_value = "train")]
    pub split: Split,
    /// Videos of the toy world, each with up to six questions
    #[arg(long, default_value_t = 20)]
    pub videos: u64,
    /// Where the lines go; may be the file of --data
    #[arg(long)]
    pub out: PathBuf,
    /// Language model: a known name, a Hub repository org/name[@revision], or a folder
    #[arg(long, default_value = "qwen2.5-vl-7b")]
    pub mllm: String,
    /// Adapter folder for the language model, as PEFT writes it
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub placement: Placement,
    /// Even frames that are shown
    #[arg(long, default_value_t = 8)]
    pub frames: usize,
    /// Candidate frames per second of video
    #[arg(long, default_value_t = 1.0)]
    pub fps: f64,
    /// Rollouts per question with frames
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub rollouts: u64,
    /// Rollouts per question without frames; 0 leaves out the filter "blind"
    #[arg(long, default_value_t = 8)]
    pub blind_rollouts: u64,
    /// Share of right answers without frames from which on a question counts as solvable without the video
    #[arg(long, default_value_t = 0.5)]
    pub blind_above: f32,
    /// Sampling temperature
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 64)]
    pub answer_tokens: usize,
    /// Seed of the rollouts
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Questions to leave out of --out: blind, always, never
    #[arg(long, value_delimiter = ',')]
    pub drop: Vec<Filter>,
    /// Print the counts as JSON
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// How rates are estimated; refuses settings at odds.
    pub fn estimation(&self) -> Result<Estimation> {
        let plan = Plan {
            key_frames: self.frames,
            answer_tokens: self.answer_tokens,
            temperature: self.temperature,
            ..Plan::default()
        };
        plan.check()?;
        ensure!((0. ..=1.).contains(&self.blind_above), "--blind-above: expected 0 to 1");
        ensure!(
            self.blind_rollouts > 0 || !self.drop.contains(&Filter::Blind),
            "--drop blind: needs --blind-rollouts above 0"
        );
        let same = |data: &PathBuf| data.canonicalize().ok() == self.out.canonicalize().ok();
        if !self.drop.is_empty() && self.out.exists() && self.data.as_ref().is_some_and(same) {
            bail!("--drop: would lose questions of {}; name another --out", self.out.display());
        }
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty());
        let known = folder.is_none_or(Path::is_dir);
        ensure!(known, "--out {}: expected a file in a folder that exists", self.out.display());
        let Self { rollouts, blind_rollouts, seed, .. } = *self;
        Ok(Estimation { plan, rollouts, blind_rollouts, seed, ..Estimation::default() })
    }

    /// Where rates are kept until all are there.
    pub fn record(&self) -> PathBuf {
        let mut name = self.out.clone().into_os_string();
        name.push(".rates");
        name.into()
    }

    /// Everything that a rate depends on besides its question.
    pub fn settings(&self, folder: &Path, dtype: DType, estimation: &Estimation) -> serde_json::Value {
        let world = self.world.then(|| format!("{} {:?}", self.world_seed, self.split));
        json!({ "mllm": folder, "adapter": self.adapter, "dtype": dtype.as_str(), "fps": self.fps, "world": world, "estimation": estimation })
    }
}
