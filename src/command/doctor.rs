//! `--doctor`: examines the installation and prints the steps.

use tokio::runtime::Builder;

use crate::cli::OutputFormat;
use crate::config::sources::Sources;
use crate::doctor::report::{DoctorReport, DoctorStep};
use crate::doctor::{self, Surroundings};
use crate::exit::{ExitError, ExitResult};

use super::interrupt::run_until_stopped;
use super::output;

pub(super) fn run(sources: &Sources, format: OutputFormat, expects_relay: bool) -> ExitResult {
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(ExitError::failure)?;
    let print = |step: &DoctorStep| {
        // Each step is printed as soon as its outcome is known. If the reader has gone, the rest is lost, but the exit
        // status stays correct.
        if format == OutputFormat::Text {
            let _ = output::write(&format!("{step}\n"));
        }
    };
    let surroundings = Surroundings { expects_relay, ..Surroundings::of_process(sources) };
    let report = run_until_stopped(&runtime, doctor::run(sources, surroundings, print));
    // A file or a lookup that hangs blocks a thread of the runtime, which must not keep the program alive.
    runtime.shutdown_background();
    let report =
        report?.ok_or_else(|| ExitError::failure("stopped before all steps were taken"))?;
    if format == OutputFormat::Json {
        output::write_json(&report.json())?;
    }
    to_result(&report)
}

fn to_result(report: &DoctorReport) -> ExitResult {
    let mut failed = report.failed();
    failed.dedup();
    let names = failed.join(", ");
    match report.failures() {
        0 => Ok(()),
        1 => Err(ExitError::failure(format_args!("1 step failed (✗): {names}"))),
        failures => Err(ExitError::failure(format_args!("{failures} steps failed (✗): {names}"))),
    }
}
