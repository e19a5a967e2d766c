//! The schema, as the migrations that lead to it. They only add: the release before this one runs on the new schema as well.

use super::StoreError;
use super::driver::Applied;

/// Where the drivers keep which migrations were applied.
pub(super) const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions (\
    version bigint PRIMARY KEY, oldest bigint NOT NULL, applied bigint NOT NULL)";
/// What was applied last; one row, of two nulls where there is nothing.
pub(super) const APPLIED: &str = "SELECT max(version), max(oldest) FROM schema_versions";
/// That a migration was applied.
pub(super) const APPLY: &str = "INSERT INTO schema_versions (version, oldest, applied) VALUES ($1, $2, $3)";

/// One step of the schema.
#[derive(Debug)]
pub(super) struct Migration {
    pub version: i64,
    /// The oldest release, by the newest migration it knows, that still runs after this one.
    pub oldest: i64,
    pub sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        oldest: 1,
        sql: include_str!("migrations/0001_accounts.sql"),
    },
    Migration {
        version: 2,
        oldest: 1,
        sql: include_str!("migrations/0002_usage.sql"),
    },
    Migration {
        version: 3,
        oldest: 1,
        sql: include_str!("migrations/0003_keys.sql"),
    },
    Migration {
        version: 4,
        oldest: 1,
        sql: include_str!("migrations/0004_shares.sql"),
    },
];

/// The migrations that a schema lacks.
///
/// # Errors
/// [`StoreError::Newer`] when it is too new for this release.
pub(super) fn missing(applied: Option<Applied>) -> Result<&'static [Migration], StoreError> {
    plan(MIGRATIONS, applied)
}

fn plan(all: &'static [Migration], applied: Option<Applied>) -> Result<&'static [Migration], StoreError> {
    let known = all.last().map_or(0, |last| last.version);
    match applied {
        Some(applied) if applied.oldest > known => Err(StoreError::Newer {
            found: applied.version,
            known,
        }),
        Some(applied) => {
            let at = all.iter().position(|step| step.version > applied.version);
            Ok(&all[at.unwrap_or(all.len())..])
        }
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_gets_what_it_lacks_and_one_that_is_too_new_is_left_alone() {
        let newest = MIGRATIONS.last().unwrap().version;
        let steps = |version, oldest| {
            let applied = Applied { version, oldest };
            missing(Some(applied)).map(<[Migration]>::len).ok()
        };
        assert_eq!(missing(None).map(<[Migration]>::len).ok(), Some(MIGRATIONS.len()));
        assert_eq!(steps(1, 1), Some(MIGRATIONS.len() - 1));
        assert_eq!(steps(newest, 1), Some(0));
        assert_eq!(steps(newest + 3, newest), Some(0));
        assert_eq!(steps(newest + 3, newest + 1), None);
    }

    #[test]
    fn versions_rise_and_no_step_shuts_out_the_release_before_it() {
        for pair in MIGRATIONS.windows(2) {
            assert_eq!(pair[1].version, pair[0].version + 1);
            assert!(pair[1].oldest <= pair[0].version);
        }
    }
}
