//! Routers and peers over IPv6.

use aspia_relay::app::{App, DataPlane, Listeners};
use aspia_relay::forward::TransferMethod;
use aspia_relay::listen::bind::bind;
use aspia_relay::log::LogHandle;
use aspia_relay::peer::PURPOSE;
use aspia_relay::trace::Tracer;
use aspia_relay::workers::Workers;
use relay_lab::peer::Introduction;
use relay_lab::relay::{Relay, config};
use relay_lab::router::{LabRouter, Options, RouterVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::tests;

tests! {
    peers_over_ipv6_and_ipv4_are_paired,
    router_address_may_be_an_ipv6_address,
}

const NO_IPV6: &str = "this machine has no IPv6";

#[tokio::main(flavor = "current_thread")]
async fn peers_over_ipv6_and_ipv4_are_paired() {
    for version in [RouterVersion::V2_7, RouterVersion::V3_0] {
        for method in [TransferMethod::Adaptive, TransferMethod::Copy, TransferMethod::Splice] {
            pair_over_both_families(version, method).await;
        }
    }
}

async fn pair_over_both_families(version: RouterVersion, method: TransferMethod) {
    let router = LabRouter::start(Options { version, ..Options::default() }).await.unwrap();
    let listener = bind(PURPOSE, None, 0).unwrap();
    let address = listener.local_addr().unwrap();
    if !address.is_ipv6() {
        relay_lab::cannot_run(NO_IPV6);
    }
    let config = config(router.address(), router.public_key(), address.port(), &[]).unwrap();
    let listeners = Listeners { peers: Some(listener), ..Listeners::default() };
    let data_plane = DataPlane { method, ..DataPlane::on(Workers::on_current_runtime()) };
    let app =
        App::bind(config, listeners, LogHandle::default(), Tracer::default(), data_plane).unwrap();
    tokio::spawn(app.run());
    let introduction = router.introduce().await.unwrap();
    let over_v6 = Introduction { host: "::1".into(), ..introduction.clone() };
    let mut over_v6 = over_v6.connect().await.unwrap();
    let mut over_v4 = introduction.connect().await.unwrap();
    over_v6.write_all(b"six").await.unwrap();
    let mut received = [0; 3];
    over_v4.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"six");
}

#[tokio::main(flavor = "current_thread")]
async fn router_address_may_be_an_ipv6_address() {
    for version in [RouterVersion::V2_7, RouterVersion::V3_0] {
        let options = Options { version, listen: "[::1]:0".parse().unwrap(), ..Options::default() };
        let Ok(router) = LabRouter::start(options).await else {
            relay_lab::cannot_run(NO_IPV6);
        };
        let settings = [("RouterAddress", "::1"), ("MaxPeerCount", "2")];
        let _relay = Relay::start(router.address(), router.public_key(), &settings).unwrap();
        router.keys(2).await;
    }
}
