//! How a checkpoint is spoken to: in full instructions, or in the brief form of models that were trained on the two turns.

use serde::{Deserialize, Serialize};

use super::answer::{self, Answer};
use super::query;
use super::question::Question;

/// The wording of the two turns. A checkpoint trained by this crate names its own in `msjoe.json`; any other is
/// [`Self::Instructed`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialogue {
    /// The task and the form of the reply are explained; the answer is an option's letter.
    #[default]
    Instructed,
    /// `look:` or `answer:` and the question with its options on one line; the answer is an option's text, after a brief
    /// reasoning or without. For small models that know the task and the form from training.
    Brief,
}

impl Dialogue {
    /// The text of the query turn; see [`query::prompt`].
    pub fn ask(self, question: &Question, previews: usize, seconds: f64, max: usize) -> String {
        match self {
            Self::Instructed => query::prompt(question, previews, seconds, max),
            Self::Brief => format!("look: {}", one_line(question)),
        }
    }

    /// The text of the answer turn; see [`answer::prompt`].
    pub fn answer(self, question: &Question) -> String {
        match self {
            Self::Instructed => answer::prompt(question),
            Self::Brief => format!("answer: {}", one_line(question)),
        }
    }

    /// Reads the reply of the answer turn. [`Self::Brief`] asks for `<answer>` with an option's own text, after nothing or
    /// one `<think>`.
    pub fn read_answer(self, reply: &str, question: &Question) -> Answer {
        let read = answer::parse(reply, question);
        if self == Self::Instructed || question.is_open() {
            return read;
        }
        let reply = reply.trim();
        let stated = match reply.strip_prefix("<think>") {
            Some(rest) => {
                rest.split_once("</think>").filter(|(said, _)| !said.contains('<')).map(|rest| rest.1)
            }
            None => Some(reply),
        };
        let tagged = stated.and_then(|text| text.trim().strip_prefix("<answer>")?.strip_suffix("</answer>"));
        let choice = tagged.and_then(|text| {
            question.options().iter().position(|option| option.eq_ignore_ascii_case(text.trim()))
        });
        match choice {
            Some(choice) => {
                Answer { text: question.options()[choice].clone(), choice: Some(choice), well_formed: true }
            }
            None => Answer { well_formed: false, ..read },
        }
    }
}

fn one_line(question: &Question) -> String {
    if question.is_open() {
        return question.text().to_owned();
    }
    format!("{} {}", question.text(), question.options().join(", "))
}
