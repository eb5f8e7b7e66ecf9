//! Loads the configuration for a start, and says in the log or in an error what is wrong with it.

use tracing::{info, warn};

use crate::config::report::ConfigReport;
use crate::config::sources::Sources;
use crate::config::{self, LoadedConfig, exposed};
use crate::exit::ExitError;
use crate::printable;

/// Loads the configuration; logs its warnings, and warns of secrets that other users can read.
pub(super) fn load(sources: &Sources) -> Result<LoadedConfig, ExitError> {
    let loaded = config::load(sources).map_err(|invalid| {
        // A warning may explain why a setting is missing.
        log_warnings(&invalid.0);
        ExitError::configuration(invalid.describe())
    })?;
    log_warnings(&loaded.report);
    for file in exposed::find(sources, &loaded.report) {
        let text = printable::escape_line(&file.to_string());
        if file.is_in_container {
            info!("{text}");
        } else {
            warn!("{text}");
        }
    }
    Ok(loaded)
}

fn log_warnings(report: &ConfigReport) {
    for warning in &report.warnings {
        warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitStatus;

    fn load_with(environment: &[(&str, &str)]) -> Result<LoadedConfig, ExitError> {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = environment.collect();
        load(&Sources { path: "none".into(), is_path_explicit: false, environment })
    }

    #[test]
    fn every_problem_has_its_own_line() {
        let error = load_with(&[("ASPIA_RELAY_ROUTER_ADDRESS", "r.example")]).unwrap_err();
        assert_eq!(error.status, ExitStatus::Configuration);
        let problems: Vec<_> = error.message.lines().skip(1).collect();
        assert_eq!(problems.len(), 2, "{error:?}");
        for (problem, key) in problems.iter().zip(["RouterPublicKey", "PeerAddress"]) {
            assert!(problem.starts_with(&format!("  {key}")), "{error:?}");
        }
    }

    #[test]
    fn a_single_problem_is_one_line() {
        let key = include_str!("../../tests/vectors/router.pub");
        let error = load_with(&[
            ("ASPIA_RELAY_ROUTER_ADDRESS", "r.example"),
            ("ASPIA_RELAY_ROUTER_PUBLIC_KEY", key),
        ])
        .unwrap_err();
        assert!(error.message.starts_with("configuration: PeerAddress"), "{error:?}");
        assert_eq!(error.message.lines().count(), 1, "{error:?}");
    }
}
