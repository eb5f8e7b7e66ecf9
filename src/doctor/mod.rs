//! `--doctor`: looks at a whole installation, step by step, and says what to do.
//!
//! It never disturbs a relay that runs on the machine: what that one holds is only connected to, and no key is
//! ever offered to the Router.

mod machine;
mod peers;
pub mod report;
mod router;

use std::time::SystemTime;

use crate::config::exposed;
use crate::config::report::Report as ConfigReport;
use crate::config::sources::Sources;
use crate::config::{self, Loaded};
use crate::memory;
use crate::trace;
use crate::trace::settings::TraceSettings;

use peers::Port;
use report::{Report, Step};

/// Takes all steps, and shows each to `say` when it is taken. Lasts about a minute at worst.
pub async fn run(sources: &Sources, say: impl FnMut(&Step)) -> Report {
    let mut doctor = Doctor { report: Report::default(), say };
    doctor.run(sources).await;
    doctor.report
}

struct Doctor<S> {
    report: Report,
    say: S,
}

impl<S: FnMut(&Step)> Doctor<S> {
    fn note(&mut self, step: Step) {
        (self.say)(&step);
        self.report.steps.push(step);
    }

    fn note_all(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            self.note(step);
        }
    }

    async fn run(&mut self, sources: &Sources) {
        self.note(machine::clock(SystemTime::now()));
        let Some(Loaded { config, report }) = self.configuration(sources) else {
            let why = "the configuration is wrong: mend that first";
            self.note(Step::skipped("everything else", why));
            return;
        };
        self.secrets(sources, &report);
        self.note_all(router::check(&config).await);
        let port = Port::look(&config).await;
        self.note(port.step(&config));
        let addresses = peers::address(&config).await;
        self.note(addresses.step.clone());
        self.note(peers::pairing(&config, &port, &addresses).await);
        for kind in [crate::admin::kind::Kind::Admin, crate::admin::kind::Kind::Metrics] {
            self.note(machine::http(&config, kind, &port));
        }
        self.note(machine::tls(&config));
        self.collector(sources).await;
        self.note(machine::open_files(&config));
        self.note(machine::memory(&config, memory::available()));
        self.note(machine::pipes());
    }

    /// The configuration, if it is good, and where each value came from.
    fn configuration(&mut self, sources: &Sources) -> Option<Loaded> {
        const STEP: &str = "configuration";
        match config::load(sources) {
            Ok(loaded) => {
                let mut step = Step::ok(STEP, "complete; the values, and where each came from:");
                step.details = loaded.report.table().lines().map(ToOwned::to_owned).collect();
                self.note(step);
                for warning in &loaded.report.warnings {
                    self.note(Step::hint(STEP, warning));
                }
                Some(loaded)
            }
            Err(invalid) => {
                for problem in &invalid.0.problems {
                    self.note(Step::failed(STEP, problem.to_string()));
                }
                None
            }
        }
    }

    fn secrets(&mut self, sources: &Sources, report: &ConfigReport) {
        const STEP: &str = "secret files";
        let exposed = exposed::find(sources, report);
        if exposed.is_empty() {
            self.note(Step::ok(STEP, "no file with a secret can be read by every user"));
        }
        for file in exposed {
            let text = file.to_string();
            self.note(if file.in_container {
                Step::hint(STEP, text)
            } else {
                Step::failed(STEP, text)
            });
        }
    }

    async fn collector(&mut self, sources: &Sources) {
        const STEP: &str = "trace collector";
        let mut warnings = Vec::new();
        let settings = TraceSettings::from_environment(&sources.environment, &mut warnings);
        for warning in &warnings {
            self.note(Step::failed(STEP, warning));
        }
        let Some(settings) = settings else {
            if warnings.is_empty() {
                let why = "traces are off (OTEL_EXPORTER_OTLP_ENDPOINT is not set)";
                self.note(Step::skipped(STEP, why));
            }
            return;
        };
        self.note(match trace::probe(&settings).await {
            Ok(()) => Step::ok(STEP, format!("{} takes connections", settings.shown_endpoint())),
            Err(error) => Step::failed(
                STEP,
                format!(
                    "{} cannot be reached: {error}. Is the collector up, and are the OTEL_EXPORTER_OTLP_… variables \
                     right? Relaying does not depend on it",
                    settings.shown_endpoint()
                ),
            ),
        });
    }
}
