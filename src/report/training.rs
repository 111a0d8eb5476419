//! The page of a training run, or of several that differ in their seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::chart::{Chart, Point, Series, Style};
use super::html::{Table, escape, facts, page, warnings};
use super::numbers::{Unit, thousands, took};
use crate::error::Result;
use crate::metrics::{self, Line};
use crate::rl::evaluate::Summary;
use crate::statistics::Estimate;

/// Runs of one setting.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Training {
    /// Heading of the page.
    pub title: String,
    /// Settings worth knowing, name and value.
    pub facts: Vec<(String, String)>,
    /// One per seed.
    pub runs: Vec<Run>,
    /// What the reader should know.
    pub warnings: Vec<String>,
}

/// A run's record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Such as `seed 3`.
    pub name: String,
    /// Numbers by step, as [`metrics::read`] gives them.
    pub lines: Vec<Line>,
    /// Accuracy of each evaluation by step. When empty, `eval_accuracy` of `lines` stands in, without intervals.
    pub evaluations: BTreeMap<u64, Estimate>,
}

impl Run {
    /// The record in a run's folder.
    ///
    /// # Errors
    /// As [`metrics::read`].
    pub fn read(name: impl Into<String>, folder: impl AsRef<Path>) -> Result<Self> {
        let lines = metrics::read(folder.as_ref().join(metrics::FILE))?;
        Ok(Self { name: name.into(), lines, evaluations: BTreeMap::new() })
    }

    /// With the intervals of a run's report.
    pub fn with_evaluations(mut self, evaluations: &BTreeMap<u64, Summary>) -> Self {
        let estimate = |summary: &Summary| Estimate {
            mean: summary.accuracy,
            low: (summary.accuracy - summary.interval).max(0.0),
            high: (summary.accuracy + summary.interval).min(1.0),
        };
        self.evaluations = evaluations.iter().map(|(&step, summary)| (step, estimate(summary))).collect();
        self
    }

    /// A metric by step.
    fn curve(&self, metric: &str) -> BTreeMap<u64, f64> {
        let value = |line: &Line| Some((line.step, *line.values.get(metric)?));
        self.lines.iter().filter_map(value).collect()
    }

    fn evaluated(&self) -> BTreeMap<u64, Estimate> {
        if !self.evaluations.is_empty() {
            return self.evaluations.clone();
        }
        let bare = |mean| Estimate { mean, low: mean, high: mean };
        self.curve("eval_accuracy").into_iter().map(|(step, mean)| (step, bare(mean))).collect()
    }
}

/// A chart of the page.
struct Plan {
    title: &'static str,
    note: &'static str,
    y: &'static str,
    unit: Unit,
    /// Metric and its name in the legend.
    metrics: &'static [(&'static str, &'static str)],
}

const ACCURACY: &str = "Accuracy";

const PLANS: [Plan; 11] = [
    Plan {
        title: "Reward and its parts",
        note: "Means over the trajectories of a step.",
        y: "reward",
        unit: Unit::Plain,
        metrics: &[
            ("reward", "reward"),
            ("rewards/accuracy", "accuracy part"),
            ("rewards/format", "format part"),
            ("rewards/info", "information part"),
        ],
    },
    Plan {
        title: ACCURACY,
        note: "Right answers in training, sampled, and in evaluations, greedy.",
        y: "right answers (%)",
        unit: Unit::Share,
        metrics: &[("rewards/accuracy", "training")],
    },
    Plan {
        title: "Evidence found",
        note: "Share of the evidence that holds a key frame.",
        y: "evidence ranges (%)",
        unit: Unit::Share,
        metrics: &[("evidence_recall", "training"), ("eval_evidence_recall", "evaluation")],
    },
    Plan {
        title: "Groups without a signal",
        note: "Groups whose trajectories all got the same reward teach nothing.",
        y: "groups (%)",
        unit: Unit::Share,
        metrics: &[("frac_reward_zero_std", "no spread of reward")],
    },
    Plan {
        title: "Groups of one mind",
        note: "Groups in which every answer was right, or every answer wrong.",
        y: "groups",
        unit: Unit::Plain,
        metrics: &[("groups_all_right", "all right"), ("groups_all_wrong", "all wrong")],
    },
    Plan {
        title: "Entropy of the language model",
        note: "How undecided the model is about its next token.",
        y: "entropy (nats per token)",
        unit: Unit::Plain,
        metrics: &[("entropy", "entropy")],
    },
    Plan {
        title: "Entropy of the sampler",
        note: "How undecided the sampler is about its next frame.",
        y: "entropy (nats)",
        unit: Unit::Plain,
        metrics: &[("sampler/entropy", "entropy")],
    },
    Plan {
        title: "Clip ratio",
        note: "Tokens whose probability moved beyond the trust region.",
        y: "tokens (%)",
        unit: Unit::Share,
        metrics: &[
            ("clip_ratio", "either side"),
            ("clip_ratio/region_mean", "either side"),
            ("clip_ratio/low_mean", "too low"),
            ("clip_ratio/high_mean", "too high"),
            ("cispo_clip_ratio", "weight capped"),
        ],
    },
    Plan {
        title: "Divergence from the reference",
        note: "What the model moved away from where it began.",
        y: "KL (nats per token)",
        unit: Unit::Plain,
        metrics: &[("kl", "KL")],
    },
    Plan {
        title: "Gradient norm",
        note: "Before clipping.",
        y: "norm",
        unit: Unit::Plain,
        metrics: &[("grad_norm", "language model"), ("sampler/grad_norm", "sampler")],
    },
    Plan {
        title: "Length of replies",
        note: "Mean of both turns together.",
        y: "tokens",
        unit: Unit::Plain,
        metrics: &[("completions/mean_length", "new tokens")],
    },
];

impl Training {
    /// The page, complete in one file.
    pub fn html(&self) -> String {
        let (mut charts, mut missing) = (String::new(), vec![]);
        for (at, plan) in PLANS.iter().enumerate() {
            let series = self.series(plan);
            if series.is_empty() {
                missing.push(plan.title);
                continue;
            }
            let chart = Chart {
                id: format!("chart-{at}"),
                title: plan.title.to_owned(),
                note: plan.note.to_owned(),
                x: "step",
                y: plan.y,
                unit: plan.unit,
                series,
            };
            charts.push_str(&chart.html());
        }
        let seeds = match self.runs.len() {
            0 | 1 => "",
            _ => {
                "<p class=\"note\">Lines are means over the runs; bands reach from the lowest to the highest run.</p>"
            }
        };
        let missing = match missing.is_empty() {
            true => String::new(),
            false => {
                format!("<p class=\"note\">Not recorded here: {}.</p>", missing.join(", ").to_lowercase())
            }
        };
        let body = format!(
            "<header><p class=\"kicker\">Training</p><h1 dir=\"auto\">{}</h1>{}</header>{}\
             <section><h2>Runs</h2>{}</section><section><h2>Curves</h2>{seeds}<div class=\"charts\">{charts}</div>\
             {missing}</section>",
            escape(&self.title),
            facts(&self.facts),
            warnings(&self.warnings),
            self.overview()
        );
        page(&self.title, "", &body)
    }

    fn series(&self, plan: &Plan) -> Vec<Series> {
        let mut series = vec![];
        for &(metric, name) in plan.metrics {
            let points = self.together(metric);
            let style = if metric.starts_with("eval_") { Style::Marked } else { Style::Line };
            if !points.is_empty() {
                series.push(Series { name: name.to_owned(), style, band: true, points });
            }
        }
        if plan.title == ACCURACY {
            for run in &self.runs {
                let name = match self.runs.len() {
                    1 => "evaluation".to_owned(),
                    _ => format!("evaluation, {}", run.name.trim()),
                };
                let point = |(step, e): (u64, Estimate)| Point {
                    x: step as f64,
                    y: e.mean,
                    low: e.low,
                    high: e.high,
                };
                let points: Vec<Point> = run.evaluated().into_iter().map(point).collect();
                if !points.is_empty() {
                    series.push(Series { name, style: Style::Dots, band: true, points });
                }
            }
        }
        series
    }

    /// Mean and extremes of a metric over the runs that have it at a step.
    fn together(&self, metric: &str) -> Vec<Point> {
        let curves: Vec<BTreeMap<u64, f64>> = self.runs.iter().map(|run| run.curve(metric)).collect();
        let steps: BTreeSet<u64> = curves.iter().flat_map(BTreeMap::keys).copied().collect();
        let point = |step: u64| {
            let values = || curves.iter().filter_map(|curve| curve.get(&step)).copied();
            let low = values().fold(f64::INFINITY, f64::min);
            let high = values().fold(f64::NEG_INFINITY, f64::max);
            Point { x: step as f64, y: values().sum::<f64>() / values().count() as f64, low, high }
        };
        steps.into_iter().map(point).collect()
    }

    fn overview(&self) -> String {
        if self.runs.is_empty() {
            return "<p class=\"none\">There are no runs.</p>".to_owned();
        }
        let share = |value: f64| Unit::Share.say(value);
        let row = |run: &Run| {
            let evaluations = run.evaluated();
            let best = evaluations.iter().max_by(|a, b| a.1.mean.total_cmp(&b.1.mean).then(b.0.cmp(a.0)));
            let first = evaluations.first_key_value();
            let seconds = match (run.lines.first(), run.lines.last()) {
                (Some(first), Some(last)) => last.time - first.time,
                _ => 0.0,
            };
            let (last, reward) = (run.lines.last().map_or(0, |line| line.step), run.curve("reward"));
            vec![
                format!("<bdi>{}</bdi>", escape(&run.name)),
                thousands(last as usize),
                reward
                    .last_key_value()
                    .map_or("–".to_owned(), |(_, value)| super::answered::finite(*value)),
                first.map_or("–".to_owned(), |(step, e)| format!("{} at step {step}", share(e.mean))),
                best.map_or("–".to_owned(), |(step, e)| format!("<b>{}</b> at step {step}", share(e.mean))),
                took(seconds.max(0.0)),
            ]
        };
        let head = ["Run", "Steps", "Last reward", "First evaluation (%)", "Best evaluation (%)", "Time"];
        let table = Table {
            caption: "Where each run began and what it reached".to_owned(),
            head: head.map(str::to_owned).to_vec(),
            rows: self.runs.iter().map(row).collect(),
        };
        format!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Runs\">{}</div>",
            table.html()
        )
    }
}
