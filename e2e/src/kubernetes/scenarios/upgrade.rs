//! Upgrades between two builds that report different versions, and differ in something that waits for all members.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::beside::{beside, edit, object, up};
use crate::kubernetes::cluster::{Cluster, LIMIT, NAME, POLL, condition, conditions, text};
use crate::poll;

/// A cluster of its own, so that the one under test keeps its version.
const ELDER: &str = "elder";
const SERVICE: &str = "http://elder:2379";
/// Its writer: a pod, and where that keeps what it was acknowledged.
const WRITER: &str = "elder-writer";
/// What only the newer build can do, once every member runs it.
const REFUSED: [&str; 2] = ["is not implemented", "upgrade all of them first"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Open,
    Shut,
    Unknown,
}

struct Elder<'a> {
    cluster: &'a Cluster,
    older: String,
    newer: String,
}

impl Elder<'_> {
    async fn found(&self) -> Result<()> {
        let mut made = beside(ELDER, 3, json!({"size": "64Mi"}));
        made["spec"]["image"] = json!(self.older);
        made["spec"]["tls"] = json!({"client": {"mode": "Disabled"}, "peer": {"mode": "Disabled"}});
        self.cluster.apply(&made).await?;
        up(self.cluster, ELDER).await?;
        self.cluster.writer_pod(WRITER, SERVICE, None, &["--pause-ms=30", "--seconds-max=3600"]).await
    }

    async fn exec(&self, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", WRITER, "--", "/quorate-e2e"];
        args.extend(command);
        self.cluster.mine(&args).await
    }

    async fn nothing_lost(&self) -> Result<()> {
        self.exec(&["check", &format!("--endpoints={SERVICE}"), "--dir=/data/acks"]).await.map(drop)
    }

    async fn roll_to(&self, image: &str) -> Result<()> {
        edit(self.cluster, ELDER, json!({"image": image})).await
    }

    /// The members' pods that are not on their way out: name, image and when each was made.
    async fn pods(&self) -> Result<Vec<(String, String, String)>> {
        let path = format!(
            "/api/v1/namespaces/{}/pods?labelSelector=quorate.dev/cluster={ELDER}",
            self.cluster.args.namespace
        );
        let pods = self.cluster.api.items(&path).await?;
        let stays = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let told = |pod: &Value| {
            (
                text(pod, "/metadata/name"),
                text(pod, "/spec/containers/0/image"),
                text(pod, "/metadata/creationTimestamp"),
            )
        };
        Ok(stays.map(told).collect())
    }

    async fn running(&self, image: &str) -> Result<usize> {
        Ok(self.pods().await?.iter().filter(|(_, runs, _)| runs == image).count())
    }

    /// Versions as the status tells them.
    async fn versions(&self) -> Result<Vec<String>> {
        let status = object(self.cluster, ELDER).await?["status"].clone();
        let members = status["members"].as_array().cloned().unwrap_or_default();
        Ok(members.iter().map(|member| text(member, "/version")).collect())
    }

    /// Waits until every member runs the image and the cluster is well.
    async fn settled(&self, image: &str) -> Result<()> {
        poll::until(&format!("three members on {image}"), LIMIT, POLL, async || {
            let count = self.running(image).await?;
            ensure!(count == 3, "{count} pods run it");
            Ok(())
        })
        .await?;
        up(self.cluster, ELDER).await
    }

    /// Tries what waits for all members, and undoes it when it was done.
    async fn gate(&self) -> Result<Gate> {
        match self.exec(&["alarm", "raise", "--endpoint", SERVICE]).await {
            Ok(raised) => {
                let member = raised.trim().to_owned();
                self.exec(&["alarm", "lower", "--endpoint", SERVICE, "--member", &member]).await?;
                Ok(Gate::Open)
            }
            Err(error) if REFUSED.iter().any(|text| format!("{error:#}").contains(text)) => Ok(Gate::Shut),
            // The member that was asked goes away.
            Err(_) => Ok(Gate::Unknown),
        }
    }

    async fn gate_is_shut(&self) -> Result<()> {
        poll::until("a member to refuse", LIMIT, POLL, async || match self.gate().await? {
            Gate::Unknown => bail!("no member answered"),
            gate => Ok(gate),
        })
        .await
        .and_then(|gate| {
            ensure!(gate == Gate::Shut, "the gate is open to a build that does not know what is behind it");
            Ok(())
        })
    }

    /// Upgrades, trying the gate all the while. Gives how often it was shut while some members ran the newer build, and the
    /// order of the members.
    async fn upgrade(&self) -> Result<(usize, Vec<String>)> {
        let leads = text(&object(self.cluster, ELDER).await?, "/status/leader/name");
        self.roll_to(&self.newer).await?;
        let (mut shut, mut at_once) = (0, 0);
        let upgraded = poll::until("the gate to open", LIMIT, POLL, async || {
            let before = self.running(&self.newer).await?;
            let versions: BTreeSet<String> = self.versions().await?.into_iter().collect();
            let gate = self.gate().await?;
            let after = self.running(&self.newer).await?;
            if before > 0 && after < 3 {
                shut += usize::from(gate == Gate::Shut);
                at_once = at_once.max(versions.len());
            }
            ensure!(gate == Gate::Open, "{after} of three members run {}, versions {versions:?}", self.newer);
            Ok(after)
        })
        .await?;
        ensure!(upgraded == 3, "it was done while {upgraded} of three members ran the newer build");
        ensure!(at_once > 1, "the status never told of two versions at one time");
        ensure!(shut > 0, "nobody was refused while the members differed");
        self.settled(&self.newer).await?;
        let mut order = self.pods().await?;
        order.sort_by_key(|(_, _, made)| made.clone());
        let order: Vec<String> = order.into_iter().map(|(name, ..)| name).collect();
        ensure!(order.last() == Some(&format!("{leads}-0")), "{leads} led, and the order was {order:?}");
        Ok((shut, order))
    }
}

/// From the older build to the newer one: canary first, leader last, and what only the newer one knows is refused until the
/// end. Going back is free before that, and stops at one member afterwards.
pub async fn two_builds(cluster: &Cluster) -> Result<String> {
    let older = cluster.args.previous_image.clone().context("needs --previous-image")?;
    let newer = text(&cluster.custom_resource().await?, "/spec/image");
    let elder = Elder { cluster, older, newer };
    elder.found().await?;
    elder.gate_is_shut().await?;
    let old: BTreeSet<String> = elder.versions().await?.into_iter().collect();

    // Back before the end: nothing was agreed on, so nothing stands against it.
    elder.roll_to(&elder.newer).await?;
    poll::until("a canary", LIMIT, POLL, async || {
        let versions = elder.versions().await?;
        ensure!(versions.iter().any(|version| !version.is_empty() && !old.contains(version)), "{versions:?}");
        Ok(())
    })
    .await?;
    elder.roll_to(&elder.older).await?;
    elder.settled(&elder.older).await?;
    elder.gate_is_shut().await?;

    let (shut, order) = elder.upgrade().await?;
    elder.nothing_lost().await?;
    let new: BTreeSet<String> = elder.versions().await?.into_iter().collect();
    ensure!(old.len() == 1 && new.len() == 1 && old != new, "versions were {old:?}, now {new:?}");

    // Back after the end: the first member to try refuses, and the others are left alone.
    elder.roll_to(&elder.older).await?;
    let reason = poll::until("the older build to be refused", LIMIT, POLL, async || {
        let status = object(cluster, ELDER).await?["status"].clone();
        let told = conditions(&status);
        ensure!(condition(&status, "Ready") == "False" && told.contains("CrashLoopBackOff"), "{told}");
        said_why(&elder).await
    })
    .await?;
    let kept = elder.running(&elder.newer).await?;
    ensure!(kept == 2, "{kept} of three members still run {}", elder.newer);
    elder.nothing_lost().await?;
    elder.roll_to(&elder.newer).await?;
    elder.settled(&elder.newer).await?;

    elder.nothing_lost().await?;
    elder.exec(&["stop-writer", "/data/stop"]).await?;
    poll::until("the writer's own verdict", LIMIT, POLL, async || {
        let phase = text(&cluster.pod(WRITER).await?.unwrap_or_default(), "/status/phase");
        ensure!(phase != "Failed", "the writer of {ELDER} lost something");
        ensure!(phase == "Succeeded", "the writer is {phase}");
        Ok(())
    })
    .await?;
    cluster.mine(&["delete", "pod", WRITER]).await?;
    cluster.mine(&["delete", "cc", ELDER, "--timeout=140s"]).await?;
    Ok(format!("{old:?} to {new:?} beside {NAME}: refused {shut} times midway, order {order:?}; back: {reason}"))
}

/// What the member that must not start says.
async fn said_why(elder: &Elder<'_>) -> Result<String> {
    let pods = elder.pods().await?;
    let (pod, ..) = pods.iter().find(|(_, image, _)| *image == elder.older).context("no pod runs the older build")?;
    let log = elder.cluster.mine(&["logs", pod, "--tail=20"]).await?;
    let line = log.lines().rev().find(|line| line.contains("has agreed on version"));
    let line = line.with_context(|| format!("{pod} does not say why it stops: {log}"))?;
    let from = line.find("the cluster").unwrap_or_default();
    Ok(line[from..].chars().take(160).collect())
}
