//! Checks whether the clock of the machine is plausible.

use std::time::{Duration, SystemTime};

/// 2026-11-01, counted from 1970. This version was released later, so no correct clock shows an earlier time. Updated by hand
/// for each release: if the build time were used, two builds of the same source would differ.
const RELEASED_AFTER: Duration = Duration::from_secs(1_793_491_200);

/// Formats a time in UTC, to the second.
pub fn format(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Returns what is wrong with a clock that shows `now`.
pub fn warning(now: SystemTime) -> Option<String> {
    (now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() < RELEASED_AFTER).then(|| {
        format!(
            "the clock says {}, which is before the release of this version; set it (NTP), otherwise certificates and \
             logs are wrong",
            format(now)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_that_was_never_set_causes_a_warning() {
        let released = SystemTime::UNIX_EPOCH + RELEASED_AFTER;
        assert_eq!(warning(released), None);
        assert!(warning(released - Duration::from_secs(1)).is_some());
        let never = warning(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)).unwrap();
        assert!(never.contains("1970-01-02") && never.contains("NTP"), "{never}");
    }
}
