//! The NAT examples of docs/operations.md, in network namespaces: they work from outside and, through the hairpin, from inside.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::tests;

tests! {
    nftables_rules_work_from_outside_and_inside,
    iptables_rules_work_from_outside_and_inside,
}

/// The code block of docs/operations.md that follows the comment `check: mark`.
fn example(mark: &str) -> String {
    let document = include_str!("../../docs/operations.md");
    let block = document.split(&format!("<!-- check: {mark} -->\n```")).nth(1).unwrap();
    let block = block.split_once('\n').unwrap().1;
    block.split("\n```").next().unwrap().to_owned() + "\n"
}

/// Checks that peers outside and inside the network reach the relay behind a router that `program` configures as documented.
fn check(program: &str) {
    let mut probe = Command::new("unshare");
    if !probe.args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        relay_lab::cannot_run("network namespaces need root");
    }
    if Command::new(program).arg("--version").output().is_err() {
        relay_lab::cannot_run(format!("{program} is missing"));
    }
    let mut command = Command::new("tests/nat/hairpin");
    command.arg(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(example(program).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    // The relay sees a peer that comes back through the hairpin with the router's address.
    assert_eq!(
        said, "outside: relay sees 203.0.113.9\ninside: relay sees 192.168.1.1\n",
        "{program}"
    );
}

fn nftables_rules_work_from_outside_and_inside() {
    check("nft");
}

fn iptables_rules_work_from_outside_and_inside() {
    check("iptables");
}
