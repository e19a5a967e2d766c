//! The labels of the metrics: all their values stand here, and nothing that a caller or a bridge says becomes one.

use crate::relay::registry::Session;

/// Makes an enum whose values have a fixed spelling.
macro_rules! labels {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $value,)* }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$value),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// As it stands in a label.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)* }
            }
        }
    };
}

labels! {
    /// What kind of request it is, by its path.
    RouteClass {
        /// `/api/chat`.
        OllamaChat = "ollama_chat",
        /// `/api/generate`.
        OllamaGenerate = "ollama_generate",
        /// `/v1/chat/completions`.
        OpenAiChat = "openai_chat",
        /// `/v1/completions`.
        OpenAiCompletions = "openai_completions",
        /// `/v1/responses`.
        OpenAiResponses = "openai_responses",
        /// `/v1/messages` and below.
        AnthropicMessages = "anthropic_messages",
        /// Embeddings, of either API.
        Embeddings = "embeddings",
        /// Which models there are, which run, what one of them is.
        Models = "models",
        /// What changes models.
        Manage = "manage",
        /// Everything else.
        Other = "other",
    }
}

labels! {
    /// How an exchange is carried.
    Transport {
        /// WebSocket.
        Ws = "ws",
        /// HTTP polling.
        Poll = "poll",
        /// Not at all: no bridge was chosen.
        None = "none",
    }
}

labels! {
    /// What came of an exchange.
    Outcome {
        /// The answer went out whole, with a status below 400.
        Ok = "ok",
        /// The upstream answered 4xx.
        ClientError = "client_error",
        /// The upstream answered 5xx.
        UpstreamError = "upstream_error",
        /// The caller left before the end.
        Cancelled = "cancelled",
        /// The answer broke off.
        Broken = "broken",
        /// The relay answered with an error of its own, which has a code.
        Refused = "refused",
    }
}

labels! {
    /// Why a bridge polls that would rather have a WebSocket.
    Fallback {
        /// A proxy removed the upgrade.
        UpgradeRemoved = "upgrade_removed",
        /// Something answered the upgrade that is no relay, or not as it should.
        UpgradeRefused = "upgrade_refused",
        /// Nothing answered the upgrade.
        NoAnswer = "no_answer",
        /// The connection broke during the upgrade.
        Broken = "broken",
        /// Links are cut again and again.
        Cut = "cut",
        /// This relay wants it so.
        Steered = "steered",
        /// Anything else a bridge may say.
        Other = "other",
    }
}

impl RouteClass {
    /// The class of a normalised path; a query may stand behind it.
    pub fn of(path: &str) -> Self {
        let path = path.split('?').next().unwrap_or_default();
        match path {
            "/api/chat" => Self::OllamaChat,
            "/api/generate" => Self::OllamaGenerate,
            "/v1/chat/completions" => Self::OpenAiChat,
            "/v1/completions" => Self::OpenAiCompletions,
            "/v1/responses" => Self::OpenAiResponses,
            "/v1/messages" | "/v1/messages/count_tokens" => Self::AnthropicMessages,
            "/api/embed" | "/api/embeddings" | "/v1/embeddings" => Self::Embeddings,
            "/api/tags" | "/api/ps" | "/api/show" | "/api/version" | "/v1/models" => Self::Models,
            "/api/pull" | "/api/push" | "/api/create" | "/api/copy" | "/api/delete" => Self::Manage,
            _ if path.starts_with("/v1/models/") => Self::Models,
            _ if path.starts_with("/api/blobs/") => Self::Manage,
            _ => Self::Other,
        }
    }
}

impl Transport {
    /// That of a session; none without one.
    pub fn of(session: Option<&Session>) -> Self {
        match session.map(|session| session.transport) {
            Some("ws") => Self::Ws,
            Some(_) => Self::Poll,
            None => Self::None,
        }
    }
}

impl Fallback {
    /// The class of a reason in a bridge's words, which are those of `docs/operations.md` if the bridge is ours.
    pub fn of(reason: &str) -> Self {
        let says = |words: &str| reason.contains(words);
        if says("the relay prefers HTTP polling") || says("the relay offers no WebSocket") {
            Self::Steered
        } else if !says("WebSocket blocked: ") {
            Self::Other
        } else if says("removed the Upgrade header") {
            Self::UpgradeRemoved
        } else if says("instead of 101") || says("the answer to its upgrade is wrong") {
            Self::UpgradeRefused
        } else if says("no answer to its upgrade") {
            Self::NoAnswer
        } else if says("cut again and again") {
            Self::Cut
        } else if says("during its upgrade") {
            Self::Broken
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::attach::ConnectError;

    #[test]
    fn paths_fall_into_classes() {
        for (path, class) in [
            ("/api/chat", RouteClass::OllamaChat),
            ("/api/chat?x=1", RouteClass::OllamaChat),
            ("/v1/models/llama3.2:1b", RouteClass::Models),
            ("/api/blobs/sha256:0", RouteClass::Manage),
            ("/api/chatty", RouteClass::Other),
            ("/", RouteClass::Other),
        ] {
            assert_eq!(RouteClass::of(path), class, "{path}");
        }
    }

    #[test]
    fn reasons_of_our_bridges_fall_into_classes() {
        for (error, class) in [
            (ConnectError::Handshake("x".into()), Fallback::UpgradeRefused),
            (ConnectError::Broken("reset".into()), Fallback::Broken),
            (
                ConnectError::NotUpgraded {
                    status: http::StatusCode::FORBIDDEN,
                    retry_after: None,
                },
                Fallback::UpgradeRefused,
            ),
        ] {
            assert_eq!(Fallback::of(&error.why_not_websocket()), class);
        }
        for (code, class) in [
            ("upgrade_required", Fallback::UpgradeRemoved),
            ("not_found", Fallback::Steered),
        ] {
            let error = ConnectError::Refused {
                status: http::StatusCode::BAD_REQUEST,
                code: code.into(),
                detail: String::new(),
                retry_after: None,
            };
            assert_eq!(Fallback::of(&error.why_not_websocket()), class);
        }
        assert_eq!(Fallback::of("whatever a stranger says"), Fallback::Other);
    }
}
