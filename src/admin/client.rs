//! Asks a running relay; for `--healthcheck` and the doctor.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::config::parse::{ListenAddress, Token};

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer taken, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

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
            let peers = ListenAddress { interface, port }.local();
            connect(peers).await.map(drop)
        }
    }
}

async fn livez(address: SocketAddr) -> Result<(), String> {
    match ask(address, "/livez", None).await? {
        (StatusCode::OK, _) => Ok(()),
        (status, _) => Err(format!(
            "{address} answers {status} to /livez; is it an aspia_relay that listens on AdminListen?"
        )),
    }
}

/// Asks the admin listener at `address` for `path`, with the token where one is given.
///
/// # Errors
/// Why there is no answer and what to do.
pub async fn ask(
    address: SocketAddr,
    path: &str,
    token: Option<&Token>,
) -> Result<(StatusCode, Bytes), String> {
    let stream = connect(address).await?;
    let mut request = Request::get(path).header(HOST, address.to_string());
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut answer = pin!(async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await?;
            Ok((status, body.to_bytes()))
        });
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                // It may have ended with the answer.
                answer.await
            }
        }
    };
    let answer: Result<_, Box<dyn std::error::Error + Send + Sync>> = timeout(PATIENCE, asked)
        .await
        .map_err(|_| format!("{address} does not answer within {} s", PATIENCE.as_secs()))?;
    answer.map_err(|_| {
        format!(
            "{address} does not answer in HTTP; is it an aspia_relay that listens on AdminListen?"
        )
    })
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
