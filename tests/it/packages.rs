//! The maintainer scripts of the packages, with stand-ins for systemd: in which order an upgrade stops and restarts the units.
//! `tests/packages` runs them on a real system.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

/// A directory in place of the root of the file system, in which the store runs.
struct Machine {
    root: tempfile::TempDir,
    /// Listens, if the store does so at the usual path.
    _socket: Option<UnixListener>,
}

impl Machine {
    /// `is_active`: whether the store runs; `is_usable`: whether the installed program can use it.
    fn new(is_active: bool, is_usual: bool, is_usable: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for directory in ["bin", "usr/bin", "run/systemd/system", "run/aspia-relay-fd-store"] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        let program = |name: &str, script: &str| {
            fs::write(path(name), format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        let record = format!("echo \"$*\" >> '{}'", path("calls").display());
        program(
            "bin/systemctl",
            &format!(
                "case \"$*\" in *is-active*fd-store*) {is_active};; *is-active*);; *) {record};; esac"
            ),
        );
        program("bin/deb-systemd-invoke", &record);
        for name in ["deb-systemd-helper", "systemd-sysusers", "setpriv"] {
            program(&format!("bin/{name}"), ":");
        }
        program("usr/bin/aspia_relay", &is_usable.to_string());
        let socket = path("run/aspia-relay-fd-store/socket");
        let socket = is_usual.then(|| UnixListener::bind(socket).unwrap());
        Self { root, _socket: socket }
    }

    /// The units that a script stops, starts or restarts, in this order.
    fn calls(&self, script: &str, arguments: &[&str]) -> Vec<String> {
        let root = self.root.path().to_str().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/packages").join(script);
        let mut text = fs::read_to_string(script).unwrap();
        for directory in ["/etc/", "/run/", "/usr/"] {
            text = text.replace(directory, &format!("{root}{directory}"));
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &text, "script"]).args(arguments);
        command.env("PATH", format!("{root}/bin:/usr/bin:/bin"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = fs::read_to_string(self.root.path().join("calls")).unwrap();
        let calls = calls.lines().map(|line| line.trim_end_matches(".service").to_owned());
        calls.filter(|line| !line.contains("daemon-reload")).collect()
    }
}

/// A store that the new relay cannot use stops while the sessions are still in the old relay, so that this drains.
#[test]
fn upgrade_stops_a_store_that_the_new_relay_cannot_use_before_it_restarts_the_relay() {
    for (script, arguments, restart) in [
        ("deb/postinst", &["configure", "1:0.1.0-1"][..], "restart aspia-relay"),
        ("rpm/postun", &["1"], "try-restart aspia-relay"),
    ] {
        let stop = "stop aspia-relay-fd-store";
        for (is_active, is_usual, is_usable, expected) in [
            (true, true, true, &[restart][..]),
            (true, true, false, &[stop, restart]),
            // Nothing is known about a store elsewhere.
            (true, false, false, &[restart]),
            (false, false, false, &[restart]),
        ] {
            let calls = Machine::new(is_active, is_usual, is_usable).calls(script, arguments);
            assert_eq!(calls, expected, "{script}: {is_active} {is_usual} {is_usable}");
        }
    }
}

#[test]
fn removal_stops_the_store_first() {
    for (script, argument) in [("deb/prerm", "remove"), ("rpm/preun", "0")] {
        let calls = Machine::new(true, true, true).calls(script, &[argument]);
        assert_eq!(calls[0], "stop aspia-relay-fd-store", "{script}");
        assert!(calls[1].contains("aspia-relay.socket aspia-relay"), "{script}: {calls:?}");
    }
}
