//! Plain requests to the API server for what is asked often: starting kubectl costs more than the answer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::AsyncBufRead;
use kube::{Client, Config};
use serde_json::Value;

/// A healthy API server answers well within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A busy API server may answer nothing for a moment. One that is away for this long is away.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// An eviction is tried again by the API server itself while its budget changes.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Api {
    client: Client,
}

impl Api {
    /// To the cluster that KUBECONFIG names.
    pub async fn connect() -> Result<Api> {
        let mut config = Config::infer().await.context("there is no KUBECONFIG to take a cluster from")?;
        // A refusal is an answer here.
        config.default_retry = false;
        let client = Client::try_from(config).context("cannot make a client from KUBECONFIG")?;
        Ok(Api { client })
    }

    /// Asks again while there is no answer, or none that says anything about the object.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let started = Instant::now();
        loop {
            match self.get_once(path).await {
                Err(error) if is_unanswered(&error) && started.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    }

    pub async fn get_once(&self, path: &str) -> Result<Value> {
        let request = self.client.request::<Value>(request(path)?);
        let answer = tokio::time::timeout(ANSWER_LIMIT, request).await;
        answer.with_context(|| format!("no answer to GET {path}"))?.with_context(|| format!("GET {path}"))
    }

    /// Nothing when there is no such object.
    pub async fn get_opt(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_code(&error, 404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The items of a list.
    pub async fn items(&self, path: &str) -> Result<Vec<Value>> {
        match self.get(path).await?["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// Creates what `body` describes; the error's code is the API server's.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(body)?).with_context(|| format!("no path: {path:?}"))?;
        let answer = tokio::time::timeout(WRITE_LIMIT, self.client.request::<Value>(request)).await;
        answer.with_context(|| format!("no answer to POST {path}"))?.with_context(|| format!("POST {path}"))
    }

    /// Merges `body` into an object.
    pub async fn merge(&self, path: &str, body: &Value) -> Result<Value> {
        let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
        let request = request.body(serde_json::to_vec(body)?).with_context(|| format!("no path: {path:?}"))?;
        let answer = tokio::time::timeout(WRITE_LIMIT, self.client.request::<Value>(request)).await;
        answer.with_context(|| format!("no answer to PATCH {path}"))?.with_context(|| format!("PATCH {path}"))
    }

    /// Deletes under the options of `body`.
    pub async fn delete(&self, path: &str, body: &Value) -> Result<Value> {
        let request = http::Request::delete(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(body)?).with_context(|| format!("no path: {path:?}"))?;
        let answer = tokio::time::timeout(WRITE_LIMIT, self.client.request::<Value>(request)).await;
        answer.with_context(|| format!("no answer to DELETE {path}"))?.with_context(|| format!("DELETE {path}"))
    }

    /// For what the library does with a kind of objects.
    pub fn namespaced<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        kube::Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn stream(&self, path: &str) -> Result<impl AsyncBufRead + use<>> {
        self.client.request_stream(request(path)?).await.with_context(|| format!("GET {path}"))
    }
}

fn request(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).with_context(|| format!("no path: {path:?}"))
}

/// No answer came, or one that the server is busy or broken.
fn is_unanswered(error: &anyhow::Error) -> bool {
    code(error).is_none_or(|code| code == 429 || code >= 500)
}

/// Says whether the API server answered with this code.
pub fn is_code(error: &anyhow::Error, wanted: u16) -> bool {
    code(error) == Some(wanted)
}

fn code(error: &anyhow::Error) -> Option<u16> {
    error.chain().find_map(|cause| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    })
}
