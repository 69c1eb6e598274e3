//! Edits of the spec, good and bad.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::basic::volumes;
use crate::kubernetes::audit;
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, condition, conditions, text};
use crate::poll;

/// Long enough for the operator to do what it should not.
const TEMPTATION: Duration = Duration::from_secs(12);

/// Restarts every member by a change of its template, and switches budget and NetworkPolicy off and on again beside it.
pub async fn config_roll(cluster: &Cluster) -> Result<String> {
    let (leader, term) = cluster.leader().await?;
    let before = pods(cluster).await?;
    let off = json!({"podDisruptionBudget": "Disabled"});
    let policy = format!("networkpolicy/{NAME}");
    cluster.mine(&["get", &policy]).await?;
    let edit = json!({
        "resources": {"requests": {"cpu": "20m"}}, "disruption": off, "network": {"policy": "Disabled"},
    });
    cluster.edit(edit).await?;
    rolled(cluster, &before).await?;
    let after = pods(cluster).await?;
    let last = after.iter().max_by_key(|pod| pod.created.clone()).map(|pod| pod.name.clone());
    let (_, now) = cluster.leader().await?;
    let is_last = last.as_deref() == Some(&format!("{leader}-0"));
    // One hand-over is one term. More, and it was somebody else who led in the end.
    ensure!(is_last || now > term + 1, "{leader} led but {last:?} was rolled last");
    cluster.gone(&policy).await?;
    cluster.edit(json!({"disruption": {"podDisruptionBudget": "Enabled"}, "network": {"policy": null}})).await?;
    Ok(if is_last { format!("{leader} last") } else { format!("elections between, terms {term} to {now}") })
}

#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub created: String,
    pub node: String,
    pub args: Vec<String>,
}

/// The members' pods.
pub async fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pods = cluster.owned("pods").await?;
    let list =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    let pod = |p: &Value| Pod {
        name: text(p, "/metadata/name"),
        uid: text(p, "/metadata/uid"),
        created: text(p, "/metadata/creationTimestamp"),
        node: text(p, "/spec/nodeName"),
        args: list(&p["spec"]["containers"][0]["args"]),
    };
    Ok(pods.iter().map(pod).collect())
}

/// Waits until none of these pods is left and all members are well.
pub(super) async fn rolled(cluster: &Cluster, before: &[Pod]) -> Result<()> {
    poll::until("every pod to be new", LIMIT, POLL, async || {
        let old = pods(cluster).await?.iter().filter(|pod| before.iter().any(|b| b.uid == pod.uid)).count();
        ensure!(old == 0, "{old} old pods");
        Ok(())
    })
    .await?;
    let count = u64::try_from(before.len())?;
    cluster.ready(count).await.map(drop)
}

pub async fn scale_flip(cluster: &Cluster) -> Result<String> {
    cluster.scale(5).await?;
    cluster.voters_at_least(4).await?;
    cluster.scale(3).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.scale(5).await?;
    cluster.ready(5).await?;
    back_to_three(cluster).await
}

/// An edit taken back before anything came of it leaves no learner behind.
pub async fn scale_flip_at_once(cluster: &Cluster) -> Result<String> {
    for _ in 0..3 {
        cluster.scale(5).await?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        cluster.scale(3).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    back_to_three(cluster).await
}

pub(super) async fn back_to_three(cluster: &Cluster) -> Result<String> {
    cluster.scale(3).await?;
    cluster.ready(3).await?;
    volumes(cluster, 3).await?;
    let records = cluster.owned("statefulsets").await?.len();
    ensure!(records == 3, "{records} records for three members");
    Ok(String::new())
}

pub async fn scale_1_7_3(cluster: &Cluster) -> Result<String> {
    for size in [1, 7] {
        cluster.scale(size).await?;
        cluster.ready(size).await?;
    }
    back_to_three(cluster).await
}

pub async fn pause(cluster: &Cluster) -> Result<String> {
    let (leader, _) = cluster.leader().await?;
    cluster.edit(json!({"paused": true, "replicas": 5})).await?;
    let before = records(cluster).await?;
    tokio::time::sleep(TEMPTATION).await;
    ensure!(records(cluster).await? == before, "records were changed while paused");
    let told = cluster.status().await?;
    ensure!(
        condition(&told, "Ready") != "True",
        "five are wanted, three are there, and Ready is True: {}",
        conditions(&told)
    );
    // Without the operator a pod comes back too.
    cluster.mine(&["delete", "pod", &format!("{leader}-0")]).await?;
    cluster.edit(json!({"paused": false})).await?;
    cluster.ready(5).await?;
    back_to_three(cluster).await
}

/// Everybody stops, and the same members come back with everything they had.
pub async fn sleep_and_wake(cluster: &Cluster) -> Result<String> {
    let before = cluster.status().await?;
    let ids = member_ids(cluster).await?;
    cluster.scale(0).await?;
    poll::until("everybody to be stopped", LIMIT, POLL, async || {
        let (status, left) = (cluster.status().await?, pods(cluster).await?.len());
        let told = [condition(&status, "Ready"), condition(&status, "Available")];
        ensure!(
            left == 0 && told == ["True", "False"] && status["replicas"] == 0,
            "{left} pods; {}",
            conditions(&status)
        );
        Ok(())
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    volumes(cluster, 3).await?;
    ensure!(pods(cluster).await?.is_empty(), "somebody was started while all are to be stopped");
    let since = std::time::Instant::now();
    cluster.scale(3).await?;
    cluster.ready(3).await?;
    let awake = since.elapsed().as_secs_f64();
    let after = cluster.status().await?;
    for field in ["clusterID", "incarnation"] {
        ensure!(before[field] == after[field], "{field} was {}, now {}", before[field], after[field]);
    }
    ensure!(member_ids(cluster).await? == ids, "members have other ids than before");
    Ok(format!("awake in {awake:.1} s"))
}

async fn member_ids(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let sets = cluster.owned("statefulsets").await?;
    Ok(sets.iter().map(|s| (text(s, "/metadata/name"), super::hands::member_id(s))).collect())
}

async fn records(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let sets = cluster.owned("statefulsets").await?;
    Ok(sets.iter().map(|s| (text(s, "/metadata/name"), s["spec"].clone())).collect())
}

/// One member tries the image that is not there, the others stay; taking it back needs no hands.
pub async fn bad_image(cluster: &Cluster) -> Result<String> {
    let image = cluster.custom_resource().await?["spec"]["image"].clone();
    let before = pods(cluster).await?;
    bad_template(cluster, &before, json!({"image": "quorate:none-such"}), json!({"image": image})).await
}

/// The same with a pod that fits on no node.
pub async fn unschedulable(cluster: &Cluster) -> Result<String> {
    let before = pods(cluster).await?;
    // Null takes a field away; a merge would leave it otherwise.
    let good = cluster.custom_resource().await?["spec"]["resources"]["requests"]["cpu"].clone();
    let cpu = |cpu: Value| json!({"resources": {"requests": {"cpu": cpu}}});
    bad_template(cluster, &before, cpu(json!("500")), cpu(good)).await
}

async fn bad_template(cluster: &Cluster, before: &[Pod], bad: Value, good: Value) -> Result<String> {
    cluster.edit(bad).await?;
    poll::until("the first member to be refused", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        let stopped = condition(&status, "Stalled") == "True";
        let left = untouched(cluster, before).await?;
        ensure!(left < before.len() && stopped, "{left} untouched; {}", conditions(&status));
        Ok(())
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    let left = untouched(cluster, before).await?;
    ensure!(
        left + 1 == before.len(),
        "{left} of {} members are untouched by a template that cannot start",
        before.len()
    );
    let told = conditions(&cluster.status().await?);
    cluster.edit(good).await?;
    cluster.ready(u64::try_from(before.len())?).await?;
    Ok(told.split(", ").find(|c| c.starts_with("Ready=")).unwrap_or_default().to_owned())
}

async fn untouched(cluster: &Cluster, before: &[Pod]) -> Result<usize> {
    let now = pods(cluster).await?;
    Ok(before.iter().filter(|b| now.iter().any(|n| n.uid == b.uid)).count())
}

/// A learner whose pod cannot start hurts nobody, and goes on once the spec is corrected.
pub async fn learner_bad_image(cluster: &Cluster) -> Result<String> {
    let image = cluster.custom_resource().await?["spec"]["image"].clone();
    let before = pods(cluster).await?;
    cluster.edit(json!({"replicas": 5, "image": "quorate:none-such"})).await?;
    tokio::time::sleep(TEMPTATION).await;
    let left = untouched(cluster, &before).await?;
    ensure!(left == 3, "{left} of three voters are untouched while the learner cannot start");
    cluster.edit(json!({"image": image})).await?;
    cluster.ready(5).await?;
    back_to_three(cluster).await
}

/// Each field alone reaches the members.
pub async fn each_field(cluster: &Cluster) -> Result<String> {
    let before = pods(cluster).await?;
    cluster.edit(json!({"timing": {"profile": "WAN"}})).await?;
    rolled(cluster, &before).await?;
    let slow = pods(cluster).await?;
    ensure!(slow.iter().all(|p| p.args.iter().any(|a| a == "--election-timeout=1000")), "the timing is not applied");
    cluster.edit(json!({"timing": {"profile": "LAN"}, "resources": {"limits": {"memory": "512Mi"}}})).await?;
    rolled(cluster, &slow).await?;
    for pod in cluster.owned("pods").await? {
        let limit = text(&pod, "/spec/containers/0/resources/limits/memory");
        ensure!(limit == "512Mi", "the memory limit is {limit:?}");
    }
    Ok("timing, resources".to_owned())
}

/// Labels, budgets and re-applied manifests restart and rewrite nothing.
pub async fn reapply(cluster: &Cluster) -> Result<String> {
    let before = (pods(cluster).await?, records(cluster).await?);
    let manifest = cluster.custom_resource().await?;
    let spec = json!({"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": {"name": NAME}, "spec": manifest["spec"]});
    for _ in 0..3 {
        cluster.apply(&spec).await?;
    }
    cluster.mine(&["label", &format!("cc/{NAME}"), "team=a", "--overwrite"]).await?;
    tokio::time::sleep(TEMPTATION).await;
    let after = (pods(cluster).await?, records(cluster).await?);
    ensure!(before == after, "re-applying the same manifest changed members");
    Ok(String::new())
}

/// While nothing changes, the operator writes its Lease and, twice a minute, the numbers that move.
pub async fn quiet(cluster: &Cluster) -> Result<String> {
    const STATUS_WRITES_MAX: usize = 2;
    let Some(path) = cluster.args.audit_log.as_deref() else { return Ok("not checked: needs --audit-log".to_owned()) };
    tokio::time::sleep(TEMPTATION).await;
    let from = std::fs::metadata(path)?.len();
    tokio::time::sleep(Duration::from_secs(40)).await;
    let user = format!("system:serviceaccount:{}:quorate-operator", cluster.args.operator_namespace);
    let requests = audit::read(path, from, &[&user])?;
    let reads = ["get", "list", "watch"];
    let writes = requests.iter().filter(|r| !reads.contains(&r.verb.as_str()) && r.resource != "leases");
    let (status, others): (Vec<_>, Vec<_>) = writes.partition(|r| r.subresource == "status");
    let shown: Vec<_> = others.iter().map(|r| format!("{} {} {}", r.verb, r.resource, r.name)).collect();
    ensure!(shown.is_empty(), "nothing changed, and yet: {}", shown.join(", "));
    ensure!(
        status.len() <= STATUS_WRITES_MAX,
        "nothing changed, and yet the status was written {} times",
        status.len()
    );
    Ok(format!("{} status writes and {} reads in 40 s", status.len(), requests.len() - status.len()))
}

/// Specs nobody in his senses would write: refused with a reason, or carried out; the API server and the operator live on.
pub async fn hostile(cluster: &Cluster) -> Result<String> {
    let long = "x".repeat(70_000);
    let deep = (0..200).fold(json!(1), |inner, _| json!({ "a": inner }));
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e30),
        json!(""),
        json!("\u{0}"),
        json!("🦀"),
        json!([]),
        json!({}),
        json!(long),
        deep,
    ];
    let fields = [
        "/replicas",
        "/image",
        "/paused",
        "/storage/size",
        "/storage/storageClassName",
        "/storage/onClusterDelete",
        "/timing/profile",
        "/timing/heartbeat",
        "/timing/election",
        "/resources/requests/cpu",
        "/resources/limits/memory",
        "/disruption/podDisruptionBudget",
    ];
    let path = format!("/apis/quorate.dev/v1alpha1/namespaces/{}/consistentclusters", cluster.args.namespace);
    let (mut refused, mut taken) = (0, Vec::new());
    for (f, field) in fields.iter().enumerate() {
        for (o, value) in odd.iter().enumerate() {
            let mut spec = json!({"replicas": 1, "paused": true, "storage": {}, "timing": {}, "resources": {"requests": {}, "limits": {}}, "disruption": {}});
            let (parent, key) = field.rsplit_once('/').unwrap_or(("", field));
            spec.pointer_mut(parent).expect("every parent is in the spec")[key] = value.clone();
            let name = format!("hostile-{f}-{o}");
            let body = json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster", "metadata": {"name": name}, "spec": spec});
            match cluster.api.post(&path, &body).await {
                Ok(_) => taken.push((name, *field, value.to_string().chars().take(20).collect::<String>())),
                Err(_) => refused += 1,
            }
        }
    }
    let names: Vec<&str> = taken.iter().map(|(name, ..)| name.as_str()).collect();
    // Whatever was accepted is paused: it may have nothing but a status.
    let sets = cluster.api.items(&format!("/apis/apps/v1/namespaces/{}/statefulsets", cluster.args.namespace)).await?;
    let strays = sets.iter().filter(|s| text(s, "/metadata/name").starts_with("hostile")).count();
    for chunk in names.chunks(20) {
        let mut delete = vec!["delete", "cc", "--timeout=60s"];
        delete.extend(chunk);
        cluster.mine(&delete).await?;
    }
    ensure!(refused > 0, "nothing was refused");
    // A null stands for a field that is absent: defaults apply.
    let odd: Vec<_> = taken.iter().filter(|(_, _, value)| !matches!(value.as_str(), "null" | "{}")).collect();
    Ok(format!(
        "{refused} refused, {} taken as defaults or values, {} others {odd:?}, {strays} records",
        taken.len() - odd.len(),
        odd.len()
    ))
}
