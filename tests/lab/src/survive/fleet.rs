//! The sessions of a run: opens them, sees which ended, and replaces those.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::session::{Ending, Kind, Load, Session, run_side};
use crate::peer::Introduction;
use crate::router::LabRouter;

/// Longest wait for a session to begin.
const OPENING: Duration = Duration::from_secs(20);
/// Sessions that are opened at the same time.
const AT_ONCE: usize = 16;
/// How long a session may take to move on after a restart, and to end at the end of the run.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The same at the end, when throttled readers read everything.
const FINISH: Duration = Duration::from_secs(30);
/// Interval of looking at the sessions.
const LOOK: Duration = Duration::from_millis(20);

/// Number of sessions of each kind.
pub(super) type Counts = BTreeMap<Kind, usize>;

struct Member {
    session: Arc<Session>,
    sides: [AbortHandle; 2],
}

/// What became of the sessions around a restart.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// Sessions before the restart.
    pub(super) before: Counts,
    /// Sessions that ended.
    pub(super) ended: Counts,
    /// Sessions that neither ended nor moved on.
    pub(super) stuck: Counts,
    /// Interactive, half-closed and idle sessions that ended at one side only.
    pub(super) one_sided: usize,
    /// Time between the ends of both sides of those that ended, in microseconds.
    pub(super) end_lags: Vec<u64>,
    /// What differed from what was sent.
    pub(super) wrong: Vec<String>,
    /// How the first sessions ended, for people.
    pub(super) examples: Vec<String>,
}

/// Descriptions kept of each restart.
const EXAMPLES: usize = 5;

/// All sessions.
pub(super) struct Fleet {
    router: Arc<LabRouter>,
    load: Arc<Load>,
    wanted: Counts,
    members: Vec<Member>,
    tasks: JoinSet<()>,
    next: u64,
}

impl Fleet {
    pub(super) fn new(router: Arc<LabRouter>, load: Arc<Load>, wanted: Counts) -> Self {
        Self { router, load, wanted, members: Vec::new(), tasks: JoinSet::new(), next: 0 }
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.members.iter().map(|member| &member.session)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Opens the sessions that are missing.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        let mut missing = Vec::new();
        for (kind, wanted) in &self.wanted {
            let there = self.sessions().filter(|session| session.kind == *kind).count();
            missing.extend(std::iter::repeat_n(*kind, wanted.saturating_sub(there)));
        }
        let mut opening = JoinSet::new();
        while !missing.is_empty() || !opening.is_empty() {
            while opening.len() < AT_ONCE
                && let Some(kind) = missing.pop()
            {
                let (router, number) = (self.router.clone(), self.next);
                self.next += 1;
                opening.spawn(async move {
                    let opened = timeout(OPENING, open(&router, number % 2 == 1)).await;
                    let late = |_| io::Error::other("a session did not begin in time");
                    io::Result::Ok((kind, number, opened.map_err(late)??))
                });
            }
            if let Some(opened) = opening.join_next().await {
                let (kind, number, peers) = opened.map_err(io::Error::other)??;
                self.begin(kind, number, peers);
            }
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }

    fn begin(&mut self, kind: Kind, number: u64, (client, host): (TcpStream, TcpStream)) {
        let session = Arc::new(Session::new(number, kind));
        let mut side = |side, stream| {
            self.tasks.spawn(run_side(session.clone(), side, stream, self.load.clone()))
        };
        let sides = [side(0, client), side(1, host)];
        self.members.push(Member { session, sides });
    }

    /// Waits until every session has moved on or ended at both sides, takes those out that have not moved on, and tells
    /// what became of all.
    pub(super) async fn settle(&mut self) -> Outcome {
        let marks: Vec<Vec<u64>> = self.sessions().map(|session| session.progress()).collect();
        let deadline = Instant::now() + PATIENCE;
        let is_settled = |(session, mark): (&Arc<Session>, &Vec<u64>)| match session.ends() {
            [None, None] => has_moved(session, mark),
            [Some(_), Some(_)] => true,
            // A throttled reader sees the end once it has read everything before it.
            _ => session.kind == Kind::Throttled,
        };
        while !self.sessions().zip(&marks).all(is_settled) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let mut outcome = Outcome::default();
        let mut kept = Vec::new();
        for (member, mark) in std::mem::take(&mut self.members).into_iter().zip(&marks) {
            if outcome.add(&member.session, mark) {
                kept.push(member);
            } else {
                member.sides.iter().for_each(AbortHandle::abort);
            }
        }
        self.members = kept;
        outcome
    }

    /// Ends all sessions in order, and tells which could not.
    pub(super) async fn finish(&mut self) -> Outcome {
        self.load.stop.cancel();
        let deadline = Instant::now() + FINISH;
        let has_ended = |session: &Arc<Session>| session.ends().iter().all(Option::is_some);
        while !self.sessions().all(has_ended) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let mut outcome = Outcome::default();
        for member in std::mem::take(&mut self.members) {
            outcome.add_finished(&member.session);
        }
        self.tasks.shutdown().await;
        outcome
    }
}

/// Whether something has arrived in every direction in which it must.
fn has_moved(session: &Session, mark: &[u64]) -> bool {
    session.progress().iter().zip(mark).all(|(now, before)| now > before)
}

impl Outcome {
    fn describe(&mut self, session: &Session, what: &str) {
        if self.examples.len() < EXAMPLES {
            let text = format!("{} session {}: {what}", session.kind.name(), session.number);
            self.examples.push(text);
        }
    }

    fn note_wrong(&mut self, session: &Session) {
        for (side, end) in ["Client", "Host"].iter().zip(session.ends()) {
            if let Some(Ending::Wrong(what)) = end.map(|end| end.ending) {
                let (kind, number) = (session.kind.name(), session.number);
                self.wrong.push(format!("{kind} session {number}, {side}: {what}"));
            }
        }
    }

    /// Adds a session after a restart. Returns whether it goes on.
    fn add(&mut self, session: &Session, mark: &[u64]) -> bool {
        let kind = session.kind;
        *self.before.entry(kind).or_default() += 1;
        self.note_wrong(session);
        let times = match session.ends() {
            [None, None] if has_moved(session, mark) => return true,
            [None, None] => {
                *self.stuck.entry(kind).or_default() += 1;
                let text = format!("does not move on: {:?} bytes arrived", session.progress());
                self.describe(session, &text);
                return false;
            }
            [Some(one), Some(other)] => {
                self.describe(session, &format!("{}, {}", one.ending, other.ending));
                Some(one.at.max(other.at) - one.at.min(other.at))
            }
            [Some(end), None] | [None, Some(end)] => {
                self.describe(session, &format!("{} at one side only", end.ending));
                None
            }
        };
        *self.ended.entry(kind).or_default() += 1;
        if kind != Kind::Throttled {
            match times {
                Some(lag) => {
                    self.end_lags.push(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
                }
                None => self.one_sided += 1,
            }
        }
        false
    }

    /// Adds a session after the end of the run.
    fn add_finished(&mut self, session: &Session) {
        let kind = session.kind;
        *self.before.entry(kind).or_default() += 1;
        self.note_wrong(session);
        let ends = session.ends();
        if ends.iter().any(Option::is_none) {
            *self.stuck.entry(kind).or_default() += 1;
            self.describe(session, "does not end");
        } else if ends.iter().flatten().any(|end| end.ending != Ending::Finished) {
            *self.ended.entry(kind).or_default() += 1;
            let text = ends.map(|end| end.map(|end| end.ending.to_string()).unwrap_or_default());
            self.describe(session, &text.join(", "));
        }
    }
}

/// Introduces two peers and returns them once they are paired.
async fn open(router: &LabRouter, is_early: bool) -> io::Result<(TcpStream, TcpStream)> {
    let introduction = router.introduce().await?;
    pair(&introduction, is_early).await
}

/// Connects two peers and returns them once a byte has passed between them, which the first may send together with its
/// first message.
pub(super) async fn pair(
    introduction: &Introduction,
    is_early: bool,
) -> io::Result<(TcpStream, TcpStream)> {
    if !is_early {
        return introduction.session().await;
    }
    let client = introduction.connect_with(b"x").await?;
    let mut host = introduction.connect().await?;
    host.read_exact(&mut [0]).await?;
    Ok((client, host))
}

/// Connects the partner of a peer that waits, and checks that they are paired.
pub(super) async fn join(introduction: &Introduction, mut waiting: TcpStream) -> io::Result<()> {
    let mut partner = introduction.connect().await?;
    for (from, to) in [(true, b"a"), (false, b"b")] {
        let (from, to, byte) =
            if from { (&mut partner, &mut waiting, to) } else { (&mut waiting, &mut partner, to) };
        from.write_all(byte).await?;
        let mut read = [0];
        to.read_exact(&mut read).await?;
        if read != *byte {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a byte has changed"));
        }
    }
    Ok(())
}
