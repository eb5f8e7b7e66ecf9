//! Why a node's address cannot be determined, and what to do.

use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;

use super::address_source::AddressSource;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A variable of the pod is missing or wrong.
    #[error("{variable}: expected {expected}; --node-address is for a pod in Kubernetes")]
    Environment {
        /// The name of the variable.
        variable: &'static str,
        /// What the variable should contain.
        expected: &'static str,
    },
    /// The credentials cannot be used.
    #[error("{}: {reason}; is the token of the service account mounted into this container?", path.display())]
    ServiceAccount {
        /// The file of the credentials.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The API does not answer.
    #[error("the Kubernetes API at {address} does not answer: {reason}")]
    Unreachable {
        /// The address of the API.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The API refuses the request.
    #[error("the Kubernetes API refuses to return the node {node}: {status} {message}{}", remedy(*status))]
    Refused {
        /// The node that was requested.
        node: String,
        /// The status of the response.
        status: StatusCode,
        /// The message of the API.
        message: String,
    },
    /// The response is not a node.
    #[error("the response of the Kubernetes API at {address} is not a node: {reason}")]
    InvalidNode {
        /// The address of the API.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The node has no such address.
    #[error("the node {node} has no {wanted}; {hint}")]
    Missing {
        /// The name of the node.
        node: String,
        /// Where the address was expected.
        wanted: AddressSource,
        /// What the node has instead, or what to do.
        hint: String,
    },
    /// The value is not an address.
    #[error("the {wanted} of the node {node} is {value:?}: expected {expected}")]
    InvalidAddress {
        /// The name of the node.
        node: String,
        /// Where the address was expected.
        wanted: AddressSource,
        /// The value.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// There was no address within the time limit.
    #[error("no address after {} s: {reason}", after.as_secs())]
    GaveUp {
        /// The time limit.
        after: Duration,
        /// Why there was none, according to the last attempt.
        reason: String,
    },
}

/// Returns advice for a refused request.
fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => {
            "; is the token of the service account valid for this cluster, and does the service account still exist?"
        }
        StatusCode::FORBIDDEN => {
            "; may the service account get nodes (a ClusterRole; rbac.create in the chart)?"
        }
        StatusCode::NOT_FOUND => {
            "; NODE_NAME must be the name of this pod's node, from the field spec.nodeName"
        }
        // Other statuses are problems of the API server, not of this pod.
        _ => "",
    }
}

impl NodeError {
    /// Whether this error means that the pod itself is misconfigured, if it occurs on the first attempt: the environment never
    /// changes, and a service account that is not mounted will not appear. On later attempts, a file that was read before may
    /// be unreadable only for a moment.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Environment { .. } | Self::ServiceAccount { .. } | Self::GaveUp { .. } => true,
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::InvalidNode { .. }
            | Self::Missing { .. }
            | Self::InvalidAddress { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_their_own_remedies() {
        for (status, part) in [
            (StatusCode::UNAUTHORIZED, "token"),
            (StatusCode::FORBIDDEN, "rbac.create"),
            (StatusCode::NOT_FOUND, "spec.nodeName"),
        ] {
            let message = String::new();
            let error = NodeError::Refused { node: "node-1".to_owned(), status, message };
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(remedy(StatusCode::SERVICE_UNAVAILABLE), "");
    }
}
