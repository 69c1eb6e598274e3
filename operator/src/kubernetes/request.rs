//! Deadlines and verdicts of API server requests.

use std::time::Duration;

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
        kube::Error::Api(status) => ActError::Failed(format!("{what}: {} ({})", status.message, status.code)),
        other => ActError::Failed(format!("{what}: {other}")),
    }
}
