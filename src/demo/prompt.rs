//! What a caller says to the model, out of the shapes in which the three APIs carry text.

use serde::Deserialize;

/// Text as a string, or as an array of strings or of `{"type": "text", "text": …}` parts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    One(String),
    Many(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Part {
    Plain(String),
    /// A part without text is a picture, a tool's result and the like: the model is blind to it.
    Typed {
        text: Option<String>,
    },
}

impl Text {
    /// Its pieces, each on its own.
    pub(super) fn pieces(&self) -> Vec<&str> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(parts) => parts.iter().filter_map(Part::text).collect(),
        }
    }
}

impl Part {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Typed { text } => text.as_deref(),
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    role: String,
    content: Option<Text>,
}

/// What the model is to answer.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    /// The user's last words.
    pub(super) said: String,
    /// How many words there were in all: the demonstration model's tokens.
    pub(super) words: usize,
}

impl Prompt {
    pub(super) fn of_text(text: &Text) -> Self {
        let said = text.pieces().join(" ");
        let words = count(&said);
        Self { said, words }
    }

    pub(super) fn of_conversation(messages: &[Message]) -> Self {
        let mut prompt = Self::default();
        for message in messages {
            let turn = message.content.as_ref().map(Self::of_text).unwrap_or_default();
            prompt.words += turn.words;
            if message.role == "user" {
                prompt.said = turn.said;
            }
        }
        prompt
    }
}

/// How many words a text has.
pub(super) fn count(text: &str) -> usize {
    text.split_whitespace().count()
}
