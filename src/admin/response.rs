//! Responses: their headers, JSON bodies, problem details and the page.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use super::page::PAGE;

/// The type of every response.
pub(super) type HttpResponse = Response<Full<Bytes>>;

/// The page. It holds nothing secret: its script asks for what it shows, and for the token if it is required.
pub(super) fn page(status: StatusCode) -> HttpResponse {
    let mut page = respond(status, "text/html; charset=utf-8", PAGE.document.as_str());
    if let Ok(policy) = HeaderValue::from_str(&PAGE.policy) {
        page.headers_mut().insert("content-security-policy", policy);
    }
    page
}

/// The response to a request without the token. A browser cannot send a token when it navigates, so a request for the
/// page is answered with the page, whose script can.
pub(super) fn unauthorized(is_for_page: bool) -> HttpResponse {
    let mut response = if is_for_page {
        page(StatusCode::UNAUTHORIZED)
    } else {
        problem(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
    };
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The response to a method other than `allowed`.
pub(super) fn method_not_allowed(allowed: &Method) -> HttpResponse {
    let mut response =
        problem(StatusCode::METHOD_NOT_ALLOWED, &format!("this path accepts only {allowed}"));
    if let Ok(value) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// An error as problem details (RFC 9457).
pub(super) fn problem(status: StatusCode, detail: &str) -> HttpResponse {
    problem_with(status, detail, Map::new())
}

/// An error as problem details with more `members` than the standard ones.
pub(super) fn problem_with(
    status: StatusCode,
    detail: &str,
    mut members: Map<String, Value>,
) -> HttpResponse {
    let title = status.canonical_reason().unwrap_or("Error");
    for (name, value) in [
        ("type", "about:blank".into()),
        ("title", title.into()),
        ("status", status.as_u16().into()),
        ("detail", detail.into()),
    ] {
        members.insert(name.to_owned(), value);
    }
    respond(status, "application/problem+json", Value::Object(members).to_string())
}

/// A JSON body.
pub(super) fn json_response(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(body) {
        Ok(body) => respond(status, "application/json", body),
        Err(error) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!(
                "the answer cannot be written as JSON: {error}; this is a bug, please report it"
            ),
        ),
    }
}

/// Builds a response with the headers that all responses have.
pub(super) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> HttpResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if !content_type.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    response
}
