//! Durations and sizes, short enough for a table.

use bytesize::ByteSize;

/// A duration in its two largest units: `3d 4h`, `5m 12s`, `0s`.
pub(super) fn format_seconds(seconds: f64) -> String {
    // A negative value or one that is not a number becomes 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast to an integer saturates"
    )]
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// A size with a unit: `512 B`, `12.3 MiB`.
pub(super) fn format_bytes(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, shown) in [
            (0.9, "0s"),
            (59.9, "59s"),
            (312.0, "5m 12s"),
            (3600.0, "1h 0m"),
            (273_600.0, "3d 4h"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(format_seconds(seconds), shown);
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(format_bytes(512), "512 B");
        assert_eq!(format_bytes(12_897_485), "12.3 MiB");
    }
}
