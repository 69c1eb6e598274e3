//! How long the status takes to tell what is so. Polls the resource beside what is known better from elsewhere: the pods, the
//! members' own logs, the spec's generation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::task::JoinSet;

use super::cluster::{NAME, text};
use super::follow::{Leaders, Leading};
use super::{KubernetesArgs, api::Api};

/// The error of every figure.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The worst delay of each kind so far, in milliseconds.
#[derive(Debug, Default, Clone)]
pub struct Delays(BTreeMap<&'static str, u64>);

impl Delays {
    pub fn worst(&self) -> u64 {
        self.0.values().copied().max().unwrap_or_default()
    }

    pub fn merge(&mut self, other: &Delays) {
        other.0.iter().for_each(|(kind, ms)| self.add(kind, *ms));
    }

    pub fn shown(&self) -> String {
        self.0.iter().map(|(kind, ms)| format!("{kind} {ms} ms")).collect::<Vec<_>>().join(", ")
    }

    fn add(&mut self, kind: &'static str, ms: u64) {
        let worst = self.0.entry(kind).or_default();
        *worst = (*worst).max(ms);
    }
}

#[derive(Debug)]
pub struct Truth {
    delays: Arc<Mutex<Delays>>,
    /// Ends with this.
    _watch: JoinSet<()>,
}

impl Truth {
    pub fn start(api: Api, args: &KubernetesArgs, leaders: Leaders) -> Truth {
        let delays = Arc::<Mutex<Delays>>::default();
        let _watch = JoinSet::from_iter([watch(api, args.namespace.clone(), leaders, delays.clone())]);
        Truth { delays, _watch }
    }

    /// What came up since this was last asked.
    pub fn take(&self) -> Delays {
        std::mem::take(&mut *self.delays.lock().expect("nobody panics with this lock held"))
    }
}

async fn watch(api: Api, namespace: String, leaders: Leaders, delays: Arc<Mutex<Delays>>) {
    let resource = format!("/apis/quorate.dev/v1alpha1/namespaces/{namespace}/consistentclusters/{NAME}");
    let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=quorate.dev/cluster={NAME}");
    // Since when the status says something else than this, by what it is about.
    let mut untrue: BTreeMap<(&'static str, String), Instant> = BTreeMap::new();
    let mut seen = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (Ok(found), Ok(pods)) = tokio::join!(api.get(&resource), api.items(&pods)) else { continue };
        // While the API server gives nobody an answer, nobody is told late.
        let unanswered = seen.elapsed().saturating_sub(2 * LOOK_EVERY);
        seen = Instant::now();
        untrue.values_mut().for_each(|since| *since += unanswered);
        let mut now = generation(&found);
        now.extend(down(&found["status"], &pods));
        now.extend(leader(&found["status"], &leaders, &format!("{namespace}/{NAME}")));
        let mut told = delays.lock().expect("nobody panics with this lock held");
        untrue.retain(|(kind, what), since| {
            let still = now.iter().any(|(k, w, _)| k == kind && w == what);
            if !still {
                told.add(kind, u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
            }
            still
        });
        for (kind, what, since) in now {
            // The log may know of it from before.
            untrue.entry((kind, what)).or_insert((since + unanswered).min(seen));
        }
    }
}

type Untrue = Vec<(&'static str, String, Instant)>;

fn generation(found: &Value) -> Untrue {
    let generation = &found["metadata"]["generation"];
    let behind = *generation != found["status"]["observedGeneration"];
    behind.then(|| ("edit", generation.to_string(), Instant::now())).into_iter().collect()
}

/// Members that are shown as ready, but whose pod is gone.
fn down(status: &Value, pods: &[Value]) -> Untrue {
    let there = |name: &str| pods.iter().any(|p| text(p, "/metadata/name") == format!("{name}-0"));
    let members = status["members"].as_array().into_iter().flatten();
    let shown = members.filter(|m| m["ready"] == true).filter_map(|m| m["name"].as_str());
    shown.filter(|name| !there(name)).map(|name| ("lost pod", name.to_owned(), Instant::now())).collect()
}

/// A leader that serves in a later term than the one shown.
fn leader(status: &Value, leaders: &Leaders, cluster: &str) -> Untrue {
    let known = leaders.lock().expect("nobody panics with this lock held").get(cluster).cloned();
    let Some(Leading { term, since, .. }) = known.filter(|known| known.still_leads) else { return Vec::new() };
    let shown = status["leader"]["term"].as_u64().or(status["raft"]["term"].as_u64()).unwrap_or_default();
    if shown >= term {
        return Vec::new();
    }
    let age = u64::try_from(Timestamp::now().duration_since(since).as_millis()).unwrap_or_default();
    let since = Instant::now().checked_sub(Duration::from_millis(age)).unwrap_or_else(Instant::now);
    vec![("new leader", term.to_string(), since)]
}
