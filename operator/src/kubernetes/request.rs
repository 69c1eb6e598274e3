//! Deadlines and verdicts of API server requests.

use std::time::Duration;

use kube::core::Status;

use crate::world::ActError;

/// A request that takes longer has failed; what it did is seen at the next observation.
const LIMIT: Duration = Duration::from_secs(10);
pub const MANAGER: &str = "quorate-operator";

pub async fn timed<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(LIMIT, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(format!("no answer within {} s", LIMIT.as_secs()).into())),
    }
}

/// A precondition that failed is news; everything else is told.
pub fn verdict(what: &str, error: &kube::Error) -> ActError {
    match error {
        // Gone, changed or there already: the world is not as it was read.
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => {
            ActError::News(format!("{what}: {}", status.message))
        }
        kube::Error::Api(status) if has_another_uid(status) => ActError::News(format!("{what} is another one now")),
        kube::Error::Api(status) => ActError::Failed(format!("{what}: {} ({})", status.message, status.code)),
        other => ActError::Failed(format!("{what}: {other}")),
    }
}

/// A patch that names the uid it is meant for is refused as invalid, not as a conflict, when the object was made anew.
fn has_another_uid(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 422 && causes.iter().any(|cause| cause.field == "metadata.uid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, field: &str) -> kube::Error {
        let status = serde_json::json!({
            "status": "Failure", "message": "Pod \"orders-ffx2j-0\" is invalid", "reason": "Invalid", "code": code,
            "details": {"causes": [{"reason": "FieldValueInvalid", "message": "field is immutable", "field": field}]},
        });
        kube::Error::Api(Box::new(serde_json::from_value(status).expect("a Status")))
    }

    #[test]
    fn an_object_made_anew_is_news_and_another_invalid_field_is_a_failure() {
        assert!(matches!(verdict("pod", &refused(422, "metadata.uid")), ActError::News(_)));
        assert!(matches!(verdict("pod", &refused(409, "")), ActError::News(_)));
        assert!(matches!(verdict("pod", &refused(422, "metadata.labels")), ActError::Failed(_)));
    }
}
