//! What is promised with a number: restarts that no client notices, and a large member that is replaced quickly. The load is
//! etcd's own benchmark tool, with etcd's own client library and what that does by itself when a member goes away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::beside::{object, open, up};
use super::edits::{back_to_three, pods, rolled};
use crate::kubernetes::cluster::{Cluster, LIMIT, POLL, text};
use crate::poll;

const RATE: u64 = 200;
/// The same load before anything happens: what this machine does to anybody.
const QUIET_SECONDS: u64 = 10;

/// What the benchmark tool says of a run.
#[derive(Debug, PartialEq)]
struct Told {
    slowest_ms: f64,
    errors: Vec<String>,
}

fn told(output: &str) -> Result<Told> {
    let line = output.lines().find(|line| line.trim_start().starts_with("Slowest:"));
    let line = line.with_context(|| format!("the benchmark tool tells no slowest request: {output}"))?;
    let seconds = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    let seconds = seconds.with_context(|| format!("not a time: {line:?}"))?;
    let errors = output.lines().skip_while(|line| !line.contains("Error distribution")).skip(1);
    let errors = errors.map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Ok(Told { slowest_ms: seconds * 1_000.0, errors })
}

/// With the certificate of the writer, as etcdctl beside it has it by its environment. By itself each of the tool's clients is
/// given one of the endpoints alone.
async fn benchmark(cluster: &Cluster, endpoints: &str, put: &[&str]) -> Result<Told> {
    const TLS: [&str; 3] = ["--cacert=/tls/ca.crt", "--cert=/tls/tls.crt", "--key=/tls/tls.key"];
    let mut command = vec!["/etcd-benchmark", "--endpoints", endpoints, "--conns=4", "--clients=8"];
    if endpoints.starts_with("https://") {
        command.extend(TLS);
    }
    if endpoints.contains(',') {
        // Each learns all members from the first answer on, as a client does that is given all of them.
        command.push("--auto-sync-interval=1s");
    }
    command.push("put");
    command.extend(put);
    told(&cluster.exec(&command).await?)
}

/// All members are restarted one after the other, beside one client that knows every member and one that knows the Service.
pub async fn rolling_restart(cluster: &Cluster, size: u64) -> Result<String> {
    cluster.edit(json!({"replicas": size})).await?;
    cluster.ready(size).await?;
    let before = pods(cluster).await?;
    let members: Vec<String> =
        before.iter().map(|p| format!("https://{}:2379", p.name.trim_end_matches("-0"))).collect();
    let seconds = 20 + 8 * size;
    let (rate, total) = (format!("--rate={RATE}"), format!("--total={}", RATE * seconds));
    let quiet_total = format!("--total={}", RATE * QUIET_SECONDS);
    let sized = ["--key-size=16", "--val-size=256", "--key-space-size=1000"];
    let put = [&[rate.as_str(), total.as_str()], &sized[..]].concat();
    let quiet_put = [&[rate.as_str(), quiet_total.as_str()], &sized[..]].concat();
    let all = members.join(",");
    const SERVICE: &str = "https://orders:2379";
    let quiet = tokio::try_join!(benchmark(cluster, &all, &quiet_put), benchmark(cluster, SERVICE, &quiet_put))?;
    let roll = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let since = Instant::now();
        let restarts: Vec<String> =
            before.iter().map(|p| format!("{}@{}", p.name.trim_end_matches("-0"), p.uid)).collect();
        let asked = format!("quorate.dev/restart={}", restarts.join(","));
        cluster.mine(&["annotate", "cc/orders", &asked, "--overwrite"]).await?;
        rolled(cluster, &before).await?;
        Ok::<_, anyhow::Error>(since.elapsed().as_secs_f64())
    };
    let started = Instant::now();
    let timed = async |endpoints: &str| {
        let told = benchmark(cluster, endpoints, &put).await?;
        Ok::<_, anyhow::Error>((told, started.elapsed().as_secs_f64()))
    };
    let (of_members, of_service, took) = tokio::join!(timed(&all), timed(SERVICE), roll);
    let ((of_members, first_end), (of_service, second_end), took) = (of_members?, of_service?, took?);
    back_to_three(cluster).await?;
    ensure!(first_end.min(second_end) > took + 3.0, "the load ended before the last restart: nothing is proven");
    let failed = [&of_members.errors[..], &of_service.errors[..]].concat();
    ensure!(failed.is_empty(), "requests failed while {size} members were restarted: {failed:?}");
    Ok(format!(
        "{size} in {took:.0} s, 0 of {} requests failed, slowest {:.0} ms with all members ({:.0} ms before the restart), \
         {:.0} ms through the Service ({:.0} ms before)",
        2 * RATE * seconds,
        of_members.slowest_ms,
        quiet.0.slowest_ms,
        of_service.slowest_ms,
        quiet.1.slowest_ms
    ))
}

/// A member that held 1 GiB loses its volume; from then until another one votes and all is well.
pub async fn large_volume_lost(cluster: &Cluster) -> Result<String> {
    let name = "large";
    cluster.apply(&open(name, 3, json!({"size": "8Gi"}))).await?;
    up(cluster, name).await?;
    // Ten thousand values of 100 KiB and a bit, in parts that each end in time.
    const PARTS: u64 = 4;
    for part in 0..PARTS {
        let seed = format!("--key-size={}", 16 + part);
        let put = ["--sequential-keys", "--key-space-size=2685", "--total=2685", "--val-size=100000", &seed];
        // So much at once may stall the disk of this machine for a moment, which fails a few of them; the same keys then come again.
        poll::until("a part to be written", LIMIT, POLL, async || {
            let told = benchmark(cluster, &format!("http://{name}:2379"), &put).await?;
            ensure!(told.errors.is_empty(), "{:?}", told.errors);
            Ok(())
        })
        .await?;
    }
    up(cluster, name).await?;
    let status = object(cluster, name).await?["status"].clone();
    let leader = text(&status, "/leader/name");
    let members = status["members"].as_array().into_iter().flatten().map(|m| text(m, "/name"));
    let victim = members.into_iter().find(|m| *m != leader).context("there is no follower")?;
    let since = Instant::now();
    cluster.mine(&["delete", "pvc", &format!("{victim}-data"), "--wait=false"]).await?;
    cluster.mine(&["delete", "pod", &format!("{victim}-0"), "--grace-period=0", "--force"]).await?;
    poll::until("another member to vote and all to be well", LIMIT, POLL, async || {
        let now = object(cluster, name).await?["status"].clone();
        let is_in = now["members"].as_array().into_iter().flatten().any(|m| text(m, "/name") == victim);
        ensure!(!is_in && now["readyReplicas"] == 3 && now["quorum"]["caughtUp"] == 3, "{}", now["members"]);
        Ok(())
    })
    .await?;
    let took = since.elapsed().as_secs_f64();
    cluster.mine(&["delete", "cc", name, "--timeout=150s"]).await?;
    Ok(format!("{victim} with 1 GiB replaced in {took:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_benchmark_tool_tells_is_read() {
        let good = "\nSummary:\n  Total:\t2.0021 secs.\n  Slowest:\t0.0125 secs.\n  Fastest:\t0.0001 secs.\n";
        assert_eq!(told(good).unwrap(), Told { slowest_ms: 12.5, errors: Vec::new() });
        let bad = format!("{good}\nError distribution:\n  [3]\tetcdserver: request timed out\n");
        assert_eq!(told(&bad).unwrap().errors, ["[3]\tetcdserver: request timed out"]);
        assert!(told("").is_err());
    }
}
