//! Configurations for unit tests.

use super::sources::Sources;
use super::{Config, load};

/// A configuration with these variables (without the prefix `ASPIA_RELAY_`) and the required ones.
pub(crate) fn config(settings: &[(&str, &str)]) -> Config {
    let key = include_str!("../../tests/vectors/router.pub");
    let required = [
        ("ROUTER_ADDRESS", "r.example"),
        ("ROUTER_PUBLIC_KEY", key),
        ("PEER_ADDRESS", "p.example"),
    ];
    let environment = required
        .iter()
        .filter(|(name, _)| settings.iter().all(|(set, _)| set != name))
        .chain(settings)
        .map(|(name, value)| (format!("ASPIA_RELAY_{name}"), (*value).to_owned()))
        .collect();
    let sources = Sources { path: "none".into(), is_path_explicit: false, environment };
    load(&sources).unwrap().config
}
