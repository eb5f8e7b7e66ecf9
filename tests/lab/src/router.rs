//! A Router of the 2.x dialect that does as it is told.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aspia_relay::crypto::{self, Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer};
use aspia_relay::wire::frame::{Frame, FrameCodec, FrameError};
use aspia_relay::wire::peer::Secret;
use aspia_relay::wire::router::{
    ClientHello, ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305, PeerConnectionRequest,
    REQUEST_DISCONNECT, RelayKey, RelayKeyPool, RelayKeyUsed, RelayStat, RelayToRouter,
    RouterToRelay, SESSION_TYPE_RELAY, ServerHello, SessionChallenge, SessionResponse, Version,
};
use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::{Decoder, Encoder};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::peer::Introduction;

/// Which Router to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterVersion(pub Version);

impl RouterVersion {
    /// Names itself in `ServerHello`; channel header.
    pub const V2_7: Self = Self(Version::new(2, 7, 0));
    /// Names itself in `SessionChallenge`; channel header.
    pub const V2_6: Self = Self(Version::new(2, 6, 0));
    /// Names itself in `SessionChallenge`; no channel header.
    pub const V2_5: Self = Self(Version::new(2, 5, 0));

    fn in_hello(self) -> bool {
        self.0 >= Version::new(2, 7, 0)
    }

    fn channel_header(self) -> bool {
        self.0 >= Version::new(2, 6, 0)
    }
}

/// What to do with a relay that connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// What a Router does.
    Serve,
    /// Accept and say nothing.
    Silent,
    /// Accept and close.
    CloseAtOnce,
    /// Authenticate and close, as a Router does whose white list lacks the relay.
    CloseAfterAuthentication,
    /// Serve the link beside the one that there is, which stays what this Router acts on.
    ServeAside,
    /// Use another private key than the one that was published.
    WrongKey,
    /// Take no relays.
    NoRelaySessions,
    /// Answer the `ClientHello` with these bytes.
    Answer(Vec<u8>),
}

/// How to begin.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Which Router to be.
    pub version: RouterVersion,
    /// The cipher to choose; `None` is the best that both have.
    pub cipher: Option<Cipher>,
    /// What to do with relays.
    pub behaviour: Behaviour,
    /// Time that each answer of the authentication takes.
    pub delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            version: RouterVersion::V2_7,
            cipher: None,
            behaviour: Behaviour::Serve,
            delay: Duration::ZERO,
        }
    }
}

/// What the Router has seen.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Keys on offer on the present link, the latest last.
    pub pool: Vec<RelayKey>,
    /// Ids of all keys ever offered.
    pub key_ids: Vec<u32>,
    /// Where peers are to dial.
    pub peer_host: String,
    /// Where peers are to dial.
    pub peer_port: u32,
    /// The latest statistics.
    pub statistics: Option<RelayStat>,
    /// How often statistics came.
    pub statistics_count: u64,
    /// Number of connections accepted.
    pub connections: u64,
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
    /// When the first keys of the present link came.
    pub first_key: Option<Instant>,
    /// Number of pings from the relay.
    pub pings: u64,
    /// Data of the pongs from the relay.
    pub pongs: Vec<Vec<u8>>,
    /// Key pools that were longer than a frame may be, or torn; anything that should not be.
    pub complaints: Vec<String>,
}

#[derive(Debug)]
enum Command {
    Send(RouterToRelay),
    Plain(Vec<u8>),
    Frame(Frame),
    Bytes(Vec<u8>),
    Flood(Frame, usize),
    Hang,
    Drop,
}

struct Shared {
    private: PrivateKey,
    options: Mutex<Options>,
    view: watch::Sender<View>,
    link: Mutex<Option<mpsc::Sender<Command>>>,
}

impl Shared {
    fn options(&self) -> MutexGuard<'_, Options> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
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
        });
        let task = accept(listener, shared.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// The private key that belongs to a word: for demonstrations, where it has to be known beforehand.
    ///
    /// # Errors
    /// [`CryptoError`], which none should.
    pub fn key_of(word: &str) -> Result<PrivateKey, CryptoError> {
        let digest = digest(&SHA256, format!("relay-lab {word}").as_bytes());
        PrivateKey::from_slice(digest.as_ref())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What belongs into `RouterPublicKey`.
    pub fn public_key(&self) -> PublicKey {
        self.shared.private.public()
    }

    /// Changes what happens to relays that connect from now on.
    pub fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.shared.options());
    }

    /// What it has seen so far.
    pub fn view(&self) -> View {
        self.shared.view.borrow().clone()
    }

    /// Hears of everything that it sees.
    pub fn changes(&self) -> watch::Receiver<View> {
        self.shared.view.subscribe()
    }

    /// Waits until it has seen something.
    ///
    /// # Panics
    /// When that does not come within [`crate::log::PATIENCE`] of the runtime's clock.
    pub async fn wait_for(&self, condition: impl FnMut(&View) -> bool) -> View {
        let mut view = self.changes();
        let seen = match timeout(crate::log::PATIENCE, view.wait_for(condition)).await {
            Ok(Ok(seen)) => Some(seen.clone()),
            Ok(Err(_)) => Some(self.view()),
            Err(_) => None,
        };
        assert!(seen.is_some(), "the Router waits in vain");
        seen.unwrap_or_default()
    }

    /// Waits until `count` keys are on offer.
    pub async fn keys(&self, count: usize) -> View {
        self.wait_for(|view| view.pool.len() == count).await
    }

    /// Takes the key that was added last and introduces two peers with it: the relay is told. Waits for a key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub async fn introduce(&self) -> io::Result<Introduction> {
        let introduction = self.introduce_silently().await?;
        self.tell_used(introduction.key_id).await;
        Ok(introduction)
    }

    /// Like [`Self::introduce`], but the relay is not told.
    ///
    /// # Errors
    /// When there is no randomness.
    pub async fn introduce_silently(&self) -> io::Result<Introduction> {
        let mut changes = self.changes();
        loop {
            let mut taken = None;
            self.shared.view.send_if_modified(|view| {
                taken = view.pool.pop().map(|key| (key, view.peer_host.clone(), view.peer_port));
                taken.is_some()
            });
            let Some((key, host, port)) = taken else {
                changes.changed().await.map_err(io::Error::other)?;
                continue;
            };
            let mut random_data = vec![0; 16];
            crypto::random(&mut random_data).map_err(io::Error::other)?;
            let secret = Secret {
                random_data,
                client_address: "192.0.2.10".into(),
                client_user_name: "operator".into(),
                host_address: "198.51.100.7".into(),
                host_id: 1234,
            };
            let bad = |_| io::Error::other("the relay offered a key that is none");
            return Ok(Introduction {
                host,
                port: u16::try_from(port).map_err(|_| io::Error::other("port over 65535"))?,
                key_id: key.key_id,
                public_key: PublicKey::from_slice(&key.public_key).map_err(io::Error::other)?,
                iv: Iv(key.iv.try_into().map_err(bad)?),
                secret: secret.encode_to_vec(),
                encryption: 0,
            });
        }
    }

    /// Sends `RelayKeyUsed`.
    pub async fn tell_used(&self, key_id: u32) {
        let key_used = Some(RelayKeyUsed { key_id });
        self.command(Command::Send(RouterToRelay { key_used, ..Default::default() })).await;
    }

    /// Asks the relay to end a session.
    pub async fn disconnect(&self, session: u64) {
        self.request(PeerConnectionRequest {
            relay_session_id: 1,
            r#type: REQUEST_DISCONNECT,
            peer_session_id: session,
        })
        .await;
    }

    /// Sends any request.
    pub async fn request(&self, request: PeerConnectionRequest) {
        let peer_connection_request = Some(request);
        let message = RouterToRelay { peer_connection_request, ..Default::default() };
        self.command(Command::Send(message)).await;
    }

    /// Sends bytes, sealed, that need not be a message.
    pub async fn send_sealed(&self, plaintext: Vec<u8>) {
        self.command(Command::Plain(plaintext)).await;
    }

    /// Sends a frame as it is.
    pub async fn send_frame(&self, frame: Frame) {
        self.command(Command::Frame(frame)).await;
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&self, bytes: Vec<u8>) {
        self.command(Command::Bytes(bytes)).await;
    }

    /// Closes the present link.
    pub async fn drop_link(&self) {
        self.command(Command::Drop).await;
    }

    /// Reads and answers nothing any more on the present link, which stays open.
    pub async fn hang(&self) {
        self.command(Command::Hang).await;
    }

    /// Sends a frame many times without ever reading again.
    pub async fn flood(&self, frame: Frame, count: usize) {
        self.command(Command::Flood(frame, count)).await;
    }

    async fn command(&self, command: Command) {
        let link = self.shared.link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(link) = link {
            // A link that is gone takes no commands; then the test sees that nothing happens.
            let _ = link.send(command).await;
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        shared.view.send_modify(|view| view.connections += 1);
        let shared = shared.clone();
        let link = async move {
            if let Err(error) = serve(stream, &shared).await {
                shared.view.send_modify(|view| view.complaints.push(error.to_string()));
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(link));
    }
}

/// One relay.
struct Link {
    stream: TcpStream,
    codec: FrameCodec,
    buffer: BytesMut,
}

impl Link {
    async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return self.codec.decode_eof(&mut self.buffer);
            }
        }
    }

    async fn send(&mut self, frame: Frame) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        self.codec.encode(frame, &mut bytes).map_err(io::Error::other)?;
        self.stream.write_all(&bytes).await
    }

    async fn send_message(&mut self, payload: Vec<u8>) -> io::Result<()> {
        self.send(Frame::Message(Bytes::from(payload))).await
    }

    async fn message(&mut self) -> io::Result<Bytes> {
        match self.next().await.map_err(io::Error::other)? {
            Some(Frame::Message(payload)) => Ok(payload),
            other => Err(io::Error::other(format!("{other:?} during authentication"))),
        }
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let options = shared.options().clone();
    stream.set_nodelay(true)?;
    let mut link = Link { stream, codec: FrameCodec::new(), buffer: BytesMut::new() };
    match &options.behaviour {
        Behaviour::Silent => {
            // Until the relay gives up.
            while let Ok(Some(_)) = link.next().await {}
            return Ok(());
        }
        Behaviour::CloseAtOnce => return Ok(()),
        Behaviour::Answer(bytes) => {
            link.message().await?;
            link.stream.write_all(bytes).await?;
            while let Ok(Some(_)) = link.next().await {}
            return Ok(());
        }
        _ => {}
    }
    let (sealer, opener, cipher) = match authenticate(&mut link, shared, &options).await {
        Ok(established) => established,
        // A relay that does not like what this Router does is right.
        Err(_) if options.behaviour != Behaviour::Serve => return Ok(()),
        Err(error) => return Err(error),
    };
    if options.behaviour == Behaviour::CloseAfterAuthentication {
        return Ok(());
    }
    if options.behaviour == Behaviour::ServeAside {
        shared.view.send_modify(|view| view.links += 1);
        let (_commands, receiver) = mpsc::channel(1);
        return relay_link(link, sealer, opener, receiver, shared).await;
    }
    let (commands, receiver) = mpsc::channel(64);
    *shared.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(commands);
    shared.view.send_modify(|view| {
        view.links += 1;
        view.linked = true;
        view.pool.clear();
        view.cipher = Some(cipher);
        view.authenticated = Some(Instant::now());
        view.first_key = None;
    });
    let end = relay_link(link, sealer, opener, receiver, shared).await;
    shared.view.send_modify(|view| {
        view.linked = false;
        view.pool.clear();
    });
    end
}

async fn authenticate(
    link: &mut Link,
    shared: &Shared,
    options: &Options,
) -> io::Result<(Sealer, Opener, Cipher)> {
    let bad = |error: CryptoError| io::Error::other(error);
    let hello = ClientHello::decode(link.message().await?).map_err(io::Error::other)?;
    let cipher = options.cipher.unwrap_or(if hello.encryption & ENCRYPTION_AES256_GCM != 0 {
        Cipher::Aes256Gcm
    } else {
        Cipher::ChaCha20Poly1305
    });
    let other = PrivateKey::generate().map_err(bad)?;
    let private = if options.behaviour == Behaviour::WrongKey { &other } else { &shared.private };
    let public = PublicKey::from_slice(&hello.public_key).map_err(bad)?;
    let key = private.agree(&public).map_err(bad)?.session_key();
    let iv = Iv::random().map_err(bad)?;
    let relay_iv = hello.iv.as_slice().try_into().map_err(io::Error::other)?;
    let version = options.version;
    let hello = ServerHello {
        encryption: match cipher {
            Cipher::ChaCha20Poly1305 => ENCRYPTION_CHACHA20_POLY1305,
            Cipher::Aes256Gcm => ENCRYPTION_AES256_GCM,
        },
        iv: iv.0.to_vec(),
        version: version.in_hello().then_some(version.0),
    };
    sleep(options.delay).await;
    link.send_message(hello.encode_to_vec()).await?;
    let mut sealer = Sealer::new(cipher, &key, iv).map_err(bad)?;
    let mut opener = Opener::new(cipher, &key, Iv(relay_iv)).map_err(bad)?;
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
    // A Router may ping at any time, also now.
    link.send(Frame::Ping(Bytes::from_static(b"early"))).await?;
    link.send_message(sealer.seal(&challenge.encode_to_vec()).map_err(bad)?).await?;
    match link.next().await.map_err(io::Error::other)? {
        Some(Frame::Pong(data)) if data == "early" => {}
        other => return Err(io::Error::other(format!("{other:?} instead of a pong"))),
    }
    let response = opener.open(&link.message().await?).map_err(bad)?;
    let response = SessionResponse::decode(response.as_slice()).map_err(io::Error::other)?;
    if response.session_type != SESSION_TYPE_RELAY {
        return Err(io::Error::other("the relay asks for another kind of session"));
    }
    if version.channel_header() {
        link.codec.enable_channel_header();
    }
    shared.view.send_modify(|view| view.relay = Some(response));
    Ok((sealer, opener, cipher))
}

async fn relay_link(
    mut link: Link,
    mut sealer: Sealer,
    mut opener: Opener,
    mut commands: mpsc::Receiver<Command>,
    shared: &Shared,
) -> io::Result<()> {
    let mut seal = |plaintext: &[u8]| sealer.seal(plaintext).map_err(io::Error::other);
    loop {
        tokio::select! {
            frame = link.next() => match frame {
                Ok(Some(Frame::Message(sealed))) => {
                    let message = opener.open(&sealed).map_err(io::Error::other)?;
                    let message =
                        RelayToRouter::decode(message.as_slice()).map_err(io::Error::other)?;
                    shared.view.send_modify(|view| take(view, message));
                }
                Ok(Some(Frame::Ping(data))) => {
                    shared.view.send_modify(|view| view.pings += 1);
                    link.send(Frame::Pong(data)).await?;
                }
                Ok(Some(Frame::Pong(data))) => {
                    shared.view.send_modify(|view| view.pongs.push(data.to_vec()));
                }
                // A relay may go at any time, in any way.
                Ok(None) | Err(FrameError::Io(_)) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            },
            command = commands.recv() => {
                let sent = match command {
                    Some(Command::Send(message)) => {
                        let sealed = seal(&message.encode_to_vec())?;
                        link.send_message(sealed).await
                    }
                    Some(Command::Plain(plaintext)) => {
                        let sealed = seal(&plaintext)?;
                        link.send_message(sealed).await
                    }
                    Some(Command::Frame(frame)) => link.send(frame).await,
                    Some(Command::Bytes(bytes)) => link.stream.write_all(&bytes).await,
                    Some(Command::Flood(frame, count)) => {
                        let mut sent = Ok(());
                        for _ in 0..count {
                            if sent.is_ok() {
                                sent = link.send(frame.clone()).await;
                            }
                        }
                        sent
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

fn take(view: &mut View, message: RelayToRouter) {
    if let Some(RelayKeyPool { peer_host, peer_port, key }) = message.key_pool {
        view.first_key.get_or_insert_with(Instant::now);
        view.key_ids.extend(key.iter().map(|key| key.key_id));
        view.pool.extend(key);
        (view.peer_host, view.peer_port) = (peer_host, peer_port);
    }
    if let Some(statistics) = message.relay_stat {
        view.statistics = Some(statistics);
        view.statistics_count += 1;
    }
}
