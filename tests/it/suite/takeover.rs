//! The link to the Router and the keys move from one relay to the next, through encoded notes, and the Router sees nothing.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::config::Config;
use aspia_relay::crypto;
use aspia_relay::handover::entry_key::EntryKey;
use aspia_relay::handover::notes::NotedEntry;
use aspia_relay::handover::notes::clock::NoteClock;
use aspia_relay::handover::notes::keys::{
    decode_handed_out_key, decode_offered_keys, encode_handed_out_key, encode_offered_keys,
};
use aspia_relay::handover::notes::link::{DecodedLink, decode_link, encode_link};
use aspia_relay::peer::first_message;
use aspia_relay::router::RouterTask;
use aspia_relay::router::metrics::RouterMetrics;
use aspia_relay::router::status::{CONFIRMATION_TIME, LinkStatus};
use aspia_relay::router::suspend::SuspendedLink;
use aspia_relay::secret::Secret;
use aspia_relay::state::active_session::ActiveSession;
use aspia_relay::state::keys::KeyId;
use aspia_relay::state::metrics::StateMetrics;
use aspia_relay::state::rendezvous::{PairingOutcome, ReadyPeer, Rendezvous};
use aspia_relay::state::restore::Numbering;
use aspia_relay::state::shared::SharedState;
use aspia_relay::wire::frame::Frame;
use bytes::Bytes;
use prometheus::{Registry, TextEncoder};
use relay_lab::log::CapturedLog;
use relay_lab::peer::Introduction;
use relay_lab::router::LabRouter;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Setup;

for_each_router! {
    #[tokio::test]
    router_sees_one_link_and_its_keys_stay_good;
    #[tokio::test]
    frame_that_is_half_received_is_completed;
    #[tokio::test]
    bytes_that_the_router_has_not_read_are_sent_afterwards;
    #[tokio::test]
    keys_that_are_being_generated_are_offered_once;
    #[tokio::test(start_paused = true)]
    ping_in_flight_is_answered_afterwards;
    #[tokio::test]
    link_that_is_not_confirmed_yet_is_confirmed_and_counted_once;
    #[tokio::test]
    hundreds_of_messages_follow_each_other_before_and_after;
    #[tokio::test]
    link_moves_fifty_times_in_a_row;
    #[tokio::test]
    higher_capacity_offers_more_keys_on_the_same_link;
    #[tokio::test]
    lower_capacity_needs_a_new_link;
    #[tokio::test]
    other_settings_of_the_link_need_a_new_link;
    #[tokio::test]
    suspended_task_resumes_its_own_link;
    #[tokio::test]
    link_that_cannot_be_resumed_is_replaced;
    #[tokio::test]
    relay_without_a_link_suspends_without_one;
}

/// The part of a relay that keeps the link to the Router.
struct LinkSide {
    rendezvous: Rendezvous<()>,
    config: watch::Sender<Arc<Config>>,
    registry: Registry,
    status: watch::Receiver<LinkStatus>,
    suspend: CancellationToken,
    task: JoinHandle<(RouterTask, Option<SuspendedLink>)>,
}

/// What one relay leaves to the next.
struct HandedOver {
    socket: TcpStream,
    link: Vec<NotedEntry>,
    offered: Vec<NotedEntry>,
    handed_out: Vec<Secret<Vec<u8>>>,
    numbering: Numbering,
    /// Bytes that were not sent yet.
    unsent: usize,
}

fn load_config(router: &LabRouter, settings: &[(&str, &str)]) -> Config {
    let loaded = relay_lab::relay::config(router.address(), router.public_key(), 8070, settings);
    loaded.unwrap().config
}

impl LinkSide {
    fn start(config: Config, handed_over: Option<HandedOver>) -> Self {
        let registry = Registry::new();
        let mut base = [0; 4];
        crypto::fill_random(&mut base).unwrap();
        let metrics = StateMetrics::new(&registry).unwrap();
        let state = SharedState::new(config.max_sessions, u32::from_be_bytes(base), metrics);
        let link = handed_over.map(|handed_over| handed_over.restore(&state));
        let config = watch::Sender::new(Arc::new(config));
        let status = watch::Sender::new(LinkStatus::new());
        let status_receiver = status.subscribe();
        let suspend = CancellationToken::new();
        let task = RouterTask::new(
            state.clone(),
            config.subscribe(),
            RouterMetrics::new(&registry).unwrap(),
            status,
            Instant::now(),
            CancellationToken::new(),
            suspend.clone(),
        );
        Self {
            rendezvous: Rendezvous::new(state),
            config,
            registry,
            status: status_receiver,
            suspend,
            task: Self::spawn(task, link),
        }
    }

    fn spawn(
        mut task: RouterTask,
        link: Option<SuspendedLink>,
    ) -> JoinHandle<(RouterTask, Option<SuspendedLink>)> {
        tokio::spawn(async move {
            let suspended = task.run(link).await;
            (task, suspended)
        })
    }

    fn state(&self) -> &SharedState {
        self.rendezvous.state()
    }

    async fn suspend(self) -> Option<SuspendedLink> {
        self.suspend.cancel();
        self.task.await.unwrap().1
    }

    /// Suspends, and encodes everything.
    async fn hand_over(self) -> HandedOver {
        let state = self.state().clone();
        let SuspendedLink { socket, snapshot } = self.suspend().await.expect("a link");
        let clock = NoteClock::now();
        let handed_out = state.handed_out_keys(clock.instant());
        let encode = |key| encode_handed_out_key(key, &[], clock).unwrap();
        HandedOver {
            socket,
            link: encode_link(&snapshot, clock),
            offered: encode_offered_keys(&state.offered_keys(), clock).unwrap(),
            handed_out: handed_out.iter().map(encode).collect(),
            numbering: state.numbering(),
            unsent: snapshot.unsent.len(),
        }
    }

    /// Moves the link and the keys to another relay with the same settings.
    async fn move_on(self) -> Self {
        let config = self.config.borrow().as_ref().clone();
        Self::start(config, Some(self.hand_over().await))
    }

    /// Pairs two peers that the Router has introduced to each other.
    fn pair(&self, introduction: &Introduction) -> ActiveSession {
        let present = || {
            let message = introduction.first_message().unwrap();
            let id = KeyId(introduction.key_id);
            let key = self.state().key(id, Instant::now()).expect("a valid key");
            let opened = first_message::open(&message, &key).unwrap();
            let peer = ReadyPeer {
                key: id,
                session_key: opened.session_key,
                secret: opened.secret,
                identity: opened.identity,
                address: ([127, 0, 0, 1], 9).into(),
            };
            self.rendezvous.peer_ready(peer, (), Instant::now()).unwrap()
        };
        let _first = present();
        match present() {
            PairingOutcome::Paired { session, .. } => session,
            other => panic!("the second peer is not paired: {other:?}"),
        }
    }

    fn has_metric(&self, line: &str) -> bool {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        text.lines().any(|found| found == line)
    }

    fn connects(&self, count: usize) -> bool {
        self.has_metric(&format!("aspia_relay_router_connects_total{{outcome=\"ok\"}} {count}"))
    }

    async fn confirmed(&mut self) {
        self.status.wait_for(LinkStatus::is_confirmed).await.unwrap();
    }
}

impl HandedOver {
    /// Puts the keys into the state of another relay, and returns the link.
    fn restore(self, state: &SharedState) -> SuspendedLink {
        let clock = NoteClock::now();
        state.restore_numbering(self.numbering);
        let decode =
            |note: &Secret<Vec<u8>>| decode_handed_out_key(note.expose(), clock).unwrap().key;
        state.restore_handed_out(self.handed_out.iter().map(decode).collect(), clock.instant());
        let (_, link) = self.link.last().unwrap();
        let find = |number: u16| {
            let (key, note) = self.link.get(usize::from(number))?;
            (*key == EntryKey::RouterLinkBytes(number)).then_some(note.expose().as_slice())
        };
        let DecodedLink { snapshot, written } = decode_link(link.expose(), clock, find).unwrap();
        for (_, note) in &self.offered {
            state.restore_offered(decode_offered_keys(note.expose(), written).unwrap());
        }
        SuspendedLink { socket: self.socket, snapshot }
    }
}

/// Starts a Router and a relay whose keys are on offer.
async fn connected(setup: Setup, keys: usize, settings: &[(&str, &str)]) -> (LabRouter, LinkSide) {
    let router = LabRouter::start(setup.options()).await.unwrap();
    let count = keys.to_string();
    let settings = [&[("MaxPeerCount", count.as_str())], settings].concat();
    let relay = LinkSide::start(load_config(&router, &settings), None);
    router.keys(keys).await;
    (router, relay)
}

/// Checks that the Router has seen one link and nothing wrong.
fn assert_unnoticed(router: &LabRouter) {
    let view = router.view();
    assert_eq!((view.connections - view.foreign, view.links), (1, 1));
    assert!(view.linked);
    assert_eq!(view.complaints, [""; 0]);
}

fn ping(data: &[u8]) -> Frame {
    Frame::Ping(Bytes::copy_from_slice(data))
}

async fn router_sees_one_link_and_its_keys_stay_good(setup: Setup) {
    let log = CapturedLog::start();
    let settings = [("StatisticsEnabled", "true"), ("StatisticsInterval", "1")];
    let (router, mut relay) = connected(setup, 4, &settings).await;
    relay.confirmed().await;
    let handed_out = router.introduce().await.unwrap();
    router.keys(3).await;
    while relay.state().counts().handed_out < 1 {
        sleep(Duration::from_millis(10)).await;
    }
    let on_offer = router.introduce_silently().await.unwrap();
    let before = router.view();
    assert!(relay.connects(1));
    let mut relay = relay.move_on().await;
    let line = log.line("Router link taken over").await;
    assert!(line.contains(&router.address().to_string()), "{line}");
    relay.confirmed().await;
    let since = relay.status.borrow().since;
    assert!(since.elapsed().unwrap() >= CONFIRMATION_TIME, "{since:?}");
    assert!(relay.has_metric("aspia_relay_router_connected 1") && relay.connects(0));
    let counts = relay.state().counts();
    assert_eq!((counts.offered, counts.handed_out), (3, 1));
    // Keys of before serve their pairs, and others are offered once the sessions have ended.
    drop((relay.pair(&handed_out), relay.pair(&on_offer)));
    let view = router.keys(4).await;
    assert_eq!(view.key_ids.len(), before.key_ids.len() + 2);
    let unique: std::collections::HashSet<_> = view.key_ids.iter().collect();
    assert_eq!(unique.len(), view.key_ids.len());
    let sent = view.statistics_count;
    router.wait_for(|view| view.statistics_count > sent + 1).await;
    router.send_frame(ping(b"there")).await;
    router.wait_for(|view| view.pongs.contains(&b"there".to_vec())).await;
    drop(relay.pair(&router.introduce().await.unwrap()));
    assert_unnoticed(&router);
}

async fn frame_that_is_half_received_is_completed(setup: Setup) {
    let (router, mut relay) = connected(setup, 2, &[]).await;
    for round in 0..3_u8 {
        // Whatever the relay has read of it by now.
        router.send_half(ping(&[round; 5000])).await;
        if round > 0 {
            sleep(Duration::from_millis(50)).await;
        }
        relay = relay.move_on().await;
        router.send_rest().await;
        router.wait_for(|view| view.pongs.contains(&vec![round; 5000])).await;
    }
    drop(relay.pair(&router.introduce().await.unwrap()));
    assert_unnoticed(&router);
}

async fn bytes_that_the_router_has_not_read_are_sent_afterwards(setup: Setup) {
    let (router, relay) = connected(setup, 2, &[]).await;
    router.set_reading(false).await;
    let config = relay.config.borrow().as_ref().clone();
    let mut relay = Some(relay);
    let mut pings: u16 = 0;
    // Until the buffers of the sockets are full.
    let handed_over = loop {
        router.send_frame(ping(&pings.to_be_bytes().repeat(30_000))).await;
        pings += 1;
        sleep(Duration::from_millis(5)).await;
        let handed_over = relay.take().unwrap().hand_over().await;
        if handed_over.unsent > 40_000 {
            break handed_over;
        }
        assert!(pings < 1000);
        relay = Some(LinkSide::start(config.clone(), Some(handed_over)));
    };
    assert!(handed_over.link.len() > 1);
    let relay = LinkSide::start(config, Some(handed_over));
    router.set_reading(true).await;
    let view = router.wait_for(|view| view.pongs.len() == usize::from(pings)).await;
    for (number, pong) in (0..pings).zip(&view.pongs) {
        assert!(*pong == number.to_be_bytes().repeat(30_000), "pong {number}");
    }
    drop(relay.pair(&router.introduce().await.unwrap()));
    assert_unnoticed(&router);
}

async fn keys_that_are_being_generated_are_offered_once(setup: Setup) {
    let router = LabRouter::start(setup.options()).await.unwrap();
    let config = load_config(&router, &[("MaxPeerCount", "3000")]);
    let expected = if setup.router.is_v3() { 1000 } else { 3000 };
    let mut relay = LinkSide::start(config, None);
    let mut moves = 0;
    let mut seen = 0;
    while seen < expected {
        let view = router.wait_for(|view| view.pool.len() > seen).await;
        seen = view.pool.len();
        relay = relay.move_on().await;
        moves += 1;
    }
    assert!(moves > 2, "{moves}");
    let view = router.keys(expected).await;
    assert_eq!(relay.state().counts().offered, expected);
    for key in &view.pool {
        let known = relay.state().key(KeyId(key.key_id), Instant::now()).unwrap();
        assert_eq!(known.public().0.as_slice(), key.public_key);
    }
    assert_unnoticed(&router);
}

async fn ping_in_flight_is_answered_afterwards(setup: Setup) {
    let (router, relay) = connected(setup, 2, &[]).await;
    router.set_reading(false).await;
    // A ping is due after 30 or 60 s, and must be answered within 30 s.
    sleep(Duration::from_secs(if setup.router.is_v3() { 45 } else { 75 })).await;
    let relay = relay.move_on().await;
    sleep(Duration::from_secs(5)).await;
    router.set_reading(true).await;
    router.wait_for(|view| view.pings == 1).await;
    // Neither of the two relays takes the pong for that of a ping that was never sent, or a missing one.
    sleep(Duration::from_secs(10)).await;
    assert!(relay.has_metric("aspia_relay_router_ping_seconds_count 1"));
    sleep(Duration::from_secs(600)).await;
    assert!(router.view().pings > 9, "{}", router.view().pings);
    assert_unnoticed(&router);
}

async fn link_that_is_not_confirmed_yet_is_confirmed_and_counted_once(setup: Setup) {
    let router = LabRouter::start(setup.options()).await.unwrap();
    let relay = LinkSide::start(load_config(&router, &[("MaxPeerCount", "2")]), None);
    let mut status = relay.status.clone();
    status.wait_for(|status| status.link.is_some()).await.unwrap();
    let authenticated = Instant::now();
    let registry = relay.registry.clone();
    let relay = relay.move_on().await;
    assert!(!status.borrow().is_confirmed());
    let mut relay = relay.move_on().await;
    assert!(!relay.status.borrow().is_confirmed() && relay.connects(0));
    relay.confirmed().await;
    let taken = authenticated.elapsed();
    assert!(taken < CONFIRMATION_TIME + Duration::from_secs(3), "{taken:?}");
    assert!(relay.connects(1));
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains("aspia_relay_router_connects_total{outcome=\"ok\"} 0"), "{text}");
    router.keys(2).await;
    assert_unnoticed(&router);
}

async fn hundreds_of_messages_follow_each_other_before_and_after(setup: Setup) {
    let (router, mut relay) = connected(setup, 2, &[]).await;
    let mut answered = 0;
    for count in [300, 211, 1, 512] {
        router.flood(ping(b"again"), count).await;
        answered += count;
        router.wait_for(|view| view.pongs.len() == answered).await;
        relay = relay.move_on().await;
    }
    drop(relay.pair(&router.introduce().await.unwrap()));
    assert_unnoticed(&router);
}

async fn link_moves_fifty_times_in_a_row(setup: Setup) {
    let (router, mut relay) = connected(setup, 20, &[]).await;
    for round in 0..50_u8 {
        let introduction = router.introduce().await.unwrap();
        router.send_frame(ping(&[round])).await;
        relay = relay.move_on().await;
        drop(relay.pair(&introduction));
    }
    router.keys(20).await;
    let view = router.wait_for(|view| view.pongs.len() == 50).await;
    assert_eq!(view.key_ids.len(), 70);
    assert_eq!(relay.state().counts().offered, 20);
    assert_unnoticed(&router);
}

async fn higher_capacity_offers_more_keys_on_the_same_link(setup: Setup) {
    let (router, relay) = connected(setup, 5, &[]).await;
    let config = load_config(&router, &[("MaxPeerCount", "9")]);
    let relay = LinkSide::start(config, Some(relay.hand_over().await));
    router.keys(9).await;
    assert_eq!(relay.state().counts().offered, 9);
    assert_unnoticed(&router);
}

async fn lower_capacity_needs_a_new_link(setup: Setup) {
    let (router, relay) = connected(setup, 5, &[]).await;
    let introduction = router.introduce().await.unwrap();
    while relay.state().counts().handed_out < 1 {
        sleep(Duration::from_millis(10)).await;
    }
    let config = load_config(&router, &[("MaxPeerCount", "3")]);
    let relay = LinkSide::start(config, Some(relay.hand_over().await));
    router.wait_for(|view| view.links == 2 && view.pool.len() == 2).await;
    // Handed-out keys do not depend on the link.
    drop(relay.pair(&introduction));
    router.keys(3).await;
    assert_eq!(router.view().complaints, [""; 0]);
}

async fn other_settings_of_the_link_need_a_new_link(setup: Setup) {
    let log = CapturedLog::start();
    let (router, relay) = connected(setup, 5, &[]).await;
    let introduction = router.introduce().await.unwrap();
    let handed_over = relay.hand_over().await;
    let config = load_config(&router, &[("MaxPeerCount", "5"), ("DisplayName", "another")]);
    let relay = LinkSide::start(config, Some(handed_over));
    log.line("was made with other settings").await;
    // The Router told of the key, at the latest, before the old link was closed.
    router.wait_for(|view| view.links == 2 && view.pool.len() == 4).await;
    drop(relay.pair(&introduction));
    router.keys(5).await;
    assert!(!log.text().contains("Router link taken over"), "{}", log.text());
    assert_eq!(router.view().complaints, [""; 0]);
}

async fn suspended_task_resumes_its_own_link(setup: Setup) {
    let (router, mut relay) = connected(setup, 3, &[]).await;
    for _ in 0..3 {
        relay.suspend.cancel();
        let (mut task, link) = (&mut relay.task).await.unwrap();
        assert!(relay.status.borrow().link.is_none());
        assert_eq!(relay.state().counts().offered, 3);
        relay.suspend = CancellationToken::new();
        task.set_suspend_token(relay.suspend.clone());
        relay.task = LinkSide::spawn(task, link);
        drop(relay.pair(&router.introduce().await.unwrap()));
        router.keys(3).await;
        relay.status.wait_for(|status| status.link.is_some()).await.unwrap();
    }
    assert_unnoticed(&router);
}

async fn link_that_cannot_be_resumed_is_replaced(setup: Setup) {
    let log = CapturedLog::start();
    let (router, relay) = connected(setup, 3, &[]).await;
    relay.suspend.cancel();
    let LinkSide { rendezvous, task, config: _config, .. } = relay;
    let (mut task, link) = task.await.unwrap();
    let mut link = link.unwrap();
    link.snapshot.dialect = "9.9".into();
    task.set_suspend_token(CancellationToken::new());
    let _task = LinkSide::spawn(task, Some(link));
    log.line("does not speak its dialect, 9.9").await;
    router.wait_for(|view| view.links == 2 && view.pool.len() == 3).await;
    assert_eq!(rendezvous.state().counts().offered, 3);
}

async fn relay_without_a_link_suspends_without_one(setup: Setup) {
    let router = LabRouter::start(setup.options()).await.unwrap();
    let config = load_config(&router, &[("RouterPort", "1")]);
    let log = CapturedLog::start();
    let relay = LinkSide::start(config.clone(), None);
    log.line("Router link: cannot connect").await;
    assert!(relay.suspend().await.is_none());
    router.set(|options| options.behaviour = relay_lab::router::Behaviour::Silent);
    let relay = LinkSide::start(load_config(&router, &[]), None);
    router.wait_for(|view| view.connections == 1).await;
    assert!(relay.suspend().await.is_none());
}
