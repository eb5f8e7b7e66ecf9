//! Requests of commands to the relay that runs here: where they are sent, and what to do if they cannot be.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use crate::admin::client::{self, AdminRequest, LocalRelay};
use crate::admin::status::Instance;
use crate::config::parse::Token;
use crate::config::sources::Sources;
use crate::config::{self, Config};
use crate::listen::port_holder::SocketOwner;

use super::remedy::CommandUser;

/// Sends the requests of one command.
pub(super) struct RelayClient {
    sources: Sources,
}

impl RelayClient {
    /// Creates a client for the relay that was started with `sources`.
    pub(super) fn new(sources: &Sources) -> Self {
        Self { sources: sources.clone() }
    }

    /// Sends a request to the running relay and returns the body of its answer. The relay is looked for each time, since
    /// another one may have taken over.
    ///
    /// # Errors
    /// Why there is no answer, or what the relay refuses, and what to do about it.
    pub(super) async fn send(&self, request: &AdminRequest) -> Result<Bytes, String> {
        let mut relays = LocalRelay::find_all(&self.sources, None).await;
        if let [relay] = relays.as_slice() {
            return self.ask_published(relay, request).await;
        }
        // The file is read only now: it may be half written, or on a volume that hangs.
        let config = match self.load_config().await {
            Ok(config) => config,
            Err(why) if relays.is_empty() => return Err(self.describe_absence(&why).await),
            Err(why) => {
                let several = self.describe_several(&relays);
                return Err(format!("{several} (the configuration does not say which: {why})"));
            }
        };
        relays = LocalRelay::find_all(&self.sources, Some(&config)).await;
        match relays.as_slice() {
            [] => self.ask_configured(&config, request).await,
            [relay] => self.ask_published(relay, request).await,
            several => Err(self.describe_several(several)),
        }
    }

    /// Asks a relay on its command socket or, if it does not let this user, on its admin listener.
    async fn ask_published(
        &self,
        relay: &LocalRelay,
        request: &AdminRequest,
    ) -> Result<Bytes, String> {
        let (status, body) = relay
            .send(request)
            .await
            .map_err(|why| format!("{why}; its log may say why. If it hangs, restart it"))?;
        if status != StatusCode::FORBIDDEN {
            return accept(request, status, body);
        }
        let (_, instance) = relay.ask("/instance").await?;
        let instance: Instance = serde_json::from_slice(&instance)
            .map_err(|error| format!("{relay} does not say where it listens: {error}"))?;
        let Some(admin) = instance.admin else {
            return Err(format!(
                "{relay} does not let this user ask, and its AdminListen is off; {}",
                CommandUser::of_process().if_untrusted()
            ));
        };
        let token = self.load_config().await.map(|config| config.admin_token);
        ask_listener(admin, Some(relay.owner()), &token, request).await
    }

    /// Asks the relay at `AdminListen` of the configuration, since none that can be trusted has published itself.
    async fn ask_configured(
        &self,
        config: &Config,
        request: &AdminRequest,
    ) -> Result<Bytes, String> {
        let others = LocalRelay::list(&self.sources).await;
        let is_untrusted = !LocalRelay::find_other_users(&self.sources).await.is_empty();
        if !others.is_empty() && !is_untrusted {
            // The default of `AdminListen` may lead to one of them, which must not be drained by mistake.
            return Err(format!(
                "no relay that was started with {} runs here; those on the ports {} have another configuration file or \
                 other variables: name the file with --config",
                self.sources.path.display(),
                join_ports(&others.iter().map(LocalRelay::port).collect::<Vec<_>>())
            ));
        }
        let Some(admin) = config.startup.admin_listen else {
            return Err(self
                .describe_absence("AdminListen is off, so none can be asked there")
                .await);
        };
        let token = Ok(config.admin_token.clone());
        match ask_listener(admin.local(), None, &token, request).await {
            Err(why) if why.contains("cannot connect to") => Err(self.describe_absence(&why).await),
            answered => answered,
        }
    }

    async fn load_config(&self) -> Result<Config, String> {
        let sources = self.sources.clone();
        let load = move || {
            config::load(&sources).map(|loaded| loaded.config).map_err(|invalid| {
                let problems = invalid.0.problems.iter().map(ToString::to_string);
                problems.collect::<Vec<_>>().join("; ")
            })
        };
        client::run_bounded(load).await?
    }

    /// Says that it is not clear which relay is meant, and how to say so.
    fn describe_several(&self, relays: &[LocalRelay]) -> String {
        let ports: Vec<_> = relays.iter().map(LocalRelay::port).collect();
        describe_several(&self.sources.path, &ports)
    }

    /// Explains why no relay was found; `why` says why the configuration did not help.
    async fn describe_absence(&self, why: &str) -> String {
        let users = LocalRelay::find_other_users(&self.sources).await;
        let user = CommandUser::of_process();
        if users.is_empty() {
            let (path, remedy) = (self.sources.path.display(), user.if_absent());
            return format!("no relay that was started with {path} runs here: {why}. {remedy}");
        }
        let users = users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!(
            "a relay runs here as another user ({users}), whom this user does not trust; {} ({why})",
            user.if_refused()
        )
    }
}

/// Says that relays were started with one file and listen on these ports, and how to distinguish them.
fn describe_several(path: &Path, ports: &[u16]) -> String {
    // Relays that listen on one port have different addresses, or one takes over from the other.
    let variable = if ports.iter().any(|port| Some(port) != ports.first()) {
        "ASPIA_RELAY_LISTEN_PORT"
    } else {
        "ASPIA_RELAY_LISTEN_INTERFACE"
    };
    format!(
        "several relays run here that were started with {}, and listen on the ports {}; set the variables that the meant \
         one was started with, such as {variable}, or name its file with --config",
        path.display(),
        join_ports(ports)
    )
}

fn join_ports(ports: &[u16]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Asks an admin listener. `token` is the token of the configuration, or why it cannot be read; `publisher` is the owner
/// of the relay that names the address, if one does.
async fn ask_listener(
    address: SocketAddr,
    publisher: Option<SocketOwner>,
    token: &Result<Option<Token>, String>,
    request: &AdminRequest,
) -> Result<Bytes, String> {
    let sent = token.as_ref().ok().and_then(Option::as_ref);
    let here = CommandUser::of_process();
    if sent.is_some() {
        match client::find_token_recipient(address, publisher) {
            SocketOwner::Trusted => {}
            SocketOwner::Other(user) => {
                return Err(format!(
                    "another user, {user}, listens on {address} and is not sent the AdminToken; if that is the relay, {}",
                    here.if_refused()
                ));
            }
            SocketOwner::Unseen => {
                return Err(format!(
                    "it is not visible who listens on {address}, so the AdminToken is not sent there; {}",
                    here.if_unseen(address)
                ));
            }
        }
    }
    let (status, body) = client::send(address, request, sent).await?;
    if status != StatusCode::UNAUTHORIZED {
        return accept(request, status, body);
    }
    Err(match token {
        Err(why) => format!(
            "the relay on {address} needs its AdminToken, which cannot be read: {why}; {}",
            here.if_without_token(address)
        ),
        Ok(None) => format!(
            "the relay on {address} needs its AdminToken, which is not set here; {}",
            here.if_without_token(address)
        ),
        Ok(Some(_)) => format!(
            "the relay on {address} has another AdminToken than the configuration; a reload makes it read the new one"
        ),
    })
}

/// The body of a successful answer; the error says what the relay refuses.
fn accept(request: &AdminRequest, status: StatusCode, body: Bytes) -> Result<Bytes, String> {
    if status.is_success() {
        return Ok(body);
    }
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_unknown = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&status);
    match problem["detail"].as_str() {
        Some(_) if is_unknown && !request.path().starts_with("/sessions/") => Err(format!(
            "the running relay does not know {}; it is probably an earlier version, so restart it",
            request.path()
        )),
        Some(detail) => Err(format!("the relay refuses: {detail}")),
        None => Err(format!(
            "the answer to {} is {status}; is it an aspia_relay that listens there?",
            request.path()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_with_one_file_are_told_apart_by_what_differs() {
        let path = Path::new("/etc/aspia/relay.json");
        let differ = describe_several(path, &[8443, 8070]);
        assert!(differ.contains("relay.json, and listen on the ports 8070, 8443;"), "{differ}");
        assert!(differ.contains("such as ASPIA_RELAY_LISTEN_PORT,"), "{differ}");
        let same = describe_several(path, &[8070, 8070]);
        assert!(same.contains("such as ASPIA_RELAY_LISTEN_INTERFACE,"), "{same}");
    }

    #[test]
    fn refusals_say_what_the_relay_says() {
        let refuse = |path: &str, status, body: &'static str| {
            accept(&AdminRequest::get(path), status, Bytes::from(body)).unwrap_err()
        };
        let detail = r#"{"detail": "there is no session 9"}"#;
        let refused = refuse("/sessions/9", StatusCode::NOT_FOUND, detail);
        assert_eq!(refused, "the relay refuses: there is no session 9");
        let unknown = r#"{"detail": "nothing is served at this path"}"#;
        let refused = refuse("/new?x=1", StatusCode::NOT_FOUND, unknown);
        assert!(refused.contains("does not know /new;"), "{refused}");
        let refused = refuse("/status", StatusCode::NOT_FOUND, "<html>");
        assert!(refused.contains("is it an aspia_relay"), "{refused}");
        let answer = accept(&AdminRequest::get("/x"), StatusCode::ACCEPTED, Bytes::from("{}"));
        assert_eq!(answer.unwrap(), "{}");
    }
}
