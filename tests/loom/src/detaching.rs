//! Requests to detach a session: whoever asks gets the session or learns that it has ended, and no request is left behind.

#[path = "../../../src/peer/session/requests.rs"]
mod requests;

use std::future::poll_fn;
use std::task::Poll;

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::signal::session;
use crate::state::sessions::{EndCause, Session};
use crate::state::shared::SharedState;

use detach::DetachedSession;
use requests::{DetachRequests, SessionRequest};

crate::models! {
    session_is_detached_whenever_the_request_comes,
    nobody_waits_for_a_session_that_ends,
    session_whose_request_is_withdrawn_is_not_lost,
    ;
    one_of_two_requests_gets_the_session,
    session_is_ended_or_detached_but_never_both,
}

mod detach {
    /// Stands in for a session that was detached.
    #[derive(Debug)]
    pub(crate) struct DetachedSession;
}

/// What the task of a session shares with others.
struct Relay {
    session: Arc<Session>,
    state: SharedState,
    requests: DetachRequests,
}

/// What became of the session.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Ended(EndCause),
    Detached,
    /// The task that asked for it had withdrawn its request.
    Attached,
}

impl Relay {
    fn new() -> Arc<Self> {
        let session = session();
        let state = SharedState::new(session.clone());
        Arc::new(Self { session, state, requests: DetachRequests::default() })
    }

    /// Runs the task of the session to its end here, in the order of `src/peer/session/task.rs`: a session leaves the state before
    /// its request is taken for the last time.
    fn run(&self) -> Fate {
        block_on(poll_fn(|context| {
            loop {
                match self.requests.poll_request(context, &self.session) {
                    Poll::Pending | Poll::Ready(SessionRequest::Other) => return Poll::Pending,
                    Poll::Ready(SessionRequest::End(cause)) => {
                        self.end();
                        return Poll::Ready(Fate::Ended(cause));
                    }
                    // If it goes on after all, it looks at its requests again.
                    Poll::Ready(SessionRequest::Detach(to)) => {
                        if self.state.hand_over() {
                            drop(self.requests.take(self.session.id));
                            return Poll::Ready(self.send(to));
                        }
                    }
                }
            }
        }))
    }

    fn send(&self, to: oneshot::Sender<DetachedSession>) -> Fate {
        match to.send(DetachedSession) {
            Ok(()) => Fate::Detached,
            Err(DetachedSession) => Fate::Attached,
        }
    }

    fn end(&self) {
        self.state.end_session();
        drop(self.requests.take(self.session.id));
    }

    fn is_request_left(&self) -> bool {
        self.requests.take(self.session.id).is_some()
    }
}

fn request(relay: &Arc<Relay>) -> JoinHandle<oneshot::Receiver<DetachedSession>> {
    let relay = relay.clone();
    thread::spawn(move || relay.requests.request(relay.session.id, &relay.state))
}

/// Whether the task that asked for the session got it. It must not wait any more.
fn is_received(request: JoinHandle<oneshot::Receiver<DetachedSession>>) -> bool {
    match request.join().unwrap().try_recv() {
        Ok(DetachedSession) => true,
        Err(TryRecvError::Closed) => false,
        Err(TryRecvError::Empty) => panic!("the request is never answered"),
    }
}

fn session_is_detached_whenever_the_request_comes() {
    let relay = Relay::new();
    let request = request(&relay);
    assert_eq!(relay.run(), Fate::Detached);
    assert!(is_received(request));
    assert!(!relay.is_request_left());
}

fn nobody_waits_for_a_session_that_ends() {
    let relay = Relay::new();
    let request = request(&relay);
    relay.end();
    assert!(!is_received(request));
    assert!(!relay.is_request_left());
}

fn one_of_two_requests_gets_the_session() {
    let relay = Relay::new();
    let requests = [request(&relay), request(&relay)];
    assert_eq!(relay.run(), Fate::Detached);
    let received = requests.map(is_received);
    assert!(received[0] != received[1], "{received:?}");
    assert!(!relay.is_request_left());
}

fn session_is_ended_or_detached_but_never_both() {
    let relay = Relay::new();
    let request = request(&relay);
    let stop = {
        let relay = relay.clone();
        thread::spawn(move || relay.state.stop_session(EndCause::Router))
    };
    let fate = relay.run();
    // Whoever asked the session to end was told whether it would.
    let is_stopped = stop.join().unwrap();
    assert_eq!(fate, if is_stopped { Fate::Ended(EndCause::Router) } else { Fate::Detached });
    assert_eq!(is_received(request), !is_stopped);
    assert!(!relay.is_request_left());
}

fn session_whose_request_is_withdrawn_is_not_lost() {
    let relay = Relay::new();
    let other = {
        let relay = relay.clone();
        thread::spawn(move || {
            let mut receiver = relay.requests.request(relay.session.id, &relay.state);
            receiver.close();
            let is_taken = receiver.try_recv().is_ok();
            (is_taken, relay.state.stop_session(EndCause::Drain))
        })
    };
    let fate = relay.run();
    let expected = match other.join().unwrap() {
        (true, false) => Fate::Detached,
        (false, true) => Fate::Ended(EndCause::Drain),
        (false, false) => Fate::Attached,
        (true, true) => panic!("the session was in two places"),
    };
    assert_eq!(fate, expected);
    assert!(!relay.is_request_left());
}
