//! `--doctor`: examines a whole installation step by step, and says how to fix each failure.
//!
//! It never disturbs a relay that runs on the machine: it only connects to ports that others hold, and never offers a
//! key to the Router. It occupies the peer port only during the trial pairing.

mod address;
pub mod deployment;
mod holders;
mod machine;
mod pairing;
mod port;
pub mod report;
mod router;
mod running;
mod store;

use std::time::SystemTime;

use crate::admin::client;
use crate::admin::listener::HttpListener;
use crate::config::exposed::{self, FileExposure};
use crate::config::report::ConfigReport;
use crate::config::sources::Sources;
use crate::config::{self, Config, LoadedConfig};
use crate::forward::pipe;
use crate::headroom::machine::unmeasured_warning;
use crate::trace;
use crate::trace::settings::TraceSettings;

use deployment::Deployment;
use port::Port;
use report::{
    CONFIGURATION, DoctorReport, DoctorStep, NEED_CONFIGURATION, RUNNING_RELAY, SECRET_FILES,
    TRACE_COLLECTOR,
};
use running::RelayInspection;

/// The environment of the doctor. Injected, so that tests can choose it.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    /// The time by the clock of this machine.
    pub now: SystemTime,
    /// Whether this is a container, in which there may be no other user.
    pub is_in_container: bool,
    /// How the relay is deployed here.
    pub deployment: Deployment,
    /// Whether it is a failure if no relay runs here.
    pub expects_relay: bool,
}

impl Surroundings {
    /// The environment of this process.
    pub fn of_process(sources: &Sources) -> Self {
        Self {
            now: SystemTime::now(),
            is_in_container: sources.is_in_container(),
            deployment: Deployment::of(sources),
            expects_relay: false,
        }
    }
}

/// Takes all steps, and passes each to `print` as soon as its outcome is known. Whatever goes wrong, the report has
/// each of [`report::STEPS`] at least once.
pub async fn run(
    sources: &Sources,
    surroundings: Surroundings,
    print: impl FnMut(&DoctorStep),
) -> DoctorReport {
    let mut doctor = Doctor { report: DoctorReport::default(), surroundings, print };
    doctor.run(sources).await;
    doctor.report
}

struct Doctor<P> {
    report: DoctorReport,
    surroundings: Surroundings,
    print: P,
}

impl<P: FnMut(&DoctorStep)> Doctor<P> {
    fn note(&mut self, mut step: DoctorStep) {
        step.details.extend(self.surroundings.deployment.remedies(&step));
        (self.print)(&step);
        self.report.steps.push(step);
    }

    fn note_all(&mut self, steps: impl IntoIterator<Item = DoctorStep>) {
        for step in steps {
            self.note(step);
        }
    }

    async fn run(&mut self, sources: &Sources) {
        self.note(machine::check_clock(self.surroundings.now));
        let (config, report) = self.check_configuration(sources).await;
        self.check_secret_files(sources, &report);
        match config {
            Some(config) => self.check_installation(sources, &config, &report).await,
            None => {
                let running = running::step_without_configuration(sources).await;
                let Surroundings { expects_relay, deployment, .. } = self.surroundings;
                self.note_all(NEED_CONFIGURATION.iter().map(|step| match &running {
                    Some(running) if *step == RUNNING_RELAY => running.clone(),
                    None if *step == RUNNING_RELAY && expects_relay => {
                        running::unknown_step(deployment)
                    }
                    _ => DoctorStep::skipped(
                        step,
                        "not examined: the configuration is invalid, fix that first",
                    ),
                }));
            }
        }
        self.check_trace_collector(sources).await;
        self.note(machine::check_pipes(pipe::probe()));
    }

    /// Takes the steps of [`NEED_CONFIGURATION`].
    async fn check_installation(
        &mut self,
        sources: &Sources,
        config: &Config,
        report: &ConfigReport,
    ) {
        let deployment = self.surroundings.deployment;
        self.note_all(router::check(config, deployment).await);
        let addresses = address::resolve(config, deployment).await;
        self.note(addresses.step.clone());
        let running = RelayInspection::ask(sources, config, deployment).await;
        let (port, listener) = Port::probe(config, &running, deployment);
        self.note(port.step(config));
        // A relay that starts before the pairing has ended finds the port taken.
        self.note(pairing::check(config, &port, listener, &addresses).await);
        let absence = running.absence_step(deployment).filter(|_| self.surroundings.expects_relay);
        let step = || running.step(config, report, port == Port::Free, deployment);
        self.note(absence.unwrap_or_else(step));
        let relay = running.pid().or(port.pid());
        for kind in [HttpListener::Admin, HttpListener::Metrics] {
            self.note(machine::check_http(config, kind, relay, &running, deployment));
        }
        self.note(machine::check_tls(config, self.surroundings.now));
        self.note_all(store::check(config, relay, &running, deployment).await);
        self.note(machine::check_open_files(config, relay, deployment));
        self.note(machine::check_memory(config, machine::available_memory(relay)));
        self.note(machine::check_offer_by_load(config, unmeasured_warning(config)));
    }

    /// Loads the configuration. Returns it if it is valid, and the report in any case.
    async fn check_configuration(&mut self, sources: &Sources) -> (Option<Config>, ConfigReport) {
        let sources = sources.clone();
        let loaded = match client::run_bounded(move || config::load(&sources)).await {
            Ok(loaded) => loaded,
            Err(why) => {
                self.note(DoctorStep::failed(CONFIGURATION, why));
                return (None, ConfigReport::default());
            }
        };
        let table = |report: &ConfigReport| {
            report.table().lines().map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        match loaded {
            Ok(LoadedConfig { config, report, .. }) => {
                let no_file = report
                    .absent_file_note()
                    .map_or(String::new(), |no_file| format!("; {no_file}"));
                let seen = format!("complete{no_file}; the values and their sources:");
                self.note(DoctorStep {
                    details: table(&report),
                    ..DoctorStep::ok(CONFIGURATION, seen)
                });
                for warning in &report.warnings {
                    self.note(DoctorStep::hint(CONFIGURATION, warning));
                }
                (Some(config), report)
            }
            Err(invalid) => {
                let report = invalid.0;
                let details = table(&report);
                let seen = if details.is_empty() {
                    "invalid, see below"
                } else {
                    "invalid, see below; the values that are known and their sources:"
                };
                self.note(DoctorStep { details, ..DoctorStep::hint(CONFIGURATION, seen) });
                for warning in &report.warnings {
                    self.note(DoctorStep::hint(CONFIGURATION, warning));
                }
                for problem in &report.problems {
                    self.note(DoctorStep::failed(CONFIGURATION, problem.to_string()));
                }
                (None, report)
            }
        }
    }

    fn check_secret_files(&mut self, sources: &Sources, report: &ConfigReport) {
        let files = exposed::inspect(sources, report, self.surroundings.is_in_container);
        let total = files.len();
        let mut private = Vec::new();
        for file in files {
            match file {
                FileExposure::Private(path) => private.push(path.display().to_string()),
                FileExposure::Exposed(exposed) if exposed.is_in_container => {
                    self.note(DoctorStep::hint(SECRET_FILES, exposed.to_string()));
                }
                FileExposure::Exposed(exposed) => {
                    self.note(DoctorStep::failed(SECRET_FILES, exposed.to_string()));
                }
                FileExposure::Unknown { path, holds, why } => self.note(DoctorStep::skipped(
                    SECRET_FILES,
                    format!(
                        "cannot determine who can read {}, which holds {holds}: {why}",
                        path.display()
                    ),
                )),
            }
        }
        if total == 0 {
            self.note(DoctorStep::skipped(SECRET_FILES, "no file holds a secret"));
        } else if private.len() == total {
            let seen = format!("not every user can read {}", private.join(", "));
            self.note(DoctorStep::ok(SECRET_FILES, seen));
        }
    }

    async fn check_trace_collector(&mut self, sources: &Sources) {
        let mut warnings = Vec::new();
        let settings = TraceSettings::from_environment(&sources.environment, &mut warnings);
        for warning in &warnings {
            self.note(DoctorStep::failed(TRACE_COLLECTOR, warning));
        }
        let Some(settings) = settings else {
            if warnings.is_empty() {
                let why = "traces are off (OTEL_EXPORTER_OTLP_ENDPOINT is not set)";
                self.note(DoctorStep::skipped(TRACE_COLLECTOR, why));
            }
            return;
        };
        self.note(match trace::probe(&settings).await {
            Ok(()) => DoctorStep::ok(TRACE_COLLECTOR, format!("{} accepts connections", settings.redacted_endpoint())),
            Err(error) => DoctorStep::failed(
                TRACE_COLLECTOR,
                format!(
                    "{} cannot be reached: {error}. Is the collector up, and are the OTEL_EXPORTER_OTLP_… variables \
                     right? Relaying does not depend on it",
                    settings.redacted_endpoint()
                ),
            ),
        });
    }
}

#[cfg(test)]
mod testing;
