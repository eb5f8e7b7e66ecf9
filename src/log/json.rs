//! Log lines in JSON: one object on each line, with unique keys.
//!
//! The JSON formatter of `tracing_subscriber` writes fields next to its own keys without checking the names: an event with
//! a field `level`, or an event of a library with the same field twice, became an object that parsers read differently or
//! not at all.

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes an event as a JSON object: `timestamp`, `level`, the fields of the event, `target`.
#[derive(Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut object = JsonObject::default();
        // These come before the fields, so that a field of the same name is renamed.
        object.add("timestamp", time);
        object.add("level", event.metadata().level().as_str());
        object.keys.insert("target".to_owned());
        event.record(&mut object);
        object.write_entry("target", &event.metadata().target().into());
        writeln!(writer, "{}}}", object.text)
    }
}

/// A JSON object while it is being written.
#[derive(Default)]
struct JsonObject {
    text: String,
    keys: HashSet<String>,
}

impl JsonObject {
    /// Adds an entry under a unique key: the second field of a name becomes `name_2`.
    fn add(&mut self, name: &str, value: impl Into<Value>) {
        let name = name.strip_prefix("r#").unwrap_or(name);
        let mut key = name.to_owned();
        let mut number = 2;
        while self.keys.contains(&key) {
            key = format!("{name}_{number}");
            number += 1;
        }
        self.write_entry(&key, &value.into());
        self.keys.insert(key);
    }

    fn write_entry(&mut self, key: &str, value: &Value) {
        let separator = if self.text.is_empty() { '{' } else { ',' };
        // Writing to a `String` does not fail.
        let _ = write!(self.text, "{separator}{}:{value}", Value::from(key));
    }
}

impl Visit for JsonObject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Text {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(log: impl FnOnce()) -> String {
        let text = Text::default();
        let writer = text.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(text.0.lock().clone()).unwrap()
    }

    #[test]
    fn event_is_one_json_object() {
        let error = "a \"quoted\"\nline";
        let line = line(|| {
            tracing::info!(session = 7_u64, less = -1_i64, is = true, part = 0.5, %error, name = "n", "it\tis");
        });
        assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line}");
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["message"], "it\tis");
        assert_eq!(object["error"], error);
        assert_eq!((&object["session"], &object["less"]), (&7.into(), &(-1).into()));
        assert_eq!((&object["is"], &object["part"]), (&true.into(), &0.5.into()));
        assert_eq!(object["target"], module_path!());
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[test]
    fn keys_are_unique() {
        let line = line(|| {
            tracing::warn!(
                level = "debug",
                target = "t",
                timestamp = 1,
                r#type = 2,
                x = 3,
                x = 4,
                "m"
            );
        });
        let keys: Vec<&str> =
            line.split(['{', ',']).filter_map(|entry| entry.split('"').nth(1)).collect();
        let mut once = keys.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), keys.len(), "{line}");
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&object["level"], &object["level_2"]), (&"WARN".into(), &"debug".into()));
        assert_eq!((&object["x"], &object["x_2"]), (&3.into(), &4.into()));
        assert_eq!((&object["target_2"], &object["type"]), (&"t".into(), &2.into()));
    }
}
