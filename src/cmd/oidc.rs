//! Options of sign-in: which provider is trusted, and who of its users may come in.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use crate::relay::auth::oidc::rules::{Rule, Rules};
use crate::relay::auth::oidc::{Settings, Timing};
use crate::transport::dial::Dialer;
use crate::transport::issuer::Issuer;

/// How long a connection to the provider may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Claims that people may choose themselves at many providers (all of OpenID Connect Core §5.1 but `sub` and `email`, and what some
/// call `preferred_username`), or that say what no name is: whoever chose another one's name would be that user here (§5.7).
const CHOSEN: [&str; 21] = [
    "name",
    "given_name",
    "family_name",
    "middle_name",
    "nickname",
    "preferred_username",
    "profile",
    "picture",
    "website",
    "email_verified",
    "gender",
    "birthdate",
    "zoneinfo",
    "locale",
    "phone_number",
    "phone_number_verified",
    "address",
    "updated_at",
    "username",
    "upn",
    "unique_name",
];

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sign-in")]
pub(super) struct OidcArgs {
    /// Accept tokens of this OpenID Connect provider too: its URL, letter for letter as it stands in them (iss)
    #[arg(long, value_name = "URL", requires_all = ["oidc_audiences", "oidc_client_id"])]
    oidc_issuer: Option<Issuer>,
    /// For whom its tokens must be (aud); may be repeated
    #[arg(
        long = "oidc-audience",
        value_name = "AUDIENCE",
        value_delimiter = ',',
        requires = "oidc_issuer"
    )]
    oidc_audiences: Vec<String>,
    /// What a web page of this relay is called there
    #[arg(long, value_name = "ID", requires = "oidc_issuer")]
    oidc_client_id: Option<String>,
    /// What a program without a browser is called there
    #[arg(long, value_name = "ID", requires = "oidc_issuer")]
    oidc_device_client_id: Option<String>,
    /// Who may come in: email=*@example.com, group=NAME or sub=ID; may be repeated, one of them is enough
    #[arg(
        long = "oidc-allow",
        value_name = "RULE",
        value_delimiter = ',',
        requires = "oidc_issuer"
    )]
    oidc_allowed: Vec<Rule>,
    /// Everybody who can sign in at the provider may come in
    #[arg(long, requires = "oidc_issuer", conflicts_with = "oidc_allowed")]
    oidc_allow_all: bool,
    /// The claim that names the user
    #[arg(long, value_name = "CLAIM", default_value = "sub", requires = "oidc_issuer")]
    oidc_user_claim: String,
    /// Trust these certificates too when connecting to the provider (PEM)
    #[arg(long, value_name = "FILE", requires = "oidc_issuer")]
    oidc_ca: Option<PathBuf>,
}

impl OidcArgs {
    /// The settings, if there is a provider.
    pub(super) fn settings(&self) -> Result<Option<Settings>, Failure> {
        let (Some(issuer), Some(client_id)) = (&self.oidc_issuer, &self.oidc_client_id) else {
            return Ok(None);
        };
        let rules = match (self.oidc_allow_all, self.oidc_allowed.as_slice()) {
            (true, _) => Rules::All,
            (false, []) => {
                return Err(Failure::usage(
                    "--oidc-issuer: say who may come in, with --oidc-allow 'email=*@example.com', group=NAME or sub=ID;\n\
                     or everybody who can sign in there, with --oidc-allow-all",
                ));
            }
            (false, rules) => Rules::Any(rules.to_vec()),
        };
        if CHOSEN.contains(&self.oidc_user_claim.as_str()) {
            return Err(Failure::usage(format!(
                "--oidc-user-claim {}: people may choose this themselves, and so become another user; \
                 use sub, or email (which must be verified)",
                self.oidc_user_claim
            )));
        }
        let is_empty = |text: &str| text.trim().is_empty();
        let device_client_id = self.oidc_device_client_id.as_deref();
        for (empty, words) in [
            (
                self.oidc_audiences.iter().any(|audience| is_empty(audience)),
                "--oidc-audience: say for whom tokens must be",
            ),
            (
                is_empty(client_id),
                "--oidc-client-id: say what a web page is called at the provider",
            ),
            (
                device_client_id.is_some_and(is_empty),
                "--oidc-device-client-id: say what a program without a browser is called at the provider, or leave it out",
            ),
            (
                is_empty(&self.oidc_user_claim),
                "--oidc-user-claim: say which claim names the user, or leave it out",
            ),
        ] {
            if empty {
                return Err(Failure::usage(words));
            }
        }
        let dialer = Dialer::new(self.oidc_ca.as_deref(), CONNECT_TIMEOUT)
            .map_err(|error| Failure::usage(format!("--oidc-ca: {error}")))?;
        Ok(Some(Settings {
            issuer: issuer.clone(),
            audiences: self.oidc_audiences.clone(),
            client_id: client_id.clone(),
            device_client_id: self.oidc_device_client_id.clone(),
            rules,
            user_claim: self.oidc_user_claim.clone(),
            dialer,
            timing: Timing::default(),
        }))
    }
}
