//! Objects and members that a person takes away, and promises of others that hold things up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, condition, conditions, text};
use crate::poll;

/// Long enough for the operator to do what it should not.
const TEMPTATION: Duration = Duration::from_secs(10);

/// Deleting a record means: retire and replace this member. Of the leader it means: hand over first.
pub async fn leader_record_deleted(cluster: &Cluster) -> Result<String> {
    let (leader, term) = cluster.leader().await?;
    cluster.mine(&["delete", "statefulset", &leader, "--wait=false"]).await?;
    let after = cluster.leader_after(term).await?;
    cluster.gone(&format!("statefulset/{leader}")).await?;
    Ok(format!("{leader} replaced, {after} leads"))
}

/// A record that vanishes without leaving takes nothing along: it comes back under the same name with the same volume and id.
pub async fn record_orphaned(cluster: &Cluster) -> Result<String> {
    let record = |set: &Value| (text(set, "/metadata/name"), text(set, "/metadata/uid"), member_id(set));
    let (name, uid, id) = record(&follower(cluster).await?);
    let none = r#"{"metadata":{"finalizers":null}}"#;
    cluster.mine(&["patch", "statefulset", &name, "--type=merge", "-p", none]).await?;
    cluster.mine(&["delete", "statefulset", &name, "--cascade=orphan"]).await?;
    let back = poll::until("the record to be back", LIMIT, POLL, async || {
        let sets = cluster.owned("statefulsets").await?;
        let found = sets.iter().map(record).find(|(n, u, _)| *n == name && *u != uid);
        found.context("there is no new record of that name")
    })
    .await?;
    ensure!(back.2 == id && !id.is_empty(), "{name} had the member id {id}, now {}", back.2);
    Ok(format!("{name} is member {id} again"))
}

pub fn member_id(set: &Value) -> String {
    text(set, "/metadata/annotations/quorate.dev~1member-id")
}

/// A record of a member that does not lead.
pub async fn follower(cluster: &Cluster) -> Result<Value> {
    let (leader, _) = cluster.leader().await?;
    let mut sets = cluster.owned("statefulsets").await?;
    sets.retain(|set| set["metadata"]["name"] != leader.as_str());
    sets.into_iter().next().context("there is no follower")
}

/// Names of members' records.
pub async fn names(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(cluster.owned("statefulsets").await?.iter().map(|s| text(s, "/metadata/name")).collect())
}

/// Waits until a member is replaced by one that was not there before, and gives the seconds it took.
pub(super) async fn replaced(cluster: &Cluster, before: &[String], victim: &str, since: Instant) -> Result<String> {
    let new = poll::until("a replacement", LIMIT, POLL, async || {
        let now = names(cluster).await?;
        ensure!(!now.iter().any(|n| n == victim), "{victim} still has its record");
        now.into_iter().find(|n| !before.contains(n)).context("no new record")
    })
    .await?;
    cluster.ready(3).await?;
    Ok(format!("{victim} replaced by {new} in {:.1} s", since.elapsed().as_secs_f64()))
}

/// Volume and pod are lost together: the member is replaced under a new id, never started on an empty disk.
pub async fn volume_lost(cluster: &Cluster) -> Result<String> {
    let before = names(cluster).await?;
    let victim = text(&follower(cluster).await?, "/metadata/name");
    let since = Instant::now();
    cluster.mine(&["delete", "pvc", &format!("{victim}-data"), "--wait=false"]).await?;
    cluster.mine(&["delete", "pod", &format!("{victim}-0"), "--grace-period=1"]).await?;
    replaced(cluster, &before, &victim, since).await
}

/// The claim alone: Kubernetes keeps it while its pod runs, and so does the member until another has caught up.
pub async fn claim_deleted(cluster: &Cluster) -> Result<String> {
    let before = names(cluster).await?;
    let victim = text(&follower(cluster).await?, "/metadata/name");
    let pod = format!("{victim}-0");
    let uid = async || Ok::<_, anyhow::Error>(cluster.pod(&pod).await?.map(|pod| text(&pod, "/metadata/uid")));
    let ran = uid().await?;
    let since = Instant::now();
    cluster.mine(&["delete", "pvc", &format!("{victim}-data"), "--wait=false"]).await?;
    poll::until("a replacement to come", LIMIT, POLL, async || {
        ensure!(names(cluster).await?.iter().any(|n| !before.contains(n)), "no new record");
        Ok(())
    })
    .await?;
    ensure!(uid().await? == ran, "{victim} was stopped before its replacement was there");
    replaced(cluster, &before, &victim, since).await
}

/// The same for the leader, with its pod killed.
pub async fn leader_volume_lost(cluster: &Cluster) -> Result<String> {
    let before = names(cluster).await?;
    let (victim, _) = cluster.leader().await?;
    let since = Instant::now();
    cluster.mine(&["delete", "pvc", &format!("{victim}-data"), "--wait=false"]).await?;
    cluster.mine(&["delete", "pod", &format!("{victim}-0"), "--grace-period=0", "--force"]).await?;
    replaced(cluster, &before, &victim, since).await
}

/// A member that was taken out by `etcdctl member remove` is not added again; another takes its place.
pub async fn removed_by_hand(cluster: &Cluster) -> Result<String> {
    let before = names(cluster).await?;
    let set = follower(cluster).await?;
    let (victim, id) = (text(&set, "/metadata/name"), member_id(&set));
    let since = Instant::now();
    // Asked of the leader: the member that leaves may close the connection before it has answered.
    cluster.exec(&["/etcdctl", "--endpoints=https://orders-leader:2379", "member", "remove", &id]).await?;
    let told = replaced(cluster, &before, &victim, since).await?;
    let list = cluster.etcdctl(&["member", "list"]).await?;
    ensure!(!list.contains(&id), "member {id} is back: {list}");
    Ok(told)
}

/// A member that somebody else added is reported and left alone; it blocks what would need its place, and nothing else.
pub async fn foreign_member(cluster: &Cluster) -> Result<String> {
    let id = add_stranger(cluster).await?;
    poll::until("the foreign member to be reported", LIMIT, POLL, async || {
        let events = cluster.mine(&["get", "events", "-o", "jsonpath={range .items[*]}{.reason}{'\\n'}{end}"]).await?;
        ensure!(events.lines().any(|l| l == "ForeignMember"), "no Event ForeignMember");
        Ok(())
    })
    .await?;
    ensure!(member_list(cluster).await?.contains(&id), "the stranger is gone");
    cluster.etcdctl(&["member", "remove", &id]).await?;
    Ok(format!("member {id}"))
}

async fn member_list(cluster: &Cluster) -> Result<String> {
    cluster.etcdctl(&["member", "list"]).await
}

/// Adds a learner that nobody runs, and gives its id.
async fn add_stranger(cluster: &Cluster) -> Result<String> {
    cluster.etcdctl(&["member", "add", "stranger", "--learner", "--peer-urls=https://stranger.invalid:2380"]).await?;
    id_of(&member_list(cluster).await?, |line| line.contains("stranger")).context("the stranger is not there")
}

fn id_of(list: &str, is_meant: impl Fn(&str) -> bool) -> Option<String> {
    let line = list.lines().find(|line| is_meant(line))?;
    line.split(',').next().map(|id| id.trim().to_owned())
}

/// One learner at a time: beside a stranger's nobody of ours is added, and growth goes on once it is gone.
pub async fn second_learner(cluster: &Cluster) -> Result<String> {
    let stranger = add_stranger(cluster).await?;
    cluster.scale(5).await?;
    poll::until("growth to be held up", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        ensure!(condition(&status, "Stalled") == "True", "{}", conditions(&status));
        Ok(())
    })
    .await?;
    tokio::time::sleep(TEMPTATION).await;
    let learners = member_list(cluster).await?.lines().filter(|line| line.trim_end().ends_with("true")).count();
    ensure!(learners == 1, "{learners} learners at the same time");
    let told = conditions(&cluster.status().await?);
    ensure!(told.contains(&stranger), "nobody is told about {stranger}: {told}");
    cluster.etcdctl(&["member", "remove", &stranger]).await?;
    cluster.ready(5).await?;
    cluster.scale(3).await?;
    cluster.ready(3).await?;
    Ok(format!("waited for {stranger} to go"))
}

/// A learner whose place in the configuration is taken away before it ever ran is made anew under another id.
pub async fn learner_removed(cluster: &Cluster) -> Result<String> {
    let before = names(cluster).await?;
    cluster.apply(&pods_at_most(4)).await?;
    cluster.scale(5).await?;
    let ours = |line: &str| line.contains(NAME) && !before.iter().any(|name| line.contains(name));
    let id = poll::until("a learner that has no room to run", LIMIT, POLL, async || {
        id_of(&member_list(cluster).await?, ours).context("no learner of ours")
    })
    .await?;
    cluster.exec(&["/etcdctl", "--endpoints=https://orders-leader:2379", "member", "remove", &id]).await?;
    cluster.mine(&["delete", "resourcequota", NO_MORE]).await?;
    cluster.ready(5).await?;
    ensure!(!member_list(cluster).await?.contains(&id), "member {id} is back");
    cluster.scale(3).await?;
    cluster.ready(3).await?;
    Ok(format!("{id} was taken out, another came"))
}

/// Services, the budget and the leader's endpoints come back.
pub async fn shared_objects(cluster: &Cluster) -> Result<String> {
    let member = text(&follower(cluster).await?, "/metadata/name");
    let slice = format!("endpointslice/{NAME}-leader");
    let all = [
        format!("service/{NAME}"),
        format!("service/{NAME}-peer"),
        format!("service/{NAME}-leader"),
        format!("service/{member}"),
        format!("poddisruptionbudget/{NAME}"),
        format!("networkpolicy/{NAME}"),
        slice,
    ];
    let mut told = Vec::new();
    for what in &all {
        let since = Instant::now();
        cluster.mine(&["delete", what]).await?;
        poll::until(&format!("{what} to be back"), LIMIT, POLL, async || {
            cluster.mine(&["get", what, "-o", "name"]).await.map(drop)
        })
        .await?;
        told.push(format!("{what} {:.0} s", since.elapsed().as_secs_f64()));
    }
    poll::until("the leader Service to answer", LIMIT, POLL, async || {
        cluster.exec(&["/etcdctl", "--endpoints=https://orders-leader:2379", "get", "from"]).await.map(drop)
    })
    .await?;
    Ok(told.join(", "))
}

/// A foreign finalizer holds a volume: the member is replaced all the same, and its record goes once it is let go.
pub async fn stuck_finalizer(cluster: &Cluster) -> Result<String> {
    let victim = text(&follower(cluster).await?, "/metadata/name");
    let claim = format!("pvc/{victim}-data");
    let hold = r#"[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/hold"}]"#;
    cluster.mine(&["patch", &claim, "--type=json", "-p", hold]).await?;
    cluster.mine(&["delete", "statefulset", &victim, "--wait=false"]).await?;
    poll::until("a replacement beside the volume that is held", LIMIT, POLL, async || {
        let status = cluster.status().await?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        ensure!(!members.iter().any(|m| m["name"] == victim.as_str() && m["ready"] == true), "{victim} still serves");
        ensure!(status["readyReplicas"] == 3, "{} ready", status["readyReplicas"]);
        Ok(())
    })
    .await?;
    let free = r#"{"metadata":{"finalizers":null}}"#;
    cluster.mine(&["patch", &claim, "--type=merge", "-p", free]).await?;
    cluster.gone(&format!("statefulset/{victim}")).await?;
    Ok(format!("{victim} replaced while its volume was held"))
}

const NO_MORE: &str = "no-more";

/// The writer's pod counts, too.
fn pods_at_most(count: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": NO_MORE}, "spec": {"hard": {"pods": count.to_string()}}})
}

/// No room for another pod: the learner waits, the voters serve, and growth goes on when there is room.
pub async fn quota(cluster: &Cluster) -> Result<String> {
    cluster.apply(&pods_at_most(4)).await?;
    cluster.scale(5).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let status = cluster.status().await?;
    ensure!(
        status["replicas"] == 3 && status["readyReplicas"] == 3,
        "voters, ready: {} {}",
        status["replicas"],
        status["readyReplicas"]
    );
    // A voter that goes meanwhile gets its place back: it is not another pod.
    cluster.mine(&["delete", "resourcequota", NO_MORE]).await?;
    cluster.ready(5).await?;
    cluster.scale(3).await?;
    cluster.ready(3).await
}

fn small(name: &str, replicas: u64) -> Value {
    json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "ConsistentCluster", "metadata": {"name": name},
        "spec": {"replicas": replicas, "storage": {"onClusterDelete": "Delete"}},
    })
}

/// Nothing of a cluster is left after it is deleted.
pub(super) async fn nothing_left(cluster: &Cluster, name: &str) -> Result<()> {
    let label = format!("quorate.dev/cluster={name}");
    poll::until(&format!("everything of {name} to be gone"), LIMIT, POLL, async || {
        let left = cluster
            .mine(&["get", "statefulset,pod,pvc,service,pdb,networkpolicy,secret", "-l", &label, "-o", "name"])
            .await?;
        ensure!(left.trim().is_empty(), "{}", left.trim().replace('\n', " "));
        Ok(())
    })
    .await
}

/// A cluster deleted while it is being made, at several moments.
pub async fn deleted_midway(cluster: &Cluster) -> Result<String> {
    for (nth, ms) in [0, 700, 2_500, 6_000].into_iter().enumerate() {
        let name = format!("short-{nth}");
        cluster.apply(&small(&name, 3)).await?;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        cluster.mine(&["delete", "cc", &name, "--timeout=120s"]).await?;
        nothing_left(cluster, &name).await?;
    }
    Ok("after 0, 0.7, 2.5 and 6 s".to_owned())
}

/// Volumes and pods of two of three are lost; the cluster cannot be asked any more, and is deleted all the same.
pub async fn deleted_without_quorum(cluster: &Cluster) -> Result<String> {
    let name = "doomed";
    cluster.apply(&small(name, 3)).await?;
    let is_up = format!("cc/{name}");
    cluster.mine(&["wait", "--for=condition=Ready", &is_up, "--timeout=180s"]).await?;
    let label = format!("quorate.dev/cluster={name}");
    let claims = cluster.mine(&["get", "pvc", "-l", &label, "-o", "name"]).await?;
    for claim in claims.lines().take(2) {
        let record = claim.rsplit('/').next().unwrap_or_default().trim_end_matches("-data").to_owned();
        cluster.mine(&["delete", claim, "--wait=false"]).await?;
        cluster.mine(&["delete", "pod", &format!("{record}-0"), "--grace-period=0", "--force"]).await?;
    }
    cluster.mine(&["wait", "--for=condition=Available=False", &is_up, "--timeout=60s"]).await?;
    let since = Instant::now();
    cluster.mine(&["delete", "cc", name, "--timeout=150s"]).await?;
    nothing_left(cluster, name).await?;
    Ok(format!("gone in {:.0} s", since.elapsed().as_secs_f64()))
}
