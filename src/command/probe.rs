//! `--probe`: says whether an Aspia relay answers at an address.

use tokio::runtime::Builder;

use crate::cli::OutputFormat;
use crate::dial::SystemNetwork;
use crate::exit::{ExitError, ExitResult};
use crate::probe::{self, ProbeTarget};

use super::interrupt::run_until_stopped;
use super::output;

pub(super) fn run(target: &ProbeTarget, format: OutputFormat) -> ExitResult {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ExitError::failure)?;
    let report = run_until_stopped(&runtime, probe::run(&SystemNetwork, target));
    // A lookup that hangs blocks a thread of the runtime, which must not keep the program alive.
    runtime.shutdown_background();
    let mut report =
        report?.ok_or_else(|| ExitError::failure("stopped before the probe had ended"))?;
    report.recheck_routes(probe::has_route);
    match format {
        OutputFormat::Text => output::write(&(report.lines().join("\n") + "\n"))?,
        OutputFormat::Json => output::write_json(&report.json())?,
    }
    if report.is_reachable() {
        return Ok(());
    }
    let (failures, addresses) = (report.failures(), report.addresses.len());
    Err(ExitError::failure(match addresses {
        1 => format!("no Aspia relay answers at {target}"),
        _ => {
            format!("no Aspia relay answers at {failures} of the {addresses} addresses of {target}")
        }
    }))
}
