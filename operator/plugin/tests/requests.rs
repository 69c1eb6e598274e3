//! What reaches the API server when something is asked for: one merge of annotations, made on the version that was read.

#![allow(clippy::unwrap_used, reason = "a file or an answer that is not there is a failed test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use quorate_kubectl::args::WaitArgs;
use quorate_kubectl::ask::Ask;
use quorate_kubectl::connect::Connection;
use quorate_kubectl::wait;
use serde_json::{Value, json};

const MEMBER: &str = "orders-d9wpt";

/// Changes that were asked for, as they came.
type Changes = Arc<Mutex<Vec<Value>>>;

fn cluster() -> Value {
    let path = format!("{}/tests/situations/healthy.yaml", env!("CARGO_MANIFEST_DIR"));
    let mut object: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    object["metadata"]["resourceVersion"] = json!("17");
    object
}

/// An API server with one cluster that refuses the first `conflicts` changes.
fn server(conflicts: usize) -> (Connection, Changes) {
    let changes = Changes::default();
    let seen = changes.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let seen = seen.clone();
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let body = request.into_body().collect_bytes().await.unwrap();
            let (code, answer) = match (method, path.rsplit('/').next().unwrap()) {
                (Method::PATCH, "orders") => {
                    let mut seen = seen.lock().unwrap();
                    seen.push(serde_json::from_slice(&body).unwrap());
                    let conflict = json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict",
                        "message": "changed", "code": 409,
                    });
                    if seen.len() <= conflicts { (409, conflict) } else { (200, cluster()) }
                }
                (Method::GET, "orders") => (200, cluster()),
                (Method::GET, _) => (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []})),
                other => panic!("nobody asks {other:?}"),
            };
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    let connection = Connection { client: Client::new(service, "shop"), namespace: "shop".to_owned() };
    (connection, changes)
}

fn at_once() -> WaitArgs {
    WaitArgs { no_wait: true, timeout: Duration::from_secs(1) }
}

fn fence() -> Ask {
    Ask::Fence { member: MEMBER.to_owned() }
}

#[tokio::test]
async fn a_request_is_one_change_on_the_version_that_was_read() {
    let (connection, changes) = server(0);
    wait::ask(&connection, "orders", &fence(), &at_once()).await.unwrap();
    let changes = changes.lock().unwrap();
    assert_eq!(changes.len(), 1);
    let meta = &changes[0]["metadata"];
    assert_eq!((&meta["uid"], &meta["resourceVersion"]), (&json!("4f5a"), &json!("17")));
    assert_eq!(meta["annotations"]["quorate.dev/fence"], MEMBER);
    assert_eq!(changes[0].as_object().unwrap().len(), 1, "nothing but metadata is touched: {}", changes[0]);
}

#[tokio::test]
async fn a_conflict_is_tried_again_and_not_for_ever() {
    let (connection, changes) = server(1);
    wait::ask(&connection, "orders", &fence(), &at_once()).await.unwrap();
    assert_eq!(changes.lock().unwrap().len(), 2);
    let (connection, _) = server(100);
    let error = wait::ask(&connection, "orders", &fence(), &at_once()).await.unwrap_err();
    assert!(error.to_string().contains("try again"), "{error:#}");
}

#[tokio::test]
async fn who_waits_in_vain_is_told_that_the_request_stands() {
    let (connection, _) = server(0);
    let patience = WaitArgs { no_wait: false, timeout: Duration::ZERO };
    let error = wait::ask(&connection, "orders", &fence(), &patience).await.unwrap_err();
    assert!(error.to_string().contains("The request stands"), "{error:#}");
}
