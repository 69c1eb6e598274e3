//! Waiting for something to become true, with a limit and a sentence that says what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` every `every` until it gives a value; after `limit` fails with what was last seen.
pub async fn until<T, F>(what: &str, limit: Duration, every: Duration, mut probe: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<T>,
{
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => {
                bail!("waited {} s in vain for {what}: {error:#}", limit.as_secs())
            }
            Err(_) => tokio::time::sleep(every).await,
        }
    }
}
