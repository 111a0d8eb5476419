//! What `evolve` and `pretrain_sampler` share: where a run begins, its progress, and what is said at its end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use msjoe::data::world::Spec;
use msjoe::hub::Hub;
use msjoe::rl::config::EvolveConfig;
use msjoe::rl::evaluate::Summary;
use msjoe::rl::evolve::{Event, Report};
use msjoe::rl::run::{Build, Run, dated};
use msjoe::rl::settings::{Data, Evaluation, Models, Pretraining, Settings};

use super::Stop;

/// A new run, or one to go on with.
#[derive(Args)]
pub struct Training {
    /// Settings of a new run
    #[arg(long, required_unless_present_any = ["resume", "print_config"])]
    pub config: Option<PathBuf>,
    /// Folder that new runs are made in, by date and the settings file's name
    #[arg(long, default_value = "runs")]
    pub out: PathBuf,
    /// Goes on with a run
    #[arg(long, conflicts_with = "config")]
    pub resume: Option<PathBuf>,
    /// Prints a settings file with every default and ends
    #[arg(long)]
    pub print_config: bool,
    /// The report as JSON
    #[arg(long)]
    pub json: bool,
}

impl Training {
    /// The run, with its settings as they are in its folder; `adjust` is applied to those of a new run, and models that are
    /// named are fetched. `None` when only the settings were to be printed.
    pub fn begin(
        &self,
        stop: &Stop,
        adjust: impl Fn(Settings) -> Result<Settings>,
    ) -> Result<Option<(Run, Settings)>> {
        if self.print_config {
            print!("{}{WITHOUT_DEFAULT}", toml::to_string(&example())?);
            return Ok(None);
        }
        let (run, settings) = match (&self.resume, &self.config) {
            (Some(folder), _) => {
                let run = Run::open(folder)?;
                let settings = run.config()?;
                (run, settings)
            }
            (None, Some(path)) => {
                let mut settings = adjust(read(path)?).with_context(|| path.display().to_string())?;
                refuse(&settings, stop).with_context(|| path.display().to_string())?;
                let name = path.file_stem().map_or("run".into(), |stem| stem.to_string_lossy());
                let hub = Hub::from_env()?;
                for model in [&mut settings.models.mllm, &mut settings.models.clip] {
                    *model = super::fetch(&hub, &model.to_string_lossy(), stop)?;
                }
                // Before there is a folder: what cannot be run is no run.
                settings.plans().with_context(|| path.display().to_string())?;
                let build = Build::new(settings.models.device.as_str());
                (Run::create(dated(&self.out, &name)?, &settings, &build)?, settings)
            }
            (None, None) => bail!("give --config FILE for a new run, or --resume FOLDER to go on with one"),
        };
        eprintln!("run: {}", run.folder().display());
        Ok(Some((run, settings)))
    }

    /// Says what came of the run.
    pub fn end(&self, run: &Run, report: msjoe::Result<Report>) -> Result<()> {
        let page = run.folder().join(msjoe::report::FILE);
        if page.is_file() {
            eprintln!("report: {}", page.display());
        }
        let report = report.with_context(|| format!("go on with --resume {}", run.folder().display()))?;
        match (self.json, &report.best) {
            (true, _) => println!("{}", serde_json::to_string_pretty(&report)?),
            (false, Some(best)) => println!("best: {}", best.display()),
            (false, None) => {}
        }
        Ok(())
    }

    /// Shows progress on stderr and evaluations on stdout.
    pub fn observer(&self, stop: &Stop) -> Result<impl FnMut(Event) -> bool + use<>> {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} {eta} left {msg}")?);
        let (json, stop) = (self.json, stop.clone());
        Ok(move |event: Event| {
            match event {
                Event::Memory(stage, plan) => bar.suspend(|| eprintln!("{stage}: memory, at most:\n{plan}")),
                Event::Warning(text) => bar.suspend(|| eprintln!("warning: {text}")),
                Event::Stage(name, steps) => {
                    bar.suspend(|| eprintln!("{name}: {steps} steps"));
                    bar.set_length(steps);
                    bar.set_position(0);
                    bar.reset_eta();
                }
                Event::Preparing(what, done, of) => bar.set_message(format!("{what} {done}/{of}")),
                Event::Step { step, values } => {
                    let shown = [
                        ("reward", "reward"),
                        ("accuracy", "rewards/accuracy"),
                        ("entropy", "entropy"),
                        ("sampler's entropy", "sampler/entropy"),
                    ];
                    let said = |(word, name): (&str, &str)| {
                        values.get(name).map(|value| format!("{word} {value:.2}"))
                    };
                    bar.set_position(step);
                    bar.set_message(shown.into_iter().filter_map(said).collect::<Vec<_>>().join(", "));
                }
                Event::Evaluated { step, summary } => bar.suspend(|| {
                    if !json {
                        println!("step {step}: {}", line(summary));
                    }
                }),
            }
            stop.flow().is_continue()
        })
    }
}

/// What the printed settings cannot show.
const WITHOUT_DEFAULT: &str = "
# Left out above, since they are off or follow from others:
#   models.sampler = \"FILE\"                  begin with this sampler
#   evolve.plan.previews = N                 previews of a query turn; half of the key frames
#   evolve.model.grpo.delta = X              upper bound of the ratio where the advantage is negative; none
#   evolve.model.grpo.off_policy = X         what a completion of negative advantage may have lost in log-probability and count; none
#   evolve.sampler.agent = {}                a temporal agent in place of the network
#   [data] kind = \"files\": train, validation, fps, cache
";

/// What can be refused before models are fetched.
fn refuse(settings: &Settings, stop: &Stop) -> Result<()> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} questions looked through, {eta} left")?);
    let refused = settings.refuse(&mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        stop.flow().is_continue()
    });
    bar.finish_and_clear();
    Ok(refused?)
}

fn read(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

fn line(summary: &Summary) -> String {
    let families: Vec<String> =
        summary.families.iter().map(|(name, share)| format!("{name} {share:.2}")).collect();
    format!(
        "accuracy {:.3} +- {:.3} of {} ({})",
        summary.accuracy,
        summary.interval,
        summary.questions,
        families.join(", ")
    )
}

fn example() -> Settings {
    Settings {
        models: Models::new("models/toy/mllm", "models/toy/clip"),
        data: Data::World { seed: 1, spec: Spec::default(), videos: 300 },
        evaluation: Evaluation::default(),
        save_every: 50,
        pretrain: Some(Pretraining::default()),
        evolve: EvolveConfig::default(),
    }
}
