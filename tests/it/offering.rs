//! A Router and a hundred relays with unequal machines, simulated: which share of its machine each relay uses when the Router
//! gives every session to the relay with the most keys left. Time is a number here; the averages of the load and the number of
//! keys on offer are those of the relay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use aspia_relay::headroom::average::LoadAverage;
use aspia_relay::headroom::resources::ResourceUse;
use aspia_relay::state::offer::Places;
use tokio::time::Instant;

const RELAYS: usize = 100;
const SESSIONS: u32 = 100_000;
/// Sessions that arrive each second: 125 s until all have.
const RATE: u32 = 800;
/// The mean duration of a session, in seconds.
const MEAN_DURATION: f64 = 180.0;
/// What the smallest machine can carry: this many sessions of the mean weight 1. The others can carry 2 and 4 times as many.
const QUOTA: f64 = 430.0;
/// The same for all relays, as in a fleet with one configuration.
const MAX_PEER_COUNT: usize = 2000;
/// A measurement is wrong by up to this much, either way.
const NOISE: f64 = 0.05;

/// A generator of numbers that always yields the same ones (`SplitMix64`).
struct Random(u64);

impl Random {
    /// Returns a number between 0 and 1, both excluded.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let number = (mixed >> 11) as f64;
        (number + 0.5) / (1u64 << 53) as f64
    }

    /// Returns a number of the exponential distribution with mean 1.
    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Returns a number of the Pareto distribution with this exponent, and mean 1.
    fn pareto(&mut self, exponent: f64) -> f64 {
        (exponent - 1.0) / exponent * self.unit().powf(-1.0 / exponent)
    }
}

struct SimulatedRelay {
    /// What its machine can carry.
    quota: f64,
    /// The weight of its sessions.
    load: f64,
    sessions: usize,
    /// Keys that its Router has.
    offered: usize,
    average: LoadAverage,
    /// `OfferByLoad`.
    by_load: bool,
    plan: Option<aspia_relay::state::offer::OfferPlan>,
}

impl SimulatedRelay {
    fn places(&self) -> Places {
        Places { capacity: MAX_PEER_COUNT, used: self.sessions }
    }

    /// Measures the load, as the relay does every second.
    fn measure(&mut self, now: Instant, error: f64) {
        let used = (self.load / self.quota * (1.0 + error)).min(1.0);
        let measured = ResourceUse { cpu: Some(used), ..ResourceUse::default() };
        self.average.add(now, &measured, self.places());
        self.plan = self.by_load.then(|| self.average.plan(self.places()));
        self.top_up();
    }

    /// Offers the keys that are missing, of which a 3.0 Router keeps 1 000. None is ever withdrawn.
    fn top_up(&mut self) {
        let free = self.places().free().min(1000);
        let target = self.plan.map_or(free, |plan| plan.target(self.places(), 1000));
        self.offered = self.offered.max(target);
        assert!(self.offered <= self.places().free(), "more keys than free places");
    }

    fn begin(&mut self, weight: f64) {
        self.offered -= 1;
        self.sessions += 1;
        self.load += weight;
        self.top_up();
    }

    fn end(&mut self, weight: f64) {
        self.sessions -= 1;
        self.load -= weight;
        self.top_up();
    }
}

/// A session that ends, in milliseconds, at a relay.
type End = Reverse<(u64, usize, u64)>;

/// What became of a fleet.
#[derive(Debug)]
struct Fleet {
    /// The largest share of a machine divided by the smallest, at its worst in any second after the first minute.
    worst_ratio: f64,
    /// The same on average over these seconds.
    mean_ratio: f64,
    refused: u32,
}

/// Simulates a fleet until all sessions have begun.
fn simulate(by_load: bool, mut weight: impl FnMut(&mut Random) -> f64) -> Fleet {
    let mut random = Random(22);
    let start = Instant::now();
    let mut relays: Vec<_> = (0..RELAYS)
        .map(|number| SimulatedRelay {
            quota: QUOTA * [1.0, 2.0, 4.0][number % 3],
            load: 0.0,
            sessions: 0,
            offered: 0,
            average: LoadAverage::default(),
            by_load,
            plan: None,
        })
        .collect();
    let mut ends: BinaryHeap<End> = BinaryHeap::new();
    let (mut refused, mut ratios) = (0, Vec::new());
    for number in 0..SESSIONS {
        let at = u64::from(number) * 1000 / u64::from(RATE);
        while let Some(&Reverse((end, relay, bits))) = ends.peek()
            && end <= at
        {
            ends.pop();
            relays[relay].end(f64::from_bits(bits));
        }
        // Relays do not measure at the same moment.
        let (now, turn) = (start + Duration::from_millis(at), number % RATE);
        for (_, relay) in
            relays.iter_mut().enumerate().filter(|(index, _)| index * 8 == turn as usize)
        {
            relay.measure(now, NOISE * (2.0 * random.unit() - 1.0));
        }
        if turn == 0 && at > 60_000 {
            ratios.push(ratio(&relays));
        }
        let (weight, duration) = (weight(&mut random), random.exponential() * MEAN_DURATION);
        // The Router's rule. Of relays with equally many keys, it takes the first.
        let most = (0..RELAYS).rev().max_by_key(|&relay| relays[relay].offered).unwrap();
        if relays[most].offered == 0 {
            refused += 1;
            continue;
        }
        relays[most].begin(weight);
        let duration = Duration::from_secs_f64(duration).as_millis();
        let end = at + u64::try_from(duration).unwrap();
        ends.push(Reverse((end, most, weight.to_bits())));
    }
    #[expect(clippy::cast_precision_loss, reason = "a few hundred seconds")]
    let mean_ratio = ratios.iter().sum::<f64>() / ratios.len() as f64;
    let worst_ratio = ratios.iter().copied().fold(0.0, f64::max);
    Fleet { worst_ratio, mean_ratio, refused }
}

/// The largest share of its machine that a relay uses, divided by the smallest.
fn ratio(relays: &[SimulatedRelay]) -> f64 {
    let shares = || relays.iter().map(|relay| relay.load / relay.quota);
    shares().fold(0.0, f64::max) / shares().fold(f64::MAX, f64::min)
}

#[test]
fn unequal_machines_carry_equal_shares_of_their_quota() {
    for (name, fleet) in [
        ("exponential", simulate(true, Random::exponential)),
        ("Pareto", simulate(true, |random| random.pareto(3.5))),
    ] {
        assert!(fleet.worst_ratio < 1.15, "{name}: {fleet:?}");
        assert_eq!(fleet.refused, 0, "{name}: {fleet:?}");
    }
    let fleet = simulate(false, Random::exponential);
    assert!(fleet.mean_ratio > 2.0, "without OfferByLoad: {fleet:?}");
    assert_eq!(fleet.refused, 0, "{fleet:?}");
}

/// The machine that runs these tests may be idle or busy: what is on offer is between the base and the most.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_shows_its_headroom_and_offers_everything_once_the_setting_is_off() {
    use aspia_relay::admin::status::Status;
    use relay_lab::http::request;
    use relay_lab::router::{LabRouter, Options};

    use crate::command_line::{RunningRelay, free_port, program, write};

    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.json");
    let (key, port) = (router.public_key().to_string(), free_port());
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let more = r#", "MaxPeerCount": 400, "TotalBandwidth": "1GiB/s""#;
    write(&path, router.address().port(), port, &key, more);
    let mut command = program();
    command.arg("--config").arg(&path).env("ASPIA_RELAY_ADMIN_LISTEN", admin.to_string());
    let relay = RunningRelay::start(command.env_remove("ASPIA_RELAY_OFFER_BY_LOAD"));
    router.wait_for(|view| view.pool.len() >= 50).await;
    // Until rates were measured as well.
    let headroom = loop {
        let answer = request(admin, "GET /status", &[], "").await.unwrap();
        let status: Status = serde_json::from_str(&answer.body).unwrap();
        let headroom = status.headroom.unwrap();
        if headroom.used.bandwidth.is_some() {
            break headroom;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(headroom.offer_by_load && (0.0..=1.0).contains(&headroom.ratio), "{headroom:?}");
    assert!(headroom.scarcest.is_some(), "{headroom:?}");
    if cfg!(target_os = "linux") {
        assert!(headroom.used.cpu.is_some() && headroom.used.memory.is_some(), "{headroom:?}");
    }
    let metrics = request(admin, "GET /metrics", &[], "").await.unwrap().body;
    assert!(metrics.contains("\naspia_relay_headroom_ratio "), "{metrics}");
    let offered = router.view().pool.len();
    assert!((50..=125).contains(&offered), "{offered}");

    write(
        &path,
        router.address().port(),
        port,
        &key,
        r#", "MaxPeerCount": 400, "OfferByLoad": "false""#,
    );
    relay.signal("HUP");
    router.keys(400).await;
}
