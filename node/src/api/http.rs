//! Plain HTTP beside gRPC: probes, version, metrics.

use std::fmt::Write as _;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::{Api, ETCD_CLUSTER_VERSION, ETCD_VERSION, VERSION, health, metrics};
use crate::clock;

type Parameters = Query<std::collections::BTreeMap<String, String>>;

pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(api)
}

/// A named condition, and why it does not hold.
type Check = (&'static str, Option<String>);

fn answer(what: &str, parameters: &Parameters, checks: &[Check]) -> Response {
    let failed = checks.iter().any(|(_, reason)| reason.is_some());
    let code = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    if !failed && !parameters.contains_key("verbose") {
        return (code, "ok\n").into_response();
    }
    let mut body = String::new();
    for (name, reason) in checks {
        // Writing to a string cannot fail.
        let _ = match reason {
            None => writeln!(body, "[+]{name} ok"),
            Some(reason) => writeln!(body, "[-]{name} failed: {reason}"),
        };
    }
    body.push_str(if failed { what } else { "ok" });
    body.push_str(if failed { " check failed\n" } else { "\n" });
    (code, body).into_response()
}

fn driver(api: &Api) -> Option<String> {
    health::why_not_live(&api.handle().status(), clock::now().0)
}

/// Never asks other members.
async fn livez(State(api): State<Api>, parameters: Parameters) -> Response {
    answer("livez", &parameters, &[("driver", driver(&api))])
}

/// What the last probe found; asking it costs the cluster nothing.
async fn readyz(State(api): State<Api>, parameters: Parameters) -> Response {
    let status = api.handle().status();
    let reason = api.readiness().reason().map(|reason| reason.to_string());
    let voter = health::voter_checks(&status).map(|(name, reason)| (name, reason.map(str::to_owned)));
    let checks = [&[("driver", driver(&api))][..], &voter, &[("linearizable_read", reason)]].concat();
    answer("readyz", &parameters, &checks)
}

/// etcd's form: a linearizable read at the time of asking, unless `serializable=true`.
async fn health(State(api): State<Api>, parameters: Parameters) -> Response {
    let reason = if parameters.get("serializable").is_some_and(|value| value == "true") {
        driver(&api)
    } else if api.handle().status().raft.leader.is_none() {
        Some("RAFT NO LEADER".to_owned())
    } else {
        api.handle().linearizable_view().await.err().map(|error| format!("QGET ERROR:{error}"))
    };
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let health = if reason.is_none() { "true" } else { "false" };
    (code, Json(json!({ "health": health, "reason": reason.unwrap_or_default() }))).into_response()
}

async fn version(State(api): State<Api>) -> Json<Value> {
    Json(json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_CLUSTER_VERSION,
        "storage": ETCD_CLUSTER_VERSION,
        "quorate": VERSION,
        "quorateCluster": api.handle().view().cluster_version().to_string(),
    }))
}

async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::text(&api)).into_response()
}
