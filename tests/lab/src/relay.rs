//! The real relay, in this process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use aspia_relay::app::{App, Engine, Failure, Listeners, Stopped};
use aspia_relay::config::sources::Sources;
use aspia_relay::config::{self, Loaded};
use aspia_relay::crypto::PublicKey;
use aspia_relay::handle::Handle;
use aspia_relay::log::LogHandle;
use aspia_relay::trace::Tracer;
use aspia_relay::workers::Workers;
use tokio::task::JoinHandle;

/// A relay that runs.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    handle: Handle,
    task: JoinHandle<Result<Stopped, Failure>>,
}

/// The configuration of a relay on loopback, through the same code as any: settings of `relay.json` by their
/// keys.
///
/// # Errors
/// Every problem of the settings.
pub fn config(
    router: SocketAddr,
    router_key: PublicKey,
    peer_port: u16,
    settings: &[(&str, &str)],
) -> io::Result<Loaded> {
    let defaults = [
        ("RouterAddress", router.ip().to_string()),
        ("RouterPort", router.port().to_string()),
        ("RouterPublicKey", router_key.to_string()),
        ("PeerAddress", Ipv4Addr::LOCALHOST.to_string()),
        ("PeerPort", peer_port.to_string()),
        ("ListenInterface", Ipv4Addr::LOCALHOST.to_string()),
        // Many relays run beside each other in tests.
        ("AdminListen", "off".to_owned()),
        // All peers come from the same address, and tests are in a hurry.
        ("PeerConnectRate", "0".to_owned()),
        ("MaxPendingPeersPerAddress", "1000000".to_owned()),
    ];
    let overridden = |key: &str| settings.iter().any(|(set, _)| *set == key);
    let environment = defaults
        .iter()
        .filter(|(key, _)| !overridden(key))
        .map(|(key, value)| (*key, value.as_str()))
        .chain(settings.iter().copied())
        .map(|(key, value)| (config::settings::variable(key), value.to_owned()))
        .collect();
    let sources =
        Sources { path: "no relay.json here".into(), path_is_explicit: false, environment };
    match config::load(&sources) {
        Ok(loaded) => Ok(loaded),
        Err(invalid) => Err(io::Error::other(format!("{:?}", invalid.0.problems))),
    }
}

impl Relay {
    /// Starts a relay on a free port of loopback.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
    ) -> io::Result<Self> {
        Self::start_traced(router, router_key, settings, Tracer::default())
    }

    /// Starts a relay that moves bytes in a certain way.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
        engine: Engine,
    ) -> io::Result<Self> {
        Self::launch(router, router_key, settings, Tracer::default(), engine)
    }

    /// Starts a relay whose sessions are traced.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_traced(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
        tracer: Tracer,
    ) -> io::Result<Self> {
        Self::launch(router, router_key, settings, tracer, Engine::on(Workers::here()))
    }

    fn launch(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
        tracer: Tracer,
        engine: Engine,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let config = config(router, router_key, listener.local_addr()?.port(), settings)?;
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (admin, metrics) = (bind()?, bind()?);
        let (admin_address, metrics_address) = (admin.local_addr()?, metrics.local_addr()?);
        let listeners =
            Listeners { peers: Some(listener), admin: Some(admin), metrics: Some(metrics) };
        let app = App::bind(config, listeners, LogHandle::default(), tracer, engine)
            .map_err(io::Error::other)?;
        let (address, handle) = (app.address(), app.handle());
        let (admin, metrics) = (admin_address, metrics_address);
        Ok(Self { address, admin, metrics, handle, task: tokio::spawn(app.run()) })
    }

    /// Where peers dial it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its admin interface is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where its metrics listener is.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics
    }

    /// To steer it and to look at its state.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// When it failed.
    pub async fn stopped(self) -> io::Result<Stopped> {
        self.task.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }
}

/// A Router and a relay that is connected to it.
pub struct Lab {
    /// The Router.
    pub router: crate::router::LabRouter,
    /// The relay.
    pub relay: Relay,
}

impl Lab {
    /// Starts both, without waiting for the link.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start(
        options: crate::router::Options,
        settings: &[(&str, &str)],
    ) -> io::Result<Self> {
        Self::start_with(options, settings, Engine::on(Workers::here())).await
    }

    /// Starts both; the relay moves bytes in a certain way.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start_with(
        options: crate::router::Options,
        settings: &[(&str, &str)],
        engine: Engine,
    ) -> io::Result<Self> {
        let router = crate::router::LabRouter::start(options).await?;
        let relay = Relay::start_with(router.address(), router.public_key(), settings, engine)?;
        Ok(Self { router, relay })
    }
}
