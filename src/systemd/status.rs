//! The status line for the service manager.

use std::time::Duration;

use crate::fd_store::status::StoreLinkStatus;
use crate::router::status::{LinkFacts, LinkStatus};
use crate::state::keys::StateCounts;

/// The longest status line, in characters: an error that quotes the Router must not fill a screen.
const MAX_LEN: usize = 300;

/// The line while the relay runs.
pub(super) fn format_running(
    link: &LinkStatus,
    store: &StoreLinkStatus,
    counts: StateCounts,
) -> String {
    let router = match (&link.link, &link.last_error) {
        (Some(LinkFacts { address, version, dialect, is_confirmed, .. }), _) => {
            let router = format!("Router {address} ({version}, {dialect} dialect)");
            if *is_confirmed {
                router
            } else {
                format!("authenticated to {router}, waiting to see whether it keeps the link")
            }
        }
        (None, Some((_, error))) => format!("no link to the Router: {error}"),
        (None, None) => "no link to the Router yet".to_owned(),
    };
    let sessions = format!("{} of {} sessions", counts.active, counts.capacity);
    match store.address {
        Some(_) => sanitise(&format!("{sessions}; {store}; {router}")),
        None => sanitise(&format!("{sessions}; {router}")),
    }
}

/// The line while the relay stops.
pub(super) fn format_stopping(counts: StateCounts, left: Duration) -> String {
    let sessions = match counts.active {
        1 => "1 session is left".to_owned(),
        count => format!("{count} sessions are left"),
    };
    sanitise(&format!("stopping: {sessions}, for up to {} s", left.as_secs()))
}

/// Replaces control characters, since a line break would begin another assignment in the notification, and limits the
/// length.
fn sanitise(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(MAX_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Cipher;
    use crate::wire::messages::Version;
    use std::time::SystemTime;

    const COUNTS: StateCounts =
        StateCounts { ordered: 0, offered: 90, handed_out: 3, active: 7, capacity: 100 };

    fn off() -> StoreLinkStatus {
        StoreLinkStatus::new(None)
    }

    #[test]
    fn the_line_shows_whether_sessions_are_kept() {
        let link = LinkStatus::new();
        let mut store = StoreLinkStatus::new(Some("@store".parse().unwrap()));
        store.set_failed("no such name".to_owned());
        assert_eq!(
            format_running(&link, &store, COUNTS),
            "7 of 100 sessions; sessions NOT kept by @store: no such name; no link to the Router yet"
        );
        store.set_kept(7);
        assert_eq!(
            format_running(&link, &store, COUNTS),
            "7 of 100 sessions; sessions kept by @store; no link to the Router yet"
        );
    }

    #[test]
    fn the_line_shows_the_link_and_the_sessions() {
        let mut link = LinkStatus::new();
        assert_eq!(
            format_running(&link, &off(), COUNTS),
            "7 of 100 sessions; no link to the Router yet"
        );
        link.last_error = Some((SystemTime::now(), "refused".into()));
        assert_eq!(
            format_running(&link, &off(), COUNTS),
            "7 of 100 sessions; no link to the Router: refused"
        );
        link.link = Some(LinkFacts {
            is_confirmed: false,
            address: ([192, 0, 2, 1], 8060).into(),
            dialect: "2.x",
            version: Version { major: 2, minor: 7, ..Version::default() },
            cipher: Cipher::Aes256Gcm,
        });
        let router = "Router 192.0.2.1:8060 (2.7.0, 2.x dialect)";
        let waiting = format!(
            "7 of 100 sessions; authenticated to {router}, waiting to see whether it keeps the link"
        );
        assert_eq!(format_running(&link, &off(), COUNTS), waiting);
        link.link.as_mut().unwrap().is_confirmed = true;
        assert_eq!(format_running(&link, &off(), COUNTS), format!("7 of 100 sessions; {router}"));
        let left = Duration::from_millis(21_900);
        assert_eq!(format_stopping(COUNTS, left), "stopping: 7 sessions are left, for up to 21 s");
        let one = StateCounts { active: 1, ..COUNTS };
        assert_eq!(format_stopping(one, left), "stopping: 1 session is left, for up to 21 s");
    }

    #[test]
    fn quoted_text_cannot_inject_assignments() {
        let mut link = LinkStatus::new();
        let error = format!("bad\nMAINPID=1\r{}", "x".repeat(1000));
        link.last_error = Some((SystemTime::now(), error));
        let line = format_running(&link, &off(), COUNTS);
        assert!(line.contains("bad MAINPID=1 xxx") && !line.contains(char::is_control), "{line}");
        assert_eq!(line.chars().count(), MAX_LEN);
    }
}
