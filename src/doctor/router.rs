//! From the Router's name to what it thinks of this relay. No key is offered.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::config::Config;
use crate::link::handshake::HandshakeError;
use crate::router::error::LinkError;
use crate::router::examine::{self, Examined};

use super::report::Step;

const NAME: &str = "Router's name";
const CONNECTION: &str = "Router's port";
const DIALECT: &str = "Router's dialect";
const KEY: &str = "Router's key";
const SESSIONS: &str = "relay sessions";
const WHITE_LIST: &str = "white list";

/// Time for the resolver.
const RESOLVE: Duration = Duration::from_secs(10);
/// Time for each address.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for the authentication: a Router that works needs far less than a second.
const AUTHENTICATE: Duration = Duration::from_secs(15);

/// Takes the steps, as far as they lead.
pub(super) async fn check(config: &Config) -> Vec<Step> {
    let mut steps = Vec::new();
    let (host, port) = (&config.router.address, config.router.port);
    let resolved = timeout(RESOLVE, lookup_host((host.as_str(), port))).await;
    let addresses: Vec<SocketAddr> = match resolved {
        Ok(Ok(addresses)) => addresses.collect(),
        failed => {
            let error = match failed {
                Ok(Err(error)) => error,
                _ => std::io::ErrorKind::TimedOut.into(),
            };
            let error = LinkError::Resolve { host: host.to_string(), error };
            steps.push(Step::failed(NAME, error.to_string()));
            rest(&mut steps, &[CONNECTION, DIALECT, KEY, SESSIONS, WHITE_LIST]);
            return steps;
        }
    };
    let list: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    steps.push(Step::ok(NAME, format!("{host} is {}", list.join(", "))));
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for address in addresses {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => good.push(address),
            Ok(Err(error)) => bad.push((address, error)),
            Err(_) => bad.push((address, std::io::ErrorKind::TimedOut.into())),
        }
    }
    let all_good = bad.is_empty();
    let failed = LinkError::Connect(bad).to_string();
    let Some(first) = good.first() else {
        steps.push(Step::failed(CONNECTION, failed));
        rest(&mut steps, &[DIALECT, KEY, SESSIONS, WHITE_LIST]);
        return steps;
    };
    steps.push(if all_good {
        Step::ok(CONNECTION, format!("{first} takes connections"))
    } else {
        Step::hint(CONNECTION, format!("{first} takes connections, but {failed}"))
    });
    // To where it is known that somebody answers.
    let examined = examine::examine(config, *first, AUTHENTICATE).await;
    steps.extend(judge(config, examined, *first).await);
    steps
}

/// Steps that were not taken.
fn rest(steps: &mut Vec<Step>, names: &[&'static str]) {
    steps.extend(names.iter().map(|name| Step::skipped(name, "not looked at: see above")));
}

async fn judge(
    config: &Config,
    examined: Result<Examined, LinkError>,
    address: SocketAddr,
) -> Vec<Step> {
    let mut steps = Vec::new();
    match examined {
        Ok(Examined { version, cipher, kept }) => {
            steps.push(Step::ok(DIALECT, format!("an Aspia Router, version {version}, {cipher}")));
            steps.push(Step::ok(KEY, "it holds the private key for RouterPublicKey"));
            steps.push(Step::ok(SESSIONS, "it takes relay sessions"));
            steps.push(match kept {
                Ok(lived) => Step::ok(
                    WHITE_LIST,
                    format!("it kept the link for {} s; no key was offered", lived.as_secs()),
                ),
                Err(error) => Step::failed(WHITE_LIST, error.to_string()),
            });
        }
        Err(error) => {
            let text = error.to_string();
            match error {
                LinkError::Handshake(HandshakeError::KeyMismatch) => {
                    steps.push(Step::ok(DIALECT, "an Aspia 2.x Router"));
                    steps.push(Step::failed(KEY, text));
                    rest(&mut steps, &[SESSIONS, WHITE_LIST]);
                }
                LinkError::Handshake(HandshakeError::RelaysNotAllowed(_)) => {
                    steps.push(Step::ok(DIALECT, "an Aspia 2.x Router"));
                    steps.push(Step::ok(KEY, "it holds the private key for RouterPublicKey"));
                    steps.push(Step::failed(SESSIONS, text));
                    rest(&mut steps, &[WHITE_LIST]);
                }
                LinkError::AuthenticationTimeout(_)
                | LinkError::ClosedEarly(_)
                | LinkError::NotARouter(_) => {
                    steps.push(if examine::is_third_generation(address).await {
                        Step::failed(
                            DIALECT,
                            format!(
                                "{address} is an Aspia 3.x Router; this version of the relay speaks to 2.x Routers \
                                 only (RouterPort {}, 2.x Routers listen on 8060)",
                                config.router.port
                            ),
                        )
                    } else {
                        Step::failed(DIALECT, text)
                    });
                    rest(&mut steps, &[KEY, SESSIONS, WHITE_LIST]);
                }
                _ => {
                    steps.push(Step::failed(DIALECT, text));
                    rest(&mut steps, &[KEY, SESSIONS, WHITE_LIST]);
                }
            }
        }
    }
    steps
}
