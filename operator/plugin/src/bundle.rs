//! The support bundle: what those who help ask for first, in one file. No Secret is put into it.
//!
//! What cannot be read is named in the bundle and stops nothing: a bundle is made when things are broken.

use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, LogParams};
use kube::{Api, Client};
use quorate_api::names;
use quorate_plan::{Intent, plan};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::connect::{Connection, Found};
use crate::logs;
use crate::observe;
use crate::paint::Paint;
use crate::planned::{Planned, doubts};
use crate::screen;

/// The operator's own pods, wherever they are.
const OPERATOR: &str = "app.kubernetes.io/name=quorate-operator";

/// Files of a bundle as they come together.
struct Bundle {
    folder: String,
    archive: tar::Builder<GzEncoder<File>>,
    unread: Vec<String>,
    files: u32,
    seconds: u64,
}

/// Writes the bundle; returns how many files are in it and what could not be read.
///
/// # Errors
/// The cluster cannot be read at all, or the file not be written.
pub async fn write(connection: &Connection, name: &str, path: &Path, tail: u32) -> Result<(u32, Vec<String>)> {
    let found = connection.found(name).await?;
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut bundle = Bundle {
        folder: format!("{name}-report"),
        archive: tar::Builder::new(GzEncoder::new(file, Compression::default())),
        unread: Vec::new(),
        files: 0,
        seconds,
    };
    let now_ms = i64::try_from(seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
    bundle.add("status.txt", &screen::screen(&found.cluster, now_ms, Paint::NONE))?;
    bundle.add("cluster.yaml", &yaml(&found.cluster)?)?;
    bundle.add("objects/statefulsets.yaml", &yaml(&found.records)?)?;
    bundle.add("objects/pods.yaml", &yaml(&found.pods)?)?;
    objects(&mut bundle, connection, &found).await?;
    events(&mut bundle, connection, name).await?;
    words(&mut bundle, connection, &found, seconds).await?;
    member_logs(&mut bundle, connection, &found, tail).await?;
    operator(&mut bundle, &connection.client, tail).await?;
    bundle.finish()
}

impl Bundle {
    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(self.seconds);
        self.files += 1;
        Ok(self.archive.append_data(&mut header, format!("{}/{name}", self.folder), text.as_bytes())?)
    }

    fn unread(&mut self, what: &str, error: &dyn std::fmt::Display) {
        self.unread.push(format!("{what}: {error}"));
    }

    fn finish(mut self) -> Result<(u32, Vec<String>)> {
        let unread = std::mem::take(&mut self.unread);
        if !unread.is_empty() {
            self.add("could-not-be-read.txt", &(unread.join("\n") + "\n"))?;
        }
        self.archive.into_inner()?.finish()?.sync_all()?;
        Ok((self.files, unread))
    }
}

/// An object as people read it: without the bookkeeping of who owns which field.
fn yaml(object: &impl Serialize) -> Result<String> {
    let mut value = serde_json::to_value(object)?;
    strip(&mut value);
    Ok(serde_yaml_ng::to_string(&value)?)
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(_) => {
            if let Some(meta) = value["metadata"].as_object_mut() {
                meta.remove("managedFields");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

async fn objects(bundle: &mut Bundle, connection: &Connection, found: &Found) -> Result<()> {
    let own = ListParams::default().labels(&names::selector(found.cluster.metadata.uid.as_deref().unwrap_or_default()));
    listed::<PersistentVolumeClaim>(bundle, connection, "persistentvolumeclaims", &own).await?;
    listed::<Service>(bundle, connection, "services", &own).await?;
    listed::<EndpointSlice>(bundle, connection, "endpointslices", &own).await?;
    listed::<PodDisruptionBudget>(bundle, connection, "poddisruptionbudgets", &own).await
}

async fn listed<K>(bundle: &mut Bundle, connection: &Connection, plural: &str, own: &ListParams) -> Result<()>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
    K::DynamicType: Default,
{
    match Api::<K>::namespaced(connection.client.clone(), &connection.namespace).list(own).await {
        Ok(list) => bundle.add(&format!("objects/{plural}.yaml"), &yaml(&list.items)?),
        Err(error) => {
            bundle.unread(plural, &error);
            Ok(())
        }
    }
}

/// Events about the cluster and about everything that carries its name.
async fn events(bundle: &mut Bundle, connection: &Connection, name: &str) -> Result<()> {
    let api = Api::<Event>::namespaced(connection.client.clone(), &connection.namespace);
    let list = match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) => {
            bundle.unread("events", &error);
            return Ok(());
        }
    };
    let about = |event: &&Event| is_about(name, event.involved_object.name.as_deref().unwrap_or_default());
    let mut lines: Vec<String> = list.iter().filter(about).map(event_line).collect();
    lines.sort();
    bundle.add("events.txt", &(lines.join("\n") + "\n"))
}

/// Whether an object of this name can be one of the cluster's: its own, or a member's.
fn is_about(cluster: &str, object: &str) -> bool {
    let shared = [
        names::client_service,
        names::peer_service,
        names::leader_service,
        names::authority_secret,
        names::admin_secret,
        names::client_secret,
    ];
    let rest = object.strip_prefix(cluster).and_then(|rest| rest.strip_prefix('-'));
    let member = rest.and_then(|rest| rest.split('-').next()).map(|suffix| format!("{cluster}-{suffix}"));
    shared.iter().any(|name| name(cluster) == object) || member.is_some_and(|name| names::is_member_of(cluster, &name))
}

fn event_line(event: &Event) -> String {
    let time = event.event_time.as_ref().map(|t| t.0.to_string());
    let time = time.or_else(|| event.last_timestamp.as_ref().map(|t| t.0.to_string()));
    let object = &event.involved_object;
    format!(
        "{} {} {}/{} {}: {}",
        time.unwrap_or_default(),
        event.type_.as_deref().unwrap_or_default(),
        object.kind.as_deref().unwrap_or_default(),
        object.name.as_deref().unwrap_or_default(),
        event.reason.as_deref().unwrap_or_default(),
        event.message.as_deref().unwrap_or_default().replace('\n', " "),
    )
}

/// What the members say themselves, and what the planner makes of it.
async fn words(bundle: &mut Bundle, connection: &Connection, found: &Found, seconds: u64) -> Result<()> {
    let intent = Intent::of(&found.cluster);
    let (seen, refusal) = observe::observed(connection, &intent).await?;
    for word in &seen.observation.words {
        bundle.add(&format!("members/{}.txt", word.record), &format!("{word:#?}\n"))?;
    }
    let silent = observe::silent(&seen);
    for member in &silent {
        bundle.unread(&format!("the word of {member}"), &"it did not answer through a port-forward");
    }
    let seed = names::seed(&intent.identity().uid);
    let plan = plan(&intent, &seen.observation, seconds.saturating_mul(1_000), seed);
    let doubts = doubts(&plan, &silent, refusal);
    bundle.add("plan.txt", &Planned::of(&plan, Vec::new(), doubts).text())
}

async fn member_logs(bundle: &mut Bundle, connection: &Connection, found: &Found, tail: u32) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    for member in logs::chosen(found, &[])? {
        let pod = names::pod(&member);
        let restarted = found.pods.iter().any(|p| p.metadata.name.as_deref() == Some(&pod) && has_restarted(p));
        log(bundle, &pods, &pod, &format!("logs/{member}.log"), tail, false).await?;
        if restarted {
            log(bundle, &pods, &pod, &format!("logs/{member}.previous.log"), tail, true).await?;
        }
    }
    Ok(())
}

fn has_restarted(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().any(|c| c.restart_count > 0)
}

async fn log(bundle: &mut Bundle, pods: &Api<Pod>, pod: &str, file: &str, tail: u32, previous: bool) -> Result<()> {
    let params = LogParams { previous, tail_lines: Some(i64::from(tail)), timestamps: true, ..LogParams::default() };
    match pods.logs(pod, &params).await {
        Ok(text) => bundle.add(file, &text),
        Err(error) => {
            bundle.unread(file, &error);
            Ok(())
        }
    }
}

/// The operator's Deployments and logs. Whoever may not see other namespaces gets a bundle without them.
async fn operator(bundle: &mut Bundle, client: &Client, tail: u32) -> Result<()> {
    let ours = ListParams::default().labels(OPERATOR);
    match Api::<Deployment>::all(client.clone()).list(&ours).await {
        Ok(list) => bundle.add("operator/deployments.yaml", &yaml(&list.items)?)?,
        Err(error) => bundle.unread("the operator's Deployment", &error),
    }
    let pods = match Api::<Pod>::all(client.clone()).list(&ours).await {
        Ok(list) => list.items,
        Err(error) => {
            bundle.unread("the operator's pods", &error);
            return Ok(());
        }
    };
    bundle.add("operator/pods.yaml", &yaml(&pods)?)?;
    for pod in &pods {
        let (name, namespace) = (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref());
        if let (Some(name), Some(namespace)) = (name, namespace) {
            let api = Api::<Pod>::namespaced(client.clone(), namespace);
            log(bundle, &api, name, &format!("operator/{name}.log"), tail, false).await?;
            if has_restarted(pod) {
                log(bundle, &api, name, &format!("operator/{name}.previous.log"), tail, true).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookkeeping_is_left_out() {
        let mut value = serde_json::json!([{"metadata": {"name": "a", "managedFields": [1]}, "spec": {}}]);
        strip(&mut value);
        assert_eq!(value, serde_json::json!([{"metadata": {"name": "a"}, "spec": {}}]));
    }

    #[test]
    fn a_namesake_in_part_is_somebody_else() {
        let member = names::member("orders", 7, 1, 0);
        for own in ["orders", "orders-leader", &member, &names::pod(&member), &names::volume(&member)] {
            assert!(is_about("orders", own), "{own}");
        }
        for other in ["orders-eu", "orders-frontend-5d9c", "ordersx", &format!("orders-eu-{}", &member[7..])] {
            assert!(!is_about("orders", other), "{other}");
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let mut event =
            Event { reason: Some("LeaderChanged".into()), message: Some("a\nb".into()), ..Event::default() };
        event.involved_object.kind = Some("ConsistentCluster".into());
        event.involved_object.name = Some("orders".into());
        assert!(event_line(&event).ends_with("ConsistentCluster/orders LeaderChanged: a b"));
    }
}
