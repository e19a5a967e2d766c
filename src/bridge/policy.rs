//! What of the local server a caller may reach: inference and reading by default, everything else only when the owner says so.

use http::Method;

use super::cloud;

/// Open by default: inference and reading.
const INFERENCE: &[&str] = &[
    "GET /",
    "GET /api/version",
    "GET /api/tags",
    "GET /api/ps",
    "POST /api/show",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/embed",
    "POST /api/embeddings",
    "GET /v1/models",
    "GET /v1/models/*",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
];

/// Opened by `--allow-manage`: what changes the models.
const MANAGE: &[&str] = &[
    "POST /api/pull",
    "POST /api/push",
    "POST /api/create",
    "POST /api/copy",
    "DELETE /api/delete",
    "HEAD /api/blobs/*",
    "POST /api/blobs/*",
];

/// Why a rule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no rule: write METHOD /path, with * for any method, or at the end of the path for any ending")]
pub struct BadRule(String);

/// One thing that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Any, if none.
    method: Option<Method>,
    path: String,
    /// Whether anything may follow `path`.
    open_end: bool,
}

impl std::str::FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.to_owned());
        let (method, path) = text.trim().split_once(' ').ok_or_else(bad)?;
        let path = path.trim();
        let method = match method {
            "*" => None,
            name => Some(Method::from_bytes(name.to_ascii_uppercase().as_bytes()).map_err(|_| bad())?),
        };
        let (path, open_end) = match path.strip_suffix('*') {
            Some(start) => (start, true),
            None => (path, false),
        };
        if !path.starts_with('/') || path.contains(['*', ' ', '?', '%', '\\']) {
            return Err(bad());
        }
        Ok(Self {
            method,
            path: path.to_owned(),
            open_end,
        })
    }
}

impl Rule {
    fn admits(&self, method: &Method, path: &str) -> bool {
        let method_fits = self
            .method
            .as_ref()
            .is_none_or(|own| own == method || (own == Method::GET && method == Method::HEAD));
        method_fits
            && if self.open_end {
                path.starts_with(&self.path)
            } else {
                path == self.path
            }
    }

    fn is_everything(&self) -> bool {
        self.method.is_none() && self.open_end && self.path == "/"
    }
}

/// All that is open.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    everything: bool,
    cloud: bool,
}

impl Policy {
    /// Inference and reading, managing if `manage`, and `more`.
    pub fn new(manage: bool, more: Vec<Rule>) -> Self {
        let managing = if manage { MANAGE } else { &[] };
        // The tables hold rules only: a test reads them all.
        let named = INFERENCE.iter().chain(managing).filter_map(|rule| rule.parse().ok());
        let rules: Vec<Rule> = named.chain(more).collect();
        Self {
            everything: rules.iter().any(Rule::is_everything),
            rules,
            cloud: false,
        }
    }

    /// Opens the models that run on the owner's account in the cloud.
    pub fn with_cloud(mut self, open: bool) -> Self {
        self.cloud = open;
        self
    }

    /// Whether a request must be looked into for such a model.
    pub fn guards_cloud(&self, method: &Method, path: &str) -> bool {
        !self.cloud && !self.everything && cloud::applies(method, path)
    }

    /// Whether all paths are open (`* /*`); then encoded slashes pass as they are.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Whether a request with this normalised path is let through.
    ///
    /// # Errors
    /// A sentence that names the option which would open it.
    pub fn check(&self, method: &Method, path: &str) -> Result<(), String> {
        if self.rules.iter().any(|rule| rule.admits(method, path)) {
            return Ok(());
        }
        let manages = MANAGE
            .iter()
            .filter_map(|rule| rule.parse::<Rule>().ok())
            .any(|rule| rule.admits(method, path));
        // What a caller sent is repeated only where it is short and means nothing to a shell.
        let plain = path.len() <= 100 && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._:-".contains(&b));
        let path = if plain { path } else { "this path" };
        let option = match (manages, plain) {
            (true, _) => "--allow-manage".to_owned(),
            (false, true) => format!("--allow '{method} {path}'"),
            (false, false) => "--allow".to_owned(),
        };
        Err(format!(
            "the bridge does not expose {method} {path}; its owner can open it with {option}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::path::normalise;
    use proptest::prelude::*;

    fn check(policy: &Policy, request: &str) -> Result<(), String> {
        let (method, path) = request.split_once(' ').unwrap();
        let normal = normalise(path).unwrap();
        policy.check(&method.parse().unwrap(), &normal.path)
    }

    #[test]
    fn the_tables_hold_rules_only() {
        for rule in INFERENCE.iter().chain(MANAGE) {
            assert!(rule.parse::<Rule>().is_ok(), "{rule}");
        }
    }

    #[test]
    fn inference_and_reading_are_open_and_nothing_else() {
        let policy = Policy::new(false, Vec::new());
        for open in [
            "GET /",
            "HEAD /",
            "HEAD /api/tags",
            "POST /api/chat",
            "POST /v1/chat/completions",
            "GET /v1/models/llama3.2:1b",
            "POST /v1/messages",
        ] {
            assert_eq!(check(&policy, open), Ok(()), "{open}");
        }
        for closed in [
            "DELETE /api/delete",
            "POST /api/pull",
            "POST /api/blobs/sha256:1",
            "POST /api/me",
            "POST /api/signout",
            "GET /debug/pprof/heap",
            "POST /api/experimental/web_search",
            "POST /api/tags",
            "GET /api/chat",
            "DELETE /v1/models/x",
            "GET /v1/models/../../api/blobs",
            "OPTIONS /api/chat",
        ] {
            assert!(check(&policy, closed).is_err(), "{closed}");
        }
    }

    #[test]
    fn no_spelling_reaches_what_is_closed() {
        let policy = Policy::new(false, Vec::new());
        for path in [
            "/api/../api/delete",
            "//api/delete",
            "/api/%64elete",
            "/api/chat/../delete",
            "/api/%2e%2e/api/delete",
            "/v1/models/..%2e/../api/delete",
        ] {
            assert!(check(&policy, &format!("DELETE {path}")).is_err(), "{path}");
        }
    }

    #[test]
    fn a_refusal_names_the_option_that_would_open_it() {
        let policy = Policy::new(false, Vec::new());
        let told = check(&policy, "DELETE /api/delete").unwrap_err();
        assert!(told.contains("--allow-manage"), "{told}");
        let told = check(&policy, "POST /api/me").unwrap_err();
        assert!(told.contains("--allow 'POST /api/me'"), "{told}");
        let opened = Policy::new(false, vec!["POST /api/me".parse().unwrap()]);
        assert_eq!(check(&opened, "POST /api/me"), Ok(()));
        assert_eq!(check(&Policy::new(true, Vec::new()), "DELETE /api/delete"), Ok(()));
    }

    #[test]
    fn rules_are_read_strictly() {
        for bad in [
            "",
            "GET",
            "/api",
            "GET api",
            "GET /a*b",
            "GET /a/*/b",
            "G@T /",
            "GET /%61",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
        let all = Policy::new(false, vec!["* /*".parse().unwrap()]);
        assert!(all.is_everything());
        assert_eq!(check(&all, "PATCH /anything"), Ok(()));
    }

    proptest! {
        #[test]
        fn what_the_policy_lets_through_stands_in_it(path in "/[a-z./%0-9A-F]{0,30}", post in any::<bool>()) {
            let policy = Policy::new(false, Vec::new());
            let method = if post { Method::POST } else { Method::GET };
            if let Ok(normal) = normalise(&path)
                && policy.check(&method, &normal.path).is_ok()
            {
                let known = INFERENCE.iter().any(|rule| {
                    let path = rule.split_once(' ').unwrap().1;
                    path == normal.path || path.strip_suffix('*').is_some_and(|p| normal.path.starts_with(p))
                });
                prop_assert!(known, "{}", normal.path);
            }
        }
    }
}
