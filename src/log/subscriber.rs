//! Starts the log: its outputs, and the `tracing` subscriber that hands events to them.

use std::io;
use std::sync::Arc;

use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use super::destination::LogDestination;
use super::files::LogFiles;
use super::outputs::{LogGuard, LogOutput, Outputs};
use super::settings::{LogSettings, is_important};
use super::stdio::Stdio;
use super::variable;
use super::writer::OutputWriter;

/// A layer that receives spans.
pub type SpanLayer = Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>;

impl LogSettings {
    /// Starts the log of this process, and hands spans to `spans`. Dropping the guard flushes the log.
    ///
    /// # Errors
    /// The reason why there is no log: log files cannot be written (with their path), or threads cannot be started.
    pub fn start(&self, spans: Option<SpanLayer>) -> io::Result<LogGuard> {
        let report = |text: &str| tracing::warn!("{text}");
        let (subscriber, guard) = self.clone().build_subscriber(spans, report)?;
        tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
        for warning in self.warnings() {
            tracing::warn!("{warning}");
        }
        if self.to_stderr && Stdio::stderr().is_none() {
            tracing::warn!("stderr is closed: errors and warnings go to stdout or the log files");
        }
        Ok(guard)
    }

    /// Combines the outputs in one subscriber. `report` logs that an output fails, or has recovered.
    fn build_subscriber(
        mut self,
        spans: Option<SpanLayer>,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<(impl Subscriber + Send + Sync + 'static, LogGuard)> {
        let mut outputs = Vec::new();
        // This order is that of failover.
        let stderr = Stdio::stderr().filter(|_| self.to_stderr);
        let stderr = stderr.map(|stderr| add_output(&mut outputs, "stderr", stderr, true));
        let stdout = Stdio::stdout().filter(|_| self.to_stdout);
        let stdout = stdout.map(|stdout| add_output(&mut outputs, "stdout", stdout, true));
        // If one of the two is closed, important lines go to the other.
        (self.to_stdout, self.to_stderr) = (stdout.is_some(), stderr.is_some());
        let mut file = None;
        if self.to_file {
            let name = format!("the log files in {}", self.directory.display());
            // If there is a stderr, important lines go to stdout or stderr anyway.
            let has_failover = !self.to_stderr;
            file = Some(add_output(&mut outputs, &name, self.create_files()?, has_failover));
        }
        let (outputs, guard) = Outputs::start(outputs, self.handle.lost_lines().clone(), report)?;
        let format = self.format;
        let settings = Arc::new(self);
        let layer = |index: Option<usize>, goes_there: fn(&Self, &Metadata<'_>) -> bool| {
            let settings = settings.clone();
            // Spans are only for traces: lines do not show their fields.
            let filter = filter_fn(move |event| event.is_event() && goes_there(&settings, event));
            index.map(|index| (OutputWriter::new(outputs.clone(), index, is_important), filter))
        };
        let stdout = layer(stdout, Self::goes_to_stdout);
        let stdout = stdout.map(|(writer, filter)| format.layer(writer).with_filter(filter));
        let stderr = layer(stderr, Self::goes_to_stderr);
        let stderr = stderr.map(|(writer, filter)| format.layer(writer).with_filter(filter));
        let file = layer(file, Self::goes_to_file);
        let file = file.map(|(writer, filter)| format.layer(writer).with_filter(filter));
        let subscriber =
            tracing_subscriber::registry().with(spans).with(stdout).with(stderr).with(file);
        Ok((subscriber, guard))
    }

    fn create_files(&self) -> io::Result<LogFiles> {
        LogFiles::create(&self.directory, self.limits).map_err(|error| {
            let path = self.directory.display();
            io::Error::other(format!(
                "cannot write log files in {path}: {error}; make it writable, or set {}=0",
                variable::TO_FILE
            ))
        })
    }
}

/// Adds an output. Returns its number.
fn add_output(
    outputs: &mut Vec<LogOutput>,
    name: &str,
    destination: impl LogDestination + 'static,
    has_failover: bool,
) -> usize {
    outputs.push(LogOutput {
        name: name.to_owned(),
        destination: Box::new(destination),
        has_failover,
    });
    outputs.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> LogSettings {
        let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        LogSettings::from_environment(&variables.collect::<Vec<_>>())
    }

    #[test]
    fn start_error_names_the_directory_that_cannot_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut set = settings(&[("ASPIA_LOG_TO_FILE", "1")]);
        set.directory = directory.path().join("aspia");
        std::fs::write(&set.directory, "in the way").unwrap();
        let error = set.clone().build_subscriber(None, |_| {}).map(drop).unwrap_err().to_string();
        let path = set.directory.display().to_string();
        assert!(
            error.starts_with("cannot write log files in ") && error.contains(&path),
            "{error}"
        );
        assert!(error.ends_with("or set ASPIA_LOG_TO_FILE=0"), "{error}");
    }

    #[test]
    fn log_files_have_what_the_level_lets_through() {
        let directory = tempfile::tempdir().unwrap();
        let mut set = settings(&[
            ("ASPIA_LOG_TO_FILE", "1"),
            ("ASPIA_LOG_TO_STDOUT", "0"),
            ("ASPIA_LOG_LEVEL", "1"),
            ("ASPIA_LOG_FORMAT", "json"),
        ]);
        set.directory = directory.path().join("aspia");
        let (subscriber, guard) = set.clone().build_subscriber(None, |_| {}).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(answer = 42, "logged");
            tracing::info!("filtered out");
        });
        drop(guard);
        let file = std::fs::read_dir(&set.directory).unwrap().next().unwrap().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["message"], &line["answer"]), (&"logged".into(), &42.into()));
    }
}
