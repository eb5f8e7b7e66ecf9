//! The signal of a session: the task of a session sees every request, however it meets a poll.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use tokio::time::Instant;

use crate::state::sessions::{EndCause, Session, SessionId, SessionSignal};

crate::models! {
    request_to_end_wakes_the_task_whenever_it_comes,
    last_idle_check_is_seen,
    ;
    first_of_two_requests_to_end_counts,
}

pub(crate) fn session() -> Arc<Session> {
    Arc::new(Session { id: SessionId(7), signal: SessionSignal::default() })
}

/// The task of a session until it has to end. It looks at the signal once in a poll, as the relay's own does.
fn run(session: &Session) -> EndCause {
    block_on(poll_fn(|context| match session.signal.poll_signal(context) {
        Poll::Ready(Some(cause)) => Poll::Ready(cause),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    }))
}

fn request_to_end_wakes_the_task_whenever_it_comes() {
    let session = session();
    let other = session.clone();
    let stop = thread::spawn(move || {
        other.signal.notify();
        other.stop(EndCause::Router);
    });
    assert_eq!(run(&session), EndCause::Router);
    stop.join().unwrap();
}

fn first_of_two_requests_to_end_counts() {
    let session = session();
    let stops = [EndCause::Router, EndCause::Drain].map(|why| {
        let session = session.clone();
        thread::spawn(move || session.stop(why))
    });
    let cause = run(&session);
    for stop in stops {
        stop.join().unwrap();
    }
    session.signal.notify();
    assert_eq!(run(&session), cause);
}

fn last_idle_check_is_seen() {
    let session = session();
    let now = Instant::now();
    let [first, last] = [1, 2].map(|seconds| now + Duration::from_secs(seconds));
    let other = session.clone();
    let check = thread::spawn(move || {
        other.stop_if_idle(first);
        other.stop_if_idle(last);
    });
    let mut seen = Vec::new();
    block_on(poll_fn(|context| {
        if session.signal.poll_signal(context).is_ready() {
            seen.extend(session.signal.take_idle_check());
        }
        if seen.last() == Some(&last) { Poll::Ready(()) } else { Poll::Pending }
    }));
    check.join().unwrap();
    assert!(seen == [first, last] || seen == [last], "{seen:?}");
    assert_eq!(session.signal.take_idle_check(), None);
}
