//! Turn 1: asking the model what to look for, and reading its visual queries.
//!
//! The asked form is `<think>…</think>` and then one `<query>…</query>` per query. Other common forms (JSON, lists,
//! unclosed tags) are read too and marked [`Form::Lenient`]; when nothing can be read the question itself becomes the
//! query, marked [`Form::Fallback`].

use std::collections::HashSet;

use serde::Serialize;

use super::markup;
use super::question::Question;
use crate::error::{Error, Result};
use crate::text::query::lists::{json_items, list_items, strip_marker};

mod lists;

/// Longest query in words. CLIP reads 77 tokens including both ends, and English takes about 4 tokens for 3 words.
pub const MAX_WORDS: usize = 48;
/// Longest query in characters, for text without blanks.
pub const MAX_CHARS: usize = 280;

const TAGS: [&str; 2] = ["query", "queries"];
const EXAMPLES: [&str; 2] = ["first picture to look for", "second picture to look for"];

/// How closely a reply kept to the asked form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Reasoning, then 1 to `max` distinct queries of fitting length in their tags, and nothing else.
    Exact,
    /// Queries could be read, but the form was another.
    Lenient,
    /// Nothing could be read; the question's text stands in.
    Fallback,
}

/// The visual queries of one reply: never empty, trimmed, distinct, at most as many as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queries {
    /// What CLIP will look for.
    pub queries: Vec<String>,
    /// How they were read.
    pub form: Form,
    /// Queries left out because more than `max` came.
    pub surplus: usize,
    /// Queries left out because they repeat an earlier one.
    pub repeated: usize,
    /// Queries cut to [`MAX_WORDS`] words or [`MAX_CHARS`] characters.
    pub shortened: usize,
}

/// The text of the query turn. `previews` frames, taken evenly from a video of `seconds`, are shown before it (0: none);
/// up to `max` queries are asked for.
pub fn prompt(question: &Question, previews: usize, seconds: f64, max: usize) -> String {
    let minutes = (seconds / 60.0).floor();
    let length = format!("{minutes}:{:02} minutes", (seconds - 60.0 * minutes).floor());
    let seen = match previews {
        0 => format!("There is a video of {length}; you do not see it yet."),
        _ => format!("These are {previews} small preview frames, taken evenly from a video of {length}."),
    };
    let task = if question.is_open() { "a question" } else { "a multiple-choice question" };
    let most = max.max(1);
    let count = if most == 1 { "1 visual query".to_owned() } else { format!("1 to {most} visual queries") };
    format!(
        "{seen} You will be asked {task} about the video:\n\n{question}\n\n\
         Do not answer it now. First choose what to look at: every second of the video will be compared with your \
         visual queries by CLIP, and the frames that match will be shown to you in full size.\n\
         Think briefly about what must be visible in a frame that settles the question. Then write {count}.\n\
         A good query describes one picture in 3 to 12 plain words: people, objects, clothing, actions, places, \
         colours or text on the screen. It is concrete and visible in a single frame. It is no question, says nothing \
         about sounds, order or reasons, and contains no \"not\". Different queries describe different pictures.\n\n\
         Reply in exactly this form:\n\
         <think>your brief reasoning</think>\n<query>{}</query>{}",
        EXAMPLES[0],
        if most > 1 { format!("\n<query>{}</query>", EXAMPLES[1]) } else { String::new() },
    )
}

/// A reply in the asked form.
pub fn well_formed<S: AsRef<str>>(reasoning: &str, queries: &[S]) -> String {
    let mut reply = format!("<think>{reasoning}</think>");
    for query in queries {
        reply.push_str(&format!("\n<query>{}</query>", query.as_ref()));
    }
    reply
}

/// The question itself as the only query.
pub fn of_question(question: &Question) -> Queries {
    let (text, shortened) = shorten(question.text());
    Queries {
        queries: vec![text],
        form: Form::Fallback,
        surplus: 0,
        repeated: 0,
        shortened: shortened.into(),
    }
}

/// Queries that the caller wrote; cut to CLIP's length like any others.
///
/// # Errors
/// [`Error::Input`] when none of them has a text.
pub fn given<S: AsRef<str>>(queries: &[S]) -> Result<Queries> {
    let mut read = Queries { queries: Vec::new(), form: Form::Exact, surplus: 0, repeated: 0, shortened: 0 };
    for text in queries.iter().filter_map(|text| clean(text.as_ref())) {
        let (text, shortened) = shorten(&text);
        read.shortened += usize::from(shortened);
        read.queries.push(text);
    }
    if read.queries.is_empty() {
        return Err(Error::Input("queries: expected at least one with a text, got none".into()));
    }
    Ok(read)
}

/// Reads the queries of a reply, at most `max` (taken as 1 when 0).
pub fn parse(reply: &str, question: &Question, max: usize) -> Queries {
    let max = max.max(1);
    let exact = exact_form(reply);
    let asked = exact.is_some();
    let candidates = exact.unwrap_or_else(|| lenient(reply));
    let offered = candidates.len();
    let mut read =
        Queries { queries: Vec::new(), form: Form::Lenient, surplus: 0, repeated: 0, shortened: 0 };
    let (mut seen, mut usable) = (HashSet::new(), 0);
    for (text, shortened) in candidates.iter().filter_map(|text| fitted(text)) {
        usable += 1;
        if !seen.insert(key(&text)) {
            read.repeated += 1;
        } else if read.queries.len() == max {
            read.surplus += 1;
        } else {
            read.shortened += usize::from(shortened);
            read.queries.push(text);
        }
    }
    if read.queries.is_empty() {
        let Queries { queries, form, shortened, .. } = of_question(question);
        return Queries { queries, form, shortened, ..read };
    }
    if asked && usable == offered && read.surplus + read.repeated + read.shortened == 0 {
        read.form = Form::Exact;
    }
    read
}

/// The contents of the query tags when the reply is the asked form to the letter (blanks between the tags aside).
fn exact_form(reply: &str) -> Option<Vec<String>> {
    let (reasoning, mut rest) = reply.trim().strip_prefix("<think>")?.split_once("</think>")?;
    if reasoning.trim().is_empty() || reasoning.contains("<query>") || reasoning.contains("<think>") {
        return None;
    }
    let mut queries = Vec::new();
    while !rest.trim_start().is_empty() {
        let (query, after) = rest.trim_start().strip_prefix("<query>")?.split_once("</query>")?;
        if query.contains(['<', '>', '\n', '\r']) || query.trim().is_empty() {
            return None;
        }
        queries.push(query.to_owned());
        rest = after;
    }
    (!queries.is_empty()).then_some(queries)
}

/// Whatever in the reply can safely be taken for queries: what follows the reasoning first, then the whole reply.
fn lenient(reply: &str) -> Vec<String> {
    let text = markup::without_fences(reply);
    let conclusion = markup::after_reasoning(&text);
    let parts = if conclusion.len() == text.len() { vec![conclusion] } else { vec![conclusion, &text] };
    for part in parts {
        for read in [tagged_items, json_items, list_items] {
            let items: Vec<String> = read(part).into_iter().filter(|item| clean(item).is_some()).collect();
            if !items.is_empty() {
                return items;
            }
        }
    }
    Vec::new()
}

/// Bodies of query tags; a body may hold JSON or one query per line. An unclosed one ends with its first line.
fn tagged_items(text: &str) -> Vec<String> {
    let mut items = Vec::new();
    for body in markup::bodies(text, &TAGS) {
        let json = json_items(body.text);
        if !json.is_empty() {
            items.extend(json);
            continue;
        }
        let lines = body.text.lines().filter(|line| !line.trim().is_empty());
        let lines = lines.take(if body.closed { usize::MAX } else { 1 });
        items.extend(lines.map(|line| strip_marker(line).unwrap_or(line).to_owned()));
    }
    items
}

/// One line without tags, control characters, quotes or emphasis around it; `None` when nothing is said, or when the
/// prompt's example came back.
fn clean(text: &str) -> Option<String> {
    let text = markup::without_tags(text, &["query", "queries", "think", "answer"]).replace(['<', '>'], " ");
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let wrapping = |c: char| c.is_whitespace() || "\"'“”‘’«»`*_[]{},;".contains(c);
    let text = words.join(" ").trim_matches(wrapping).to_owned();
    let says_something = text.chars().any(char::is_alphanumeric);
    (says_something && !EXAMPLES.contains(&text.as_str())).then_some(text)
}

/// A cleaned text of fitting length, and whether it was cut.
fn fitted(text: &str) -> Option<(String, bool)> {
    let (text, shortened) = shorten(&clean(text)?);
    // a cut may leave a comma or a quote at the new end
    Some((clean(&text)?, shortened))
}

/// Cuts at a word's end, or within a word longer than [`MAX_CHARS`].
fn shorten(text: &str) -> (String, bool) {
    let mut kept = String::new();
    let mut length = 0;
    for (count, word) in text.split_whitespace().enumerate() {
        let added = word.chars().count() + usize::from(count > 0);
        if count == MAX_WORDS || length + added > MAX_CHARS {
            if kept.is_empty() {
                kept.extend(word.chars().take(MAX_CHARS));
            }
            return (kept, true);
        }
        if count > 0 {
            kept.push(' ');
        }
        kept.push_str(word);
        length += added;
    }
    (kept, false)
}

/// What two spellings of the same query share.
fn key(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}
