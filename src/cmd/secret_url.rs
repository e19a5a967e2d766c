//! A URL that may hold a password: given without one as an option, or by the option's variable, or in a file that another option
//! names.

use std::convert::Infallible;

use clap::ArgMatches;
use clap::error::ErrorKind;
use clap::parser::ValueSource;

use crate::token::Secret;

/// One of these URLs, with `-file` behind its option for the file.
pub(super) struct SecretUrl {
    /// Its option, without the dashes.
    pub(super) option: &'static str,
    /// What several of them would name.
    pub(super) several: &'static str,
    pub(super) has_password: fn(&str) -> bool,
}

/// Reads what the option or its variable says.
pub(super) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

impl SecretUrl {
    /// Whether an argument gave it. Where an argument names the file instead, which goes before a variable, there is no URL then.
    pub(super) fn settle(&self, matches: &ArgMatches, url: &mut Option<Secret>) -> Result<bool, clap::Error> {
        let Self { option, several, .. } = self;
        let id = option.replace('-', "_");
        let is_argument = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let (by_url, by_file) = (is_argument(&id), is_argument(&format!("{id}_file")));
        let has_password = |url: &Secret| (self.has_password)(url.expose());
        if by_url && url.as_ref().is_some_and(has_password) {
            let variable = id.to_uppercase();
            let words = format!(
                "--{option} takes no password: other users of this computer can read arguments.\n\
                 Give the URL by the variable TUNNEL_{variable} or with --{option}-file FILE.\n"
            );
            return Err(clap::Error::raw(ErrorKind::ValueValidation, words));
        }
        if by_url && by_file {
            let words = format!("--{option} and --{option}-file name two {several}: give one.\n");
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, words));
        }
        if by_file {
            *url = None;
        }
        Ok(by_url)
    }
}
