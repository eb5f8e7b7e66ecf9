//! The real relay, in this process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use aspia_relay::app::{App, DataPlane, Listeners, RunError, Stopped};
use aspia_relay::config::sources::Sources;
use aspia_relay::config::{self, LoadedConfig};
use aspia_relay::crypto::PublicKey;
use aspia_relay::handle::Handle;
use aspia_relay::log::LogHandle;
use aspia_relay::trace::Tracer;
use aspia_relay::workers::Workers;
use tokio::task::JoinHandle;

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    handle: Handle,
    task: JoinHandle<Result<Stopped, RunError>>,
}

/// The configuration of a relay on loopback, loaded as any other. Settings are given by their keys in
/// `relay.json`.
///
/// # Errors
/// Every problem of the settings.
pub fn config(
    router: SocketAddr,
    router_key: PublicKey,
    peer_port: u16,
    settings: &[(&str, &str)],
) -> io::Result<LoadedConfig> {
    let defaults = [
        ("RouterAddress", router.ip().to_string()),
        ("RouterPort", router.port().to_string()),
        ("RouterPublicKey", router_key.to_string()),
        ("PeerAddress", Ipv4Addr::LOCALHOST.to_string()),
        ("PeerPort", peer_port.to_string()),
        ("ListenInterface", Ipv4Addr::LOCALHOST.to_string()),
        // The load of the machine that runs the tests must not decide how many keys are on offer.
        ("OfferByLoad", "false".to_owned()),
        // Tests run many relays at the same time.
        ("AdminListen", "off".to_owned()),
        // All peers connect from the same address, at a high rate.
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
    load(&Sources { path: "no relay.json here".into(), is_path_explicit: false, environment })
}

fn load(sources: &Sources) -> io::Result<LoadedConfig> {
    config::load(sources).map_err(|invalid| io::Error::other(format!("{:?}", invalid.0.problems)))
}

impl Relay {
    /// Starts a relay on a free port of loopback.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
    ) -> io::Result<Self> {
        Self::start_traced(router, router_key, settings, Tracer::default())
    }

    /// Starts a relay with the given data plane.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_with(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
        data_plane: DataPlane,
    ) -> io::Result<Self> {
        Self::launch(router, router_key, settings, Tracer::default(), data_plane)
    }

    /// Starts a relay whose sessions are traced.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_traced(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
        tracer: Tracer,
    ) -> io::Result<Self> {
        Self::launch(
            router,
            router_key,
            settings,
            tracer,
            DataPlane::on(Workers::on_current_runtime()),
        )
    }

    /// Starts a relay with the settings of `sources`, which it reads again when it is asked to. It listens on `listener`, and
    /// for HTTP on free ports of loopback, whatever the settings say.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_from(sources: &Sources, listener: TcpListener) -> io::Result<Self> {
        let loaded = load(sources)?;
        let data_plane = DataPlane::on(Workers::on_current_runtime());
        Self::launch_loaded(loaded, listener, Tracer::default(), data_plane)
    }

    fn launch(
        router: SocketAddr,
        router_key: PublicKey,
        settings: &[(&str, &str)],
        tracer: Tracer,
        data_plane: DataPlane,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let loaded = config(router, router_key, listener.local_addr()?.port(), settings)?;
        Self::launch_loaded(loaded, listener, tracer, data_plane)
    }

    fn launch_loaded(
        loaded: LoadedConfig,
        listener: TcpListener,
        tracer: Tracer,
        data_plane: DataPlane,
    ) -> io::Result<Self> {
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (admin, metrics) = (bind()?, bind()?);
        let (admin_address, metrics_address) = (admin.local_addr()?, metrics.local_addr()?);
        let listeners =
            Listeners { peers: Some(listener), admin: Some(admin), metrics: Some(metrics) };
        let app = App::bind(loaded, listeners, LogHandle::default(), tracer, data_plane)
            .map_err(io::Error::other)?;
        let (address, handle) = (app.address(), app.handle());
        let (admin, metrics) = (admin_address, metrics_address);
        Ok(Self { address, admin, metrics, handle, task: tokio::spawn(app.run()) })
    }

    /// The address that peers dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of its admin interface.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The address of its metrics listener.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics
    }

    /// Its handle, to control it and to inspect its state.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// If it failed.
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
    /// If one of them does not start.
    pub async fn start(
        options: crate::router::Options,
        settings: &[(&str, &str)],
    ) -> io::Result<Self> {
        Self::start_with(options, settings, DataPlane::on(Workers::on_current_runtime())).await
    }

    /// Starts both, the relay with the given data plane.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn start_with(
        options: crate::router::Options,
        settings: &[(&str, &str)],
        data_plane: DataPlane,
    ) -> io::Result<Self> {
        let router = crate::router::LabRouter::start(options).await?;
        let relay = Relay::start_with(router.address(), router.public_key(), settings, data_plane)?;
        Ok(Self { router, relay })
    }
}
