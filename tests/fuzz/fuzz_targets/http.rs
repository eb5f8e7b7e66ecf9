//! Any bytes on an HTTP connection, through all handlers, lead to an answer or to the end of the connection.
#![no_main]

use std::cell::RefCell;

use aspia_relay::admin::AdminServer;
use aspia_relay::admin::certificates::Certificates;
use aspia_relay::admin::listener::HttpListener;
use aspia_relay::app::{App, DataPlane, Listeners};
use aspia_relay::config;
use aspia_relay::config::sources::Sources;
use aspia_relay::handle::Handle;
use aspia_relay::log::LogHandle;
use aspia_relay::trace::Tracer;
use aspia_relay::workers::Workers;
use aspia_relay_fuzz::choice;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

const KEY: &str = "35997E3D46BF43430AA79E76698D6CEFE9462F04B7A613D59E37D22F16936744";

thread_local! {
    static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
}

struct Server {
    runtime: Runtime,
    admin: AdminServer,
    handle: Handle,
}

/// A relay that does not run, but answers every request.
fn server() -> Server {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let (admin, handle) = runtime.block_on(async {
        let set = |key: &str, value: &str| (format!("ASPIA_RELAY_{key}"), value.to_owned());
        let environment = vec![
            set("ROUTER_ADDRESS", "127.0.0.1"),
            set("ROUTER_PUBLIC_KEY", KEY),
            set("PEER_ADDRESS", "127.0.0.1"),
            set("ADMIN_LISTEN", "off"),
        ];
        let sources = Sources { path: "none".into(), is_path_explicit: false, environment };
        let loaded = config::load(&sources).expect("it is complete");
        let peers = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let listeners = Listeners { peers: Some(peers), ..Listeners::default() };
        let data_plane = DataPlane::on(Workers::on_current_runtime());
        let app = App::bind(loaded, listeners, LogHandle::default(), Tracer::default(), data_plane);
        let handle = app.expect("a relay").handle();
        let certificates = Certificates::load(handle.clone()).expect("there are none");
        (AdminServer::new(handle.clone(), certificates, CancellationToken::new()), handle)
    });
    Server { runtime, admin, handle }
}

fuzz_target!(|data: &[u8]| {
    let (choice, data) = choice(data);
    let kind = if choice & 1 == 0 { HttpListener::Admin } else { HttpListener::Metrics };
    SERVER.with_borrow_mut(|present| {
        // A drain cannot be cancelled, so a new relay is needed.
        if present.as_ref().is_some_and(|server| server.handle.is_draining()) {
            *present = None;
        }
        let Server { runtime, admin, .. } = present.get_or_insert_with(server);
        runtime.block_on(async {
            let (ours, mut theirs) = duplex(64 * 1024);
            let ask = async {
                for piece in data.chunks(usize::from(choice >> 1) * 16 + 1) {
                    if theirs.write_all(piece).await.is_err() {
                        break;
                    }
                }
                let _ = theirs.shutdown().await;
                let mut answer = Vec::new();
                let _ = theirs.read_to_end(&mut answer).await;
                answer
            };
            let ((), answer) = tokio::join!(admin.serve(kind, ours), ask);
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
        });
    });
});
