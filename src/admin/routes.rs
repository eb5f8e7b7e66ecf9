//! From a request to an answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use prometheus::TextEncoder;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::admin_hosts::AdminHosts;
use crate::config::parse::Token;
use crate::handle::Handle;
use crate::log::limit::LineLimit;
use crate::printable;
use crate::state::sessions::{End, SessionId};

use super::guard::{self, Names};
use super::history::History;
use super::kind::Interface::{self, Commands, Listener};
use super::kind::Kind;
use super::page::PAGE;
use super::scrapes::Scrapes;
use super::view;

/// Longest body of a request, in bytes: a filter of the log is far shorter.
const MAX_BODY: usize = 4096;
/// Time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions in one answer, where nobody asks for another number, and at most.
const SESSIONS: (usize, usize) = (1000, 10_000);

/// The answer to a request.
pub(super) type Answer = Response<Full<Bytes>>;

/// What the answers are made from.
#[derive(Clone)]
pub(super) struct Routes {
    pub(super) handle: Handle,
    pub(super) history: Arc<History>,
    pub(super) scrapes: Scrapes,
    /// One gate for each: whoever lists all sessions must not keep the short answer waiting.
    pub(super) statuses: Scrapes,
    pub(super) lists: Scrapes,
    /// Of what is wrong here, which whoever asks can repeat.
    pub(super) complaints: Arc<LineLimit>,
    /// The name of this machine.
    pub(super) host_name: Arc<str>,
}

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Page,
    Live,
    Ready,
    Metrics,
    Status,
    Sessions,
    Session(SessionId),
    Config,
    LogLevel,
    Drain,
    Instance,
}

impl Route {
    fn find(interface: Interface, path: &str) -> Option<Self> {
        match (interface, path) {
            (_, "/livez") => Some(Self::Live),
            (_, "/readyz") => Some(Self::Ready),
            (Commands, "/instance") => Some(Self::Instance),
            (Commands, _) => None,
            (_, "/metrics") => Some(Self::Metrics),
            (Listener(Kind::Metrics), _) => None,
            (Listener(Kind::Admin), "/") => Some(Self::Page),
            (Listener(Kind::Admin), "/status") => Some(Self::Status),
            (Listener(Kind::Admin), "/sessions") => Some(Self::Sessions),
            (Listener(Kind::Admin), "/config") => Some(Self::Config),
            (Listener(Kind::Admin), "/log-level") => Some(Self::LogLevel),
            (Listener(Kind::Admin), "/drain") => Some(Self::Drain),
            (Listener(Kind::Admin), path) => {
                let number = path.strip_prefix("/sessions/")?;
                Some(Self::Session(SessionId(number.parse().ok()?)))
            }
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Session(_) => Method::DELETE,
            Self::LogLevel => Method::PUT,
            Self::Drain => Method::POST,
            _ => Method::GET,
        }
    }

    /// Whether it is answered to everybody.
    fn is_open(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::Instance)
    }
}

impl Routes {
    /// Answers a request.
    pub(super) async fn answer<B>(&self, interface: Interface, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let route = Route::find(interface, head.uri.path());
        // Whether it lives and is ready may be known by anybody: load balancers ask with no Host, or with one of their own.
        let is_open = route.is_some_and(Route::is_open);
        let is_visit = route == Some(Route::Page)
            && [Method::GET, Method::HEAD].contains(&head.method)
            && guard::is_navigation(&head.headers);
        if !is_open && let Err(why) = self.check_site(interface, &head.headers, is_visit) {
            return problem(StatusCode::FORBIDDEN, &why);
        }
        let Some(route) = route else {
            return problem(StatusCode::NOT_FOUND, "there is nothing under this path");
        };
        if !is_open && !guard::is_authorized(&head.headers, self.token(interface).as_ref()) {
            return unauthorized(route);
        }
        let asked = if head.method == Method::HEAD { &Method::GET } else { &head.method };
        if *asked != route.method() {
            let allowed = route.method();
            let mut answer =
                problem(StatusCode::METHOD_NOT_ALLOWED, &format!("this path is for {allowed}"));
            if let Ok(value) = HeaderValue::from_str(allowed.as_str()) {
                answer.headers_mut().insert(ALLOW, value);
            }
            return answer;
        }
        match route {
            Route::Page => page(StatusCode::OK),
            Route::Live => json_answer(StatusCode::OK, &json!({ "alive": true })),
            Route::Ready => self.ready(),
            Route::Metrics => self.metrics().await,
            Route::Status => {
                let (handle, history) = (self.handle.clone(), self.history.clone());
                view(&self.statuses, move || view::status(&handle, &history)).await
            }
            Route::Sessions => self.sessions(head.uri.query().unwrap_or_default()).await,
            Route::Session(id) => self.end_session(id),
            // Often read on a terminal, where its values must not act.
            Route::Config => {
                let config = printable::json(&self.handle.report().json().to_string());
                answer(StatusCode::OK, "application/json", config)
            }
            Route::LogLevel => self.set_log_level(&head.headers, body).await,
            Route::Drain => self.drain(),
            Route::Instance => json_answer(StatusCode::OK, &view::instance(&self.handle)),
        }
    }

    /// Checks that no page of another site asks. The page itself holds nothing secret, and no page may show it in a frame: a
    /// browser may come to it from anywhere (`is_visit`), as it does from where people log in to a proxy.
    fn check_site(
        &self,
        interface: Interface,
        headers: &HeaderMap,
        is_visit: bool,
    ) -> Result<(), String> {
        let config = self.handle.config();
        match interface {
            Listener(Kind::Admin) => {
                let own = [self.host_name.to_string(), config.router.peer_address.to_string()];
                let names = Names { own: &own, of_proxies: &config.admin_hosts };
                if is_visit {
                    guard::check_host(headers, names)
                } else {
                    guard::check_site(headers, names)
                }
            }
            // It is scraped under names that only its operator knows; but no page of anybody's has to read it.
            Listener(Kind::Metrics) | Commands => {
                guard::check_origin(headers, &AdminHosts::default())
            }
        }
    }

    fn token(&self, interface: Interface) -> Option<Token> {
        let config = self.handle.config();
        match interface {
            Listener(Kind::Admin) => config.admin_token.clone(),
            Listener(Kind::Metrics) => config.metrics_token.clone(),
            // It has nothing that would need one.
            Commands => None,
        }
    }

    fn ready(&self) -> Answer {
        let missing = self.handle.missing();
        let status =
            if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json_answer(status, &json!({ "ready": missing.is_empty(), "missing": missing }))
    }

    async fn metrics(&self) -> Answer {
        let handle = self.handle.clone();
        let gather = move || TextEncoder::new().encode_to_string(&handle.gather());
        match self.scrapes.gather(gather).await {
            Some(Ok(text)) => answer(StatusCode::OK, prometheus::TEXT_FORMAT, text),
            Some(Err(_)) | None => {
                if self.complaints.allows() {
                    warn!("the metrics cannot be gathered");
                }
                problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be gathered")
            }
        }
    }

    async fn sessions(&self, query: &str) -> Answer {
        let (mut limit, mut after) = (SESSIONS.0, 0);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let taken = match name {
                "limit" => value.parse().map(|number: usize| limit = number).is_ok(),
                "after" => value.parse().map(|number| after = number).is_ok(),
                _ => false,
            };
            if !taken || !(1..=SESSIONS.1).contains(&limit) {
                let expected = format!(
                    "{name}: expected limit from 1 to {} and after, the number of a session",
                    SESSIONS.1
                );
                return problem(StatusCode::BAD_REQUEST, &expected);
            }
        }
        let handle = self.handle.clone();
        view(&self.lists, move || view::sessions(&handle, after, limit)).await
    }

    fn end_session(&self, id: SessionId) -> Answer {
        if !self.handle.state().stop_session(id, End::Disconnected) {
            return problem(StatusCode::NOT_FOUND, &format!("there is no session {id}"));
        }
        info!(session = id.0, "an administrator ends a session");
        answer(StatusCode::NO_CONTENT, "", Bytes::new())
    }

    async fn set_log_level<B>(&self, headers: &HeaderMap, body: B) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // A form of another site cannot send this type without being asked first.
        let is_json = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !is_json.is_some_and(|value| value.starts_with("application/json")) {
            return problem(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body is JSON; say so by Content-Type: application/json",
            );
        }
        let read = timeout(BODY_TIMEOUT, Box::pin(Limited::new(body, MAX_BODY).collect())).await;
        let body: Option<Value> = match read {
            Ok(Ok(body)) => serde_json::from_slice(&body.to_bytes()).ok(),
            _ => None,
        };
        let Some(level) = body.as_ref().and_then(|body| body["level"].as_str()) else {
            return problem(StatusCode::BAD_REQUEST, r#"expected a body like {"level": "info"}"#);
        };
        match self.handle.log().set(level) {
            Ok(level) => {
                info!(log_level = level, "an administrator changed the log level");
                json_answer(StatusCode::OK, &json!({ "level": level }))
            }
            Err(expected) => problem(StatusCode::BAD_REQUEST, &expected),
        }
    }

    fn drain(&self) -> Answer {
        if self.handle.is_draining() {
            info!("an administrator asks the relay to stop, which it is doing already");
        } else {
            info!("an administrator stops the relay");
        }
        self.handle.drain();
        let body = json!({
            "draining": true,
            "sessions": self.handle.state().counts().active,
            "timeout_seconds": self.handle.config().drain_timeout.as_secs_f64(),
        });
        json_answer(StatusCode::ACCEPTED, &body)
    }
}

/// Makes an answer that looks at all sessions.
async fn view(gate: &Scrapes, make: impl FnOnce() -> Value + Send + 'static) -> Answer {
    let made = gate.gather(move || json_answer(StatusCode::OK, &make())).await;
    made.unwrap_or_else(|| problem(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be made"))
}

/// The page. It holds nothing secret: it asks for what it shows, and for the token where one is needed.
fn page(status: StatusCode) -> Answer {
    let mut page = answer(status, "text/html; charset=utf-8", PAGE.document.as_str());
    if let Ok(policy) = HeaderValue::from_str(&PAGE.policy) {
        page.headers_mut().insert("content-security-policy", policy);
    }
    page
}

fn unauthorized(route: Route) -> Answer {
    let mut answer = match route {
        // A browser cannot show a token when it goes to an address; the page can.
        Route::Page => page(StatusCode::UNAUTHORIZED),
        _ => problem(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN"),
    };
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

/// An error as RFC 9457 has it.
pub(super) fn problem(status: StatusCode, detail: &str) -> Answer {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    answer(status, "application/problem+json", body.to_string())
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    answer(status, "application/json", body.to_string())
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    if !content_type.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    answer
}
