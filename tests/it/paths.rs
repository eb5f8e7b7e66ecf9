//! Copying and `splice(2)`: the requested method is used, and bytes are copied if the kernel refuses to splice.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aspia_relay::app::{DataPlane, Stopped};
use aspia_relay::forward::TransferMethod;
use aspia_relay::open_files::MAX_PIPES;
use aspia_relay::state::sessions::EndCause;
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

fn data_plane(method: TransferMethod, max_pipes: usize) -> DataPlane {
    DataPlane { workers: Workers::on_current_runtime(), method, max_pipes }
}

/// Workers whose sessions move to another thread whenever they have forwarded bytes.
pub(crate) fn restless_workers() -> Workers {
    let workers = Workers::on_current_runtime();
    workers.evacuate(0, 1);
    workers
}

/// The value of a metric of a relay.
fn metric(relay: &Relay, name: &str) -> f64 {
    let families = relay.handle().gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let metric = &family.get_metric()[0];
    metric.get_gauge().get_value() + metric.get_counter().get_value()
}

/// Sends `mib` mebibytes in each direction through the relay and verifies them.
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

async fn lab(data_plane: DataPlane) -> Lab {
    Lab::start_with(options(), &[], data_plane).await.unwrap()
}

#[tokio::test]
async fn requested_transfer_method_is_used() {
    let copies = lab(data_plane(TransferMethod::Copy, MAX_PIPES)).await;
    transfer(&copies, 8).await;
    assert_eq!(metric(&copies.relay, "aspia_relay_pipes"), 0.0);
    assert_eq!(metric(&copies.relay, "aspia_relay_pipe_fallbacks_total"), 0.0);
    let splices = lab(data_plane(TransferMethod::Splice, MAX_PIPES)).await;
    transfer(&splices, 8).await;
    assert!(metric(&splices.relay, "aspia_relay_pipes") >= 1.0);
    assert_eq!(metric(&splices.relay, "aspia_relay_pipe_fallbacks_total"), 0.0);
    let without = lab(data_plane(TransferMethod::Splice, 0)).await;
    transfer(&without, 8).await;
    assert_eq!(metric(&without.relay, "aspia_relay_pipes"), 0.0);
    assert!(metric(&without.relay, "aspia_relay_pipe_fallbacks_total") > 0.0);
}

#[tokio::test]
async fn small_transfers_are_copied_and_large_ones_spliced() {
    let lab = lab(data_plane(TransferMethod::Adaptive, MAX_PIPES)).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    for _ in 0..200 {
        client.write_all(&[1; 2000]).await.unwrap();
        host.read_exact(&mut [0; 2000]).await.unwrap();
    }
    assert_eq!(metric(&lab.relay, "aspia_relay_pipes"), 0.0);
    // Everything runs on one thread, so bytes pile up before the relay's task runs.
    transfer(&lab, 64).await;
    assert!(metric(&lab.relay, "aspia_relay_pipes") >= 1.0);
    drop((client, host));
}

#[tokio::test]
async fn restless_workers_move_their_sessions() {
    let workers = restless_workers();
    let lab = lab(DataPlane::on(workers.clone())).await;
    transfer(&lab, 1).await;
    assert!(workers.migrations() > 0);
}

#[tokio::test]
async fn session_survives_a_move_to_another_thread() {
    let workers = Workers::start(2).unwrap();
    let lab = lab(DataPlane::on(workers.clone())).await;
    let (mut client, mut host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    let session = lab.relay.handle().state().sessions()[0].clone();
    // The byte that shows that the session is active.
    let mut bytes = 1;
    assert_eq!(workers.sessions(), [1, 0]);
    for (from, to, sessions) in [(0, 1, [0, 1]), (1, 0, [1, 0]), (0, 1, [0, 1])] {
        // A request to move expires after a while, perhaps before the bytes arrive, so it is repeated.
        while workers.sessions() != sessions {
            workers.evacuate(from, to);
            client.write_all(b"there").await.unwrap();
            host.read_exact(&mut [0; 5]).await.unwrap();
            host.write_all(b"back").await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
            bytes += 9;
        }
    }
    assert!(workers.migrations() >= 3);
    // Bytes reach the peer before they are counted.
    while session.traffic.bytes() != bytes {
        sleep(Duration::from_millis(1)).await;
    }
    // From there the session can be detached and attached again.
    let manager = lab.relay.handle().session_manager();
    let detached = manager.detach(session.id).await.unwrap();
    assert_eq!(detached.record.total_bytes(), bytes);
    manager.attach(detached);
    client.write_all(b"still").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
    // A session continues if its detaching is cancelled.
    let mut wanted = Box::pin(manager.detach(session.id));
    let mut context = Context::from_waker(Waker::noop());
    if let Poll::Ready(detached) = wanted.as_mut().poll(&mut context) {
        // The thread was fast enough to detach it before.
        manager.attach(detached.unwrap());
    }
    drop(wanted);
    client.write_all(b"still").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
    assert!(lab.relay.handle().state().stop_session(session.id, EndCause::Router));
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_threads_lose_no_bytes() {
    let lab = lab(DataPlane::on(Workers::start(2).unwrap())).await;
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
    // An active session ends at once with the relay, and so do the threads.
    let (mut client, _host) = lab.router.introduce().await.unwrap().session().await.unwrap();
    lab.relay.handle().stop();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    let lab = std::sync::Arc::into_inner(lab).unwrap();
    assert_eq!(lab.relay.stopped().await.unwrap(), Stopped::AtOnce);
}

/// Makes `splice(2)` fail with `errno` on this thread from now on, as a sandbox does.
fn refuse_splice(errno: i32) {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let rules = BTreeMap::from([(libc::SYS_splice, vec![])]);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Runs a test on its own thread and runtime, since a seccomp filter cannot be removed from a thread.
fn on_its_own_thread<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn bytes_are_copied_if_splice_is_refused() {
    // Forbidden, unknown, or unsuitable sockets; the last two may be temporary.
    let errors = [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EINVAL, libc::ENOMEM, libc::EIO];
    for errno in errors {
        for method in [TransferMethod::Splice, TransferMethod::Adaptive] {
            on_its_own_thread(move || async move {
                refuse_splice(errno);
                let log = CapturedLog::start();
                let lab = lab(data_plane(method, MAX_PIPES)).await;
                transfer(&lab, 8).await;
                let line = log.line("session ended").await;
                assert!(line.contains("reason=closed"), "{errno}: {line}");
                assert!(metric(&lab.relay, "aspia_relay_pipe_fallbacks_total") > 0.0, "{errno}");
                // No useless pipe is kept.
                let may_pass = [libc::ENOMEM, libc::EIO].contains(&errno);
                assert!(may_pass || metric(&lab.relay, "aspia_relay_pipes") == 0.0, "{errno}");
                // There is one warning, however many bytes follow.
                transfer(&lab, 8).await;
                assert_eq!(log.text().matches("splice(2)").count(), 1, "{}", log.text());
            });
        }
    }
}

#[test]
fn bytes_in_a_pipe_arrive_after_splice_is_refused() {
    for errno in [libc::EPERM, libc::ENOMEM] {
        on_its_own_thread(move || async move {
            let lab = lab(data_plane(TransferMethod::Splice, MAX_PIPES)).await;
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
fn pipe_probe_detects_refused_splice() {
    on_its_own_thread(|| async {
        assert!(aspia_relay::forward::pipe::probe().is_ok());
        refuse_splice(libc::EPERM);
        let refused = aspia_relay::forward::pipe::probe().unwrap_err();
        assert!(refused.contains("os error 1") && refused.contains("splice"), "{refused}");
    });
}
