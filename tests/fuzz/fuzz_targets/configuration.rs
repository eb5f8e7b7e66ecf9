//! Any file and environment yield either a configuration or problems.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use aspia_relay::config;
use aspia_relay::config::settings::SETTINGS;
use aspia_relay::config::sources::Sources;
use aspia_relay_fuzz::{choice, part};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a directory"));

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let path: PathBuf = DIRECTORY.path().join("relay.json");
    std::fs::write(&path, part(&mut data)).expect("the temporary directory is writable");
    let mut environment = Vec::new();
    while !data.is_empty() {
        let (number, rest) = choice(data);
        data = rest;
        let value = String::from_utf8_lossy(part(&mut data)).into_owned();
        // TLS settings may name files, whose content would not be part of the input.
        let name = SETTINGS[usize::from(number) % SETTINGS.len()].key.variable();
        if !name.contains("_TLS_") && !value.contains('\0') {
            environment.push((name, value));
        }
    }
    match config::load(&Sources { path, is_path_explicit: true, environment }) {
        Ok(loaded) => {
            assert!(loaded.report.problems.is_empty());
            assert!(loaded.config.max_sessions >= 1 && loaded.config.max_pending_peers >= 1);
            // A reload of the same configuration changes nothing.
            assert!(loaded.config.differences(&loaded.config).is_empty());
        }
        Err(invalid) => assert!(!invalid.0.problems.is_empty()),
    }
});
