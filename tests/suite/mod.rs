//! What holds with every Router; compiled once for each dialect, with `crate::ROUTER` for the Router.

use aspia_relay::app::Engine;
use aspia_relay::workers::Workers;
use relay_lab::relay::Lab;
use relay_lab::router::Options;
use relay_lab::traffic;

mod forwarding;
mod link;
mod pairing;
mod restarts;
mod stopping;

/// A Router of the dialect that the suite runs on.
pub(crate) fn options() -> Options {
    Options { version: crate::ROUTER, ..Options::default() }
}

/// How the relay moves bytes.
pub(crate) fn engine() -> Engine {
    Engine::on(Workers::here())
}

/// `RouterProtocol` for it.
pub(crate) fn protocol() -> &'static str {
    if crate::ROUTER.is_third() { "3" } else { "2" }
}

/// A session over `lab` carries a few bytes each way.
pub(crate) async fn carries_bytes(lab: &Lab) {
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    traffic::send(&mut client, 1, 1000).await.unwrap();
    traffic::send(&mut host, 2, 1000).await.unwrap();
    let at_host = traffic::receive(&mut host, Some(1000)).await.unwrap();
    let at_client = traffic::receive(&mut client, Some(1000)).await.unwrap();
    assert_eq!(at_host, (1000, traffic::hash(1, 1000)));
    assert_eq!(at_client, (1000, traffic::hash(2, 1000)));
}
