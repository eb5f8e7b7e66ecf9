//! The Kubernetes node that this process runs on: asks the Kubernetes API for the address at which peers reach the node.
//! An init container runs this with `--node-address`, so that the relay itself holds no credentials of the cluster.
//!
//! If a problem can be fixed from outside the pod, the container waits and retries: after an exit, Kubernetes would restart
//! it only after a back-off of up to five minutes.

mod address_source;
mod cluster;
mod error;
mod wait;

pub use address_source::AddressSource;
pub use cluster::{Cluster, SERVICE_ACCOUNT};
pub use error::NodeError;
pub use wait::RetryPolicy;
