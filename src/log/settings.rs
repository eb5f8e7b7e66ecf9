//! The settings of the log, and which output an event goes to.

use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;

use super::environment::LogEnvironment;
use super::files::LogFileLimits;
use super::format::LogFormat;
use super::handle::LogHandle;
use super::target::{FATAL, START};
use super::variable;

const MIN_FILE_SIZE: u64 = 1024;
const MAX_FILE_SIZE: u64 = 10 * 1024 * 1024;
const DEFAULT_FILE_SIZE: u64 = 2 * 1024 * 1024;
const MAX_FILE_AGE_DAYS: u64 = 366;
const DEFAULT_FILE_AGE_DAYS: u64 = 14;
/// For all files together. Strangers can cause some hundred megabytes of lines a day.
const DEFAULT_TOTAL_SIZE: u64 = 256 * 1024 * 1024;

/// The settings of the log, from the environment.
#[derive(Debug, Clone)]
pub struct LogSettings {
    pub(super) handle: LogHandle,
    pub(super) to_stdout: bool,
    pub(super) to_stderr: bool,
    pub(super) to_file: bool,
    pub(super) format: LogFormat,
    pub(super) limits: LogFileLimits,
    pub(super) directory: PathBuf,
    warnings: Vec<String>,
}

impl LogSettings {
    /// Reads the variables. None of them prevents a start: an invalid value is replaced by the default, with a warning.
    pub fn from_environment(environment: &[(String, String)]) -> Self {
        let mut environment = LogEnvironment::new(environment);
        let level = match environment.read_number(variable::LEVEL, 2) {
            0 => LogHandle::new("info", Targets::new().with_default(LevelFilter::INFO)),
            1 => LogHandle::new("error", Targets::new().with_default(LevelFilter::ERROR)),
            _ => LogHandle::new("fatal", Targets::new().with_target(FATAL, LevelFilter::ERROR)),
        };
        let to_stdout = environment.read_flag(variable::TO_STDOUT, !cfg!(windows));
        let to_file = environment.read_flag(variable::TO_FILE, cfg!(windows));
        let file_size = environment
            .read_number(variable::MAX_FILE_SIZE, DEFAULT_FILE_SIZE)
            .clamp(MIN_FILE_SIZE, MAX_FILE_SIZE);
        let days = environment
            .read_number(variable::MAX_FILE_AGE, DEFAULT_FILE_AGE_DAYS)
            .min(MAX_FILE_AGE_DAYS);
        let total = environment.read_number(variable::MAX_TOTAL_SIZE, DEFAULT_TOTAL_SIZE);
        let format = environment.read_format();
        let handle = environment.read_filter().unwrap_or(level);
        Self {
            handle,
            to_stdout,
            to_stderr: true,
            to_file,
            format,
            limits: LogFileLimits {
                size: file_size,
                total: (total > 0).then_some(total.max(file_size)),
                age: (days > 0).then(|| Duration::from_secs(days * 24 * 3600)),
            },
            directory: std::env::temp_dir().join("aspia"),
            warnings: environment.into_warnings(),
        }
    }

    /// Adapts the settings to a process whose stderr is not visible, with log files in `directory`.
    pub fn without_stderr(self, directory: PathBuf) -> Self {
        Self { directory, to_stderr: false, ..self }
    }

    /// Returns the handle that shows and changes what is logged.
    pub fn handle(&self) -> LogHandle {
        self.handle.clone()
    }

    /// Returns a warning for each variable whose value is invalid, to be logged once the log has started.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether the log itself writes fatal errors to stderr, so that the caller does not write them as well.
    pub fn has_fatal_on_stderr(&self) -> bool {
        self.to_stderr && self.format == LogFormat::Json
    }

    pub(super) fn goes_to_stdout(&self, event: &Metadata<'_>) -> bool {
        // On a terminal and in the log of a container, stdout and stderr are the same: a fatal error must appear only once.
        let is_on_stderr = self.to_stderr && event.target() == FATAL;
        let replaces_stderr = !self.to_stderr && is_important(event);
        self.to_stdout && !is_on_stderr && (replaces_stderr || self.handle.would_enable(event))
    }

    pub(super) fn goes_to_stderr(&self, event: &Metadata<'_>) -> bool {
        if event.target() == FATAL {
            return self.has_fatal_on_stderr();
        }
        self.to_stderr && is_important(event) && !self.goes_to_stdout(event)
    }

    pub(super) fn goes_to_file(&self, event: &Metadata<'_>) -> bool {
        self.handle.would_enable(event) || (!self.to_stderr && is_important(event))
    }
}

/// Whether an event must reach an output at every level.
pub(super) fn is_important(event: &Metadata<'_>) -> bool {
    *event.level() <= Level::WARN || event.target() == START
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::callsite::Identifier;
    use tracing::field::FieldSet;
    use tracing::metadata::Kind;

    /// Settings with the defaults of Linux, on every platform.
    fn settings(variables: &[(&str, &str)]) -> LogSettings {
        let defaults = [("ASPIA_LOG_TO_STDOUT", "1"), ("ASPIA_LOG_TO_FILE", "0")];
        let is_set = |name: &str| variables.iter().any(|(set, _)| *set == name);
        let defaults = defaults.iter().filter(|(name, _)| !is_set(name));
        let all = variables.iter().chain(defaults);
        let environment: Vec<_> = all.map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        LogSettings::from_environment(&environment)
    }

    #[test]
    fn default_is_log_files_on_windows_and_stdout_elsewhere() {
        let LogSettings { to_stdout, to_file, .. } = LogSettings::from_environment(&Vec::new());
        assert_eq!((to_stdout, to_file), (cfg!(not(windows)), cfg!(windows)));
    }

    struct TestCallsite;
    impl tracing::callsite::Callsite for TestCallsite {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &Metadata<'_> {
            unreachable!("not used in these tests")
        }
    }
    static CALLSITE: TestCallsite = TestCallsite;

    fn event(target: &str, level: Level) -> Metadata<'_> {
        let fields = FieldSet::new(&[], Identifier(&CALLSITE));
        Metadata::new("event", target, level, None, None, None, fields, Kind::EVENT)
    }

    /// Whether an event goes to stdout, and to stderr.
    fn outputs_of(settings: &LogSettings, target: &str, level: Level) -> (bool, bool) {
        let event = event(target, level);
        (settings.goes_to_stdout(&event), settings.goes_to_stderr(&event))
    }

    const TARGET: &str = "aspia_relay::router";

    #[test]
    fn by_default_only_fatal_errors_are_logged_and_stderr_has_the_important_lines() {
        let quiet = settings(&[]);
        assert_eq!(outputs_of(&quiet, TARGET, Level::INFO), (false, false));
        assert_eq!(outputs_of(&quiet, TARGET, Level::WARN), (false, true));
        assert_eq!(outputs_of(&quiet, TARGET, Level::ERROR), (false, true));
        assert_eq!(outputs_of(&quiet, START, Level::INFO), (false, true));
        assert_eq!(outputs_of(&quiet, FATAL, Level::ERROR), (false, false));
        assert!(!quiet.has_fatal_on_stderr());
        let json = settings(&[("ASPIA_LOG_FORMAT", "json"), ("ASPIA_LOG_LEVEL", "0")]);
        assert_eq!(outputs_of(&json, FATAL, Level::ERROR), (false, true));
        assert!(json.has_fatal_on_stderr());
    }

    #[test]
    fn without_stderr_log_files_have_the_important_lines() {
        let quiet = settings(&[("ASPIA_LOG_TO_STDOUT", "0"), ("ASPIA_LOG_TO_FILE", "1")]);
        let service = quiet.clone().without_stderr("aspia".into());
        for (target, level, is_important) in [
            (TARGET, Level::INFO, false),
            (TARGET, Level::WARN, true),
            (TARGET, Level::ERROR, true),
            (START, Level::INFO, true),
        ] {
            assert_eq!(outputs_of(&quiet, target, level), (false, is_important));
            assert_eq!(outputs_of(&service, target, level), (false, false));
            assert!(!quiet.goes_to_file(&event(target, level)));
            assert_eq!(service.goes_to_file(&event(target, level)), is_important);
        }
        assert!(service.goes_to_file(&event(FATAL, Level::ERROR)));
        // If stderr is closed, stdout has the important lines.
        let closed = LogSettings { to_stderr: false, ..settings(&[]) };
        assert_eq!(outputs_of(&closed, TARGET, Level::WARN), (true, false));
        assert_eq!(outputs_of(&closed, TARGET, Level::INFO), (false, false));
        assert_eq!(outputs_of(&closed, FATAL, Level::ERROR), (true, false));
    }

    #[test]
    fn no_line_goes_to_both_stdout_and_stderr() {
        let all = settings(&[("ASPIA_LOG_LEVEL", "0")]);
        let errors = settings(&[("ASPIA_LOG_LEVEL", "1")]);
        assert_eq!(outputs_of(&all, TARGET, Level::INFO), (true, false));
        assert_eq!(outputs_of(&all, START, Level::INFO), (true, false));
        assert_eq!(outputs_of(&all, TARGET, Level::ERROR), (true, false));
        assert_eq!(outputs_of(&errors, TARGET, Level::ERROR), (true, false));
        assert_eq!(outputs_of(&errors, TARGET, Level::WARN), (false, true));
        let silent = settings(&[("ASPIA_LOG_LEVEL", "0"), ("ASPIA_LOG_TO_STDOUT", "0")]);
        assert_eq!(outputs_of(&silent, TARGET, Level::INFO), (false, false));
        assert_eq!(outputs_of(&silent, TARGET, Level::WARN), (false, true));
    }

    #[test]
    fn log_level_out_of_range_is_clamped() {
        assert_eq!(
            outputs_of(&settings(&[("ASPIA_LOG_LEVEL", "-3")]), TARGET, Level::INFO),
            (true, false)
        );
        assert_eq!(
            outputs_of(&settings(&[("ASPIA_LOG_LEVEL", "9")]), TARGET, Level::ERROR),
            (false, true)
        );
    }

    #[test]
    fn any_value_but_0_is_on() {
        for (value, on) in [("0", false), ("1", true), ("-1", true), ("true", true), ("00", true)] {
            let set = settings(&[("ASPIA_LOG_TO_STDOUT", value), ("ASPIA_LOG_TO_FILE", value)]);
            assert_eq!((set.to_stdout, set.to_file), (on, on), "{value}");
        }
    }

    #[test]
    fn rust_log_overrides_the_level() {
        let set =
            settings(&[("RUST_LOG", "warn,aspia_relay::router=debug"), ("ASPIA_LOG_LEVEL", "1")]);
        assert_eq!(outputs_of(&set, TARGET, Level::DEBUG), (true, false));
        assert_eq!(outputs_of(&set, "aspia_relay::peer", Level::INFO), (false, false));
        let bad = settings(&[("RUST_LOG", "aspia=loud")]);
        assert_eq!(outputs_of(&bad, TARGET, Level::INFO), (false, false));
        assert!(bad.warnings()[0].contains("RUST_LOG"));
    }

    #[test]
    fn invalid_parts_of_rust_log_cause_a_warning_and_valid_parts_apply() {
        for (text, info, expected) in [
            ("inf", true, "did you mean info?"),
            ("\"info\"", true, "info is used"),
            ("inof,aspia_relay=info", true, "aspia_relay=info is used"),
            ("inof,aspia_relay=warn", false, "aspia_relay=warn is used"),
            ("hyper=debug", true, "ASPIA_LOG_LEVEL is used"),
            ("x\ny=1", true, "is not a target"),
        ] {
            let set = settings(&[("RUST_LOG", text), ("ASPIA_LOG_LEVEL", "0")]);
            assert_eq!(outputs_of(&set, TARGET, Level::INFO), (info, false), "{text}");
            let [warning] = set.warnings() else { panic!("{text}: {:?}", set.warnings()) };
            assert!(warning.starts_with("RUST_LOG: ") && warning.contains(expected), "{warning}");
        }
    }

    #[test]
    fn switch_that_is_not_a_number_causes_a_warning() {
        let set = settings(&[("ASPIA_LOG_TO_STDOUT", "\"0\""), ("ASPIA_LOG_TO_FILE", "false")]);
        assert!(set.to_stdout && set.to_file);
        assert_eq!(set.warnings().len(), 2, "{:?}", set.warnings());
    }

    #[test]
    fn sizes_and_ages_are_clamped() {
        let small = settings(&[("ASPIA_MAX_LOG_FILE_SIZE", "5"), ("ASPIA_MAX_LOG_FILE_AGE", "0")]);
        assert_eq!((small.limits.size, small.limits.age), (1024, None));
        assert_eq!(small.limits.total, Some(DEFAULT_TOTAL_SIZE));
        let unbounded = settings(&[("ASPIA_MAX_LOG_TOTAL_SIZE", "0")]);
        assert_eq!(unbounded.limits.total, None);
        // The total is at least the size of one file.
        let tiny = settings(&[("ASPIA_MAX_LOG_TOTAL_SIZE", "1")]);
        assert_eq!(tiny.limits.total, Some(DEFAULT_FILE_SIZE));
        let large = settings(&[
            ("ASPIA_MAX_LOG_FILE_SIZE", "99999999999999999999"),
            ("ASPIA_MAX_LOG_FILE_AGE", "999"),
        ]);
        assert_eq!(large.limits.size, 10_485_760);
        assert_eq!(large.limits.age, Some(Duration::from_secs(366 * 86_400)));
        let odd = settings(&[("ASPIA_MAX_LOG_FILE_SIZE", "much"), ("ASPIA_LOG_FORMAT", "xml")]);
        assert_eq!((odd.limits.size, odd.format), (DEFAULT_FILE_SIZE, LogFormat::Text));
        assert_eq!(odd.warnings().len(), 2);
    }
}
