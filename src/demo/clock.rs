//! The time of day, as the APIs write it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The present moment in RFC 3339, UTC, with microseconds.
pub(super) fn now() -> String {
    rfc3339(since_epoch())
}

/// The moment `later` from now in RFC 3339.
pub(super) fn from_now(later: Duration) -> String {
    rfc3339(since_epoch() + later)
}

/// The present moment in seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// A name for one answer, different for each in practice.
pub(super) fn unique(prefix: &str) -> String {
    format!("{prefix}{:x}", since_epoch().as_nanos())
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since_epoch.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
///
/// Years begin in March here: a leap day is then the last of its year, and the months before it
/// lie on a straight line.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_right() {
        for (seconds, micros, written) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, 999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (1_709_210_096, 0, "2024-02-29T12:34:56.000000Z"),
            (1_767_225_599, 500_000, "2025-12-31T23:59:59.500000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
        ] {
            let moment = Duration::new(seconds, micros * 1000);
            assert_eq!(rfc3339(moment), written);
        }
    }
}
