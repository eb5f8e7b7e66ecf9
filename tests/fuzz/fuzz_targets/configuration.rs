//! Any file and any environment: a configuration or problems, never both.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use aspia_relay::config;
use aspia_relay::config::settings::{SETTINGS, variable};
use aspia_relay::config::sources::Sources;
use aspia_relay_fuzz::{choice, part};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a directory"));

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let path: PathBuf = DIRECTORY.path().join("relay.json");
    std::fs::write(&path, part(&mut data)).expect("a file");
    let mut environment = Vec::new();
    while !data.is_empty() {
        let (number, rest) = choice(data);
        data = rest;
        let value = String::from_utf8_lossy(part(&mut data)).into_owned();
        // No files of this machine: what is read from them is not the input.
        let name = variable(SETTINGS[usize::from(number) % SETTINGS.len()].key);
        if !name.contains("_TLS_") && !value.contains('\0') {
            environment.push((name, value));
        }
    }
    match config::load(&Sources { path, path_is_explicit: true, environment }) {
        Ok(loaded) => {
            assert!(loaded.report.problems.is_empty());
            assert!(loaded.config.max_sessions >= 1 && loaded.config.max_pending_peers >= 1);
            // The same again changes nothing.
            assert!(loaded.config.differences(&loaded.config).is_empty());
        }
        Err(invalid) => assert!(!invalid.0.problems.is_empty()),
    }
});
