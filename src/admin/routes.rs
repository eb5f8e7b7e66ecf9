//! Routing: which path answers what, to whom, and by which method.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, StatusCode};
use prometheus::TextEncoder;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::field::DisplayValue;
use tracing::{info, warn};

use crate::config::admin_hosts::AdminHosts;
use crate::config::parse::Token;
use crate::handle::Handle;
use crate::log::limit::LineLimit;
use crate::printable;
use crate::state::sessions::{EndCause, SessionId};

use super::gather::GatherGate;
use super::guard::{self, AcceptedHosts};
use super::history::History;
use super::listener::Endpoint::{self, CommandSocket, Listener};
use super::listener::{CommandCaller, HttpListener};
use super::reload::reload;
use super::response::{
    HttpResponse, json_response, method_not_allowed, page, problem, respond, unauthorized,
};
use super::sessions::SessionList;
use super::status::{Instance, Readiness, Status};

/// The longest request body, in bytes: a log filter is far shorter.
const MAX_BODY: usize = 4096;
/// Time in which the body of a request must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of sessions on a page of the list, unless the request says otherwise.
const DEFAULT_PAGE: usize = 1000;
/// The maximum number of sessions on a page of the list.
const MAX_PAGE: usize = 10_000;

/// Everything that responses are made from.
#[derive(Clone)]
pub(super) struct Routes {
    pub(super) handle: Handle,
    pub(super) history: Arc<History>,
    /// One gate for each kind of answer that looks at all sessions: listing them must not delay the short status.
    pub(super) metrics_gate: GatherGate,
    pub(super) status_gate: GatherGate,
    pub(super) list_gate: GatherGate,
    /// Limits warnings that any caller can provoke again and again.
    pub(super) warnings: Arc<LineLimit>,
    /// The name of this machine, under which browsers may reach the admin listener.
    pub(super) host_name: Arc<str>,
}

/// The address from which a request comes, if it comes over a network; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller(pub(super) Option<IpAddr>);

impl Caller {
    fn of(head: &Parts) -> Self {
        head.extensions.get().copied().unwrap_or(Self(None))
    }

    /// The address as a field of a log line, which is left out if there is none.
    fn field(self) -> Option<DisplayValue<IpAddr>> {
        self.0.map(tracing::field::display)
    }
}

/// What a path stands for.
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
    Reload,
    Drain,
    Instance,
}

impl Route {
    fn find(endpoint: Endpoint, path: &str) -> Option<Self> {
        match (endpoint, path) {
            (_, "/livez") => Some(Self::Live),
            (_, "/readyz") => Some(Self::Ready),
            (CommandSocket(_), "/instance") => Some(Self::Instance),
            // It is for people with a browser, which cannot open the socket.
            (CommandSocket(_), "/") => None,
            (_, "/metrics") => Some(Self::Metrics),
            (Listener(HttpListener::Metrics), _) => None,
            (Listener(HttpListener::Admin) | CommandSocket(_), path) => {
                Self::find_on_admin_listener(path)
            }
        }
    }

    fn find_on_admin_listener(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Page),
            "/status" => Some(Self::Status),
            "/sessions" => Some(Self::Sessions),
            "/config" => Some(Self::Config),
            "/log-level" => Some(Self::LogLevel),
            "/reload" => Some(Self::Reload),
            "/drain" => Some(Self::Drain),
            path => {
                let number = path.strip_prefix("/sessions/")?;
                Some(Self::Session(SessionId(number.parse().ok()?)))
            }
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Session(_) => Method::DELETE,
            Self::LogLevel => Method::PUT,
            Self::Reload | Self::Drain => Method::POST,
            _ => Method::GET,
        }
    }

    /// Whether requests are answered without a token and whatever their `Host`: load balancers ask for liveness and
    /// readiness with no `Host` at all, or with one of their own.
    fn is_public(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::Instance)
    }
}

impl Routes {
    /// Answers a request.
    pub(super) async fn answer<B>(&self, endpoint: Endpoint, request: Request<B>) -> HttpResponse
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let route = match self.authorize(endpoint, &head) {
            Ok(route) => route,
            Err(refusal) => return *refusal,
        };
        let caller = Caller::of(&head);
        match route {
            Route::Page => page(StatusCode::OK),
            Route::Live => json_response(StatusCode::OK, &json!({ "alive": true })),
            Route::Ready => self.ready(),
            Route::Metrics => self.metrics().await,
            Route::Status => {
                let (handle, history) = (self.handle.clone(), self.history.clone());
                respond_gathered(&self.status_gate, move || Status::of(&handle, &history)).await
            }
            Route::Sessions => self.sessions(head.uri.query().unwrap_or_default()).await,
            Route::Session(id) => self.end_session(id, caller),
            Route::Config => {
                // The response is often read on a terminal, where values must not act as control sequences.
                let config =
                    printable::escape_json(&self.handle.settings().report().json().to_string());
                respond(StatusCode::OK, "application/json", config)
            }
            Route::LogLevel => self.set_log_level(&head.headers, body, caller).await,
            Route::Reload => {
                let address = caller.field();
                info!(address, "an administrator has the configuration read again");
                reload(&self.handle).await
            }
            Route::Drain => self.drain(caller),
            Route::Instance => json_response(StatusCode::OK, &Instance::of(&self.handle)),
        }
    }

    /// Finds the route of a request, and checks its origin, token and method, in this order.
    fn authorize(&self, endpoint: Endpoint, head: &Parts) -> Result<Route, Box<HttpResponse>> {
        let refuse = |response| Err(Box::new(response));
        let route = Route::find(endpoint, head.uri.path());
        let is_public = route.is_some_and(Route::is_public);
        let is_visit = route == Some(Route::Page)
            && [Method::GET, Method::HEAD].contains(&head.method)
            && guard::is_navigation(&head.headers);
        if !is_public && let Err(why) = self.check_site(endpoint, &head.headers, is_visit) {
            return refuse(problem(StatusCode::FORBIDDEN, &why));
        }
        let Some(route) = route else {
            return refuse(problem(StatusCode::NOT_FOUND, "nothing is served at this path"));
        };
        if !is_public && endpoint == CommandSocket(CommandCaller::Other) {
            let why = "only root and the user that the relay runs as may ask this here";
            return refuse(problem(StatusCode::FORBIDDEN, why));
        }
        if !is_public && !guard::is_authorized(&head.headers, self.token(endpoint).as_ref()) {
            return refuse(unauthorized(route == Route::Page));
        }
        let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
        if *method != route.method() {
            return refuse(method_not_allowed(&route.method()));
        }
        Ok(route)
    }

    /// Checks that the request does not come from a page of another site. The page itself holds nothing secret and
    /// cannot be framed, so a browser may navigate to it from anywhere (`is_visit`), as it does from a proxy's login
    /// page.
    fn check_site(
        &self,
        endpoint: Endpoint,
        headers: &HeaderMap,
        is_visit: bool,
    ) -> Result<(), String> {
        let config = self.handle.config();
        match endpoint {
            Listener(HttpListener::Admin) => {
                let own = [self.host_name.to_string(), config.router.peer_address.to_string()];
                let names = AcceptedHosts { own: &own, proxies: &config.admin_hosts };
                if is_visit {
                    guard::check_host(headers, names)
                } else {
                    guard::check_site(headers, names)
                }
            }
            // Scrapers use names that only their operator knows, but no web page has any business here.
            Listener(HttpListener::Metrics) | CommandSocket(_) => {
                guard::check_origin(headers, &AdminHosts::default())
            }
        }
    }

    fn token(&self, endpoint: Endpoint) -> Option<Token> {
        let config = self.handle.config();
        match endpoint {
            Listener(HttpListener::Admin) => config.admin_token.clone(),
            Listener(HttpListener::Metrics) => config.metrics_token.clone(),
            // The kernel says who asks.
            CommandSocket(_) => None,
        }
    }

    fn ready(&self) -> HttpResponse {
        let readiness = Readiness::of(&self.handle);
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json_response(status, &readiness)
    }

    async fn metrics(&self) -> HttpResponse {
        let handle = self.handle.clone();
        let gather = move || TextEncoder::new().encode_to_string(&handle.gather());
        match self.metrics_gate.gather(gather).await {
            Some(Ok(text)) => respond(StatusCode::OK, prometheus::TEXT_FORMAT, text),
            Some(Err(_)) | None => {
                if self.warnings.allows() {
                    warn!("the metrics cannot be gathered");
                }
                problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be gathered")
            }
        }
    }

    async fn sessions(&self, query: &str) -> HttpResponse {
        let (mut limit, mut after) = (DEFAULT_PAGE, 0);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_valid = match name {
                "limit" => value.parse().map(|number: usize| limit = number).is_ok(),
                "after" => value.parse().map(|number| after = number).is_ok(),
                _ => false,
            };
            if !is_valid || !(1..=MAX_PAGE).contains(&limit) {
                let expected = format!(
                    "{name}: expected limit from 1 to {} and after, the id of a session",
                    MAX_PAGE
                );
                return problem(StatusCode::BAD_REQUEST, &expected);
            }
        }
        let handle = self.handle.clone();
        respond_gathered(&self.list_gate, move || SessionList::of(&handle, after, limit)).await
    }

    fn end_session(&self, id: SessionId, caller: Caller) -> HttpResponse {
        if !self.handle.state().stop_session(id, EndCause::Administrator(caller.0)) {
            return problem(StatusCode::NOT_FOUND, &format!("there is no session {id}"));
        }
        // The record of the session says the same, unless the session was ending already.
        info!(session = id.0, address = caller.field(), "an administrator ends a session");
        respond(StatusCode::NO_CONTENT, "", Bytes::new())
    }

    async fn set_log_level<B>(&self, headers: &HeaderMap, body: B, caller: Caller) -> HttpResponse
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // A form on another site cannot send this content type without a CORS preflight.
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !content_type.is_some_and(|value| value.starts_with("application/json")) {
            return problem(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "expected a JSON body with Content-Type: application/json",
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
        match self.handle.log().set_filter(level) {
            Ok(level) => {
                let address = caller.field();
                info!(log_level = level, address, "an administrator changed the log level");
                json_response(StatusCode::OK, &json!({ "level": level }))
            }
            Err(expected) => problem(StatusCode::BAD_REQUEST, &expected),
        }
    }

    fn drain(&self, caller: Caller) -> HttpResponse {
        let address = caller.field();
        if self.handle.is_draining() {
            info!(address, "an administrator asks the relay to stop, which it is doing already");
        } else {
            info!(address, "an administrator stops the relay");
        }
        self.handle.drain();
        let body = json!({
            "draining": true,
            "sessions": self.handle.state().counts().active,
            "timeout_seconds": self.handle.config().drain_timeout.as_secs_f64(),
        });
        json_response(StatusCode::ACCEPTED, &body)
    }
}

/// Makes a response that looks at all sessions, as soon as `gate` allows it.
async fn respond_gathered<T: Serialize>(
    gate: &GatherGate,
    make: impl FnOnce() -> T + Send + 'static,
) -> HttpResponse {
    let made = gate.gather(move || json_response(StatusCode::OK, &make())).await;
    made.unwrap_or_else(|| {
        problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer cannot be made; this is a bug, please report it",
        )
    })
}
