//! Stands in for the state of the relay, in which there is one session.

pub(crate) mod sessions;
pub(crate) mod shared;
