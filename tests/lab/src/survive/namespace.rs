//! A network namespace for the whole run, so that it neither disturbs the machine nor is disturbed by it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set in the program that already runs in a namespace.
const INSIDE: &str = "RELAY_LAB_IN_NAMESPACE";
/// What sets up the namespace: only the loopback device is needed.
const SET_UP: &str = "ip link set lo up";

/// Replaces this program by itself in a network namespace of its own. Returns if that is not possible, which needs root,
/// util-linux and iproute2, or if it is already there.
///
/// # Errors
/// If the program cannot be replaced.
pub fn enter_namespace() -> io::Result<()> {
    if std::env::var_os(INSIDE).is_some() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let mut attempt = Command::new("unshare");
    attempt.args(["--net", "--", "sh", "-c", SET_UP]);
    attempt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !attempt.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let script = format!("{SET_UP} && exec \"$0\" \"$@\"");
    let mut program = Command::new("unshare");
    program.args(["--net", "--", "sh", "-c", &script]).arg(std::env::current_exe()?);
    // Returns only if it fails.
    Err(program.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec())
}
