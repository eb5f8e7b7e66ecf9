//! A Router of either dialect, with the behaviour that a test chooses.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::crypto::{self, Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer};
use aspia_relay::link::dialect::{Dialect, FramingError, Hellos};
use aspia_relay::link::framing::{FrameDecoder, FrameEncoder};
use aspia_relay::link::v2::V2;
use aspia_relay::link::v3::V3;
use aspia_relay::wire::frame::{Frame, FrameError};
use aspia_relay::wire::messages::{
    ClientHello, ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305, RelayKey, RelayKeyPool,
    RelayKeyUsed, SESSION_TYPE_RELAY, SessionChallenge, SessionResponse, Version,
};
use aspia_relay::wire::peer::PeerSecret;
use aspia_relay::wire::v2::{
    PeerConnection, PeerConnectionRequest, REQUEST_DISCONNECT, RelayStat, RelayToRouterV2,
    RouterToRelayV2, ServerHelloV2,
};
use aspia_relay::wire::v3;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::peer::Introduction;

/// Version of a Router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterVersion(pub Version);

/// Maximum number of keys that a 3.0 Router keeps for one link.
const MAX_KEYS: usize = 1000;
/// Time limit of a 3.0 Router for the authentication.
const AUTHENTICATION: Duration = Duration::from_secs(10);
/// Maximum number of connections per minute that a 3.0 Router accepts from one address.
const CONNECTIONS: usize = 30;
const MINUTE: Duration = Duration::from_secs(60);

impl RouterVersion {
    /// Speaks the 3.0 dialect.
    pub const V3_0: Self = Self(Version::new(3, 0, 0));
    /// Names itself in `ServerHello`; channel header.
    pub const V2_7: Self = Self(Version::new(2, 7, 0));
    /// Names itself in `SessionChallenge`; channel header.
    pub const V2_6: Self = Self(Version::new(2, 6, 0));
    /// Names itself in `SessionChallenge`; no channel header.
    pub const V2_5: Self = Self(Version::new(2, 5, 0));

    /// Whether it speaks the 3.0 dialect.
    pub fn is_v3(self) -> bool {
        self.0 >= Version::new(3, 0, 0)
    }

    fn in_hello(self) -> bool {
        self.0 >= Version::new(2, 7, 0) && !self.is_v3()
    }
}

/// The dialect of a Router, as commands name it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum RouterDialect {
    /// That of Routers up to 2.7.
    #[value(name = "2")]
    V2,
    /// That of Routers from 3.0 on.
    #[value(name = "3")]
    V3,
}

impl From<RouterDialect> for RouterVersion {
    fn from(dialect: RouterDialect) -> Self {
        match dialect {
            RouterDialect::V2 => Self::V2_7,
            RouterDialect::V3 => Self::V3_0,
        }
    }
}

/// What the Router does with a relay that connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Serves it as a real Router does.
    Serve,
    /// Accept and send nothing.
    Silent,
    /// Accept and close.
    CloseAtOnce,
    /// Authenticate and close, as a Router does whose white list lacks the relay.
    CloseAfterAuthentication,
    /// Serve the link, but keep acting on the current link only.
    ServeAside,
    /// Serve all links at once, and introduce peers at the relay with the most keys left.
    ServeAll,
    /// Use a private key other than the published one.
    WrongKey,
    /// Refuse relay sessions.
    NoRelaySessions,
    /// Be the port for Hosts of a 3.x Router, which speaks the 2.x dialect there and names its version late.
    HostPort,
    /// Answer the `ClientHello` with these bytes.
    Answer(Vec<u8>),
}

impl Behaviour {
    /// Whether a relay must get along with it.
    fn is_honest(&self) -> bool {
        matches!(self, Self::Serve | Self::ServeAll)
    }
}

/// The options of a laboratory Router.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Version of a Router.
    pub version: RouterVersion,
    /// The cipher to choose; `None` is the best that both have.
    pub cipher: Option<Cipher>,
    /// What to do with relays.
    pub behaviour: Behaviour,
    /// Delay of each answer during the authentication.
    pub delay: Duration,
    /// Whether a 3.0 Router limits each address to 30 connections per minute.
    pub limit_connections: bool,
    /// `PeerToRelay.encryption` that peers are told to use; `None` is the value for the dialect of the Router.
    pub peer_encryption: Option<u32>,
}

impl Options {
    fn is_v3(&self) -> bool {
        self.version.is_v3() && self.behaviour != Behaviour::HostPort
    }

    fn dialect(&self) -> &'static dyn Dialect {
        if self.is_v3() { &V3 } else { &V2 }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            version: RouterVersion::V2_7,
            cipher: None,
            behaviour: Behaviour::Serve,
            delay: Duration::ZERO,
            limit_connections: true,
            peer_encryption: None,
        }
    }
}

/// What one of several relays offers; see [`Behaviour::ServeAll`].
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Keys on offer, the latest last.
    pub pool: Vec<RelayKey>,
    /// The host that peers are told to dial.
    pub peer_host: String,
    /// The port that peers are told to dial.
    pub peer_port: u32,
}

/// What the Router has seen.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Keys on offer on the present link, the latest last.
    pub pool: Vec<RelayKey>,
    /// What each relay offers on its link, by the number of the link, if all are served at once.
    pub offers: BTreeMap<u64, Offer>,
    /// Ids of all keys ever offered.
    pub key_ids: Vec<u32>,
    /// The host that peers are told to dial.
    pub peer_host: String,
    /// The port that peers are told to dial.
    pub peer_port: u32,
    /// The latest statistics.
    pub statistics: Option<RelayStat>,
    /// Number of statistics received.
    pub statistics_count: u64,
    /// Number of connections accepted.
    pub connections: u64,
    /// Number of connections that did not begin in this Router's dialect.
    pub foreign: u64,
    /// Number of links authenticated.
    pub links: u64,
    /// Whether a link is up.
    pub linked: bool,
    /// The relay as it described itself.
    pub relay: Option<SessionResponse>,
    /// The cipher of the present link.
    pub cipher: Option<Cipher>,
    /// When the present link was authenticated.
    pub authenticated: Option<Instant>,
    /// When the first keys of the present link arrived.
    pub first_key: Option<Instant>,
    /// Number of pings from the relay.
    pub pings: u64,
    /// Data of the pongs from the relay.
    pub pongs: Vec<Vec<u8>>,
    /// Anything that a relay must not do, such as offering more keys than the Router keeps.
    pub complaints: Vec<String>,
}

impl View {
    /// Takes the newest key of the relay with the most keys left, or of the current link. Of relays with equally many, the one
    /// that has been linked the longest is taken.
    fn take_key(&mut self) -> Option<TakenKey> {
        let most = self.offers.iter_mut().rev().max_by_key(|(_, offer)| offer.pool.len());
        let (link, pool, host, port) = match most {
            Some((link, offer)) => {
                (Some(*link), &mut offer.pool, &offer.peer_host, offer.peer_port)
            }
            None => (None, &mut self.pool, &self.peer_host, self.peer_port),
        };
        pool.pop().map(|key| TakenKey { link, key, host: host.clone(), port })
    }
}

/// A key for two peers.
struct TakenKey {
    /// The link of its relay; `None` is the current one.
    link: Option<u64>,
    key: RelayKey,
    host: String,
    port: u32,
}

#[derive(Debug)]
enum Command {
    KeyUsed(u32),
    Request(Request),
    Frame(Frame),
    Bytes(Vec<u8>),
    Flood(Frame, usize),
    HalfFrame(Frame),
    Rest,
    Read(bool),
    Hang,
    Drop,
}

/// A request of the administrator to a relay.
#[derive(Debug)]
enum Request {
    Disconnect(u64),
    Nonsense,
}

struct Shared {
    private: PrivateKey,
    options: Mutex<Options>,
    view: watch::Sender<View>,
    link: Mutex<Option<mpsc::Sender<Command>>>,
    /// The links of several relays, by their numbers.
    links: Mutex<BTreeMap<u64, mpsc::Sender<Command>>>,
}

impl Shared {
    fn options(&self) -> MutexGuard<'_, Options> {
        self.options.lock()
    }
}

/// The Router.
pub struct LabRouter {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl LabRouter {
    /// Listens and serves until it is dropped.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(options: Options) -> io::Result<Self> {
        Self::with_key(options, PrivateKey::generate().map_err(io::Error::other)?).await
    }

    /// Like [`Self::start`], with a given private key.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn with_key(options: Options, private: PrivateKey) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            private,
            options: Mutex::new(options),
            view: watch::Sender::new(View::default()),
            link: Mutex::new(None),
            links: Mutex::new(BTreeMap::new()),
        });
        let task = accept(listener, shared.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// The private key derived from a word, for demonstrations that must know it in advance.
    ///
    /// # Errors
    /// [`CryptoError`]; no word should cause it.
    pub fn key_of(word: &str) -> Result<PrivateKey, CryptoError> {
        let digest = digest(&SHA256, format!("relay-lab {word}").as_bytes());
        PrivateKey::from_slice(digest.as_ref())
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value for `RouterPublicKey`.
    pub fn public_key(&self) -> PublicKey {
        self.shared.private.public()
    }

    /// Changes the options for relays that connect from now on.
    pub fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.shared.options());
    }

    /// Everything that it has seen so far.
    pub fn view(&self) -> View {
        self.shared.view.borrow().clone()
    }

    /// Subscribes to everything that it sees.
    pub fn changes(&self) -> watch::Receiver<View> {
        self.shared.view.subscribe()
    }

    /// Waits until it has seen something.
    ///
    /// # Panics
    /// If it does not happen within [`crate::log::PATIENCE`] of the runtime's clock.
    pub async fn wait_for(&self, condition: impl FnMut(&View) -> bool) -> View {
        let mut view = self.changes();
        let seen = match timeout(crate::log::PATIENCE, view.wait_for(condition)).await {
            Ok(Ok(seen)) => Some(seen.clone()),
            Ok(Err(_)) => Some(self.view()),
            Err(_) => None,
        };
        assert!(seen.is_some(), "the Router did not see what the test waits for");
        seen.unwrap_or_default()
    }

    /// Waits until `count` keys are on offer.
    pub async fn keys(&self, count: usize) -> View {
        self.wait_for(|view| view.pool.len() == count).await
    }

    /// Takes the newest key, waiting for one if necessary, introduces two peers with it and notifies the relay.
    ///
    /// # Errors
    /// Without a source of randomness.
    pub async fn introduce(&self) -> io::Result<Introduction> {
        let (link, introduction) = self.introduction(self.wait_for_key().await?)?;
        self.command_to(link, Command::KeyUsed(introduction.key_id)).await;
        Ok(introduction)
    }

    /// Like [`Self::introduce`], but `None` if there is no key now, in which case a real Router refuses the peers.
    ///
    /// # Errors
    /// Without a source of randomness.
    pub async fn try_introduce(&self) -> io::Result<Option<Introduction>> {
        let Some(taken) = self.take_key() else { return Ok(None) };
        let (link, introduction) = self.introduction(taken)?;
        self.command_to(link, Command::KeyUsed(introduction.key_id)).await;
        Ok(Some(introduction))
    }

    /// Like [`Self::introduce`], without notifying the relay.
    ///
    /// # Errors
    /// Without a source of randomness.
    pub async fn introduce_silently(&self) -> io::Result<Introduction> {
        self.introduction(self.wait_for_key().await?).map(|(_, introduction)| introduction)
    }

    fn take_key(&self) -> Option<TakenKey> {
        let mut taken = None;
        self.shared.view.send_if_modified(|view| {
            taken = view.take_key();
            taken.is_some()
        });
        taken
    }

    async fn wait_for_key(&self) -> io::Result<TakenKey> {
        let mut changes = self.changes();
        loop {
            if let Some(taken) = self.take_key() {
                return Ok(taken);
            }
            changes.changed().await.map_err(io::Error::other)?;
        }
    }

    /// Makes the introduction of two peers with a key; returns the link of the key's relay as well.
    fn introduction(&self, taken: TakenKey) -> io::Result<(Option<u64>, Introduction)> {
        let TakenKey { link, key, host, port } = taken;
        let mut random_data = vec![0; 16];
        crypto::fill_random(&mut random_data).map_err(io::Error::other)?;
        let secret = PeerSecret {
            random_data,
            client_address: "192.0.2.10".into(),
            client_user_name: "operator".into(),
            host_address: "198.51.100.7".into(),
            host_id: 1234,
        };
        let bad = |_| io::Error::other("the relay offered an invalid key");
        let introduction = Introduction {
            host,
            port: u16::try_from(port).map_err(|_| io::Error::other("port over 65535"))?,
            key_id: key.key_id,
            public_key: PublicKey::from_slice(&key.public_key).map_err(io::Error::other)?,
            iv: Iv(key.iv.try_into().map_err(bad)?),
            secret: secret.encode_to_vec(),
            encryption: self.peer_encryption(),
        };
        Ok((link, introduction))
    }

    fn peer_encryption(&self) -> u32 {
        let options = self.shared.options();
        options.peer_encryption.unwrap_or(if options.version.is_v3() { 2 } else { 0 })
    }

    /// Sends `RelayKeyUsed`.
    pub async fn tell_used(&self, key_id: u32) {
        self.command(Command::KeyUsed(key_id)).await;
    }

    /// Asks the relay to end a session.
    pub async fn disconnect(&self, session: u64) {
        self.command(Command::Request(Request::Disconnect(session))).await;
    }

    /// Sends a request that no relay knows.
    pub async fn request_nonsense(&self) {
        self.command(Command::Request(Request::Nonsense)).await;
    }

    /// Seals and sends bytes, which need not be a message.
    pub async fn send_sealed(&self, plaintext: Vec<u8>) {
        self.send_frame(Frame::Message(Bytes::from(plaintext))).await;
    }

    /// Sends a frame as it is.
    pub async fn send_frame(&self, frame: Frame) {
        self.command(Command::Frame(frame)).await;
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&self, bytes: Vec<u8>) {
        self.command(Command::Bytes(bytes)).await;
    }

    /// Closes the current link.
    pub async fn drop_link(&self) {
        self.command(Command::Drop).await;
    }

    /// Stops reading and answering on the current link, which stays open.
    pub async fn hang(&self) {
        self.command(Command::Hang).await;
    }

    /// Sends a frame many times without reading in between.
    pub async fn flood(&self, frame: Frame, count: usize) {
        self.command(Command::Flood(frame, count)).await;
    }

    /// Sends the first half of a frame. Nothing else must be sent before [`Self::send_rest`].
    pub async fn send_half(&self, frame: Frame) {
        self.command(Command::HalfFrame(frame)).await;
    }

    /// Sends the rest of the frame of which [`Self::send_half`] has sent the first half.
    pub async fn send_rest(&self) {
        self.command(Command::Rest).await;
    }

    /// Stops reading from the current link, or reads again. Everything else goes on.
    pub async fn set_reading(&self, is_reading: bool) {
        self.command(Command::Read(is_reading)).await;
    }

    async fn command(&self, command: Command) {
        self.command_to(None, command).await;
    }

    /// Sends a command over the link with this number, or the current one.
    async fn command_to(&self, link: Option<u64>, command: Command) {
        let link = match link {
            Some(number) => self.shared.links.lock().get(&number).cloned(),
            None => self.shared.link.lock().clone(),
        };
        if let Some(link) = link {
            // A closed link accepts no commands; the test then sees that nothing happens.
            let _ = link.send(command).await;
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut accepted: Vec<(IpAddr, Instant)> = Vec::new();
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            return;
        };
        shared.view.send_modify(|view| view.connections += 1);
        let options = shared.options().clone();
        if options.version.is_v3() && options.limit_connections {
            accepted.retain(|(_, at)| at.elapsed() < MINUTE);
            accepted.push((address.ip(), Instant::now()));
            let same = accepted.iter().filter(|(ip, _)| *ip == address.ip()).count();
            if same > CONNECTIONS {
                let complaint = format!("{same} connections of {} in a minute", address.ip());
                shared.view.send_modify(|view| view.complaints.push(complaint));
                continue;
            }
        }
        let shared = shared.clone();
        let link = async move {
            if let Err(error) = serve(stream, &shared).await {
                shared.view.send_modify(|view| view.complaints.push(error.to_string()));
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(link));
    }
}

/// A connection from a relay.
struct Link {
    stream: TcpStream,
    decoder: FrameDecoder,
    encoder: FrameEncoder,
}

impl Link {
    async fn next(&mut self) -> Result<Option<Frame>, FramingError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let read = self.stream.read_buf(&mut self.decoder.buffer).await;
            if read.map_err(FrameError::Io)? == 0 {
                return self.decoder.check_end().map(|()| None);
            }
        }
    }

    fn encode(&mut self, frame: &Frame) -> io::Result<BytesMut> {
        let mut bytes = BytesMut::new();
        self.encoder.encode(frame, &mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let bytes = self.encode(frame)?;
        self.stream.write_all(&bytes).await
    }

    async fn flood(&mut self, frame: &Frame, count: usize) -> io::Result<()> {
        for _ in 0..count {
            self.send(frame).await?;
        }
        Ok(())
    }

    /// Sends the first half of a frame, and returns the rest.
    async fn send_half(&mut self, frame: &Frame) -> io::Result<BytesMut> {
        let mut bytes = self.encode(frame)?;
        let rest = bytes.split_off(bytes.len() / 2);
        self.stream.write_all(&bytes).await?;
        Ok(rest)
    }

    async fn send_message(&mut self, payload: Vec<u8>) -> io::Result<()> {
        self.send(&Frame::Message(Bytes::from(payload))).await
    }

    async fn message(&mut self) -> io::Result<Bytes> {
        match self.next().await.map_err(io::Error::other)? {
            Some(Frame::Message(payload)) => Ok(payload),
            other => Err(io::Error::other(format!("{other:?} during authentication"))),
        }
    }
}

/// Carries out a behaviour that needs no authentication. Returns whether there was one, and the connection is done.
async fn misbehave(link: &mut Link, behaviour: &Behaviour) -> io::Result<bool> {
    match behaviour {
        Behaviour::Silent => {}
        Behaviour::CloseAtOnce => return Ok(true),
        Behaviour::Answer(bytes) => {
            link.stream.read_buf(&mut link.decoder.buffer).await?;
            link.stream.write_all(bytes).await?;
        }
        _ => return Ok(false),
    }
    // Until the relay gives up.
    while let Ok(1..) = link.stream.read(&mut [0; 64]).await {}
    Ok(true)
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let options = shared.options().clone();
    let dialect = options.dialect();
    stream.set_nodelay(true)?;
    let (decoder, encoder) = (FrameDecoder::new(dialect), FrameEncoder::new(dialect));
    let mut link = Link { stream, decoder, encoder };
    if misbehave(&mut link, &options.behaviour).await? {
        return Ok(());
    }
    let hello = link.message().await.and_then(|hello| {
        let parsed = ClientHello::decode(hello.clone()).map_err(io::Error::other)?;
        Ok((hello, parsed))
    });
    let Ok((raw_hello, hello)) = hello else {
        // Another dialect, or a probe: Routers of either dialect close the connection.
        shared.view.send_modify(|view| view.foreign += 1);
        return Ok(());
    };
    let authenticated = authenticate(&mut link, shared, &options, &raw_hello, &hello);
    let authenticated = if options.version.is_v3() && options.behaviour.is_honest() {
        let late = |_| io::Error::other("the relay did not authenticate in time");
        timeout(AUTHENTICATION, authenticated).await.map_err(late).and_then(|done| done)
    } else {
        authenticated.await
    };
    let cipher = match authenticated {
        Ok(cipher) => cipher,
        // A relay is right to reject a Router that misbehaves.
        Err(_) if !options.behaviour.is_honest() => return Ok(()),
        Err(error) => return Err(error),
    };
    if options.behaviour == Behaviour::CloseAfterAuthentication {
        return Ok(());
    }
    if options.behaviour == Behaviour::ServeAside {
        shared.view.send_modify(|view| view.links += 1);
        let (_commands, receiver) = mpsc::channel(1);
        return relay_link(link, options.version, receiver, None, shared).await;
    }
    if options.behaviour == Behaviour::ServeAll {
        return serve_beside(link, options.version, shared).await;
    }
    // While a relay is connected, this Router does not act on one that only probes, such as a doctor.
    match aside(&mut link, options.version, shared).await? {
        Some(first) => serve_link(link, options.version, cipher, first, shared).await,
        None => Ok(()),
    }
}

/// Serves one of several links.
async fn serve_beside(link: Link, version: RouterVersion, shared: &Shared) -> io::Result<()> {
    /// Forgets a link, also if its task is aborted.
    struct Forget<'a>(&'a Shared, u64);
    impl Drop for Forget<'_> {
        fn drop(&mut self) {
            self.0.links.lock().remove(&self.1);
            self.0.view.send_modify(|view| drop(view.offers.remove(&self.1)));
        }
    }
    let (commands, receiver) = mpsc::channel(64);
    let mut number = 0;
    shared.view.send_modify(|view| {
        view.links += 1;
        number = view.links;
        shared.links.lock().insert(number, commands);
        view.offers.insert(number, Offer::default());
    });
    let _forget = Forget(shared, number);
    relay_link(link, version, receiver, Some(number), shared).await
}

/// Serves a link, which becomes the current one. `first` is a message that has already been received.
async fn serve_link(
    link: Link,
    version: RouterVersion,
    cipher: Cipher,
    first: Option<RelayToRouterV2>,
    shared: &Shared,
) -> io::Result<()> {
    let (commands, receiver) = mpsc::channel(64);
    *lock(&shared.link) = Some(commands.clone());
    shared.view.send_modify(|view| {
        view.links += 1;
        view.linked = true;
        view.pool.clear();
        view.cipher = Some(cipher);
        view.authenticated = Some(Instant::now());
        view.first_key = None;
        if let Some(message) = first {
            take(view, message, version, None);
        }
    });
    let end = relay_link(link, version, receiver, None, shared).await;
    // Unless another link has replaced it.
    if lock(&shared.link).as_ref().is_some_and(|link| link.same_channel(&commands)) {
        shared.view.send_modify(|view| {
            view.linked = false;
            view.pool.clear();
        });
    }
    end
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// Serves a link beside the current one until it offers keys, which are returned, or the current one has ended. `None` if
/// the link ends first.
async fn aside(
    link: &mut Link,
    version: RouterVersion,
    shared: &Shared,
) -> io::Result<Option<Option<RelayToRouterV2>>> {
    let mut changes = shared.view.subscribe();
    loop {
        let frame = tokio::select! {
            biased;
            _ = changes.wait_for(|view| !view.linked) => return Ok(Some(None)),
            frame = link.next() => frame,
        };
        match frame {
            Ok(Some(Frame::Message(message))) => {
                let message = read(&message, version).map_err(io::Error::other)?;
                if message.key_pool.is_some() {
                    return Ok(Some(Some(message)));
                }
            }
            Ok(Some(Frame::Ping(data))) => link.send(&Frame::Pong(data)).await?,
            Ok(Some(Frame::Pong(_))) => {}
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

async fn authenticate(
    link: &mut Link,
    shared: &Shared,
    options: &Options,
    raw_hello: &[u8],
    hello: &ClientHello,
) -> io::Result<Cipher> {
    let bad = |error: CryptoError| io::Error::other(error);
    let version = options.version;
    let aes = hello.encryption & ENCRYPTION_AES256_GCM != 0;
    if options.is_v3() && !aes {
        return Err(io::Error::other("the relay does not offer AES-256-GCM"));
    }
    let best = if aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
    let cipher = options.cipher.unwrap_or(best);
    let other = PrivateKey::generate().map_err(bad)?;
    let private = if options.behaviour == Behaviour::WrongKey { &other } else { &shared.private };
    let public = PublicKey::from_slice(&hello.public_key).map_err(bad)?;
    let secret = private.agree(&public).map_err(bad)?;
    let iv = Iv::random().map_err(bad)?;
    let relay_iv = Iv(hello.iv.as_slice().try_into().map_err(io::Error::other)?);
    let encryption = match cipher {
        Cipher::ChaCha20Poly1305 => ENCRYPTION_CHACHA20_POLY1305,
        Cipher::Aes256Gcm => ENCRYPTION_AES256_GCM,
    };
    // Without a version these are the bytes of the 3.0 dialect, too.
    let hello = ServerHelloV2 {
        encryption,
        iv: iv.0.to_vec(),
        version: version.in_hello().then_some(version.0),
    }
    .encode_to_vec();
    sleep(options.delay).await;
    link.send_message(hello.clone()).await?;
    let hellos = Hellos {
        secret: &secret,
        client: raw_hello,
        client_iv: relay_iv,
        server: &hello,
        server_iv: iv,
    };
    let (sealer, opener) = router_seals(options.is_v3(), cipher, &hellos).map_err(bad)?;
    link.encoder.enable_sealing(sealer);
    link.decoder.enable_opening(opener);
    let response = challenge(link, options).await?;
    link.encoder.finish_authentication(version.0);
    link.decoder.finish_authentication(version.0);
    shared.view.send_modify(|view| view.relay = Some(response));
    Ok(cipher)
}

/// Sends the challenge and checks the response.
async fn challenge(link: &mut Link, options: &Options) -> io::Result<SessionResponse> {
    let version = options.version;
    let relays =
        if options.behaviour == Behaviour::NoRelaySessions { 0 } else { SESSION_TYPE_RELAY };
    let challenge = SessionChallenge {
        version: (!version.in_hello()).then_some(version.0),
        session_types: relays | 4,
        cpu_cores: 1,
        os_name: "Linux".into(),
        computer_name: "laboratory".into(),
        arch: "x86_64".into(),
        display_name: String::new(),
    };
    sleep(options.delay).await;
    // A 2.x Router may send a ping at any time, even now.
    let pings = !options.is_v3();
    if pings {
        link.send(&Frame::Ping(Bytes::from_static(b"early"))).await?;
    }
    link.send_message(challenge.encode_to_vec()).await?;
    if pings {
        match link.next().await.map_err(io::Error::other)? {
            Some(Frame::Pong(data)) if data == "early" => {}
            other => return Err(io::Error::other(format!("{other:?} instead of a pong"))),
        }
    }
    let response = link.message().await?;
    let response = SessionResponse::decode(response).map_err(io::Error::other)?;
    if response.session_type != SESSION_TYPE_RELAY {
        return Err(io::Error::other("the relay requests another kind of session"));
    }
    if options.is_v3()
        && let Err(demand) = check_v3_response(&response)
    {
        return Err(io::Error::other(format!("a 3.0 Router requires {demand}: {response:?}")));
    }
    Ok(response)
}

/// The sealer of what the Router sends and the opener of what the relay sends.
fn router_seals(
    is_v3: bool,
    cipher: Cipher,
    hellos: &Hellos<'_>,
) -> Result<(Sealer, Opener), CryptoError> {
    let (relay, router) = (hellos.client_iv, hellos.server_iv);
    if is_v3 {
        let transcript = hellos.secret.sha256(&[hellos.client, hellos.server]);
        let from = transcript.derive_with_label(b"aspia/v1/s2c");
        let to = transcript.derive_with_label(b"aspia/v1/c2s");
        return Ok((
            Sealer::with_ratchet(cipher, from, router)?,
            Opener::with_ratchet(cipher, to, relay)?,
        ));
    }
    let key = hellos.secret.derive_session_key();
    Ok((Sealer::new(cipher, &key, router)?, Opener::new(cipher, &key, relay)?))
}

/// Checks what a 3.0 Router requires of a relay's description of itself.
fn check_v3_response(response: &SessionResponse) -> Result<(), &'static str> {
    let filled = |text: &str, longest: usize| text.len() <= longest && !text.trim().is_empty();
    let printable = |text: &str| !text.chars().any(char::is_control);
    let name = |c: char| c.is_alphanumeric() || ".-_+() ".contains(c);
    let arch = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let version = response.version.ok_or("a version")?;
    if !filled(&response.os_name, 64) || !printable(&response.os_name) {
        return Err("an os_name of at most 64 printable bytes");
    }
    if !filled(&response.computer_name, 64) || !response.computer_name.chars().all(name) {
        return Err("a computer_name of at most 64 bytes, without signs");
    }
    if !filled(&response.arch, 32) || !response.arch.chars().all(arch) {
        return Err("an arch of at most 32 bytes");
    }
    if response.display_name.len() > 64 || !printable(&response.display_name) {
        return Err("a display_name of at most 64 printable bytes");
    }
    let parts = [version.major, version.minor, version.patch, version.revision];
    if parts.iter().any(|part| *part > 999) || version < Version::new(2, 6, 0) {
        return Err("a version from 2.6.0 on");
    }
    Ok(())
}

/// Encodes a message of the Router in its dialect.
fn encode_command(command: &Command, version: RouterVersion) -> Option<Vec<u8>> {
    let used = match command {
        Command::KeyUsed(key_id) => Some(RelayKeyUsed { key_id: *key_id }),
        Command::Request(_) => None,
        _ => return None,
    };
    if version.is_v3() {
        let (command_name, peer_id) = match command {
            Command::Request(Request::Disconnect(session)) => {
                (v3::COMMAND_DISCONNECT, i64::try_from(*session).unwrap_or(i64::MAX))
            }
            _ => ("dance", 1),
        };
        let request = v3::PeerRequest {
            request_id: 1,
            command_name: command_name.into(),
            peer_id,
            ..v3::PeerRequest::default()
        };
        let peer_request = used.is_none().then_some(request);
        return Some(v3::RouterToRelayV3 { key_used: used, peer_request }.encode_to_vec());
    }
    let request = match command {
        Command::Request(Request::Disconnect(session)) => PeerConnectionRequest {
            relay_session_id: 1,
            r#type: REQUEST_DISCONNECT,
            peer_session_id: *session,
        },
        _ => PeerConnectionRequest { r#type: 9, ..PeerConnectionRequest::default() },
    };
    let peer_connection_request = used.is_none().then_some(request);
    Some(RouterToRelayV2 { key_used: used, peer_connection_request }.encode_to_vec())
}

async fn relay_link(
    mut link: Link,
    version: RouterVersion,
    mut commands: mpsc::Receiver<Command>,
    number: Option<u64>,
    shared: &Shared,
) -> io::Result<()> {
    let (mut is_reading, mut rest) = (true, BytesMut::new());
    loop {
        tokio::select! {
            frame = link.next(), if is_reading => match frame {
                Ok(Some(Frame::Message(message))) => {
                    let message = read(&message, version).map_err(io::Error::other)?;
                    shared.view.send_modify(|view| take(view, message, version, number));
                }
                Ok(Some(Frame::Ping(data))) => {
                    shared.view.send_modify(|view| view.pings += 1);
                    link.send(&Frame::Pong(data)).await?;
                }
                Ok(Some(Frame::Pong(data))) => {
                    shared.view.send_modify(|view| view.pongs.push(data.to_vec()));
                }
                // A relay may disconnect at any time, in any way.
                Ok(None) | Err(FramingError::Frame(FrameError::Io(_))) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            },
            command = commands.recv() => {
                let sent = match command {
                    Some(command @ (Command::KeyUsed(_) | Command::Request(_))) => {
                        link.send_message(encode_command(&command, version).unwrap_or_default()).await
                    }
                    Some(Command::Frame(frame)) => link.send(&frame).await,
                    Some(Command::Bytes(bytes)) => link.stream.write_all(&bytes).await,
                    Some(Command::Flood(frame, count)) => link.flood(&frame, count).await,
                    Some(Command::HalfFrame(frame)) => {
                        link.send_half(&frame).await.map(|second| rest = second)
                    }
                    Some(Command::Rest) => link.stream.write_all(&rest.split()).await,
                    Some(Command::Read(read)) => {
                        is_reading = read;
                        Ok(())
                    }
                    Some(Command::Hang) => std::future::pending().await,
                    Some(Command::Drop) | None => return Ok(()),
                };
                if sent.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Decodes a message of a relay. Statistics of the 3.0 dialect become those of the 2.x dialect.
fn read(message: &[u8], version: RouterVersion) -> Result<RelayToRouterV2, prost::DecodeError> {
    if !version.is_v3() {
        return RelayToRouterV2::decode(message);
    }
    let v3::RelayToRouterV3 { key_pool, statistics } = v3::RelayToRouterV3::decode(message)?;
    let peer = |peer: v3::Peer| PeerConnection {
        session_id: u64::try_from(peer.peer_id).unwrap_or_default(),
        status: peer.status,
        client_address: peer.client_address,
        client_user_name: peer.client_user_name,
        host_address: peer.host_address,
        host_id: peer.host_id,
        bytes_transferred: peer.bytes_transferred,
        duration: peer.duration,
        idle_time: peer.idle_time,
    };
    let relay_stat = statistics.map(|statistics| RelayStat {
        peer_connection: statistics.peer.into_iter().map(peer).collect(),
        uptime: statistics.uptime,
    });
    Ok(RelayToRouterV2 { key_pool, relay_stat })
}

/// Takes in a message of a relay: of one of several, by the number of its link, or of the current one.
fn take(view: &mut View, message: RelayToRouterV2, version: RouterVersion, link: Option<u64>) {
    let is_good = |pool: &RelayKeyPool| {
        !version.is_v3() || (!pool.peer_host.is_empty() && (1..=65535).contains(&pool.peer_port))
    };
    if message.key_pool.as_ref().is_some_and(|pool| !is_good(pool)) {
        view.complaints.push("a key pool without a valid host and port is ignored".into());
        return;
    }
    if let Some(RelayKeyPool { peer_host, peer_port, key }) = message.key_pool {
        view.first_key.get_or_insert_with(Instant::now);
        view.key_ids.extend(key.iter().map(|key| key.key_id));
        let (pool, host, port) = match link.and_then(|number| view.offers.get_mut(&number)) {
            Some(offer) => (&mut offer.pool, &mut offer.peer_host, &mut offer.peer_port),
            None => (&mut view.pool, &mut view.peer_host, &mut view.peer_port),
        };
        pool.extend(key);
        if version.is_v3() && pool.len() > MAX_KEYS {
            view.complaints.push(format!("{} keys on offer, {MAX_KEYS} kept", pool.len()));
            pool.truncate(MAX_KEYS);
        }
        (*host, *port) = (peer_host, peer_port);
    }
    if let Some(statistics) = message.relay_stat {
        view.statistics = Some(statistics);
        view.statistics_count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(port: u32, keys: std::ops::Range<u32>) -> RelayToRouterV2 {
        let key = |key_id| RelayKey { key_id, ..RelayKey::default() };
        RelayToRouterV2 {
            key_pool: Some(RelayKeyPool {
                peer_host: "127.0.0.1".into(),
                peer_port: port,
                key: keys.map(key).collect(),
            }),
            relay_stat: None,
        }
    }

    fn taken(view: &mut View) -> Option<(Option<u64>, u32, u32)> {
        view.take_key().map(|taken| (taken.link, taken.port, taken.key.key_id))
    }

    #[test]
    fn newest_key_of_the_relay_with_the_most_keys_is_taken() {
        let offers = [3, 5, 8].map(|number| (number, Offer::default())).into();
        let mut view = View { offers, ..View::default() };
        assert_eq!(taken(&mut view), None);
        take(&mut view, offer(1003, 0..2), RouterVersion::V2_7, Some(3));
        take(&mut view, offer(1005, 10..13), RouterVersion::V2_7, Some(5));
        assert_eq!(taken(&mut view), Some((Some(5), 1005, 12)));
        // Equally many: the link that is older.
        assert_eq!(taken(&mut view), Some((Some(3), 1003, 1)));
        assert_eq!(taken(&mut view), Some((Some(5), 1005, 11)));
        // Further keys are added to those that are there.
        take(&mut view, offer(1003, 2..4), RouterVersion::V2_7, Some(3));
        assert_eq!(view.offers[&3].pool.len(), 3);
        assert_eq!(taken(&mut view), Some((Some(3), 1003, 3)));
        // The keys of a relay go with its link.
        view.offers.remove(&3);
        assert_eq!(taken(&mut view), Some((Some(5), 1005, 10)));
        assert_eq!(taken(&mut view), None);
    }

    #[tokio::test]
    async fn several_relays_are_linked_at_once_and_peers_meet_at_the_one_with_the_most_keys() {
        let options = Options { behaviour: Behaviour::ServeAll, ..Options::default() };
        let router = LabRouter::start(options).await.unwrap();
        let start = |sessions| {
            let settings = [("MaxPeerCount", sessions)];
            crate::relay::Relay::start(router.address(), router.public_key(), &settings).unwrap()
        };
        let (_small, large) = (start("1"), start("9"));
        let all = |view: &View| view.offers.values().map(|offer| offer.pool.len()).sum::<usize>();
        router.wait_for(|view| all(view) == 10).await;
        for _ in 0..2 {
            let introduction = router.try_introduce().await.unwrap().unwrap();
            assert_eq!(introduction.port, large.address().port());
            introduction.session().await.unwrap();
        }
        drop(large);
    }
}
