//! Text: questions, the chat template, the tokenizer, and the two turns' prompts with the parsers of their replies.
//!
//! ```text
//! Question --query::prompt--> Messages --ChatTemplate--> prompt text --Tokenizer--> ids --expand_pads--> model input
//! reply of turn 1 --query::parse--> Queries          reply of turn 2 --answer::parse--> Answer
//! ```
//!
//! Everything here is tensor-free. A reply that misses the asked form is still read as far as that is safe, but the result
//! says so ([`Form`], [`Answer::well_formed`]): the format reward and the reports rest on it.

pub mod answer;
pub mod chat_template;
pub mod query;

mod choice;
mod clock;
mod dialogue;
mod jinja;
mod json_dump;
pub(crate) mod labels;
mod markup;
mod message;
mod question;
mod tokenizer;

pub use answer::Answer;
pub use chat_template::{ChatTemplate, TemplateOrigin, TemplateSource};
pub use clock::strftime;
pub use dialogue::Dialogue;
pub use message::{Message, Part, Role};
pub use query::{Form, Queries};
pub use question::Question;
pub(crate) use question::one_line;
pub use tokenizer::{DecodeStream, Pad, Tokenizer, expand_pads};
