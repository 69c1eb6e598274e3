//! Tells what a pass found: the status, Events, and the addresses behind the leader's and the members' Services. Decides nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use quorate_api::{ConditionStatus, ConsistentCluster, ConsistentClusterStatus, names, status_differs};
use quorate_plan::{Identity, Intent, Presence};
use serde_json::json;

use super::act::by;
use super::cache::Cache;
use super::objects::{self, LeaderEndpoint};
use super::observe::leader_endpoint;
use super::request::{MANAGER, timed, verdict};
use crate::events::{self, Note, Severity};
use crate::reconcile::Pass;
use crate::world::{ActError, EndingPod};

/// Numbers that move all the time reach the status this often when nothing else changes.
const VOLATILE_EVERY: Duration = Duration::from_secs(30);

pub(super) struct Teller {
    client: Client,
    reporter: Reporter,
    /// What each cluster was told, by UID.
    told: Mutex<HashMap<String, Told>>,
}

#[derive(Debug, Default)]
struct Told {
    news: events::Told,
    /// When the status was last written.
    wrote: Option<Instant>,
}

impl Teller {
    pub fn new(client: Client, instance: &str) -> Teller {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(instance.to_owned()) };
        Teller { reporter, client, told: Mutex::default() }
    }

    pub async fn tell(&self, cluster: &ConsistentCluster, intent: &Intent, pass: &Pass) -> Result<(), kube::Error> {
        let identity = intent.identity();
        for note in self.told(&identity.uid, |told| told.news.hear(cluster.status.as_ref(), pass)) {
            match self.publish(cluster, &note).await {
                Ok(()) => self.told(&identity.uid, |told| told.news.is_published(note)),
                Err(error) => tracing::warn!(reason = note.reason, "an Event was not published: {error}"),
            }
        }
        if let Err(error) = self.point_to_leader(identity, pass).await {
            tracing::warn!(cluster = identity.name, "the leader Service was not updated: {error}");
        }
        if !is_left_alone(cluster, intent) {
            for pod in &pass.seen.ending {
                self.send_nobody_to(identity, pod).await;
            }
        }
        self.write_status(cluster, identity, pass).await
    }

    async fn publish(&self, cluster: &ConsistentCluster, note: &Note) -> Result<(), kube::Error> {
        let event = Event {
            type_: match note.severity {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: note.reason.to_owned(),
            // The API server takes no more.
            note: Some(note.text.chars().take(1_000).collect()),
            action: note.reason.to_owned(),
            secondary: None,
        };
        let regarding = cluster.object_ref(&());
        // A recorder that is kept would fold this into an earlier Event of the same reason, and lose which member it is about.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        timed(recorder.publish(&event, &regarding)).await
    }

    /// The leader Service has an endpoint only while its leader serves, as far as anybody can be asked.
    async fn point_to_leader(&self, identity: &Identity, pass: &Pass) -> Result<(), kube::Error> {
        let objects = &pass.seen.observation.objects;
        if objects.applied_hash.is_none() || objects.finalizer == Presence::Absent {
            return Ok(());
        }
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &identity.namespace);
        let name = names::leader_service(&identity.name);
        // Read each time: somebody may have deleted or changed it.
        let live = timed(api.get_opt(&name)).await?;
        let leader = match leads_to(&pass.status, live.as_ref()) {
            Some(record) => self.endpoint(identity, &record).await?,
            None => None,
        };
        let slice = slice(identity, &pass.status, leader, live.as_ref());
        if live.is_some_and(|live| objects::points_alike(&live, &slice)) {
            return Ok(());
        }
        timed(api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&slice))).await.map(drop)
    }

    /// The Service of a member leads to its pod whether that is ready or not, or members could not find each other at first; and so
    /// it would lead to the pod's address for a while after nobody answers there any more. A client that dials it then waits for up to
    /// twenty seconds before it tries again. While nothing is behind the Service it is refused at once. Connections that stand go on.
    async fn send_nobody_to(&self, identity: &Identity, pod: &EndingPod) {
        let api = Api::<Pod>::namespaced(self.client.clone(), &identity.namespace);
        let unlabel = json!({"metadata": {"uid": pod.uid, "labels": {names::LABEL_INCARNATION: null}}});
        if let Err(error) = timed(api.patch(&pod.name, &by(MANAGER), &Patch::Merge(&unlabel))).await
            && let ActError::Failed(why) = verdict("the pod", &error)
        {
            tracing::warn!(pod = pod.name, "its Service still leads to a pod that ends: {why}");
        }
    }

    async fn endpoint(&self, identity: &Identity, record: &str) -> Result<Option<LeaderEndpoint>, kube::Error> {
        let name = names::pod(record);
        let pod = timed(Api::<Pod>::namespaced(self.client.clone(), &identity.namespace).get_opt(&name)).await?;
        Ok(pod.as_ref().and_then(leader_endpoint))
    }

    async fn write_status(
        &self,
        cluster: &ConsistentCluster,
        identity: &Identity,
        pass: &Pass,
    ) -> Result<(), kube::Error> {
        let differs = cluster.status.as_ref().is_none_or(|old| status_differs(old, &pass.status));
        let wrote = self.told(&identity.uid, |told| told.wrote);
        let is_due = wrote.is_none_or(|at| at.elapsed() >= VOLATILE_EVERY);
        if !differs && !is_due {
            self.told(&identity.uid, |told| told.news.is_in_status());
            return Ok(());
        }
        let body = json!({
            "apiVersion": ConsistentCluster::api_version(&()), "kind": ConsistentCluster::kind(&()),
            // A namesake made since then gets a conflict, not somebody else's status.
            "metadata": {"name": identity.name, "uid": identity.uid},
            "status": pass.status,
        });
        let api = Api::<ConsistentCluster>::namespaced(self.client.clone(), &identity.namespace);
        let params = PatchParams::apply(MANAGER).force();
        match timed(api.patch_status(&identity.name, &params, &Patch::Apply(&body))).await {
            Ok(_) => {}
            // Gone, which is what a finished deletion looks like.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.told(&identity.uid, |told| {
            told.wrote = Some(Instant::now());
            told.news.is_in_status();
        });
        Ok(())
    }

    /// The cluster is gone.
    pub fn forget(&self, uid: &str) {
        self.told.lock().expect("no panic happens while this is noted").remove(uid);
    }

    fn told<T>(&self, uid: &str, look: impl FnOnce(&mut Told) -> T) -> T {
        look(self.told.lock().expect("no panic happens while this is noted").entry(uid.to_owned()).or_default())
    }
}

/// Nothing of it is changed: it is paused, or goes as a whole.
fn is_left_alone(cluster: &ConsistentCluster, intent: &Intent) -> bool {
    cluster.spec.paused || matches!(intent, Intent::Delete(_))
}

fn leader_serves(status: &ConsistentClusterStatus) -> ConditionStatus {
    status.condition("LeaderServing").map_or(ConditionStatus::False, |c| c.status)
}

/// The record that the leader Service leads to: of the leader, while it serves. Where nobody could be asked, whoever it led to:
/// that the operator is cut off says nothing about the leader.
fn leads_to(status: &ConsistentClusterStatus, now: Option<&EndpointSlice>) -> Option<String> {
    match leader_serves(status) {
        ConditionStatus::True => status.leader.as_ref().map(|leader| leader.name.clone()),
        ConditionStatus::False => None,
        ConditionStatus::Unknown => {
            let pod = now?.endpoints.first()?.target_ref.as_ref()?.name.as_deref()?;
            pod.strip_suffix("-0").map(str::to_owned)
        }
    }
}

/// What is to stand behind the leader Service, which stood at `now`. Without a word of a leader, only the very address that it led to.
fn slice(
    identity: &Identity,
    status: &ConsistentClusterStatus,
    leader: Option<LeaderEndpoint>,
    now: Option<&EndpointSlice>,
) -> EndpointSlice {
    let led = objects::leader_slice(identity, leader.as_ref());
    let is_same = || now.is_some_and(|now| objects::points_alike(now, &led));
    if leader_serves(status) != ConditionStatus::Unknown || is_same() {
        return led;
    }
    objects::leader_slice(identity, None)
}

/// Whether all that a glance shows is told already: the status says it, the leader Service leads there, and no other to a pod that ends.
pub(super) fn is_told(cache: &Cache, cluster: &ConsistentCluster, intent: &Intent, pass: &Pass) -> bool {
    let identity = intent.identity();
    let now = cache.leader_slice(identity);
    let leader = leads_to(&pass.status, now.as_deref()).and_then(|record| cache.endpoint(identity, &record));
    let slice = slice(identity, &pass.status, leader, now.as_deref());
    let leads_there = now.is_some_and(|there| objects::points_alike(&there, &slice));
    let is_hidden = pass.seen.ending.is_empty() || is_left_alone(cluster, intent);
    leads_there && is_hidden && cluster.status.as_ref().is_some_and(|told| !status_differs(told, &pass.status))
}

#[cfg(test)]
mod tests {
    use quorate_api::{Condition, LeaderStatus};

    use super::*;
    use crate::kubernetes::testing;

    #[test]
    fn the_leader_service_stays_where_it_was_while_nobody_can_be_asked() {
        let identity = testing::identity();
        let status = |serving: ConditionStatus| {
            let condition = Condition {
                kind: "LeaderServing".to_owned(),
                status: serving,
                observed_generation: None,
                last_transition_time: String::new(),
                reason: "X".to_owned(),
                message: String::new(),
            };
            let leader = LeaderStatus { name: "orders-b".to_owned(), ..LeaderStatus::default() };
            ConsistentClusterStatus {
                conditions: vec![condition],
                leader: Some(leader),
                ..ConsistentClusterStatus::default()
            }
        };
        let at = |record: &str, ip: &str| LeaderEndpoint { pod: names::pod(record), ip: ip.to_owned(), node: None };
        let now = objects::leader_slice(&identity, Some(&at("orders-a", "10.0.0.1")));
        let (yes, no, unknown) = (ConditionStatus::True, ConditionStatus::False, ConditionStatus::Unknown);
        assert_eq!(leads_to(&status(yes), Some(&now)).as_deref(), Some("orders-b"));
        assert_eq!(leads_to(&status(no), Some(&now)), None);
        assert_eq!(leads_to(&status(unknown), Some(&now)).as_deref(), Some("orders-a"));
        assert_eq!(leads_to(&status(unknown), None), None);
        let may = |serving, leader| !slice(&identity, &status(serving), Some(leader), Some(&now)).endpoints.is_empty();
        assert!(may(yes, at("orders-b", "10.0.0.2")));
        assert!(may(unknown, at("orders-a", "10.0.0.1")));
        assert!(!may(unknown, at("orders-a", "10.0.0.9")), "a pod that was made anew does not lead for its name");
    }
}
