//! Stands in for the state of the relay.

pub(crate) mod sessions;
