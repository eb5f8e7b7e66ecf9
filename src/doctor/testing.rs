//! What the doctor's own tests share.

use crate::config::sources::Sources;
use crate::config::{self, Config};

/// A configuration with these variables (without `ASPIA_RELAY_`) beside the required ones.
pub(super) fn config(settings: &[(&str, &str)]) -> Config {
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
    let sources = Sources { path: "none".into(), path_is_explicit: false, environment };
    config::load(&sources).unwrap().config
}
