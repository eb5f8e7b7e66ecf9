//! Loads the configuration: collects the settings, adds derived defaults, checks everything, and tries to load the TLS
//! files.

use super::advice;
use super::checks;
use super::derived;
use super::metrics_tls;
use super::mounted_file;
use super::provenance::{ProblemSource, Provenance};
use super::raw::RawSettings;
use super::reader::Reader;
use super::report::{ConfigProblem, ConfigReport, FileState};
use super::settings::{self, Draft, SETTINGS, SettingKey};
use super::sources::Sources;
use super::types::Config;

/// A valid configuration and its report.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// What the relay runs with.
    pub config: Config,
    /// Every effective value with its source, and all warnings.
    pub report: ConfigReport,
    /// Where it was read, and is read again by a reload.
    pub sources: Sources,
}

/// An invalid configuration: a report with every problem.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the configuration has {} problems", .0.problems.len())]
pub struct InvalidConfig(pub ConfigReport);

impl InvalidConfig {
    /// Describes all problems: a single problem on one line, several on a line each.
    pub fn describe(&self) -> String {
        if let [problem] = self.0.problems.as_slice() {
            return format!("configuration: {problem}");
        }
        let problems = self.0.problems.iter().map(|problem| format!("\n  {problem}"));
        problems.fold(format!("{self}:"), |text, problem| text + &problem)
    }
}

/// Reads and checks the configuration. Blocks.
///
/// # Errors
/// [`InvalidConfig`] with every problem that was found.
pub fn load(sources: &Sources) -> Result<LoadedConfig, Box<InvalidConfig>> {
    read(sources, None)
}

/// Reads and checks the configuration again, for a relay that runs with the configuration of the report `in_force`. A
/// file that was read for that must still exist: its absence does not withdraw the settings in it. Pipes and devices are
/// not read again; what they held at the start stays. Blocks.
///
/// # Errors
/// [`InvalidConfig`] with every problem that was found.
pub fn reload(
    sources: &Sources,
    in_force: &ConfigReport,
) -> Result<LoadedConfig, Box<InvalidConfig>> {
    read(sources, Some(in_force))
}

fn read(
    sources: &Sources,
    in_force: Option<&ConfigReport>,
) -> Result<LoadedConfig, Box<InvalidConfig>> {
    let mut report = ConfigReport::default();
    let mut raw = RawSettings::collect(sources, in_force, &mut report);
    let host_name = gethostname::gethostname();
    let missing_file_advice = match report.file {
        FileState::Absent => advice::for_missing_file(sources),
        FileState::Read | FileState::Unusable => String::new(),
    };
    derived::derive(&mut raw, &host_name.to_string_lossy(), &mut report);
    let draft = Draft::read(&mut Reader {
        raw: &raw,
        path: &sources.path,
        missing_file_advice: &missing_file_advice,
        report: &mut report,
    });
    checks::check(&draft, sources.is_in_container(), &mut report);
    metrics_tls::try_load(&draft, &raw, sources, &mut report);
    if draft.watch_config == Some(true)
        && let Some(warning) = mounted_file::warning(&sources.path)
    {
        report.add_warning(&warning);
    }
    if report.file == FileState::Absent {
        note_absent_file(sources, &missing_file_advice, &mut report);
    }
    match draft.finish() {
        Some(config) if report.problems.is_empty() => {
            Ok(LoadedConfig { config, report, sources: sources.clone() })
        }
        _ => Err(Box::new(InvalidConfig(report))),
    }
}

/// Notes what the absence of `relay.json` means.
fn note_absent_file(sources: &Sources, missing_file_advice: &str, report: &mut ConfigReport) {
    let required: Vec<SettingKey> =
        SETTINGS.iter().filter(|setting| setting.required.is_some()).map(|s| s.key).collect();
    let is_missing = |problem: &ConfigProblem| {
        problem.source == Provenance::NotSet.into()
            && required.iter().any(|key| *key == *problem.key)
    };
    let missing = report.problems.iter().filter(|problem| is_missing(problem)).count();
    if missing == required.len() {
        // Nobody has configured anything yet: that is one problem, not three.
        report.problems.retain(|problem| !is_missing(problem));
        report.problems.insert(0, nothing_set_problem(&required, sources, missing_file_advice));
    } else if missing == 0
        && let Some(left) = advice::for_converted_file(&sources.path)
    {
        report.add_warning(&format!("there is no {}; {left}", sources.path.display()));
    }
}

/// The problem of a relay that nobody has configured.
fn nothing_set_problem(
    required: &[SettingKey],
    sources: &Sources,
    missing_file_advice: &str,
) -> ConfigProblem {
    let variables: Vec<_> = required.iter().map(|key| key.variable()).collect();
    ConfigProblem {
        key: String::new(),
        value: None,
        source: ProblemSource::NothingSet,
        expected: format!(
            "{} in {} (which does not exist; {missing_file_advice}), or in the environment as {}",
            settings::join_names(required),
            sources.path.display(),
            variables.join(", ")
        ),
    }
}
