//! Conversations in the shape that chat templates expect.

use serde::Serialize;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
}

/// One piece of a message, in order of appearance. Media carry no data here: the template writes one pad token for
/// each, which [`expand_pads`](super::expand_pads) widens to the number of visual tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Plain text.
    Text {
        /// The text itself.
        text: String,
    },
    /// An image.
    Image,
    /// A video, or a run of key frames given as one.
    Video,
}

impl Part {
    /// A text part.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is shown and said, in order.
    pub content: Vec<Part>,
}

impl Message {
    /// A message of several parts.
    pub fn new(role: Role, content: Vec<Part>) -> Self {
        Self { role, content }
    }

    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, content: vec![Part::text(text)] }
    }

    /// A user turn that shows one video and then says `text`.
    pub fn video(text: impl Into<String>) -> Self {
        Self { role: Role::User, content: vec![Part::Video, Part::text(text)] }
    }
}
