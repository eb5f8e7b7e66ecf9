//! A random order of sessions, bytes, ends and faults, against a model.

use super::*;
use relay_lab::traffic::Stream;

/// Sets the seed, to repeat a run.
const SEED: &str = "ASPIA_RELAY_TEST_SEED";
const STEPS: usize = 150;
const LONGEST: Duration = Duration::from_secs(12);
const MOST_SESSIONS: usize = 8;

/// Random numbers that a seed determines.
struct Dice(Stream);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % sides
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(length as u64)).unwrap()
    }
}

/// The sessions that live, and those that have ended at one end.
struct Model {
    stage: Stage,
    sessions: Vec<TestSession>,
    dice: Dice,
    is_stopped: bool,
}

impl Model {
    /// Waits until the store has all sessions; what it does not have ends with the relay. The number alone could be the same with
    /// others, but when it has changed twice, everything that happened before has reached the store.
    async fn settle(&self) {
        let descriptors = LISTENERS + 2 * self.sessions.len() as u64;
        let more = self.stage.session().await;
        self.stage.stored(descriptors + 2).await;
        drop(more);
        self.stage.stored(descriptors).await;
    }

    async fn continue_store(&mut self) {
        if std::mem::take(&mut self.is_stopped) {
            kill_process(self.stage.store_id(), Signal::CONT).unwrap();
        }
    }

    async fn step(&mut self) {
        let roll = self.dice.roll(20);
        match roll {
            0..6 if self.sessions.len() < MOST_SESSIONS => {
                self.sessions.push(self.stage.session().await);
            }
            _ if self.sessions.is_empty() => {}
            0..12 => {
                let (index, count) = (self.dice.index(self.sessions.len()), self.dice.roll(50_000));
                self.sessions[index].exchange(count).await;
            }
            12..14 => self.close_half().await,
            14 => {
                let index = self.dice.index(self.sessions.len());
                self.end(index).await;
            }
            15 => self.terminate().await,
            16 => self.kill().await,
            17 => {
                self.continue_store().await;
                self.stage.kill_store();
                self.stage.start_store();
            }
            18 if !self.is_stopped => {
                self.is_stopped = true;
                kill_process(self.stage.store_id(), Signal::STOP).unwrap();
            }
            _ => self.continue_store().await,
        }
    }

    async fn close_half(&mut self) {
        let index = self.dice.index(self.sessions.len());
        let from = self.dice.index(2);
        let session = &mut self.sessions[index];
        if session.is_closed == [false; 2] {
            session.close_half(from).await;
        } else {
            self.end(index).await;
        }
    }

    async fn end(&mut self, index: usize) {
        let session = self.sessions.swap_remove(index);
        let from = self.dice.index(2);
        let TestSession { number, ends, is_closed } = session;
        let [client, host] = ends;
        let (gone, stays) = if from == 0 { (client, host) } else { (host, client) };
        drop(gone.stream);
        let ends = [stays.stream].map(|stream| SessionEnd { stream, ..stays });
        let [mut left] = ends;
        let read = timeout(PATIENCE, left.stream.read(&mut [0])).await;
        let read = read.unwrap_or_else(|_| panic!("session {number} {is_closed:?} does not end"));
        assert!(!matches!(read, Ok(1..)), "session {number}: a byte after the end");
    }

    /// Replaces the relay, while bytes are on their way.
    async fn terminate(&mut self) {
        self.continue_store().await;
        self.settle().await;
        for session in &mut self.sessions {
            for from in 0..2 {
                if !session.is_closed[from] {
                    session.send(from, self.dice.roll(20_000)).await.unwrap();
                }
            }
        }
        self.stage.terminate_relay().await;
        self.stage.restart_relay().await;
        for session in &mut self.sessions {
            session.receive(0).await;
            session.receive(1).await;
        }
    }

    async fn kill(&mut self) {
        self.continue_store().await;
        self.settle().await;
        self.stage.kill_relay().await;
        self.stage.restart_relay().await;
        exchange_all(&mut self.sessions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_outlive_any_order_of_faults() {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed =
        seed.unwrap_or_else(|| u64::from(std::process::id()) ^ u64::from(free_port().unwrap()));
    relay_lab::say(&format!("{SEED}={seed}"));
    let stage = Stage::start(&[]).await;
    let dice = Dice(Stream::new(seed));
    let mut model = Model { stage, sessions: Vec::new(), dice, is_stopped: false };
    let began = Instant::now();
    for _ in 0..STEPS {
        model.step().await;
        if began.elapsed() > LONGEST {
            break;
        }
    }
    model.continue_store().await;
    model.settle().await;
    exchange_all(&mut model.sessions).await;
    model.terminate().await;
    model.kill().await;
    model.sessions.clear();
    model.settle().await;
    assert_eq!(model.stage.metric("aspia_relay_sessions_active").await, 0.0);
    let complaints = model.stage.router.view().complaints;
    assert!(complaints.is_empty(), "{complaints:?}");
}
