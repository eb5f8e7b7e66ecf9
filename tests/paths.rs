//! Every way in which bytes can be moved does all that forwarding must do: the same tests, each way forced. And each is
//! seen to have been the one that was taken. Where the kernel refuses one, bytes take the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(clippy::duplicate_mod, reason = "the same tests, once for each way")]
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aspia_relay::app::{Engine, Stopped};
use aspia_relay::forward::Method;
use aspia_relay::open_files::MAX_PIPES;
use aspia_relay::state::sessions::End;
use aspia_relay::workers::Workers;
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, Relay};
use relay_lab::router::Options;
use relay_lab::traffic;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

const MIB: u64 = 1024 * 1024;

fn options() -> Options {
    Options::default()
}

fn engine(method: Method, max_pipes: usize) -> Engine {
    Engine { workers: Workers::here(), method, max_pipes }
}

#[path = "suite"]
mod copy {
    use super::{Engine, Method, engine as with, options};

    fn engine() -> Engine {
        with(Method::Copy, 0)
    }

    #[path = "forwarding.rs"]
    mod forwarding;
}

#[path = "suite"]
mod splice {
    use super::{Engine, MAX_PIPES, Method, engine as with, options};

    fn engine() -> Engine {
        with(Method::Splice, MAX_PIPES)
    }

    #[path = "forwarding.rs"]
    mod forwarding;
}

/// One pipe for all: who gets none copies.
#[path = "suite"]
mod fallback {
    use super::{Engine, Method, engine as with, options};

    fn engine() -> Engine {
        with(Method::Splice, 1)
    }

    #[path = "forwarding.rs"]
    mod forwarding;
}

/// Sessions leave their place whenever they have moved bytes, whatever they hold then, as those do that go to another
/// thread.
#[path = "suite"]
mod restless {
    use super::{Engine, Workers, options};

    fn engine() -> Engine {
        Engine::on(Workers::here_and_restless())
    }

    #[path = "forwarding.rs"]
    mod forwarding;
}

/// The value of a metric of a relay.
fn metric(relay: &Relay, name: &str) -> f64 {
    let families = relay.handle().gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let metric = &family.get_metric()[0];
    metric.get_gauge().get_value() + metric.get_counter().get_value()
}

/// `MIB` mebibytes each way through a relay of this engine, verified.
async fn transfer(lab: &Lab, mib: u64) {
    let (client, host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let end = |stream: TcpStream, seed: u64, expected: u64| async move {
        let (mut read, mut write) = stream.into_split();
        let send = tokio::spawn(async move {
            traffic::send(&mut write, seed, mib * MIB).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let received = traffic::receive(&mut read, None).await.unwrap();
        assert_eq!(received, (mib * MIB, traffic::hash(expected, mib * MIB)));
        send.await.unwrap();
    };
    tokio::join!(end(client, 1, 2), end(host, 2, 1));
}

async fn lab(engine: Engine) -> Lab {
    Lab::start_with(options(), &[], engine).await.unwrap()
}

#[tokio::test]
async fn each_way_is_the_one_that_was_asked_for() {
    let copies = lab(engine(Method::Copy, MAX_PIPES)).await;
    transfer(&copies, 8).await;
    assert_eq!(metric(&copies.relay, "aspia_relay_pipes"), 0.0);
    assert_eq!(metric(&copies.relay, "aspia_relay_pipe_fallbacks_total"), 0.0);
    let splices = lab(engine(Method::Splice, MAX_PIPES)).await;
    transfer(&splices, 8).await;
    assert!(metric(&splices.relay, "aspia_relay_pipes") >= 1.0);
    assert_eq!(metric(&splices.relay, "aspia_relay_pipe_fallbacks_total"), 0.0);
    let without = lab(engine(Method::Splice, 0)).await;
    transfer(&without, 8).await;
    assert_eq!(metric(&without.relay, "aspia_relay_pipes"), 0.0);
    assert!(metric(&without.relay, "aspia_relay_pipe_fallbacks_total") > 0.0);
}

#[tokio::test]
async fn little_is_copied_and_much_goes_through_a_pipe() {
    let lab = lab(engine(Method::Adaptive, MAX_PIPES)).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    for _ in 0..200 {
        client.write_all(&[1; 2000]).await.unwrap();
        host.read_exact(&mut [0; 2000]).await.unwrap();
    }
    assert_eq!(metric(&lab.relay, "aspia_relay_pipes"), 0.0);
    // Whatever is sent piles up before the relay's task runs: everything is on one thread.
    transfer(&lab, 64).await;
    assert!(metric(&lab.relay, "aspia_relay_pipes") >= 1.0);
    drop((client, host));
}

#[tokio::test]
async fn the_restless_do_move() {
    let workers = Workers::here_and_restless();
    let lab = lab(Engine::on(workers.clone())).await;
    transfer(&lab, 1).await;
    assert!(workers.moves() > 0);
}

#[tokio::test]
async fn a_session_goes_to_another_thread_and_is_the_same_there() {
    let workers = Workers::start(2).unwrap();
    let lab = lab(Engine::on(workers.clone())).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let session = lab.relay.handle().state().sessions()[0].clone();
    // The byte by which it is known to be active.
    let mut bytes = 1;
    assert_eq!(workers.sessions(), [1, 0]);
    for (from, to, sessions) in [(0, 1, [0, 1]), (1, 0, [1, 0]), (0, 1, [0, 1])] {
        // What is asked for holds for a period: it may be over before the bytes come.
        while workers.sessions() != sessions {
            workers.empty(from, to);
            client.write_all(b"there").await.unwrap();
            host.read_exact(&mut [0; 5]).await.unwrap();
            host.write_all(b"back").await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
            bytes += 9;
        }
    }
    assert!(workers.moves() >= 3);
    // A peer has them before they are counted.
    while session.traffic.bytes() != bytes {
        sleep(Duration::from_millis(1)).await;
    }
    // From there it can be taken apart, and put together again.
    let runner = lab.relay.handle().runner();
    let parts = runner.take_apart(session.id).await.unwrap();
    assert_eq!(parts.record.bytes, bytes);
    runner.put_together(parts);
    client.write_all(b"still").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
    // One that is wanted and then not goes on where it is.
    let mut wanted = Box::pin(runner.take_apart(session.id));
    let mut context = Context::from_waker(Waker::noop());
    if let Poll::Ready(parts) = wanted.as_mut().poll(&mut context) {
        // Its thread was very fast.
        runner.put_together(parts.unwrap());
    }
    drop(wanted);
    client.write_all(b"still").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
    assert!(lab.relay.handle().state().stop_session(session.id, End::Disconnected));
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_threads_of_their_own_sessions_lose_nothing_either() {
    let lab = lab(Engine::on(Workers::start(2).unwrap())).await;
    let lab = std::sync::Arc::new(lab);
    let mut together = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let lab = lab.clone();
        together.spawn(async move { transfer(&lab, 4).await });
    }
    while let Some(done) = together.join_next().await {
        done.unwrap();
    }
    while !lab.relay.handle().state().sessions().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    // A session that is there ends with the relay, at once, and so do the threads.
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    lab.relay.handle().stop();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    let lab = std::sync::Arc::into_inner(lab).unwrap();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::AtOnce);
}

/// Has `splice(2)` fail with `errno` on this thread from now on, as a sandbox does.
fn refuse_splice(errno: i32) {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let rules = BTreeMap::from([(libc::SYS_splice, vec![])]);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Runs a test on a thread and a runtime of its own, which a filter of system calls may spoil.
fn on_its_own_thread<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn where_splice_is_refused_bytes_are_copied() {
    // Forbidden, unknown, not for such sockets; and two that may pass.
    let errors = [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EINVAL, libc::ENOMEM, libc::EIO];
    for errno in errors {
        for method in [Method::Splice, Method::Adaptive] {
            on_its_own_thread(move || async move {
                refuse_splice(errno);
                let log = CapturedLog::start();
                let lab = lab(engine(method, MAX_PIPES)).await;
                transfer(&lab, 8).await;
                let line = log.line("session ended").await;
                assert!(line.contains("end=closed"), "{errno}: {line}");
                assert!(metric(&lab.relay, "aspia_relay_pipe_fallbacks_total") > 0.0, "{errno}");
                // No pipe is kept that is of no use.
                let may_pass = [libc::ENOMEM, libc::EIO].contains(&errno);
                assert!(may_pass || metric(&lab.relay, "aspia_relay_pipes") == 0.0, "{errno}");
                // One warning, however many bytes.
                transfer(&lab, 8).await;
                assert_eq!(log.text().matches("splice(2)").count(), 1, "{}", log.text());
            });
        }
    }
}

#[test]
fn what_is_in_a_pipe_when_splice_is_refused_arrives() {
    for errno in [libc::EPERM, libc::ENOMEM] {
        on_its_own_thread(move || async move {
            let lab = lab(engine(Method::Splice, MAX_PIPES)).await;
            let (mut client, mut host) =
                lab.router.introduce().await.unwrap().session().await.unwrap();
            // The host reads nothing until the relay holds bytes in a pipe.
            let chunk = traffic::Stream::bytes(9, 64 * 1024);
            let mut sent = Vec::new();
            let patience = Duration::from_millis(300);
            while let Ok(written) = tokio::time::timeout(patience, client.write(&chunk)).await {
                sent.extend_from_slice(&chunk[..written.unwrap()]);
            }
            assert_eq!(metric(&lab.relay, "aspia_relay_pipes"), 1.0);
            refuse_splice(errno);
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            host.read_to_end(&mut received).await.unwrap();
            assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
            assert!(metric(&lab.relay, "aspia_relay_pipe_fallbacks_total") > 0.0);
        });
    }
}

#[test]
fn the_probe_of_pipes_sees_that_splice_is_refused() {
    on_its_own_thread(|| async {
        assert!(aspia_relay::forward::pipe::probe().is_ok());
        refuse_splice(libc::EPERM);
        let refused = aspia_relay::forward::pipe::probe().unwrap_err();
        assert!(refused.contains("os error 1") && refused.contains("splice"), "{refused}");
    });
}
