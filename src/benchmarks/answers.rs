//! A row's question, options and answer, checked against each other.

use serde_json::Value;

use super::options;
use super::rows::{Row, brief};
use crate::text::{Question, labels, one_line};

/// How an answer that could be read both ways is meant: `A` beside the options `B`, `A`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reading {
    Letter,
    Text,
}

/// What a row asks. `reading` is that of a file in which the options are not in the question; where they are, as in the one
/// JSON of MLVU and in LVBench, answers are letters.
pub(super) fn read(row: &Row, reading: Reading) -> Result<(Question, usize), String> {
    let text = row.required(&["question"])?;
    let (text, below) = match options::split(&text) {
        Some(split) => (split.text, Some(split.options)),
        None => (text, None),
    };
    let reading = if below.is_some() { Reading::Letter } else { reading };
    let options = options::read(row, below)?;
    let question = Question::as_published(text, options).map_err(|error| error.to_string())?;
    let index = row.value(&["answer_number", "correct_choice"]);
    let answer = answer(index, row.value(&["answer"]), question.options(), reading)?;
    Ok((question, answer))
}

fn answer(
    index: Option<&Value>,
    said: Option<&Value>,
    options: &[String],
    reading: Reading,
) -> Result<usize, String> {
    let said = match said {
        Some(Value::String(text)) => Some(one_line(text)),
        Some(Value::Number(number)) => Some(number.to_string()),
        None => None,
        Some(other) => return Err(format!("answer: expected a letter or a text, got {}", brief(other))),
    };
    let index = index.filter(|index| !matches!(index, Value::String(text) if text.trim().is_empty()));
    match (index, said) {
        (Some(index), said) => {
            let index = place(index, options)?;
            // An empty text beside an index that says more contradicts nothing.
            let said = said.filter(|said| !said.is_empty());
            match said.filter(|said| !means(said, index, options)) {
                Some(said) => {
                    let option = &options[index];
                    Err(format!(
                        "answer: the row's index says {}, {option:?}, and its answer {said:?}",
                        labels::letter(index)
                    ))
                }
                None => Ok(index),
            }
        }
        (None, Some(said)) => by_words(&said, options, reading),
        (None, None) => Err("answer is missing; a question without it cannot be scored".into()),
    }
}

/// An index counted from 0, as a number or digits (`2`, `2.0`), or else a letter.
fn place(value: &Value, options: &[String]) -> Result<usize, String> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    let digits = text.strip_suffix(".0").unwrap_or(&text);
    let index = digits.parse().ok().or_else(|| by_letter(&text, options));
    index.filter(|&index: &usize| index < options.len()).ok_or_else(|| {
        format!("answer: expected an index from 0 to {}, got {}", options.len() - 1, brief(value))
    })
}

fn by_words(said: &str, options: &[String], reading: Reading) -> Result<usize, String> {
    let (letter, text) = (by_letter(said, options), by_text(said, options));
    let found = match reading {
        Reading::Letter => letter.or(text),
        Reading::Text => text.or(letter),
    };
    found.ok_or_else(|| {
        format!("answer: {said:?} is none of the options {}", labels::listed(options).join(", "))
    })
}

/// `B`, `b`, `(B)`, `B.`, or the letter with its option: `B. blue`.
fn by_letter(said: &str, options: &[String]) -> Option<usize> {
    let mut alone = said.trim_matches(['(', ')', '.', ':', ' ']).chars();
    let (first, second) = (alone.next(), alone.next());
    let index = first.filter(|_| second.is_none()).and_then(labels::index);
    let labelled = || {
        let mut places = 0..options.len();
        places.find(|&place| options::unlabelled(said, place).is_some_and(|rest| rest == options[place]))
    };
    index.filter(|&index| index < options.len()).or_else(labelled)
}

/// The first option with that text; of repeated ones either is right.
fn by_text(said: &str, options: &[String]) -> Option<usize> {
    let exact = options.iter().position(|option| option == said);
    exact.or_else(|| options.iter().position(|option| option.to_lowercase() == said.to_lowercase()))
}

fn means(said: &str, index: usize, options: &[String]) -> bool {
    said == options[index]
        || by_letter(said, options) == Some(index)
        || said.to_lowercase() == options[index].to_lowercase()
}
