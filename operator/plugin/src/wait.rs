//! Writes a request and stays until it is fulfilled.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::args::WaitArgs;
use crate::ask::{self, Ask, Goal, Progress, Seen};
use crate::connect::{Connection, explain};

pub const MANAGER: &str = "kubectl-quorate";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Somebody else wrote the object in between; more often than this is no coincidence.
const TRIES: u32 = 5;

/// # Errors
/// It is refused, cannot be written, or is not fulfilled in time.
pub async fn ask(connection: &Connection, cluster: &str, ask: &Ask, wait: &WaitArgs) -> Result<()> {
    let goal = write(connection, cluster, ask).await?;
    if wait.no_wait {
        println!("asked; `kubectl quorate status {cluster}` shows how far it is");
        return Ok(());
    }
    until_done(connection, cluster, &goal, wait.timeout).await
}

async fn write(connection: &Connection, name: &str, ask: &Ask) -> Result<Goal> {
    for _ in 0..TRIES {
        let found = connection.found(name).await?;
        let seen = Seen { cluster: &found.cluster, records: &found.records, pods: &found.pods };
        let request = ask::request(seen, ask).map_err(|text| anyhow!(text))?;
        let annotations: Map<String, Value> =
            request.requests.annotations().into_iter().map(|(key, text)| (key.to_owned(), json!(text))).collect();
        let change = json!({"metadata": {
            "uid": found.cluster.metadata.uid,
            // What was decided on is what is changed.
            "resourceVersion": found.cluster.metadata.resource_version,
            "annotations": annotations,
        }});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match connection.clusters().patch(name, &params, &Patch::Merge(&change)).await {
            Ok(_) => return Ok(request.goal),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(explain(&error, "annotate the ConsistentCluster")),
        }
    }
    bail!("{name} is changed by somebody else all the time; try again")
}

async fn until_done(connection: &Connection, name: &str, goal: &Goal, timeout: Duration) -> Result<()> {
    let started = Instant::now();
    let mut told = String::new();
    loop {
        let progress = match connection.found(name).await {
            Ok(found) => {
                let seen = Seen { cluster: &found.cluster, records: &found.records, pods: &found.pods };
                ask::progress(seen, goal)
            }
            Err(_) if matches!(connection.clusters().get_opt(name).await, Ok(None)) => {
                Progress::Missed(format!("{name} was deleted meanwhile"))
            }
            // The request stands, whoever looks at it.
            Err(error) => Progress::Waiting(format!("{error:#}")),
        };
        match progress {
            Progress::Done(text) => {
                println!("{text}");
                return Ok(());
            }
            Progress::Missed(text) => bail!(text),
            Progress::Waiting(text) => {
                if text != told {
                    eprintln!("{text}");
                    told = text;
                }
            }
        }
        if started.elapsed() >= timeout {
            bail!(
                "not done after {} s: {told}. The request stands; `kubectl quorate status {name}` shows how far it is",
                timeout.as_secs()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
