//! The control messages of a link: JSON texts between relay and bridge (protocol.md section 2).

use serde::{Deserialize, Serialize};

/// A control message; types that are not known are ignored by both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Control {
    /// Relay to bridge: connect anew, finish here. Bridge to relay: no more work, please.
    Drain,
    /// Bridge to relay: the session's fresh token.
    Token {
        /// The token.
        token: String,
    },
    /// Relay to bridge: the transports it offers, best first.
    Steer {
        /// Their names.
        transports: Vec<String>,
    },
    /// Any other type.
    #[serde(other)]
    Unknown,
}

impl Control {
    /// Reads a message; what cannot be read is [`Control::Unknown`].
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or(Self::Unknown)
    }

    /// Writes the message.
    pub fn to_text(&self) -> String {
        // Serialising plain strings into memory has no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_have_the_fields_of_the_protocol() {
        assert_eq!(Control::Drain.to_text(), r#"{"type":"drain"}"#);
        let token = Control::Token { token: "t".into() };
        assert_eq!(token.to_text(), r#"{"type":"token","token":"t"}"#);
        assert_eq!(Control::parse(&token.to_text()), token);
        let steer = r#"{"type":"steer","transports":["ws"],"later":1}"#;
        assert_eq!(
            Control::parse(steer),
            Control::Steer {
                transports: vec!["ws".into()]
            }
        );
    }

    #[test]
    fn what_is_not_known_is_ignored() {
        for text in [r#"{"type":"dance"}"#, "{}", "nonsense", r#"{"type":"token"}"#, "[]"] {
            assert_eq!(Control::parse(text), Control::Unknown, "{text}");
        }
    }
}
