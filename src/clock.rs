//! The clock of the machine: whether it can be right.

use std::time::{Duration, SystemTime};

/// When this version was written, since 1970: 2026-11-01. No clock that is right shows less. By hand, at each release:
/// a time of the build would make two builds of one source differ.
const WRITTEN: Duration = Duration::from_secs(1_793_491_200);

/// A time in words.
pub fn shown(now: SystemTime) -> String {
    humantime::format_rfc3339_seconds(now).to_string()
}

/// What is wrong with a clock that shows `now`.
pub fn warning(now: SystemTime) -> Option<String> {
    (now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() < WRITTEN).then(|| {
        format!(
            "the clock says {}, which is before this version was written; set it (NTP), or certificates and logs are \
             wrong",
            shown(now)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_is_noticed() {
        let written = SystemTime::UNIX_EPOCH + WRITTEN;
        assert_eq!(warning(written), None);
        assert!(warning(written - Duration::from_secs(1)).is_some());
        let never = warning(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)).unwrap();
        assert!(never.contains("1970-01-02") && never.contains("NTP"), "{never}");
    }
}
