//! What is done to the running relay, and what it answers.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::admin::client::AdminRequest;
use crate::cli::{OutputFormat, RelayAction};
use crate::printable;

use super::client::RelayClient;
use super::units::format_seconds;

/// How long to wait for a reload: the relay itself gives up a little earlier, if its files cannot be read.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(25);

/// Performs the action, and returns what to print.
pub(super) async fn perform(
    client: &RelayClient,
    action: &RelayAction,
    format: OutputFormat,
) -> Result<String, String> {
    let body = client.send(&to_request(action)).await?;
    let answer = parse(action, &body)?;
    Ok(match format {
        OutputFormat::Json => printable::escape_json(&format!("{answer:#}\n")),
        OutputFormat::Text => printable::escape_lines(&describe(action, &answer)),
    })
}

fn to_request(action: &RelayAction) -> AdminRequest {
    match action {
        RelayAction::Show { .. } => AdminRequest::get("/status"),
        RelayAction::EndSession(id) => AdminRequest::delete(&format!("/sessions/{id}")),
        RelayAction::Drain => AdminRequest::post("/drain"),
        RelayAction::Reload => AdminRequest::post("/reload").with_timeout(RELOAD_TIMEOUT),
        RelayAction::SetLogLevel(level) => {
            AdminRequest::put("/log-level", &json!({ "level": level }))
        }
    }
}

fn parse(action: &RelayAction, body: &Bytes) -> Result<Value, String> {
    match action {
        // There is no content in the answer.
        RelayAction::EndSession(id) if body.is_empty() => Ok(json!({ "ended": id })),
        _ => serde_json::from_slice(body)
            .map_err(|error| format!("the answer of the relay cannot be understood: {error}")),
    }
}

/// Describes an answer for people. A field that the relay does not send is left out.
fn describe(action: &RelayAction, answer: &Value) -> String {
    match action {
        RelayAction::Show { .. } => String::new(),
        RelayAction::EndSession(id) => format!("session {id} is ended\n"),
        RelayAction::Drain => describe_drain(answer),
        RelayAction::Reload => describe_reload(answer),
        RelayAction::SetLogLevel(level) => {
            let level = answer["level"].as_str().unwrap_or(level);
            // Only on Linux can another relay take over.
            let handover = if cfg!(target_os = "linux") { ", also after a hand-over," } else { "" };
            format!(
                "the relay logs at {level}{handover} until that is set again or the relay ends\n"
            )
        }
    }
}

fn describe_drain(answer: &Value) -> String {
    let left = match answer["sessions"].as_u64() {
        Some(0) => "no session is active".to_owned(),
        Some(1) => "1 session is active".to_owned(),
        Some(sessions) => format!("{sessions} sessions are active"),
        None => "new peers are refused".to_owned(),
    };
    let limit = answer["timeout_seconds"].as_f64().map_or(String::new(), |seconds| {
        format!(", or after {} (DrainTimeout)", format_seconds(seconds))
    });
    format!("the relay drains: {left}. It ends as soon as no peers are left{limit}\n")
}

fn describe_reload(answer: &Value) -> String {
    let list = |name: &str| {
        let items = answer[name].as_array().into_iter().flatten();
        items.filter_map(Value::as_str).collect::<Vec<_>>()
    };
    let mut text = match list("changed").as_slice() {
        [] => "the configuration was read; nothing has changed\n".to_owned(),
        changed => format!("the configuration was read; changed: {}\n", changed.join(", ")),
    };
    for (name, beginning) in [
        ("with_new_link", "with a new link to the Router: "),
        ("waiting_for_restart", "a restart is needed for: "),
    ] {
        let keys = list(name);
        if !keys.is_empty() {
            text += &format!("{beginning}{}\n", keys.join(", "));
        }
    }
    for warning in list("warnings") {
        text += &format!("warning: {warning}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_described_as_far_as_the_relay_sends_them() {
        for (action, answer, shown) in [
            (
                RelayAction::Drain,
                json!({ "draining": true, "sessions": 3, "timeout_seconds": 25.0 }),
                "the relay drains: 3 sessions are active. It ends as soon as no peers are left, or after 25s \
                 (DrainTimeout)\n",
            ),
            (
                RelayAction::Drain,
                json!({}),
                "the relay drains: new peers are refused. It ends as soon as no peers are left\n",
            ),
            (
                RelayAction::Reload,
                json!({
                    "changed": ["MaxPeerCount", "DenyPeers"],
                    "with_new_link": ["MaxPeerCount"],
                    "waiting_for_restart": ["ListenPort"],
                    "warnings": ["a warning"],
                }),
                "the configuration was read; changed: MaxPeerCount, DenyPeers\n\
                 with a new link to the Router: MaxPeerCount\n\
                 a restart is needed for: ListenPort\n\
                 warning: a warning\n",
            ),
            (RelayAction::Reload, json!({}), "the configuration was read; nothing has changed\n"),
            (RelayAction::EndSession(7), json!({ "ended": 7 }), "session 7 is ended\n"),
            (
                RelayAction::SetLogLevel("x".into()),
                json!({ "level": "debug" }),
                if cfg!(target_os = "linux") {
                    "the relay logs at debug, also after a hand-over, until that is set again or the relay ends\n"
                } else {
                    "the relay logs at debug until that is set again or the relay ends\n"
                },
            ),
        ] {
            assert_eq!(describe(&action, &answer), shown);
        }
    }

    #[test]
    fn ended_session_has_an_answer_for_machines() {
        let action = RelayAction::EndSession(7);
        assert_eq!(parse(&action, &Bytes::new()), Ok(json!({ "ended": 7 })));
        assert!(parse(&RelayAction::Drain, &Bytes::new()).is_err());
    }
}
