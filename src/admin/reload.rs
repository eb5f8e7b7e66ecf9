//! `POST /reload`.

use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::config::report::ConfigProblem;
use crate::config::settings::SettingKey;
use crate::handle::{Handle, ReloadFailure, ReloadOutcome};

use super::response::{HttpResponse, json_response, problem, problem_with};

/// Time in which the files must have been read. Those of a network file system may hang.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// The answer to `POST /reload`, if the configuration was accepted. Settings are given by their keys. Fields are only
/// ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Settings that have changed and are in force.
    pub changed: Vec<String>,
    /// Those of `changed` for which the relay connects to the Router anew; sessions continue.
    pub with_new_link: Vec<String>,
    /// Settings that take effect only after a restart, from this reload and from earlier ones.
    pub waiting_for_restart: Vec<String>,
    /// What works but deserves attention.
    pub warnings: Vec<String>,
}

impl From<ReloadOutcome> for ReloadAnswer {
    fn from(outcome: ReloadOutcome) -> Self {
        let names =
            |keys: &[SettingKey]| keys.iter().map(|key| key.name().to_owned()).collect::<Vec<_>>();
        Self {
            changed: names(&outcome.changed),
            with_new_link: names(&outcome.with_new_link()),
            waiting_for_restart: names(&outcome.waiting),
            warnings: outcome.warnings,
        }
    }
}

/// Has the relay read its configuration again, and says what came of it.
pub(super) async fn reload(handle: &Handle) -> HttpResponse {
    let reloaded = handle.request_reload_and_wait("POST /reload");
    match timeout(READ_TIMEOUT, reloaded).await {
        Ok(Some(Ok(outcome))) => json_response(StatusCode::OK, &ReloadAnswer::from(outcome)),
        Ok(Some(Err(failure))) => failure_response(&failure),
        Ok(None) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the relay is stopping and no longer reads its configuration",
        ),
        Err(_) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!(
                "the configuration has not been read within {} s: its file system does not respond. The relay goes on \
                 trying; GET /status shows what comes of it",
                READ_TIMEOUT.as_secs()
            ),
        ),
    }
}

/// Problem details with the list of all problems, each with a text for people.
fn failure_response(failure: &ReloadFailure) -> HttpResponse {
    let describe = |problem: &ConfigProblem| {
        json!({
            "key": problem.key,
            "value": problem.value,
            "source": problem.source,
            "expected": problem.expected,
            "message": problem.to_string(),
        })
    };
    let problems: Vec<Value> = failure.problems.iter().map(describe).collect();
    let members = Map::from_iter([("problems".to_owned(), problems.into())]);
    let detail = format!("nothing is changed, {}", failure.description);
    problem_with(StatusCode::UNPROCESSABLE_ENTITY, &detail, members)
}
