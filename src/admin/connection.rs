//! One HTTP connection, from its first request to its last.

use std::convert::Infallible;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::connections::ConnectionPermit;
use super::flushing::FlushNotifier;
use super::listener::Endpoint;
use super::routes::{Caller, Routes};

/// Time in which the head of the first request must arrive: a caller connects in order to ask.
pub(super) const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which the head of a later request must arrive, and thereby how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a response may wait for its reader to take more of it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long a connection is kept open; after that, it is closed when the request in progress is complete.
const MAX_AGE: Duration = Duration::from_secs(300);
/// How long the last request may take on a connection that is being closed.
pub(super) const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The same when the relay stops, which no slow caller may delay.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Serves a connection until it is over, its time is up, or `stop` is cancelled.
pub(super) async fn serve<S>(
    stream: S,
    endpoint: Endpoint,
    routes: Routes,
    permit: &ConnectionPermit,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let stream = FlushNotifier::new(Box::pin(stream), || permit.mark_flushed());
    let first_request = Notify::new();
    let caller = match endpoint {
        Endpoint::Listener(_) => Caller(Some(permit.address())),
        Endpoint::CommandSocket(_) => Caller(None),
    };
    let service = service_fn(|mut request: Request<Incoming>| {
        first_request.notify_one();
        request.extensions_mut().insert(caller);
        let routes = routes.clone();
        async move {
            let _request = permit.begin_request();
            Ok::<_, Infallible>(routes.answer(endpoint, request).await)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    let no_request = async {
        if timeout(FIRST_HEAD_TIMEOUT, first_request.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // A request that has arrived is answered, however late this task gets its turn.
        biased;
        // An error concerns only this connection, which is over.
        _ = connection.as_mut() => return,
        () = no_request => return,
        () = sleep(MAX_AGE) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = timeout(LAST_REQUEST_TIMEOUT, connection.as_mut()) => return,
                () = stop.cancelled() => {}
            }
        }
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(STOP_TIMEOUT, connection).await;
}
