//! How `relay-lab peers` and `relay-lab load` get introductions from `relay-lab router`, on this machine or another:
//! one TCP connection for each introduction, answered by one line with a JSON object.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::crypto::{Iv, PublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::peer::Introduction;
use crate::router::LabRouter;

/// Longest wait for an introduction.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer read, in bytes.
const MAX_ANSWER: u64 = 16 * 1024;

/// Answers every connection with an introduction, for ever.
pub async fn serve(listener: TcpListener, router: Arc<LabRouter>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Probably out of descriptors, some of which will be released.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            // Clients send nothing. The read ends when the client disconnects, so that no key is wasted.
            let mut nothing = [0];
            let introduced = tokio::select! {
                introduced = router.introduce() => introduced,
                _ = stream.read(&mut nothing) => return,
            };
            let answer = match introduced {
                Err(error) => serde_json::json!({ "error": error.to_string() }),
                Ok(introduction) => serde_json::json!({
                    "host": introduction.host,
                    "port": introduction.port,
                    "key_id": introduction.key_id,
                    "public_key": hex::encode(introduction.public_key.0),
                    "iv": hex::encode(introduction.iv.0),
                    "secret": hex::encode(introduction.secret),
                    "encryption": introduction.encryption,
                }),
            };
            // The client may have disconnected; the key then expires at the relay.
            let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
        });
    }
}

/// Asks for an introduction.
///
/// # Errors
/// If nobody answers, or the answer is not an introduction.
pub async fn introduction(control: &str) -> io::Result<Introduction> {
    let asked = async {
        let stream = TcpStream::connect(control).await?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(io::Error::other(format!(
                "no introduction from {control} ({error}); does `relay-lab router` run there, with this --control?"
            )));
        }
        Err(_) => {
            return Err(io::Error::other(format!(
                "the Router at {control} has had no key for {} s; is a relay connected to it, and does it have capacity?",
                PATIENCE.as_secs()
            )));
        }
    };
    let answer: serde_json::Value = serde_json::from_str(&answer).map_err(io::Error::other)?;
    if let Some(error) = answer["error"].as_str() {
        return Err(io::Error::other(format!("the Router at {control} says: {error}")));
    }
    let missing = |name: &str| io::Error::other(format!("the answer has no valid {name:?}"));
    let bytes = |name: &str| {
        answer[name].as_str().and_then(|text| hex::decode(text).ok()).ok_or_else(|| missing(name))
    };
    let number = |name: &str| answer[name].as_u64().ok_or_else(|| missing(name));
    Ok(Introduction {
        host: answer["host"].as_str().ok_or_else(|| missing("host"))?.to_owned(),
        port: u16::try_from(number("port")?).map_err(|_| missing("port"))?,
        key_id: u32::try_from(number("key_id")?).map_err(|_| missing("key_id"))?,
        public_key: PublicKey::from_slice(&bytes("public_key")?).map_err(io::Error::other)?,
        iv: Iv(bytes("iv")?.try_into().map_err(|_| missing("iv"))?),
        secret: bytes("secret")?,
        encryption: answer["encryption"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
    })
}
