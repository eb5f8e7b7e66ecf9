//! `--doctor`: looks at a whole installation, step by step, and says what to do.
//!
//! It never disturbs a relay that runs on the machine: what that one holds is only connected to, and no key is
//! ever offered to the Router. The port of peers is held for the pairing alone.

mod address;
mod holders;
mod machine;
mod pairing;
mod port;
pub mod report;
mod router;
mod running;
pub mod site;

use std::time::SystemTime;

use crate::admin::client;
use crate::admin::kind::Kind;
use crate::config::exposed::{self, SecretFile};
use crate::config::report::Report as ConfigReport;
use crate::config::sources::Sources;
use crate::config::{self, Config, Loaded};
use crate::forward::pipe;
use crate::trace;
use crate::trace::settings::TraceSettings;

use port::Port;
use report::{
    CONFIGURATION, NEED_CONFIGURATION, RUNNING_RELAY, Report, SECRET_FILES, Step, TRACE_COLLECTOR,
};
use running::Running;
use site::Site;

/// What the doctor takes for granted about where it runs. Injected, so that tests can run elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    /// The time.
    pub now: SystemTime,
    /// Whether this is a container, where "every user" may be nobody else.
    pub in_container: bool,
    /// How the relay is operated here.
    pub site: Site,
    /// Whether it is a failure that no relay runs here.
    pub expects_relay: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process(sources: &Sources) -> Self {
        Self {
            now: SystemTime::now(),
            in_container: sources.in_container(),
            site: Site::of(sources),
            expects_relay: false,
        }
    }
}

/// Takes all steps, and shows each to `say` when it is taken. Whatever goes wrong, each step of
/// [`report::STEPS`] is there at least once.
pub async fn run(sources: &Sources, surroundings: Surroundings, say: impl FnMut(&Step)) -> Report {
    let mut doctor = Doctor { report: Report::default(), surroundings, say };
    doctor.run(sources).await;
    doctor.report
}

struct Doctor<S> {
    report: Report,
    surroundings: Surroundings,
    say: S,
}

impl<S: FnMut(&Step)> Doctor<S> {
    fn note(&mut self, mut step: Step) {
        step.details.extend(self.surroundings.site.remedies(&step));
        (self.say)(&step);
        self.report.steps.push(step);
    }

    fn note_all(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            self.note(step);
        }
    }

    async fn run(&mut self, sources: &Sources) {
        self.note(machine::clock(self.surroundings.now));
        let (config, report) = self.configuration(sources).await;
        self.secrets(sources, &report);
        match config {
            Some(config) => self.installation(sources, &config, &report).await,
            None => {
                let running = running::without_configuration(sources).await;
                let Surroundings { expects_relay, site, .. } = self.surroundings;
                self.note_all(NEED_CONFIGURATION.iter().map(|step| match &running {
                    Some(running) if *step == RUNNING_RELAY => running.clone(),
                    None if *step == RUNNING_RELAY && expects_relay => running::unknown(site),
                    _ => Step::skipped(
                        step,
                        "not looked at: the configuration is wrong, mend that first",
                    ),
                }));
            }
        }
        self.collector(sources).await;
        self.note(machine::pipes(pipe::probe()));
    }

    /// The steps of [`NEED_CONFIGURATION`].
    async fn installation(&mut self, sources: &Sources, config: &Config, report: &ConfigReport) {
        let site = self.surroundings.site;
        self.note_all(router::check(config, site).await);
        let addresses = address::resolve(config, site).await;
        self.note(addresses.step.clone());
        let running = Running::ask(sources, config, site).await;
        let (port, listener) = Port::look(config, &running, site);
        self.note(port.step(config));
        // From here to the end of the pairing a relay that starts would find the port taken.
        self.note(pairing::check(config, &port, listener, &addresses).await);
        let absence = running.absence(site).filter(|_| self.surroundings.expects_relay);
        let step = || running.step(config, report, port == Port::Free, site);
        self.note(absence.unwrap_or_else(step));
        let relay = running.pid().or(port.pid());
        for kind in [Kind::Admin, Kind::Metrics] {
            self.note(machine::http(config, kind, relay, &running, site));
        }
        self.note(machine::tls(config, self.surroundings.now));
        self.note(machine::open_files(config, relay, site));
        self.note(machine::memory(config, machine::available(relay)));
    }

    /// The configuration, if it is good, and where each value came from in any case.
    async fn configuration(&mut self, sources: &Sources) -> (Option<Config>, ConfigReport) {
        let read = sources.clone();
        let loaded = match client::bounded(move || config::load(&read)).await {
            Ok(loaded) => loaded,
            Err(why) => {
                self.note(Step::failed(CONFIGURATION, why));
                return (None, ConfigReport::default());
            }
        };
        let table = |report: &ConfigReport| {
            report.table().lines().map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        match loaded {
            Ok(Loaded { config, report }) => {
                let no_file =
                    report.no_file().map_or(String::new(), |no_file| format!("; {no_file}"));
                let seen = format!("complete{no_file}; the values, and where each came from:");
                self.note(Step { details: table(&report), ..Step::ok(CONFIGURATION, seen) });
                for warning in &report.warnings {
                    self.note(Step::hint(CONFIGURATION, warning));
                }
                (Some(config), report)
            }
            Err(invalid) => {
                let report = invalid.0;
                let details = table(&report);
                let seen = if details.is_empty() {
                    "wrong, see below"
                } else {
                    "wrong, see below; the values as far as they are known, and where each came from:"
                };
                self.note(Step { details, ..Step::hint(CONFIGURATION, seen) });
                for warning in &report.warnings {
                    self.note(Step::hint(CONFIGURATION, warning));
                }
                for problem in &report.problems {
                    self.note(Step::failed(CONFIGURATION, problem.to_string()));
                }
                (None, report)
            }
        }
    }

    fn secrets(&mut self, sources: &Sources, report: &ConfigReport) {
        let files = exposed::look(sources, report, self.surroundings.in_container);
        let total = files.len();
        let mut kept = Vec::new();
        for file in files {
            match file {
                SecretFile::Kept(path) => kept.push(path.display().to_string()),
                SecretFile::Exposed(exposed) if exposed.in_container => {
                    self.note(Step::hint(SECRET_FILES, exposed.to_string()));
                }
                SecretFile::Exposed(exposed) => {
                    self.note(Step::failed(SECRET_FILES, exposed.to_string()));
                }
                SecretFile::Unknown { path, holds, why } => self.note(Step::skipped(
                    SECRET_FILES,
                    format!(
                        "who can read {}, which holds {holds}, is not known: {why}",
                        path.display()
                    ),
                )),
            }
        }
        if total == 0 {
            self.note(Step::skipped(SECRET_FILES, "no file holds a secret"));
        } else if kept.len() == total {
            let seen = format!("not every user can read {}", kept.join(", "));
            self.note(Step::ok(SECRET_FILES, seen));
        }
    }

    async fn collector(&mut self, sources: &Sources) {
        let mut warnings = Vec::new();
        let settings = TraceSettings::from_environment(&sources.environment, &mut warnings);
        for warning in &warnings {
            self.note(Step::failed(TRACE_COLLECTOR, warning));
        }
        let Some(settings) = settings else {
            if warnings.is_empty() {
                let why = "traces are off (OTEL_EXPORTER_OTLP_ENDPOINT is not set)";
                self.note(Step::skipped(TRACE_COLLECTOR, why));
            }
            return;
        };
        self.note(match trace::probe(&settings).await {
            Ok(()) => Step::ok(TRACE_COLLECTOR, format!("{} takes connections", settings.shown_endpoint())),
            Err(error) => Step::failed(
                TRACE_COLLECTOR,
                format!(
                    "{} cannot be reached: {error}. Is the collector up, and are the OTEL_EXPORTER_OTLP_… variables \
                     right? Relaying does not depend on it",
                    settings.shown_endpoint()
                ),
            ),
        });
    }
}

#[cfg(test)]
mod testing;
