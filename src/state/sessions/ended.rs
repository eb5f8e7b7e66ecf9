//! The record of a session that has ended: one log line, for billing and audits.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use tracing::info;

use crate::log::SESSION;

use super::cause::EndCause;
use super::record::SessionRecord;

/// A session that has ended at this moment.
#[derive(Debug)]
pub struct EndedSession<'a> {
    /// What the session has done.
    pub record: &'a SessionRecord,
    /// What ended it.
    pub cause: EndCause,
    /// Whether the record may say who the peers are (`LogPeerIdentity`).
    pub is_identity_logged: bool,
}

impl EndedSession<'_> {
    /// Logs the record. Its fields are documented in `docs/observability.md` and only ever added to.
    pub fn log(&self) {
        let SessionRecord { age, bytes, identity, addresses: [first, second], .. } = self.record;
        // Times are derived from the duration, which no change of the clock distorts.
        let ended = SystemTime::now();
        let started = ended.checked_sub(*age).unwrap_or(ended);
        let administrator = self.cause.administrator().map(tracing::field::display);
        let user = self.is_identity_logged.then(|| identity.client_user_name());
        let host_id = self.is_identity_logged.then_some(identity.host_id);
        info!(
            target: SESSION,
            session = self.record.id.0,
            started = %format_time(started),
            ended = %format_time(ended),
            duration_seconds = as_seconds_to_the_millisecond(*age),
            reason = %self.cause.reason(),
            by = %self.cause.actor(),
            administrator,
            bytes = self.record.total_bytes(),
            bytes_from_first = bytes[0],
            bytes_from_second = bytes[1],
            %first,
            %second,
            user,
            host_id,
            "session ended"
        );
    }
}

/// Formats a time in UTC; empty for a time before 1970, which only a wrong clock shows.
fn format_time(time: SystemTime) -> String {
    let mut text = String::new();
    let _ = write!(text, "{}", humantime::format_rfc3339_millis(time));
    text
}

fn as_seconds_to_the_millisecond(duration: Duration) -> f64 {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(milliseconds).as_secs_f64()
}
