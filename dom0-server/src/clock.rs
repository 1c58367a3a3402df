//! The time of day, as the database and journals have it, and in words. How long something takes is `Instant`'s.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, UtcOffset};
use tokio::time::Instant;

/// Milliseconds since the Unix epoch; 0 before it.
#[must_use]
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// UTC, to the second (RFC 3339).
#[must_use]
pub fn utc(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

/// Milliseconds since the Unix epoch as [`utc`]; none beyond the year 9999.
#[must_use]
pub fn utc_of_ms(ms: u64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok().map(utc)
}

/// Sleeps until then, or for ever.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_as_long_as_it_has_four_digits_of_a_year() {
        assert_eq!(utc_of_ms(1_700_000_000_999).as_deref(), Some("2023-11-14T22:13:20Z"));
        let east = OffsetDateTime::UNIX_EPOCH.to_offset(UtcOffset::from_hms(1, 0, 0).unwrap());
        assert_eq!(utc(east), "1970-01-01T00:00:00Z");
        assert_eq!(utc_of_ms(253_402_300_799_999).as_deref(), Some("9999-12-31T23:59:59Z"));
        assert_eq!(utc_of_ms(253_402_300_800_000), None);
        assert_eq!(utc_of_ms(u64::MAX), None);
    }
}
