//! Who of a provider's users may come in, by what [`super::claims`] read of them.

use std::str::FromStr;

use super::claims::Claims;

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rules {
    /// Everybody whom the provider knows.
    All,
    /// Those for whom one of these holds.
    Any(Vec<Rule>),
}

/// One of the rules by which somebody may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// With a verified address like this.
    Email(Pattern),
    /// A member of this group.
    Group(String),
    /// The user whom the provider calls so.
    Subject(String),
}

/// An address, in which `*` stands for all before the `@`, or for one whole label after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    local: String,
    labels: Vec<String>,
}

/// Why a rule is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// It is of none of the three kinds.
    #[error("write email=*@example.com, group=NAME or sub=ID")]
    Unknown,
    /// The address cannot be one.
    #[error(
        "write an address, in which * stands for all before the @, or for one whole part between dots: email=*@example.com"
    )]
    Pattern,
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let (kind, value) = text.split_once('=').ok_or(BadRule::Unknown)?;
        if value.is_empty() {
            return Err(BadRule::Unknown);
        }
        match kind {
            "email" => value.parse().map(Self::Email),
            "group" => Ok(Self::Group(value.to_owned())),
            "sub" => Ok(Self::Subject(value.to_owned())),
            _ => Err(BadRule::Unknown),
        }
    }
}

impl FromStr for Pattern {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let (local, domain) = parts(text).ok_or(BadRule::Pattern)?;
        let is_whole = |part: &str| part == "*" || !part.contains('*');
        let labels: Vec<_> = domain.split('.').map(str::to_ascii_lowercase).collect();
        let whole = is_whole(local) && labels.iter().all(|label| is_whole(label) && !label.is_empty());
        // At least the last of the labels must be said, or it would be anybody's.
        if !whole || labels.last().is_none_or(|last| last == "*") {
            return Err(BadRule::Pattern);
        }
        Ok(Self {
            local: local.to_ascii_lowercase(),
            labels,
        })
    }
}

impl Pattern {
    /// Whether this is such an address, however it is capitalised.
    pub fn matches(&self, email: &str) -> bool {
        let Some((local, domain)) = parts(email) else {
            return false;
        };
        let same = |pattern: &str, part: &str| match pattern {
            "*" => !part.is_empty(),
            pattern => pattern.eq_ignore_ascii_case(part),
        };
        let labels: Vec<_> = domain.split('.').collect();
        same(&self.local, local)
            && labels.len() == self.labels.len()
            && self
                .labels
                .iter()
                .zip(labels)
                .all(|(pattern, label)| same(pattern, label))
    }
}

/// What is before the `@`, and what is after it; none of what is no plain address.
fn parts(email: &str) -> Option<(&str, &str)> {
    let (local, domain) = email.split_once('@')?;
    let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '"' | '<' | '>' | ',');
    (!local.is_empty() && !domain.is_empty() && !email.replacen('@', "", 1).contains(strange))
        .then_some((local, domain))
}

impl Rules {
    /// Whether a user with these claims may come in.
    pub(super) fn admit(&self, claims: &Claims) -> bool {
        match self {
            Self::All => true,
            Self::Any(rules) => rules.iter().any(|rule| rule.admits(claims)),
        }
    }

    /// The claims that decide.
    pub(super) fn claims(&self) -> impl Iterator<Item = &'static str> {
        let rules = match self {
            Self::All => &[],
            Self::Any(rules) => rules.as_slice(),
        };
        rules.iter().map(|rule| match rule {
            Rule::Email(_) => "email",
            Rule::Group(_) => "groups",
            Rule::Subject(_) => "sub",
        })
    }
}

impl Rule {
    fn admits(&self, claims: &Claims) -> bool {
        match self {
            Self::Email(pattern) => claims.verified_email().is_some_and(|email| pattern.matches(email)),
            Self::Group(name) => claims.groups().any(|group| group == name),
            Self::Subject(id) => claims.text("sub") == Some(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn admits(rules: &[&str], claims: &Value) -> bool {
        let rules = Rules::Any(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        rules.admit(&Claims::new(claims.as_object().unwrap().clone()))
    }

    fn matches(pattern: &str, email: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(email)
    }

    #[test]
    fn an_address_is_of_a_domain_only_as_a_whole() {
        for email in ["ann@example.com", "ANN@Example.COM", "a.b+c@example.com"] {
            assert!(matches("*@example.com", email), "{email}");
        }
        for email in [
            "ann@evil-example.com",
            "ann@evilexample.com",
            "ann@sub.example.com",
            "ann@example.com.evil.net",
            "ann@example.com@evil.net",
            "ann@evil.net@example.com",
            "\"ann@evil.net\"@example.com",
            "ann@evil.net, b@example.com",
            "@example.com",
            "ann@example.com.",
            "ann@example.com ",
            "ann@exampleXcom",
            "ann",
            "",
        ] {
            assert!(!matches("*@example.com", email), "{email}");
        }
        assert!(matches("*@*.example.com", "ann@eu.example.com"));
        for email in ["ann@example.com", "ann@a.b.example.com", "ann@.example.com"] {
            assert!(!matches("*@*.example.com", email), "{email}");
        }
        assert!(matches("Ann@Example.com", "ann@example.com"));
        assert!(!matches("ann@example.com", "joann@example.com"));
    }

    #[test]
    fn a_rule_that_says_less_than_it_seems_is_none() {
        for rule in [
            "email=*example.com",
            "email=a*@example.com",
            "email=*@*example.com",
            "email=*@ex*.com",
            "email=*",
            "email=*@*",
            "email=*@",
            "email=*@example..com",
            "email=",
            "EMAIL=*@example.com",
            "domain=example.com",
            "group=",
            "everybody",
        ] {
            assert!(rule.parse::<Rule>().is_err(), "{rule}");
        }
    }

    #[test]
    fn only_a_verified_address_opens() {
        let rule = ["email=*@example.com"];
        assert!(admits(
            &rule,
            &json!({"email": "ann@example.com", "email_verified": true})
        ));
        assert!(admits(
            &rule,
            &json!({"email": "ann@example.com", "email_verified": "true"})
        ));
        for claims in [
            json!({"email": "ann@example.com"}),
            json!({"email": "ann@example.com", "email_verified": false}),
            json!({"email": "ann@example.com", "email_verified": "false"}),
            json!({"email": "ann@example.com", "email_verified": 1}),
            json!({"EMAIL": "ann@example.com", "email_verified": true}),
            json!({"email": ["ann@example.com"], "email_verified": true}),
            json!({"email": "ann@example.net", "email_verified": true}),
        ] {
            assert!(!admits(&rule, &claims), "{claims}");
        }
    }

    #[test]
    fn groups_and_subjects_are_compared_to_the_letter() {
        let rules = ["group=desktops", "sub=auth0|1"];
        for claims in [
            json!({"groups": ["x", "desktops"]}),
            json!({"groups": "desktops"}),
            json!({"sub": "auth0|1"}),
        ] {
            assert!(admits(&rules, &claims), "{claims}");
        }
        for claims in [
            json!({"groups": ["Desktops", "desktops2"]}),
            json!({"groups": [["desktops"]]}),
            json!({"sub": "auth0|11"}),
            json!({}),
        ] {
            assert!(!admits(&rules, &claims), "{claims}");
        }
    }

    proptest! {
        #[test]
        fn what_matches_ends_with_the_domain_after_the_only_at(email in "\\PC{0,12}@?[a-zA-Z.@*-]{0,14}@?(example\\.com)?") {
            if matches("*@example.com", &email) {
                let (local, domain) = email.split_once('@').unwrap();
                prop_assert!(!local.is_empty() && domain.eq_ignore_ascii_case("example.com"));
            }
        }

        #[test]
        fn every_plain_address_of_the_domain_matches(local in "[a-zA-Z0-9._+-]{1,20}") {
            let email = format!("{local}@EXAMPLE.com");
            prop_assert!(matches("*@example.com", &email));
        }
    }
}
