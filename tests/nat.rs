//! The README's examples of NAT do what they are for: from outside and, by the hairpin, from inside, in network namespaces.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::Write;
use std::process::{Command, Stdio};

/// The block of the README that follows a mark.
fn example(mark: &str) -> String {
    let readme = include_str!("../README.md");
    let block = readme.split(&format!("<!-- check: {mark} -->\n```")).nth(1).unwrap();
    let block = block.split_once('\n').unwrap().1;
    block.split("\n```").next().unwrap().to_owned() + "\n"
}

#[test]
fn peers_outside_and_inside_reach_the_relay_behind_the_router() {
    let mut probe = Command::new("unshare");
    if !probe.args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        relay_lab::skip("NAT", "network namespaces cannot be made (that takes root)");
        return;
    }
    for program in ["nft", "iptables"] {
        if Command::new(program).arg("--version").output().is_err() {
            relay_lab::skip("NAT", &format!("{program} is missing"));
            continue;
        }
        let mut command = Command::new("tests/nat/hairpin");
        command.arg(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(example(program).as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        // Who comes by the hairpin is seen with the router's address.
        assert_eq!(
            said, "outside: relay sees 203.0.113.9\ninside: relay sees 192.168.1.1\n",
            "{program}"
        );
    }
}
