//! `--check-config`: prints every effective value with its source, and every problem.

use crate::cli::OutputFormat;
use crate::config::sources::Sources;
use crate::config::{self, LoadedConfig};
use crate::exit::{ExitError, ExitResult};
use crate::headroom::machine;

use super::output;

pub(super) fn run(sources: &Sources, format: OutputFormat) -> ExitResult {
    let (report, result) = match config::load(sources) {
        Ok(LoadedConfig { config, mut report, .. }) => {
            report.warnings.extend(machine::unmeasured_warning(&config));
            (report, Ok(()))
        }
        Err(invalid) => {
            // Before the values, so that nobody takes them for valid.
            let error = ExitError::configuration(invalid.describe()).reported();
            (invalid.0, Err(error))
        }
    };
    let written = match format {
        OutputFormat::Json => output::write_json(&report.json()),
        OutputFormat::Text => {
            let written = output::write(&report.table());
            let notes = report.warnings.iter().map(|warning| format!("warning: {warning}"));
            for note in notes.chain(report.absent_file_note().filter(|_| result.is_ok())) {
                output::note(format_args!("{note}"));
            }
            written
        }
    };
    // A configuration that is invalid matters more than output that nobody reads.
    result.and(written)
}
