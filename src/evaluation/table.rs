//! The results as Markdown.

use std::fmt::Write;

use super::results::{Results, Row};
use crate::pipeline::Step;
use crate::statistics::Estimate;

/// Most values of a group that become columns.
const COLUMNS: usize = 12;
const STEPS: [Step; 6] = [Step::Watch, Step::Ask, Step::Compare, Step::Sample, Step::Fetch, Step::Answer];

impl Results {
    /// Tables in percent: methods by K, each compared with the first one; accuracy over K; time and tokens per step.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for frames in self.frames() {
            self.methods(&mut text, frames);
        }
        if self.frames().len() > 1 {
            self.curve(&mut text);
        }
        self.costs(&mut text);
        text
    }

    fn methods(&self, text: &mut String, frames: usize) {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.frames == frames).collect();
        let Some(first) = rows.first() else { return };
        let mut values: Vec<&str> = vec![];
        for group in rows.iter().flat_map(|row| &row.groups).filter(|group| group.name == self.main_group) {
            if !values.contains(&group.value.as_str()) {
                values.push(&group.value);
            }
        }
        values.truncate(COLUMNS);
        let evidence = rows.iter().any(|row| row.evidence_recall.is_some());
        let heads: String = values.iter().map(|value| format!(" {} |", cell(value))).collect();
        let found = if evidence { " evidence recall | hit rate |" } else { "" };
        let _ = writeln!(
            text,
            "| K = {frames} | accuracy % (95 %) | better than {} by (95 %) | McNemar p |{heads}{found} questions | seeds |",
            first.method
        );
        let columns = 6 + values.len() + if evidence { 2 } else { 0 };
        let _ = writeln!(text, "|{}", "---|".repeat(columns));
        for row in &rows {
            let accuracy = row.accuracy.as_ref().map_or("-".to_owned(), Estimate::percent);
            let (better, p) = match self.compared(&row.method, &first.method, frames) {
                Some((better, test)) => (better.percent(), p_value(test.p)),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let of_value = |value: &&str| {
                let group = row.groups.iter().find(|g| g.name == self.main_group && g.value == **value);
                group.map_or(" - |".to_owned(), |group| format!(" {:.0} |", 100. * group.accuracy.mean))
            };
            let shares: String = values.iter().map(of_value).collect();
            let say = |share: Option<f64>| share.map_or(" - |".to_owned(), |share| format!(" {share:.2} |"));
            let found = match evidence {
                true => say(row.evidence_recall) + &say(row.hit_rate),
                false => String::new(),
            };
            let seeds = if row.seeds > 1 { row.seeds.to_string() } else { "-".to_owned() };
            let _ = writeln!(
                text,
                "| {} | {accuracy} | {better} | {p} |{shares}{found} {} | {seeds} |",
                row.method, row.questions
            );
        }
        text.push('\n');
    }

    fn curve(&self, text: &mut String) {
        let frames = self.frames();
        let heads: String = frames.iter().map(|k| format!(" K = {k} |")).collect();
        let _ = writeln!(text, "| accuracy % (95 %) |{heads}\n|---|{}", "---|".repeat(frames.len()));
        for method in self.method_names() {
            let of = |k: &usize| {
                let row = self.rows.iter().find(|row| row.method == method && row.frames == *k);
                row.and_then(|row| row.accuracy.as_ref())
                    .map_or(" - |".to_owned(), |e| format!(" {} |", e.percent()))
            };
            let _ = writeln!(text, "| {method} |{}", frames.iter().map(of).collect::<String>());
        }
        text.push('\n');
    }

    /// Methods in their order.
    pub(super) fn method_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = vec![];
        for row in &self.rows {
            if !names.contains(&row.method.as_str()) {
                names.push(&row.method);
            }
        }
        names
    }

    /// The paper's Table 4.
    fn costs(&self, text: &mut String) {
        let heads: String = STEPS.iter().map(|&step| format!(" {} |", step.name())).collect();
        let _ = writeln!(
            text,
            "| seconds per question | K |{heads} sum | prompt tokens | visual tokens | new tokens | frames |\n|---|---|{}",
            "---|".repeat(STEPS.len() + 5)
        );
        for row in self.rows.iter().filter(|row| row.answers > 0) {
            let seconds = |step: &Step| row.steps.get(step).map_or(0., |mean| mean.seconds);
            let say = |step: &Step| match row.steps.contains_key(step) {
                true => format!(" {} |", time(seconds(step))),
                false => " - |".to_owned(),
            };
            let shares: String = STEPS.iter().map(say).collect();
            let sum: f64 = STEPS.iter().map(seconds).sum();
            let tokens = |of: fn(&super::results::Mean) -> f64| row.steps.values().map(of).sum::<f64>();
            let _ = writeln!(
                text,
                "| {} | {} |{shares} {} | {:.0} | {:.0} | {:.0} | {:.1} |",
                row.method,
                row.frames,
                time(sum),
                tokens(|mean| mean.prompt_tokens),
                tokens(|mean| mean.visual_tokens),
                tokens(|mean| mean.new_tokens),
                row.key_frames
            );
        }
    }
}

/// Three digits that matter.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 100. => format!("{s:.0}"),
        s if s >= 10. => format!("{s:.1}"),
        s if s >= 1. => format!("{s:.2}"),
        s if s >= 0.001 => format!("{s:.3}"),
        s => format!("{s:.4}"),
    }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// A text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
