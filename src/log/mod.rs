//! The log: the original's variables with their meaning, and what must reach stderr whatever they say.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `ASPIA_LOG_LEVEL` | 0 information, 1 errors, 2 fatal errors only (default) |
//! | `ASPIA_LOG_TO_STDOUT`, `ASPIA_LOG_TO_FILE` | 0 off, any other number on |
//! | `ASPIA_MAX_LOG_FILE_SIZE`, `ASPIA_MAX_LOG_FILE_AGE` | bytes; days, 0 = keep |
//! | `ASPIA_MAX_LOG_TOTAL_SIZE` | bytes of all files together, 0 = no bound; not of the original |
//! | `ASPIA_LOG_FORMAT` | `text` (default) or `json` |
//! | `RUST_LOG` | overrides the level: `info`, `aspia_relay::router=debug` and the like |
//!
//! Errors, warnings and the one line at start reach stderr unless stdout carries them already. A service of Windows has
//! neither: there the log files have them, whatever the level is. An output that fails is replaced as `output` says.

mod files;
mod filter;
mod json;
pub mod limit;
mod output;
mod stdio;
mod target;
mod variable;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use files::{Bounds, LogFiles};
use filter::{Filter, Problem};
use json::JsonLines;
use output::{Destination, Output, OutputWriter, Outputs};
pub use output::{LogGuard, LostLines};
use stdio::Stdio;
pub use target::{FATAL, START};
pub use variable::VARIABLES;

const FILE_SIZES: (u64, u64) = (1024, 10 * 1024 * 1024);
const DEFAULT_FILE_SIZE: u64 = 2 * 1024 * 1024;
const MAX_FILE_AGE_DAYS: u64 = 366;
const DEFAULT_FILE_AGE_DAYS: u64 = 14;
/// Of all files together. Strangers can cause some hundred megabytes of lines a day.
const DEFAULT_TOTAL_SIZE: u64 = 256 * 1024 * 1024;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, which can be changed while the relay runs, and what was lost of it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LogHandle {
    level: Arc<RwLock<(String, Targets)>>,
    lost: LostLines,
}

impl LogHandle {
    fn new(text: &str, filter: Targets) -> Self {
        Self { level: Arc::new(RwLock::new((text.to_owned(), filter))), lost: LostLines::default() }
    }

    /// The lines that were not written.
    pub fn lost_lines(&self) -> &LostLines {
        &self.lost
    }

    /// The level in words: that of the variable, or the list that was set.
    pub fn text(&self) -> String {
        self.level.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Logs by another level, or by a list of `target=level`, until the end of the process. Gives the filter as it is
    /// now in force.
    ///
    /// # Errors
    /// Everything that is wrong with the filter, in words; then nothing is changed.
    pub fn set(&self, text: &str) -> Result<String, String> {
        let Filter { text, targets, problems, .. } = filter::parse(text);
        if !problems.is_empty() {
            return Err(listed(&problems));
        }
        *self.level.write().unwrap_or_else(PoisonError::into_inner) = (text.clone(), targets);
        tracing::callsite::rebuild_interest_cache();
        Ok(text)
    }

    fn would_enable(&self, event: &Metadata<'_>) -> bool {
        let filter = self.level.read().unwrap_or_else(PoisonError::into_inner);
        filter.1.would_enable(event.target(), event.level())
    }
}

/// What the variables ask for.
#[derive(Debug, Clone)]
pub struct LogSettings {
    handle: LogHandle,
    stdout: bool,
    stderr: bool,
    file: bool,
    format: Format,
    bounds: Bounds,
    directory: PathBuf,
    warnings: Vec<String>,
}

impl LogSettings {
    /// Reads the variables. Nothing here stops a start: what makes no sense is taken as the default, with a
    /// warning.
    pub fn from_environment(environment: &[(String, String)]) -> Self {
        let mut variables = Variables { environment, warnings: Vec::new() };
        let level = match variables.number(variable::LEVEL, 2) {
            0 => LogHandle::new("info", Targets::new().with_default(LevelFilter::INFO)),
            1 => LogHandle::new("error", Targets::new().with_default(LevelFilter::ERROR)),
            _ => LogHandle::new("fatal", Targets::new().with_target(FATAL, LevelFilter::ERROR)),
        };
        let stdout = variables.flag(variable::TO_STDOUT, !cfg!(windows));
        let file = variables.flag(variable::TO_FILE, cfg!(windows));
        let file_size = variables
            .number(variable::MAX_FILE_SIZE, DEFAULT_FILE_SIZE)
            .clamp(FILE_SIZES.0, FILE_SIZES.1);
        let days =
            variables.number(variable::MAX_FILE_AGE, DEFAULT_FILE_AGE_DAYS).min(MAX_FILE_AGE_DAYS);
        let total = variables.number(variable::MAX_TOTAL_SIZE, DEFAULT_TOTAL_SIZE);
        let format = variables.format();
        let handle = variables.filter().unwrap_or(level);
        Self {
            handle,
            stdout,
            stderr: true,
            file,
            format,
            bounds: Bounds {
                size: file_size,
                total: (total > 0).then_some(total.max(file_size)),
                age: (days > 0).then(|| Duration::from_secs(days * 24 * 3600)),
            },
            directory: std::env::temp_dir().join("aspia"),
            warnings: variables.warnings,
        }
    }

    /// The same for a process whose stderr nobody sees, with log files in this directory.
    pub fn without_stderr(self, directory: PathBuf) -> Self {
        Self { directory, stderr: false, ..self }
    }

    /// What is logged, to be shown and changed.
    pub fn handle(&self) -> LogHandle {
        self.handle.clone()
    }

    /// What did not make sense, to be logged once there is a log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn carried_by_stdout(&self, event: &Metadata<'_>) -> bool {
        // On a terminal and in the log of a container stdout and stderr are one: what ends the program is said once.
        let on_stderr = self.stderr && event.target() == FATAL;
        let takes_all = !self.stderr && must_be_seen(event);
        self.stdout && !on_stderr && (takes_all || self.handle.would_enable(event))
    }

    fn carried_by_stderr(&self, event: &Metadata<'_>) -> bool {
        if event.target() == FATAL {
            return self.has_fatal_on_stderr();
        }
        self.stderr && must_be_seen(event) && !self.carried_by_stdout(event)
    }

    /// Whether the log itself brings what ends the program to stderr, so that nobody else need.
    pub fn has_fatal_on_stderr(&self) -> bool {
        self.stderr && self.format == Format::Json
    }

    fn carried_by_file(&self, event: &Metadata<'_>) -> bool {
        self.handle.would_enable(event) || (!self.stderr && must_be_seen(event))
    }

    /// The outputs as one subscriber, and what has the last lines written when it is dropped. `report` logs what is wrong
    /// with an output.
    fn subscriber(
        mut self,
        spans: Option<SpanLayer>,
        report: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<(impl Subscriber + Send + Sync + 'static, LogGuard)> {
        let mut outputs = Outlets::default();
        // In this order they take over from each other.
        let stderr = Stdio::stderr().filter(|_| self.stderr).map(|to| outputs.add("stderr", to));
        let stdout = Stdio::stdout().filter(|_| self.stdout).map(|to| outputs.add("stdout", to));
        // Where one leads nowhere, lines that must be seen go to the other.
        (self.stdout, self.stderr) = (stdout.is_some(), stderr.is_some());
        let file = match self.file {
            false => None,
            true => {
                let files = LogFiles::create(&self.directory, self.bounds).map_err(|error| {
                    let path = self.directory.display();
                    io::Error::other(format!(
                        "cannot write log files in {path}: {error}; make it writable, or set {}=0",
                        variable::TO_FILE
                    ))
                })?;
                let name = format!("the log files in {}", self.directory.display());
                let index = outputs.add(&name, files);
                // What must be seen has gone to stdout or stderr already.
                outputs.0[index].is_replaced = !self.stderr;
                Some(index)
            }
        };
        let (outputs, guard) = Outputs::start(outputs.0, self.handle.lost.clone(), report)?;
        let format = self.format;
        let settings = Arc::new(self);
        let layer = |index: Option<usize>, carries: fn(&Self, &Metadata<'_>) -> bool| {
            let settings = settings.clone();
            // Spans are for traces: lines do not repeat what is in them.
            let filter = filter_fn(move |event| event.is_event() && carries(&settings, event));
            let index = index?;
            let writer = outputs.writer(index, must_be_seen);
            Some((writer, filter))
        };
        let stdout = layer(stdout, Self::carried_by_stdout);
        let stdout = stdout.map(|(writer, filter)| lines(format, writer).with_filter(filter));
        let stderr = layer(stderr, Self::carried_by_stderr);
        let stderr = stderr.map(|(writer, filter)| lines(format, writer).with_filter(filter));
        let file = layer(file, Self::carried_by_file);
        let file = file.map(|(writer, filter)| lines(format, writer).with_filter(filter));
        let subscriber =
            tracing_subscriber::registry().with(spans).with(stdout).with(stderr).with(file);
        Ok((subscriber, guard))
    }

    /// Starts the log of this process, and hands spans to `spans`; it is complete when the result is dropped.
    ///
    /// # Errors
    /// Why there is no log, in words: files that cannot be written, with their path, or threads that cannot be started.
    pub fn start(&self, spans: Option<SpanLayer>) -> io::Result<LogGuard> {
        let report = |text: &str| tracing::warn!("{text}");
        let (subscriber, guard) = self.clone().subscriber(spans, report)?;
        tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
        if self.stderr && Stdio::stderr().is_none() {
            tracing::warn!("stderr is closed: errors and warnings go to stdout or the log files");
        }
        Ok(guard)
    }
}

/// The outputs that there are to be.
#[derive(Default)]
struct Outlets(Vec<Output>);

impl Outlets {
    /// Adds one; gives its number.
    fn add(&mut self, name: &str, to: impl Destination + 'static) -> usize {
        self.0.push(Output {
            name: name.to_owned(),
            destination: Box::new(to),
            takes_over: true,
            is_replaced: true,
        });
        self.0.len() - 1
    }
}

/// Several problems in words.
fn listed(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The environment, and what makes no sense in it.
struct Variables<'a> {
    environment: &'a [(String, String)],
    warnings: Vec<String>,
}

impl<'a> Variables<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.environment.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// 0 is off, anything else is on.
    fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(value) = self.get(name) else {
            return default;
        };
        if value.parse::<i128>().is_err() {
            self.warnings.push(format!(
                "{name} is {value:?}, which is no number: it counts as on; 0 is off"
            ));
        }
        value != "0"
    }

    fn number(&mut self, name: &str, default: u64) -> u64 {
        match self.get(name).map(str::parse::<i128>) {
            None => default,
            // What is out of range is clamped, as in the original.
            Some(Ok(number)) => u64::try_from(number.max(0)).unwrap_or(u64::MAX),
            Some(Err(_)) => {
                self.warnings.push(format!("{name} is not a number; {default} is used"));
                default
            }
        }
    }

    fn format(&mut self) -> Format {
        match self.get(variable::FORMAT) {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => {
                self.warnings
                    .push(format!("ASPIA_LOG_FORMAT is {other:?}, not text or json; text is used"));
                Format::Text
            }
        }
    }

    /// What is good of `RUST_LOG`; `None` where nothing is.
    fn filter(&mut self) -> Option<LogHandle> {
        let Filter { text, targets, problems, is_usable } = filter::parse(self.get("RUST_LOG")?);
        if !problems.is_empty() {
            let instead = if is_usable { text.as_str() } else { variable::LEVEL };
            self.warnings.push(format!("RUST_LOG: {}; {instead} is used", listed(&problems)));
        }
        is_usable.then(|| LogHandle::new(&text, targets))
    }
}

/// Whether it must reach somebody at every level.
fn must_be_seen(event: &Metadata<'_>) -> bool {
    *event.level() <= Level::WARN || event.target() == START
}

/// Takes spans.
pub type SpanLayer = Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>;

fn lines<S>(format: Format, writer: OutputWriter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    match format {
        Format::Text => layer.boxed(),
        Format::Json => layer.event_format(JsonLines).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::callsite::Identifier;
    use tracing::field::FieldSet;
    use tracing::metadata::Kind;

    /// With the defaults of Linux, wherever this runs.
    fn settings(variables: &[(&str, &str)]) -> LogSettings {
        let defaults = [("ASPIA_LOG_TO_STDOUT", "1"), ("ASPIA_LOG_TO_FILE", "0")];
        let is_set = |name: &str| variables.iter().any(|(set, _)| *set == name);
        let defaults = defaults.iter().filter(|(name, _)| !is_set(name));
        let all = variables.iter().chain(defaults);
        let environment: Vec<_> = all.map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        LogSettings::from_environment(&environment)
    }

    #[test]
    fn windows_logs_to_files_and_others_to_stdout() {
        let LogSettings { stdout, file, .. } = LogSettings::from_environment(&Vec::new());
        assert_eq!((stdout, file), (cfg!(not(windows)), cfg!(windows)));
    }

    struct Site;
    impl tracing::callsite::Callsite for Site {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &Metadata<'_> {
            unreachable!("never asked for here")
        }
    }
    static SITE: Site = Site;

    fn event(target: &str, level: Level) -> Metadata<'_> {
        let fields = FieldSet::new(&[], Identifier(&SITE));
        Metadata::new("event", target, level, None, None, None, fields, Kind::EVENT)
    }

    /// Where an event goes: stdout, stderr.
    fn goes(settings: &LogSettings, target: &str, level: Level) -> (bool, bool) {
        let event = event(target, level);
        (settings.carried_by_stdout(&event), settings.carried_by_stderr(&event))
    }

    const HERE: &str = "aspia_relay::router";

    #[test]
    fn the_original_default_is_fatal_only_and_stderr_has_the_rest_that_matters() {
        let quiet = settings(&[]);
        assert_eq!(goes(&quiet, HERE, Level::INFO), (false, false));
        assert_eq!(goes(&quiet, HERE, Level::WARN), (false, true));
        assert_eq!(goes(&quiet, HERE, Level::ERROR), (false, true));
        assert_eq!(goes(&quiet, START, Level::INFO), (false, true));
        assert_eq!(goes(&quiet, FATAL, Level::ERROR), (false, false));
        assert!(!quiet.has_fatal_on_stderr());
        let json = settings(&[("ASPIA_LOG_FORMAT", "json"), ("ASPIA_LOG_LEVEL", "0")]);
        assert_eq!(goes(&json, FATAL, Level::ERROR), (false, true));
        assert!(json.has_fatal_on_stderr());
    }

    #[test]
    fn without_stderr_files_have_what_matters() {
        let quiet = settings(&[("ASPIA_LOG_TO_STDOUT", "0"), ("ASPIA_LOG_TO_FILE", "1")]);
        let service = quiet.clone().without_stderr("aspia".into());
        for (target, level, must_be_seen) in [
            (HERE, Level::INFO, false),
            (HERE, Level::WARN, true),
            (HERE, Level::ERROR, true),
            (START, Level::INFO, true),
        ] {
            assert_eq!(goes(&quiet, target, level), (false, must_be_seen));
            assert_eq!(goes(&service, target, level), (false, false));
            assert!(!quiet.carried_by_file(&event(target, level)));
            assert_eq!(service.carried_by_file(&event(target, level)), must_be_seen);
        }
        assert!(service.carried_by_file(&event(FATAL, Level::ERROR)));
        // A console without stderr has stdout.
        let closed = LogSettings { stderr: false, ..settings(&[]) };
        assert_eq!(goes(&closed, HERE, Level::WARN), (true, false));
        assert_eq!(goes(&closed, HERE, Level::INFO), (false, false));
        assert_eq!(goes(&closed, FATAL, Level::ERROR), (true, false));
    }

    #[test]
    fn nothing_is_said_twice() {
        let all = settings(&[("ASPIA_LOG_LEVEL", "0")]);
        let errors = settings(&[("ASPIA_LOG_LEVEL", "1")]);
        assert_eq!(goes(&all, HERE, Level::INFO), (true, false));
        assert_eq!(goes(&all, START, Level::INFO), (true, false));
        assert_eq!(goes(&all, HERE, Level::ERROR), (true, false));
        assert_eq!(goes(&errors, HERE, Level::ERROR), (true, false));
        assert_eq!(goes(&errors, HERE, Level::WARN), (false, true));
        let silent = settings(&[("ASPIA_LOG_LEVEL", "0"), ("ASPIA_LOG_TO_STDOUT", "0")]);
        assert_eq!(goes(&silent, HERE, Level::INFO), (false, false));
        assert_eq!(goes(&silent, HERE, Level::WARN), (false, true));
    }

    #[test]
    fn levels_are_clamped() {
        assert_eq!(goes(&settings(&[("ASPIA_LOG_LEVEL", "-3")]), HERE, Level::INFO), (true, false));
        assert_eq!(goes(&settings(&[("ASPIA_LOG_LEVEL", "9")]), HERE, Level::ERROR), (false, true));
    }

    #[test]
    fn anything_but_0_is_on() {
        for (value, on) in [("0", false), ("1", true), ("-1", true), ("true", true), ("00", true)] {
            let set = settings(&[("ASPIA_LOG_TO_STDOUT", value), ("ASPIA_LOG_TO_FILE", value)]);
            assert_eq!((set.stdout, set.file), (on, on), "{value}");
        }
    }

    #[test]
    fn rust_log_overrides_the_level() {
        let set =
            settings(&[("RUST_LOG", "warn,aspia_relay::router=debug"), ("ASPIA_LOG_LEVEL", "1")]);
        assert_eq!(goes(&set, HERE, Level::DEBUG), (true, false));
        assert_eq!(goes(&set, "aspia_relay::peer", Level::INFO), (false, false));
        let bad = settings(&[("RUST_LOG", "aspia=loud")]);
        assert_eq!(goes(&bad, HERE, Level::INFO), (false, false));
        assert!(bad.warnings()[0].contains("RUST_LOG"));
    }

    #[test]
    fn a_bad_rust_log_is_said_and_what_is_good_of_it_holds() {
        for (text, info, said) in [
            ("inf", true, "did you mean info?"),
            ("\"info\"", true, "info is used"),
            ("inof,aspia_relay=info", true, "aspia_relay=info is used"),
            ("inof,aspia_relay=warn", false, "aspia_relay=warn is used"),
            ("hyper=debug", true, "ASPIA_LOG_LEVEL is used"),
            ("x\ny=1", true, "is no target"),
        ] {
            let set = settings(&[("RUST_LOG", text), ("ASPIA_LOG_LEVEL", "0")]);
            assert_eq!(goes(&set, HERE, Level::INFO), (info, false), "{text}");
            let [warning] = set.warnings() else { panic!("{text}: {:?}", set.warnings()) };
            assert!(warning.starts_with("RUST_LOG: ") && warning.contains(said), "{warning}");
        }
    }

    #[test]
    fn switches_that_are_no_numbers_are_said() {
        let set = settings(&[("ASPIA_LOG_TO_STDOUT", "\"0\""), ("ASPIA_LOG_TO_FILE", "false")]);
        assert!(set.stdout && set.file);
        assert_eq!(set.warnings().len(), 2, "{:?}", set.warnings());
    }

    #[test]
    fn sizes_and_ages_are_clamped() {
        let small = settings(&[("ASPIA_MAX_LOG_FILE_SIZE", "5"), ("ASPIA_MAX_LOG_FILE_AGE", "0")]);
        assert_eq!((small.bounds.size, small.bounds.age), (1024, None));
        assert_eq!(small.bounds.total, Some(DEFAULT_TOTAL_SIZE));
        let unbounded = settings(&[("ASPIA_MAX_LOG_TOTAL_SIZE", "0")]);
        assert_eq!(unbounded.bounds.total, None);
        // One file has room.
        let tiny = settings(&[("ASPIA_MAX_LOG_TOTAL_SIZE", "1")]);
        assert_eq!(tiny.bounds.total, Some(DEFAULT_FILE_SIZE));
        let large = settings(&[
            ("ASPIA_MAX_LOG_FILE_SIZE", "99999999999999999999"),
            ("ASPIA_MAX_LOG_FILE_AGE", "999"),
        ]);
        assert_eq!(large.bounds.size, 10_485_760);
        assert_eq!(large.bounds.age, Some(Duration::from_secs(366 * 86_400)));
        let odd = settings(&[("ASPIA_MAX_LOG_FILE_SIZE", "much"), ("ASPIA_LOG_FORMAT", "xml")]);
        assert_eq!((odd.bounds.size, odd.format), (DEFAULT_FILE_SIZE, Format::Text));
        assert_eq!(odd.warnings().len(), 2);
    }

    #[test]
    fn files_that_cannot_be_written_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut set = settings(&[("ASPIA_LOG_TO_FILE", "1")]);
        set.directory = directory.path().join("aspia");
        std::fs::write(&set.directory, "in the way").unwrap();
        let error = set.clone().subscriber(None, |_| {}).map(drop).unwrap_err().to_string();
        let path = set.directory.display().to_string();
        assert!(
            error.starts_with("cannot write log files in ") && error.contains(&path),
            "{error}"
        );
        assert!(error.ends_with("or set ASPIA_LOG_TO_FILE=0"), "{error}");
    }

    #[test]
    fn log_files_get_what_the_level_lets_through() {
        let directory = tempfile::tempdir().unwrap();
        let mut set = settings(&[
            ("ASPIA_LOG_TO_FILE", "1"),
            ("ASPIA_LOG_TO_STDOUT", "0"),
            ("ASPIA_LOG_LEVEL", "1"),
            ("ASPIA_LOG_FORMAT", "json"),
        ]);
        set.directory = directory.path().join("aspia");
        let (subscriber, guards) = set.clone().subscriber(None, |_| {}).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(answer = 42, "seen");
            tracing::info!("not seen");
        });
        drop(guards);
        let file = std::fs::read_dir(&set.directory).unwrap().next().unwrap().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["message"], &line["answer"]), (&"seen".into(), &42.into()));
    }
}
