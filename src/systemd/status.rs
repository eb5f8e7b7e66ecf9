//! How the relay is, in one line.

use std::time::Duration;

use crate::router::status::{LinkFacts, LinkStatus};
use crate::state::keys::Counts;

/// Longest line: what the Router's end of the link says of itself must not fill a screen.
const LONGEST: usize = 300;

/// While it runs.
pub(super) fn running(link: &LinkStatus, counts: Counts) -> String {
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
    line(&format!("{} of {} sessions; {router}", counts.active, counts.capacity))
}

/// While it stops.
pub(super) fn stopping(counts: Counts, left: Duration) -> String {
    let sessions = match counts.active {
        1 => "1 session is left".to_owned(),
        count => format!("{count} sessions are left"),
    };
    line(&format!("stopping: {sessions}, for up to {} s", left.as_secs()))
}

/// A line end would begin another message to the manager.
fn line(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Cipher;
    use crate::wire::router::Version;
    use std::time::SystemTime;

    const COUNTS: Counts =
        Counts { ordered: 0, offered: 90, handed_out: 3, active: 7, capacity: 100 };

    #[test]
    fn it_says_how_the_link_is_and_how_full_it_is() {
        let mut link = LinkStatus::new();
        assert_eq!(running(&link, COUNTS), "7 of 100 sessions; no link to the Router yet");
        link.last_error = Some((SystemTime::now(), "refused".into()));
        assert_eq!(running(&link, COUNTS), "7 of 100 sessions; no link to the Router: refused");
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
        assert_eq!(running(&link, COUNTS), waiting);
        link.link.as_mut().unwrap().is_confirmed = true;
        assert_eq!(running(&link, COUNTS), format!("7 of 100 sessions; {router}"));
        let left = Duration::from_millis(21_900);
        assert_eq!(stopping(COUNTS, left), "stopping: 7 sessions are left, for up to 21 s");
        let one = Counts { active: 1, ..COUNTS };
        assert_eq!(stopping(one, left), "stopping: 1 session is left, for up to 21 s");
    }

    #[test]
    fn what_others_say_is_no_message_of_ours() {
        let mut link = LinkStatus::new();
        let error = format!("bad\nMAINPID=1\r{}", "x".repeat(1000));
        link.last_error = Some((SystemTime::now(), error));
        let line = running(&link, COUNTS);
        assert!(line.contains("bad MAINPID=1 xxx") && !line.contains(char::is_control), "{line}");
        assert_eq!(line.chars().count(), LONGEST);
    }
}
