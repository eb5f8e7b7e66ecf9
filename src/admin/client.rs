//! Asks a running relay; for `--healthcheck`.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the relay that runs with `config` on this machine whether it works: `/livez` of its admin listener, or where
/// that is off, whether the peer port takes a connection.
///
/// # Errors
/// What is wrong and what to do.
pub async fn healthcheck(config: &Config) -> Result<(), String> {
    match config.startup.admin_listen {
        Some(admin) => livez(admin.local()).await,
        None => {
            let interface = config.startup.listen_interface;
            let port = config.startup.listen_port;
            let peers = crate::config::parse::ListenAddress { interface, port }.local();
            connect(peers).await.map(drop)
        }
    }
}

async fn livez(address: SocketAddr) -> Result<(), String> {
    let stream = connect(address).await?;
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get("/livez").header(HOST, address.to_string());
        let mut answer = pin!(async {
            let request = request.body(Empty::<Bytes>::new()).map_err(|_| None)?;
            sender.send_request(request).await.map_err(Some)
        });
        let answer = tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                // It may have ended with the answer.
                answer.await
            }
        };
        Ok::<_, hyper::Error>(answer.map(|answer| answer.status()))
    };
    match timeout(PATIENCE, asked).await {
        Ok(Ok(Ok(StatusCode::OK))) => Ok(()),
        Ok(Ok(Ok(status))) => Err(format!(
            "{address} answers {status} to /livez; is it an aspia_relay that listens on AdminListen?"
        )),
        Ok(Ok(Err(_)) | Err(_)) => Err(format!(
            "{address} does not answer in HTTP; is it an aspia_relay that listens on AdminListen?"
        )),
        Err(_) => Err(format!("{address} does not answer within {} s", PATIENCE.as_secs())),
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!(
            "cannot connect to {address}: {error}; does the relay run, with the same configuration?"
        )),
        Err(_) => Err(format!("cannot connect to {address} within {} s", PATIENCE.as_secs())),
    }
}
