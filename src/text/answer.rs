//! Turn 2: asking for the answer, and reading it.
//!
//! The asked form is `<answer>B</answer>` (multiple choice) or `<answer>a few words</answer>` (open) and nothing else.

use serde::Serialize;

use super::question::Question;
use super::{choice, markup};

/// What the model answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The answer in the model's own words, without tags and reasoning; may be empty.
    pub text: String,
    /// The option it means, when one can be told for certain; `None` for open questions.
    pub choice: Option<usize>,
    /// Whether the reply was exactly the asked form: what the format reward judges.
    pub well_formed: bool,
}

/// The text of the answer turn, to follow the key frames.
pub fn prompt(question: &Question) -> String {
    let ask = if question.is_open() {
        "Answer in a few words, in exactly this form and with nothing else:\n<answer>your answer</answer>"
    } else {
        "Answer with the letter of the best option, in exactly this form and with nothing else:\n<answer>letter</answer>"
    };
    format!("These frames were picked from a video, in the order of time.\n\n{question}\n\n{ask}")
}

/// A reply in the asked form; `text` is an option's letter or, for an open question, the answer.
pub fn well_formed(text: &str) -> String {
    format!("<answer>{text}</answer>")
}

/// A reply with the reasoning before the answer: the form of [`super::Dialogue::Brief`].
pub fn reasoned(reasoning: &str, text: &str) -> String {
    format!("<think>{reasoning}</think>{}", well_formed(text))
}

/// Reads a reply. An answer in tags is judged by the tags' content alone; otherwise the text after the reasoning is.
pub fn parse(reply: &str, question: &Question) -> Answer {
    if let Some(text) = exact_form(reply, question) {
        let choice =
            if question.is_open() { None } else { choice::letter_alone(text, question.options().len()) };
        return Answer { text: text.to_owned(), choice, well_formed: true };
    }
    let text = said(reply);
    let choice = if question.is_open() { None } else { choice::resolve(&text, question.options()) };
    let text = if question.is_open() { without_announcement(&text).to_owned() } else { text };
    Answer { text, choice, well_formed: false }
}

fn exact_form<'a>(reply: &'a str, question: &Question) -> Option<&'a str> {
    let text = reply.trim().strip_prefix("<answer>")?.strip_suffix("</answer>")?.trim();
    let open = !text.is_empty() && !text.contains(['<', '>', '\n']);
    let fits = match (question.is_open(), text.as_bytes()) {
        (true, _) => open,
        (false, &[letter]) => usize::from(letter.wrapping_sub(b'A')) < question.options().len(),
        (false, _) => false,
    };
    fits.then_some(text)
}

/// The last answer tag with something in it, or everything after the reasoning.
fn said(reply: &str) -> String {
    let tagged = markup::bodies(reply, &["answer"]);
    let tagged = tagged.iter().rfind(|body| !body.text.trim().is_empty()).map(|body| {
        let text = body.text.trim();
        if body.closed { text } else { text.lines().next().unwrap_or_default().trim() }
    });
    let text = match tagged {
        Some(text) => text.to_owned(),
        None => {
            let conclusion = markup::after_reasoning(reply);
            let rest = if conclusion.trim().is_empty() { reply } else { conclusion };
            markup::without_fences(rest)
        }
    };
    markup::without_tags(&text, &["answer", "think", "query"]).trim().to_owned()
}

/// `The answer is x`, `Answer: x` -> `x`.
fn without_announcement(text: &str) -> &str {
    for opening in ["the answer is:", "the answer is ", "final answer:", "answer:"] {
        if let (Some(head), Some(rest)) = (text.get(..opening.len()), text.get(opening.len()..))
            && head.eq_ignore_ascii_case(opening)
            && !rest.trim().is_empty()
        {
            return rest.trim();
        }
    }
    text
}
