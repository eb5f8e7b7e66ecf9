//! Sessions while the relay is terminated and killed: `relay-lab survive`, with few sessions.

use std::path::PathBuf;

use relay_lab::survive::{self, How, Plan};

use crate::harness::tests;

tests! {
    sessions_outlive_a_relay_that_is_terminated,
    interactive_sessions_outlive_a_relay_that_is_killed,
    without_a_store_sessions_end_with_the_relay,
}

/// Restarts of a test.
const TIMES: usize = 3;

fn plan(ways: &[How], has_store: bool) -> Plan {
    Plan::small(PathBuf::from(env!("CARGO_BIN_EXE_aspia_relay")), TIMES, ways, has_store)
}

/// Runs a plan in which what must hold with a store holds.
async fn survive(plan: &Plan) {
    survive::run(plan).await.unwrap().verdict().unwrap();
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_outlive_a_relay_that_is_terminated() {
    survive(&plan(&[How::Terminate], true)).await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn interactive_sessions_outlive_a_relay_that_is_killed() {
    survive(&plan(&[How::Kill, How::Segv], true)).await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_sessions_end_with_the_relay() {
    let plan = plan(&[How::Terminate, How::Kill], false);
    let results = survive::run(&plan).await.unwrap();
    results.verdict().unwrap();
    assert_eq!(results.ended(), TIMES * plan.sessions());
}
