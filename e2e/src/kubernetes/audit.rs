//! The API server's audit log, one JSON object a line, read back.
//!
//! Only reads. What the requests mean is judged elsewhere.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// One request about a resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// When the API server received it: nothing it set in motion can be earlier.
    pub at: Timestamp,
    pub user: String,
    pub verb: String,
    pub group: String,
    pub resource: String,
    /// Empty when the resource itself was meant.
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Answered to the end; a watch is shown a first time when it starts.
    pub is_complete: bool,
    pub code: u64,
    /// What was sent, where the audit policy keeps it.
    pub body: Value,
}

impl Request {
    pub fn succeeded(&self) -> bool {
        self.is_complete && (200..300).contains(&self.code)
    }
}

/// Reads a line; nothing for requests that are not about a resource.
pub fn parse(line: &str) -> Result<Option<Request>> {
    let entry: Value = serde_json::from_str(line).with_context(|| format!("no audit entry: {line}"))?;
    let target = &entry["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(resource) = target["resource"].as_str() else { return Ok(None) };
    let at = text(&entry["requestReceivedTimestamp"]);
    Ok(Some(Request {
        at: at.parse().with_context(|| format!("requestReceivedTimestamp {at:?} of an audit entry"))?,
        user: text(&entry["user"]["username"]),
        verb: text(&entry["verb"]),
        group: text(&target["apiGroup"]),
        resource: resource.to_owned(),
        subresource: text(&target["subresource"]),
        namespace: text(&target["namespace"]),
        name: text(&target["name"]),
        is_complete: entry["stage"] == "ResponseComplete",
        code: entry["responseStatus"]["code"].as_u64().unwrap_or_default(),
        body: entry["requestObject"].clone(),
    }))
}

/// Every entry from byte `offset` on whose line holds one of `words`, in the log's order.
pub fn read(path: &Path, offset: u64, words: &[&str]) -> Result<Vec<Request>> {
    let mut file = File::open(path).with_context(|| format!("cannot open the audit log {}", path.display()))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut found = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        // The log holds everybody's requests; parsing them all would take longer than the suite.
        if !words.iter().any(|word| line.contains(word)) {
            continue;
        }
        // The last line may be half written.
        if !line.ends_with('}') {
            break;
        }
        found.extend(parse(&line)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVICTION: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","stage":"ResponseComplete",
        "requestURI":"/api/v1/namespaces/n/pods/orders-b7xk2-0/eviction","verb":"create",
        "user":{"username":"system:serviceaccount:quorate-system:quorate-operator"},
        "objectRef":{"resource":"pods","namespace":"n","name":"orders-b7xk2-0","apiVersion":"v1","subresource":"eviction"},
        "responseStatus":{"metadata":{},"code":201},"requestReceivedTimestamp":"2026-11-25T07:00:00.123456Z",
        "stageTimestamp":"2026-11-25T07:00:00.125000Z"}"#;

    #[test]
    fn an_entry_is_read() {
        let request = parse(EVICTION).unwrap().unwrap();
        assert_eq!((request.verb.as_str(), request.subresource.as_str()), ("create", "eviction"));
        assert_eq!(request.at.as_microsecond() % 1_000_000, 123_456);
        assert!(request.succeeded());
        assert_eq!(parse(r#"{"requestURI":"/readyz","verb":"get"}"#).unwrap(), None);
        assert!(parse("{").is_err());
    }
}
