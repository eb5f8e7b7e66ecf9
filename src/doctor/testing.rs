//! Helpers for the unit tests of the doctor.

use crate::admin::status::Status;

/// The `/status` of a relay without a link to its Router.
pub(super) fn status() -> Status {
    let status = serde_json::json!({
        "version": "1", "revision": "r", "started": null, "uptime_seconds": 1.0,
        "draining": false, "drain_timeout_seconds": 25.0, "ready": true, "missing": [],
        "router": {
            "address": "r.example:8060",
            "connected": false, "confirmed": false,
            "since": "2026-01-02T03:04:05Z",
            "peer_address": null, "version": null, "dialect": null, "cipher": null,
            "failures": 3,
            "last_error": { "at": "2026-01-02T03:04:06Z", "message": "refused" },
        },
        "peers": { "dial": "p:8070", "listen": "[::]:8070", "pending": 0, "pending_limit": 9 },
        "keys": { "offered": 1, "handed_out": 0 },
        "sessions": { "active": 0, "limit": 10 },
        "bytes_total": 0, "connections": {},
        "recent": { "interval_seconds": 5.0, "bytes": [], "refusals": {} },
        "log_level": "info", "waiting_for_restart": [],
    });
    serde_json::from_value(status).unwrap()
}
