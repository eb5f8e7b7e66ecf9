//! The filter of the log, which can be changed while the relay runs.

use std::sync::Arc;

use parking_lot::RwLock;
use tracing::Metadata;
use tracing_subscriber::filter::Targets;

use super::filter::{self, FilterProblem, LogFilter};
use super::lost::LostLines;

/// A filter that was set while the relay ran, and the one that was configured then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFilter {
    /// The filter of `ASPIA_LOG_LEVEL`.
    pub configured: String,
    /// The filter in force.
    pub filter: String,
}

/// Shows and changes what is logged, and counts the lines that were lost. Clones share the filter and the count.
#[derive(Debug, Clone, Default)]
pub struct LogHandle {
    filter: Arc<RwLock<(String, Targets)>>,
    /// The text of the filter when the process started.
    configured: Arc<str>,
    lost: LostLines,
}

impl LogHandle {
    /// Creates a handle with a filter, and the filter's text.
    pub(super) fn new(text: &str, filter: Targets) -> Self {
        Self {
            filter: Arc::new(RwLock::new((text.to_owned(), filter))),
            configured: text.into(),
            lost: LostLines::default(),
        }
    }

    /// Returns the count of the lines that were not written.
    pub fn lost_lines(&self) -> &LostLines {
        &self.lost
    }

    /// Returns the text of the filter: the name of the level in `ASPIA_LOG_LEVEL`, or a list of `target=level`.
    pub fn filter(&self) -> String {
        self.filter.read().0.clone()
    }

    /// Returns the filter if it was set while the relay ran.
    pub fn changed_filter(&self) -> Option<ChangedFilter> {
        let (configured, filter) = (self.configured.to_string(), self.filter());
        (filter != configured).then_some(ChangedFilter { configured, filter })
    }

    /// Restores the filter that was set in the previous relay, unless another one was configured since.
    ///
    /// # Errors
    /// As [`Self::set_filter`]. The filter may be one that this version does not understand.
    pub fn restore_filter(&self, changed: &ChangedFilter) -> Result<(), String> {
        if *changed.configured != *self.configured {
            return Ok(());
        }
        self.set_filter(&changed.filter).map(drop)
    }

    /// Sets the filter, a level or a list of `target=level`, until the relay ends; one that takes over from this relay goes on
    /// with it. If the filter does not name session records, their level stays what was configured for them: whoever asks for
    /// more or fewer lines does not mean the records, which programs read. Returns the filter that is now in force.
    ///
    /// # Errors
    /// All problems of the filter, which is then not changed.
    pub fn set_filter(&self, text: &str) -> Result<String, String> {
        let mut new = filter::parse(text);
        if !new.problems.is_empty() {
            return Err(FilterProblem::join(&new.problems));
        }
        if let (None, Some(records)) =
            (filter::session_part(&new.text), filter::session_part(&self.configured))
        {
            new = filter::parse(&format!("{},{records}", new.text));
        }
        let LogFilter { text, targets, .. } = new;
        *self.filter.write() = (text.clone(), targets);
        tracing::callsite::rebuild_interest_cache();
        Ok(text)
    }

    /// Whether the filter lets an event through.
    pub(super) fn would_enable(&self, event: &Metadata<'_>) -> bool {
        let filter = self.filter.read();
        filter.1.would_enable(event.target(), event.level())
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;
    use tracing_subscriber::filter::LevelFilter;

    use super::*;
    use crate::log::target::SESSION;

    fn configured(text: &str) -> LogHandle {
        LogHandle::new(text, Targets::new().with_default(LevelFilter::INFO))
    }

    #[test]
    fn filter_set_at_run_time_goes_on_unless_another_is_configured() {
        let log = configured("info");
        assert_eq!(log.changed_filter(), None);
        log.set_filter("aspia_relay=debug").unwrap();
        let changed = log.changed_filter().unwrap();
        let same = configured("info");
        same.restore_filter(&changed).unwrap();
        assert_eq!((same.filter(), same.changed_filter()), (log.filter(), Some(changed.clone())));
        let other = configured("warn");
        other.restore_filter(&changed).unwrap();
        assert_eq!((other.filter().as_str(), other.changed_filter()), ("warn", None));
        let unknown = ChangedFilter { filter: "a=noise".to_owned(), ..changed };
        assert!(configured("info").restore_filter(&unknown).is_err());
    }

    #[test]
    fn session_records_keep_their_configured_level_unless_the_new_filter_names_them() {
        for (configured_filter, set, expected, has_records) in [
            ("warn,session=info", "debug", "debug,session=info", true),
            ("warn,session=info", "warn", "warn,session=info", true),
            ("session", "aspia_relay=debug", "aspia_relay=debug,session", true),
            ("info,session=off", "trace", "trace,session=off", false),
            ("warn,session=info", "debug,session=off", "debug,session=off", false),
            ("info", "warn", "warn", false),
            ("info", "debug", "debug", true),
        ] {
            let log = configured(configured_filter);
            assert_eq!(log.set_filter(set).unwrap(), expected);
            assert_eq!(log.filter(), expected);
            let targets = log.filter.read().1.clone();
            let enabled = targets.would_enable(SESSION, &Level::INFO);
            assert_eq!(enabled, has_records, "{configured_filter}, then {set}");
        }
        // The level of the records does not make a filter valid that silences the relay.
        assert!(configured("warn,session=info").set_filter("hyper=debug").is_err());
        // Setting the configured level again changes nothing for the next relay.
        let log = configured("warn,session=info");
        log.set_filter("debug").unwrap();
        log.set_filter("warn").unwrap();
        assert_eq!(log.changed_filter(), None);
    }
}
