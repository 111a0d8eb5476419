//! The page of an evaluation: methods side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::chart::{Chart, Point, Series, Style, percent};
use super::html::{escape, facts, inline, page, warnings};
use super::numbers::{Axis, Unit, thousands};
use crate::statistics::Estimate;

/// Methods graded on the same questions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// Heading of the page.
    pub title: String,
    /// Settings worth knowing, name and value.
    pub facts: Vec<(String, String)>,
    /// Number of questions.
    pub questions: usize,
    /// Key frames behind the table.
    pub key_frames: usize,
    /// One per row, in the order to show them.
    pub methods: Vec<Method>,
    /// Mean reward of each step of training, by method, where one was trained for this.
    pub rewards: Vec<(String, Vec<f64>)>,
    /// What the reader should know.
    pub warnings: Vec<String>,
}

/// What a method reached. Accuracies are shares, 0 to 1, with 95 % intervals; where no interval is known, `low` and `high` equal
/// the mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// Over all questions.
    pub accuracy: Estimate,
    /// By family of questions.
    pub families: BTreeMap<String, Estimate>,
    /// Mean share of the evidence ranges that hold a key frame, where there is evidence.
    pub evidence_recall: Option<f64>,
    /// Runs with different seeds.
    pub seeds: usize,
    /// Accuracy by number of key frames.
    pub by_frames: BTreeMap<usize, Estimate>,
}

/// Most methods whose bands can be told apart in one picture.
const BANDS: usize = 4;

/// A column of the table: its name, and each method's value.
type Column<'a> = (String, Vec<Option<Estimate>>);

impl Evaluation {
    /// The page, complete in one file.
    pub fn html(&self) -> String {
        let mut about = vec![
            ("Questions".to_owned(), thousands(self.questions)),
            ("Key frames".to_owned(), thousands(self.key_frames)),
            ("Methods".to_owned(), thousands(self.methods.len())),
        ];
        about.extend(self.facts.iter().cloned());
        let mut body = format!(
            "<header><p class=\"kicker\">Evaluation</p><h1 dir=\"auto\">{}</h1>{}</header>{}",
            escape(&self.title),
            facts(&about),
            warnings(&self.warnings)
        );
        let _ = write!(body, "<section><h2>Accuracy by method</h2>{}</section>", self.table());
        if self.methods.iter().any(|method| !method.by_frames.is_empty()) {
            let _ = write!(body, "<section><h2>Accuracy over key frames</h2>{}</section>", self.chart());
        }
        if !self.rewards.is_empty() {
            let _ = write!(body, "<section><h2>Reward over training</h2>{}</section>", self.rewards());
        }
        page(&self.title, "", &body)
    }

    fn rewards(&self) -> String {
        let series = self.rewards.iter().map(|(name, rewards)| {
            let point = |(at, &y): (usize, &f64)| Point { x: (at + 1) as f64, y, low: y, high: y };
            let points = rewards.iter().enumerate().map(point).collect();
            Series { name: name.clone(), style: Style::Line, band: false, points }
        });
        Chart {
            id: "rewards".to_owned(),
            title: "Reward over the steps of training".to_owned(),
            note: "Means over the seeds and the trajectories of a step; rewards that leave out a part end lower.".to_owned(),
            x: "step",
            y: "reward",
            unit: Unit::Plain,
            series: series.collect(),
        }
        .html()
    }

    fn columns(&self) -> Vec<Column<'_>> {
        let names: BTreeSet<&String> =
            self.methods.iter().flat_map(|method| method.families.keys()).collect();
        let column = |of: &dyn Fn(&Method) -> Option<Estimate>| -> Vec<Option<Estimate>> {
            self.methods.iter().map(|method| of(method).filter(|e| e.mean.is_finite())).collect()
        };
        let mut columns = vec![("All".to_owned(), column(&|method| Some(method.accuracy)))];
        for name in names {
            columns.push((inline(name), column(&|method| method.families.get(name).copied())));
        }
        let recall = |method: &Method| {
            let mean = method.evidence_recall?;
            Some(Estimate { mean, low: mean, high: mean })
        };
        if self.methods.iter().any(|method| method.evidence_recall.is_some()) {
            columns.push(("Evidence found".to_owned(), column(&recall)));
        }
        columns
    }

    fn table(&self) -> String {
        if self.methods.is_empty() {
            return "<p class=\"none\">No method was graded.</p>".to_owned();
        }
        let columns = self.columns();
        let ends = self.methods.iter().flat_map(|m| [m.accuracy.low, m.accuracy.mean, m.accuracy.high]);
        let axis = Axis::around(&ends.collect::<Vec<_>>(), Unit::Share);
        let (from, to) = match (axis.ticks.first(), axis.ticks.last()) {
            (Some((_, from)), Some((_, to))) => (from.as_str(), to.as_str()),
            _ => ("0", "100"),
        };
        let mut out = format!(
            "<p class=\"note\">Percent of right answers, in brackets the 95 % interval. <span class=\"best\">Best</span> \
             of a column: bold with a star. Lines in the column All: interval and mean between {from} and {to} %.</p>\
             <div class=\"scroll whole\" tabindex=\"0\" role=\"region\" aria-label=\"Accuracy by method\">\
             <table class=\"methods\"><caption>Accuracy with {} key frames on {} questions</caption><thead><tr>\
             <th scope=\"col\">Method</th>",
            self.key_frames,
            thousands(self.questions)
        );
        for (name, _) in &columns {
            let _ = write!(out, "<th scope=\"col\">{name}</th>");
        }
        out.push_str("<th scope=\"col\">Seeds</th></tr></thead><tbody>");
        let best: Vec<f64> = columns.iter().map(|(_, values)| best(values)).collect();
        for (row, method) in self.methods.iter().enumerate() {
            let _ = write!(out, "<tr><th scope=\"row\" dir=\"auto\">{}</th>", escape(&method.name));
            for (at, (_, values)) in columns.iter().enumerate() {
                out.push_str(&cell(values[row], best[at], (at == 0).then_some(&axis)));
            }
            let _ = write!(out, "<td>{}</td></tr>", method.seeds);
        }
        out + "</tbody></table></div>"
    }

    fn chart(&self) -> String {
        let last = |method: &Method| method.by_frames.last_key_value().map(|(_, e)| e.mean);
        let most = self.methods.iter().filter_map(last).fold(f64::NEG_INFINITY, f64::max);
        let many = self.methods.len() > BANDS;
        let series = self.methods.iter().map(|method| {
            let point =
                |(&k, e): (&usize, &Estimate)| Point { x: k as f64, y: e.mean, low: e.low, high: e.high };
            Series {
                name: method.name.clone(),
                style: Style::Marked,
                band: !many || last(method) == Some(most),
                points: method.by_frames.iter().map(point).collect(),
            }
        });
        let note = match many {
            true => {
                "Lines connect means. The band is the 95 % interval of the best method; the others are in the table."
            }
            false => "Lines connect means; bands are the 95 % intervals.",
        };
        Chart {
            id: "by-frames".to_owned(),
            title: "Accuracy over the number of key frames".to_owned(),
            note: note.to_owned(),
            x: "key frames",
            y: "right answers (%)",
            unit: Unit::Share,
            series: series.collect(),
        }
        .html()
    }
}

/// The largest mean.
fn best(values: &[Option<Estimate>]) -> f64 {
    values.iter().flatten().map(|estimate| estimate.mean).fold(f64::NEG_INFINITY, f64::max)
}

fn cell(value: Option<Estimate>, best: f64, axis: Option<&Axis>) -> String {
    let Some(Estimate { mean, low, high }) = value else { return "<td>–</td>".to_owned() };
    let say = |value| Unit::Share.say(value);
    let wide = low.is_finite() && high.is_finite() && high > low;
    let interval = if wide { format!("<small>[{}, {}]</small>", say(low), say(high)) } else { String::new() };
    let line = axis.filter(|_| wide).map_or(String::new(), |axis| {
        let [low, mean, high] = [low, mean, high].map(|value| percent(axis.place(value)));
        format!(
            "<svg class=\"interval\" aria-hidden=\"true\"><line x1=\"{low}\" x2=\"{high}\" y1=\"50%\" y2=\"50%\"/>\
             <circle cx=\"{mean}\" cy=\"50%\" r=\"3.5\"/></svg>"
        )
    });
    match mean >= best {
        true => format!(
            "<td class=\"best\">{line}<b>{}<span aria-hidden=\"true\"> ★</span><span class=\"hidden\"> best</span></b>\
             {interval}</td>",
            say(mean)
        ),
        false => format!("<td>{line}<span class=\"mean\">{}</span>{interval}</td>", say(mean)),
    }
}
