//! A question about a video, open or multiple choice.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

use super::labels;
use crate::{Error, Result};

/// A checked question: text that says something, and either no options (an open question) or 2 to 26 distinct ones.
///
/// ```
/// use msjoe::text::Question;
/// let question = Question::new("What colour is the car?", ["A. red", "B. blue"])?;
/// assert_eq!(question.options(), ["red", "blue"]);
/// assert_eq!(question.to_string(), "What colour is the car?\nA. red\nB. blue");
/// # Ok::<(), msjoe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Question {
    text: String,
    options: Vec<String>,
}

impl Question {
    /// Most options a question can have: one per letter.
    pub const MAX_OPTIONS: usize = 26;

    /// A question with options, given as `red` or with their label, `A. red`, `(B) blue`, `c) green`. Labels are taken
    /// off when each one fits its place, so the options are stored bare.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty text, a single option, more than 26, an empty or repeated one, or labels that
    /// contradict the order.
    pub fn new<S: Into<String>>(
        text: impl Into<String>,
        options: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let text = text.into().trim().to_owned();
        if text.is_empty() {
            return Err(Error::Input("question: expected a text, got an empty one".into()));
        }
        let given: Vec<String> = options.into_iter().map(|option| one_line(&option.into())).collect();
        match given.len() {
            1 => {
                return Err(Error::Input(format!(
                    "options: expected none (open question) or at least 2, got only {:?}",
                    given[0]
                )));
            }
            n if n > Self::MAX_OPTIONS => {
                return Err(Error::Input(format!(
                    "options: expected at most {} (one per letter), got {n}",
                    Self::MAX_OPTIONS
                )));
            }
            _ => {}
        }
        let options = without_labels(given)?;
        let mut seen = HashSet::new();
        for (index, option) in options.iter().enumerate() {
            let label = labels::letter(index);
            if option.is_empty() {
                return Err(Error::Input(format!("options: option {label} is empty")));
            }
            if !seen.insert(option.to_lowercase()) {
                return Err(Error::Input(format!("options: option {label}, {option:?}, is given twice")));
            }
        }
        Ok(Self { text, options })
    }

    /// A multiple-choice question exactly as a benchmark published it: the options, without labels, keep their number and
    /// order even if one is empty or repeated, since answers and published results go by place.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty text, fewer than 2 options, or more than 26.
    pub fn as_published(text: impl Into<String>, options: Vec<String>) -> Result<Self> {
        let text = text.into().trim().to_owned();
        if text.is_empty() {
            return Err(Error::Input("question: expected a text, got an empty one".into()));
        }
        if !(2..=Self::MAX_OPTIONS).contains(&options.len()) {
            return Err(Error::Input(format!(
                "options: expected 2 to {}, got {}",
                Self::MAX_OPTIONS,
                options.len()
            )));
        }
        let options = options.iter().map(|option| one_line(option)).collect();
        Ok(Self { text, options })
    }

    /// An open question, answered in free text.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty text.
    pub fn open(text: impl Into<String>) -> Result<Self> {
        Self::new(text, std::iter::empty::<String>())
    }

    /// The question's text, trimmed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The options without labels; empty for an open question.
    pub fn options(&self) -> &[String] {
        &self.options
    }

    /// Whether the answer is free text.
    pub fn is_open(&self) -> bool {
        self.options.is_empty()
    }

    /// The letter of option `index`: 0 is `A`.
    pub fn label(&self, index: usize) -> Option<char> {
        (index < self.options.len()).then(|| labels::letter(index))
    }
}

/// The text, then one `A. option` per line.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        labels::listed(&self.options).iter().try_for_each(|option| write!(f, "\n{option}"))
    }
}

/// White space as single spaces.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Takes labels off where they name their own place. Letters that are the right set in another order are an error: the
/// answer's letter would not mean what the caller thinks. Anything else (`J. Adams` in second place) is the option's text.
fn without_labels(options: Vec<String>) -> Result<Vec<String>> {
    let found: Vec<Option<usize>> =
        options.iter().map(|option| labels::leading(option).map(|(index, _)| index)).collect();
    let named: HashSet<usize> = found.iter().flatten().copied().collect();
    let fits = found.iter().enumerate().all(|(place, label)| label.is_none_or(|label| label == place));
    if !named.is_empty() && fits {
        return Ok(options
            .iter()
            .map(|option| labels::leading(option).map_or(option.as_str(), |(_, rest)| rest).to_owned())
            .collect());
    }
    let all_labelled = !named.is_empty() && found.iter().all(Option::is_some);
    if all_labelled && named.len() == options.len() && named.iter().all(|&label| label < options.len()) {
        let order: String = found.iter().flatten().map(|&label| labels::letter(label)).collect();
        return Err(Error::Input(format!(
            "options: labels come in the order {order}; expected A, B, C, … or no labels"
        )));
    }
    Ok(options)
}
