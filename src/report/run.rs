//! From a run's folder to its page.

use std::collections::BTreeMap;
use std::path::Path;

use super::training::{Run, Training};
use crate::error::Result;
use crate::rl::config::Learn;
use crate::rl::evaluate::Summary;
use crate::rl::settings::{Data, Settings};

/// Name of the page in a run's folder.
pub const FILE: &str = "report.html";

impl Training {
    /// What is recorded in a run's folder, with the intervals of its `evaluations`.
    ///
    /// # Errors
    /// As [`Run::read`].
    pub fn of_run(folder: &Path, settings: &Settings, evaluations: &BTreeMap<u64, Summary>) -> Result<Self> {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let run = Run::read(format!("seed {}", settings.evolve.seed), folder)?.with_evaluations(evaluations);
        Ok(Self {
            title: name.unwrap_or_else(|| "A run".to_owned()),
            facts: facts(settings),
            runs: vec![run],
            warnings: vec![],
        })
    }
}

fn facts(settings: &Settings) -> Vec<(String, String)> {
    let run = &settings.evolve;
    let data = match &settings.data {
        Data::World { seed, videos, .. } => format!("toy world of seed {seed}, {videos} videos"),
        Data::Files { train, .. } => train.display().to_string(),
    };
    let model = match &run.model.learn {
        Learn::Nothing => "frozen".to_owned(),
        Learn::Everything => format!("all of the text model, rate {:e}", run.model.rate.peak),
        Learn::Adapters { rank, .. } => format!("adapters of rank {rank}, rate {:e}", run.model.rate.peak),
    };
    let sampler = match run.sampler.learn {
        true => format!("learns, rate {:e}", run.sampler.rate.peak),
        false => "frozen".to_owned(),
    };
    let facts = [
        ("Questions", data),
        ("A step", format!("{} questions of {} trajectories", run.questions, run.generations)),
        ("Steps planned", run.steps.to_string()),
        ("Key frames", run.plan.key_frames.to_string()),
        ("Language model", model),
        ("Sampler", sampler),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
