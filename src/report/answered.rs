//! The page of one answered question.

use std::fmt::Write;
use std::ops::Range;

use super::heat;
use super::html::{Table, block, escape, facts, page, warnings};
use super::numbers::{clock, number, thousands, took};
use super::picture::Picture;
use super::timeline::timeline;
use crate::text::labels::letter;

/// An answered question, or one for which frames were only chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answered {
    /// Name of the video.
    pub video: String,
    /// Its length in seconds.
    pub duration: f64,
    /// The question's text.
    pub question: String,
    /// Its options without labels; empty for an open question.
    pub options: Vec<String>,
    /// Settings worth knowing, name and value.
    pub facts: Vec<(String, String)>,
    /// The visual queries (Q).
    pub queries: Vec<String>,
    /// Presentation time of every candidate frame in seconds (T), ascending.
    pub candidates: Vec<f64>,
    /// Cosine similarity of queries and candidates (Q, T).
    pub similarity: Vec<Vec<f32>>,
    /// Distribution over the candidates (T); empty where the method has none.
    pub weights: Vec<f32>,
    /// The key frames (K), ascending.
    pub frames: Vec<Frame>,
    /// Where the answer can be seen, in seconds; empty where that is not known.
    pub evidence: Vec<Range<f64>>,
    /// The turn that wrote the queries.
    pub asked: Option<Said>,
    /// The turn that answered.
    pub answered: Option<Said>,
    /// The answer in the model's words; `None` when frames were only chosen.
    pub answer: Option<String>,
    /// The option that it means.
    pub choice: Option<usize>,
    /// The right option, where it is known.
    pub right: Option<usize>,
    /// What each step took.
    pub steps: Vec<Cost>,
    /// What the reader should know although it was no error.
    pub warnings: Vec<String>,
}

/// A chosen frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Number among the candidates.
    pub index: usize,
    /// Presentation time in seconds.
    pub seconds: f64,
    /// Its weight in the distribution.
    pub weight: f32,
    /// What is on it.
    pub picture: Option<Picture>,
}

/// A turn of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// What it thought, without tags; may be empty.
    pub reasoning: String,
    /// The whole reply as it came.
    pub reply: String,
}

/// What a step took.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Which step.
    pub step: String,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Tokens of the prompt, visual tokens among them, and new ones; `None` where the model had no part.
    pub tokens: Option<[usize; 3]>,
}

impl Answered {
    /// The page, complete in one file.
    pub fn html(&self) -> String {
        let mut about = vec![
            ("Video".to_owned(), self.video.clone()),
            ("Length".to_owned(), clock(self.duration)),
            ("Candidate frames".to_owned(), thousands(self.candidates.len())),
            ("Key frames".to_owned(), thousands(self.frames.len())),
        ];
        about.extend(self.facts.iter().cloned());
        let mut body = format!(
            "<header><p class=\"kicker\">Question about a video</p><h1 dir=\"auto\">{}</h1>{}</header>",
            escape(self.question.trim()),
            facts(&about)
        );
        body.push_str(&self.answer_card());
        body.push_str(&warnings(&self.warnings));
        body.push_str("<section class=\"when\"><h2>Where the answer was looked for</h2>");
        body.push_str(&timeline(self));
        body.push_str("</section>");
        body.push_str(&self.reasoning());
        body.push_str(&self.costs());
        page(&self.question, &heat::style(), &body)
    }

    fn answer_card(&self) -> String {
        let mut out = String::from("<section class=\"answer\"><h2>Answer</h2>");
        match (&self.answer, self.choice, self.right) {
            (None, ..) => {
                out.push_str("<p class=\"none\">Frames were chosen; the question was not answered.</p>")
            }
            (Some(_), Some(choice), Some(right)) if choice == right => {
                out.push_str("<p class=\"verdict good\"><span aria-hidden=\"true\">✓</span> Right</p>");
            }
            (Some(_), _, Some(_)) => {
                out.push_str("<p class=\"verdict bad\"><span aria-hidden=\"true\">✗</span> Wrong</p>");
            }
            (Some(_), None, None) if !self.options.is_empty() => {
                out.push_str("<p class=\"verdict\">No option could be told from the answer.</p>");
            }
            _ => {}
        }
        if !self.options.is_empty() {
            out.push_str("<ol class=\"options\">");
            for (at, option) in self.options.iter().enumerate() {
                let (chosen, right) = (self.choice == Some(at), self.right == Some(at));
                let class = match (chosen, right) {
                    (true, false) if self.right.is_some() => "chosen wrong",
                    (true, _) => "chosen",
                    (false, true) => "right",
                    _ => "",
                };
                let words = match (chosen, right) {
                    (true, true) => "<em>answered, right</em>",
                    (true, false) => "<em>answered</em>",
                    (false, true) => "<em>right answer</em>",
                    _ => "",
                };
                let letter = letter(at);
                let _ = write!(
                    out,
                    "<li class=\"{class}\"><b>{letter}</b><span dir=\"auto\">{}</span>{words}</li>",
                    escape(option)
                );
            }
            out.push_str("</ol>");
        }
        if let Some(answer) = &self.answer {
            let told = self.choice.and_then(|choice| Some((letter(choice), self.options.get(choice)?)));
            match told {
                None => out.push_str(&block("said large", answer)),
                // The option says it all.
                Some((letter, option))
                    if [&letter.to_string(), option].contains(&&answer.trim().to_owned()) => {}
                Some(_) => out.push_str(&block("said", answer)),
            }
        }
        out + "</section>"
    }

    fn reasoning(&self) -> String {
        let turn = |name: &str, said: &Option<Said>| {
            let Some(said) = said else { return String::new() };
            let mut out = format!("<article><h3>{name}</h3>");
            if !said.reasoning.trim().is_empty() {
                out.push_str(&block("thought", &said.reasoning));
            }
            let _ = write!(
                out,
                "<details><summary>The reply as it came</summary><pre dir=\"auto\">{}</pre></details></article>",
                escape(said.reply.trim())
            );
            out
        };
        let (asked, answered) =
            (turn("Before the search", &self.asked), turn("Before the answer", &self.answered));
        if asked.is_empty() && answered.is_empty() {
            return String::new();
        }
        format!(
            "<section class=\"turns\"><h2>Reasoning</h2><div class=\"two\">{asked}{answered}</div></section>"
        )
    }

    fn costs(&self) -> String {
        if self.steps.is_empty() {
            return String::new();
        }
        let total: f64 = self.steps.iter().map(|cost| cost.seconds).filter(|s| s.is_finite()).sum();
        let (mut bar, mut from) = (String::new(), 0.0);
        let mut rows = vec![];
        for (at, cost) in self.steps.iter().enumerate() {
            let share = if total > 0.0 { cost.seconds.max(0.0) / total } else { 0.0 };
            let (x, width) = (heat::unit(from), heat::unit(share));
            let _ =
                write!(bar, "<rect class=\"s{}\" x=\"{x}\" y=\"0\" width=\"{width}\" height=\"1\"/>", at % 6);
            from += share;
            let key = format!(
                "<i class=\"key s{}\" aria-hidden=\"true\"></i><bdi>{}</bdi>",
                at % 6,
                escape(&cost.step)
            );
            let token =
                |which: usize| cost.tokens.map_or("–".to_owned(), |tokens| thousands(tokens[which]));
            rows.push(vec![
                key,
                took(cost.seconds),
                format!("{:.0} %", 100.0 * share),
                token(0),
                token(1),
                token(2),
            ]);
        }
        let sum =
            |which: usize| thousands(self.steps.iter().filter_map(|cost| Some(cost.tokens?[which])).sum());
        rows.push(vec!["All".to_owned(), took(total), "100 %".to_owned(), sum(0), sum(1), sum(2)]);
        let head =
            ["Step", "Time", "Share", "Prompt tokens", "of them visual", "New tokens"].map(str::to_owned);
        let caption = "Wall-clock time and tokens of each step".to_owned();
        let table = Table { caption, head: head.to_vec(), rows };
        format!(
            "<section class=\"costs\"><h2>What it took</h2><svg class=\"strip\" viewBox=\"0 0 10000 1\" \
             preserveAspectRatio=\"none\" aria-hidden=\"true\">{bar}</svg><div class=\"scroll\" tabindex=\"0\" \
             role=\"region\" aria-label=\"What it took\">{}</div></section>",
            table.html()
        )
    }
}

/// A number, or that there is none.
pub(super) fn finite(value: f64) -> String {
    if value.is_finite() { number(value) } else { "–".to_owned() }
}
