//! `--node-address`: prints the address of the Kubernetes node, for an init container. The relay reads it from the file
//! that `ASPIA_RELAY_PEER_ADDRESS_FILE` names.

use std::path::Path;

use tokio::runtime::Builder;

use crate::cli::NodeAddressRequest;
use crate::config::sources::Sources;
use crate::exit::{self, ExitError, ExitResult};
use crate::node::{Cluster, NodeError, RetryPolicy, SERVICE_ACCOUNT};
use crate::printable;

use super::interrupt::run_until_stopped;
use super::output;

/// Waits until the node has an address, at most as long as the request allows. After that the command succeeds without
/// an address: the relay, which reads the file, reports that there is none.
pub(super) fn run(sources: &Sources, request: &NodeAddressRequest) -> ExitResult {
    let cluster = Cluster::of_pod(&sources.environment, Path::new(SERVICE_ACCOUNT))
        .map_err(ExitError::failure)?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ExitError::failure)?;
    let policy = RetryPolicy { limit: request.wait_at_most, ..RetryPolicy::default() };
    let mut reason = String::new();
    let note = |error: &NodeError| {
        reason = error.to_string();
        let seconds = policy.delay.as_secs();
        output::note(format_args!(
            "waiting for the address that peers dial, asking again every {seconds} s: {}",
            printable::escape_line(&reason)
        ));
    };
    let waiting = cluster.wait_for_address(&request.source, policy, note);
    match run_until_stopped(&runtime, waiting)? {
        Some(Ok(address)) => write_address(&address, request.output.as_deref()),
        Some(Err(error @ NodeError::GaveUp { .. })) => {
            exit::print_error(&error.to_string());
            Ok(())
        }
        Some(Err(error)) => Err(ExitError::failure(error)),
        // Not a success: the next container would start without an address.
        None => {
            Err(ExitError::failure(format_args!("stopped before there was an address: {reason}")))
        }
    }
}

fn write_address(address: &str, output: Option<&Path>) -> ExitResult {
    let line = format!("{address}\n");
    match output {
        Some(path) => std::fs::write(path, line).map_err(|error| {
            ExitError::failure(format_args!("cannot write {}: {error}", path.display()))
        }),
        None => output::write(&line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_written_as_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("address");
        write_address("192.0.2.1", Some(&path)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "192.0.2.1\n");
        let error = write_address("192.0.2.1", Some(directory.path())).unwrap_err();
        assert!(error.message.starts_with("cannot write "), "{error:?}");
    }
}
