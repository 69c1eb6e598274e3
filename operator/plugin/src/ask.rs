//! Requests of the commands that change something: what is written, and when it is done. Pure.
//!
//! Refuses at once what the operator would hold up for ever, with the reason; everything else is the planner's to decide.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use quorate_api::{ConditionStatus, ConsistentCluster, ConsistentClusterStatus, Requests, Transfer, names};

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Transfer { to: Option<String> },
    Fence { member: String },
    Unfence { member: String },
    Restart { member: Option<String> },
    Replace { member: String },
}

/// A request that was understood: the annotations it makes, and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub requests: Requests,
    pub goal: Goal,
}

/// What must be so for a request to be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    Leads {
        member: String,
        term: i64,
    },
    Stopped {
        member: String,
    },
    Runs {
        member: String,
    },
    /// Pods by member, with the UIDs that must be gone.
    Renewed {
        pods: Vec<(String, String)>,
    },
    /// The id that must be gone, and how many voters there must be.
    Replaced {
        member: String,
        id: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    Done(String),
    Waiting(String),
    /// It will not happen any more.
    Missed(String),
}

/// What is read of a cluster's objects.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub cluster: &'a ConsistentCluster,
    pub records: &'a [StatefulSet],
    pub pods: &'a [Pod],
}

impl Seen<'_> {
    fn name(&self) -> &str {
        self.cluster.metadata.name.as_deref().unwrap_or_default()
    }

    fn status(&self) -> ConsistentClusterStatus {
        self.cluster.status.clone().unwrap_or_default()
    }

    fn pod_uid(&self, member: &str) -> Option<&str> {
        let name = names::pod(member);
        let pod = self.pods.iter().find(|p| p.metadata.name.as_deref() == Some(&name))?;
        pod.metadata.uid.as_deref()
    }

    fn record(&self, member: &str) -> Option<&StatefulSet> {
        self.records.iter().find(|r| r.metadata.name.as_deref() == Some(member))
    }

    /// Taken out, or never there.
    fn is_gone(&self, member: &str) -> bool {
        let mut members = self.cluster.status.iter().flat_map(|status| &status.members);
        self.record(member).is_none() && !members.any(|m| m.name == member)
    }

    fn is_stopped(&self, member: &str) -> bool {
        self.record(member).is_some_and(|r| r.spec.as_ref().and_then(|s| s.replicas) == Some(0))
    }
}

/// Turns what is asked into annotations.
///
/// # Errors
/// Why it cannot be, and what helps, as one sentence.
pub fn request(seen: Seen<'_>, ask: &Ask) -> Result<Request, String> {
    let cluster = seen.cluster;
    let status = seen.status();
    if cluster.metadata.deletion_timestamp.is_some() {
        return Err(format!("{} is being deleted", seen.name()));
    }
    let mut requests = still_open(Requests::of(cluster.metadata.annotations.as_ref()), seen, &status);
    let lifts = matches!(ask, Ask::Unfence { .. });
    if cluster.spec.paused && !lifts {
        return Err("spec.paused is true, so nothing would be done; set it to false first".to_owned());
    }
    let goal = match ask {
        Ask::Transfer { to } => transfer(&mut requests, &status, to.as_deref())?,
        Ask::Fence { member } => fence(&mut requests, seen, &status, member)?,
        Ask::Unfence { member } => {
            if !requests.fenced.remove(member) {
                return Err(format!("{member} is not fenced; fenced are: {}", listed(requests.fenced.iter().cloned())));
            }
            Goal::Runs { member: member.clone() }
        }
        Ask::Restart { member } => restart(&mut requests, seen, &status, member.as_deref())?,
        Ask::Replace { member } => {
            let id = known(&status, member)?;
            requests.replaced.insert(member.clone(), id.clone());
            Goal::Replaced { member: member.clone(), id }
        }
    };
    Ok(Request { requests, goal })
}

/// What is moot is swept out with the next request. Fences stand until they are lifted.
fn still_open(mut requests: Requests, seen: Seen<'_>, status: &ConsistentClusterStatus) -> Requests {
    requests.restarts.retain(|member, uid| seen.pod_uid(member) == Some(uid));
    requests.replaced.retain(|_, id| status.members.iter().any(|m| m.id.as_ref() == Some(id)));
    let term = status.leader.as_ref().and_then(|l| u64::try_from(l.term).ok());
    requests.transfer = requests.transfer.filter(|t| Some(t.term) == term);
    requests
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// The id of a member, by name.
fn known(status: &ConsistentClusterStatus, member: &str) -> Result<String, String> {
    let found = status.members.iter().find(|m| m.name == member);
    let found = found.ok_or_else(|| {
        format!("{member} is no member; members are {}", listed(status.members.iter().map(|m| m.name.clone())))
    })?;
    found
        .id
        .clone()
        .ok_or_else(|| format!("{member} has no id yet: it is still coming in; try again when it is a voter"))
}

fn transfer(requests: &mut Requests, status: &ConsistentClusterStatus, to: Option<&str>) -> Result<Goal, String> {
    let leader = status.leader.as_ref().ok_or("nobody leads now, so nobody can hand over; wait for an election")?;
    let able = |name: &str| status.members.iter().any(|m| m.name == name && m.ready && m.role == "Follower");
    let to = match to {
        Some(name) => {
            known(status, name)?;
            name.to_owned()
        }
        None => {
            let others = status.members.iter().filter(|m| able(&m.name) && !requests.fenced.contains(&m.name));
            let furthest = others.min_by_key(|m| (m.match_lag.unwrap_or(i64::MAX), m.name.clone()));
            furthest.map(|m| m.name.clone()).ok_or("no follower is ready to take over")?
        }
    };
    if to == leader.name {
        return Err(format!("{to} leads already, in term {}", leader.term));
    }
    if requests.fenced.contains(&to) {
        return Err(format!("{to} is fenced; unfence it first"));
    }
    if !able(&to) {
        return Err(format!("{to} is no ready follower; it could not serve"));
    }
    requests.transfer = Some(Transfer { to: to.clone(), term: u64::try_from(leader.term).unwrap_or_default() });
    Ok(Goal::Leads { member: to, term: leader.term })
}

fn fence(
    requests: &mut Requests,
    seen: Seen<'_>,
    status: &ConsistentClusterStatus,
    member: &str,
) -> Result<Goal, String> {
    known(status, member)?;
    let entry = status.members.iter().find(|m| m.name == member);
    if entry.is_some_and(|m| m.role == "Learner") {
        return Err(format!("{member} is a learner and has no vote; fence voters, or lower spec.replicas to drop it"));
    }
    if let Some(other) = requests.fenced.iter().find(|name| *name != member && seen.is_stopped(name)) {
        return Err(format!("{other} is fenced already, and one voter at a time is taken down; unfence it first"));
    }
    let quorum = status.quorum.clone().unwrap_or_default();
    let counted = entry.is_some_and(|m| m.ready);
    if counted && quorum.tolerates < 1 {
        return Err(format!(
            "without {member} there would be no quorum: {} voters are caught up and {} are needed. \
             Bring the others back, or raise spec.replicas",
            quorum.caught_up, quorum.required
        ));
    }
    requests.fenced.insert(member.to_owned());
    Ok(Goal::Stopped { member: member.to_owned() })
}

fn restart(
    requests: &mut Requests,
    seen: Seen<'_>,
    status: &ConsistentClusterStatus,
    member: Option<&str>,
) -> Result<Goal, String> {
    let wanted: Vec<String> = match member {
        Some(name) => {
            known(status, name)?;
            if requests.fenced.contains(name) {
                return Err(format!("{name} is fenced, so it is not started; unfence it"));
            }
            vec![name.to_owned()]
        }
        None => status.members.iter().map(|m| m.name.clone()).filter(|n| !requests.fenced.contains(n)).collect(),
    };
    let pods: Vec<(String, String)> =
        wanted.iter().filter_map(|name| Some((name.clone(), seen.pod_uid(name)?.to_owned()))).collect();
    if pods.is_empty() {
        return Err(format!("{} has no pod that could be made anew", member.unwrap_or(seen.name())));
    }
    requests.restarts.extend(pods.iter().cloned());
    Ok(Goal::Renewed { pods })
}

/// How far a request is.
pub fn progress(seen: Seen<'_>, goal: &Goal) -> Progress {
    let status = seen.status();
    let waiting = || Progress::Waiting(why(&status));
    let ready = |name: &str| status.members.iter().any(|m| m.name == name && m.ready);
    match goal {
        Goal::Leads { member, term } => match &status.leader {
            Some(leader) if leader.name == *member && leader.term > *term => {
                Progress::Done(format!("{member} leads, in term {}", leader.term))
            }
            Some(leader) if leader.term > *term => Progress::Missed(format!(
                "{} leads in term {} now, so the request for term {term} is moot; ask again",
                leader.name, leader.term
            )),
            Some(_) | None => waiting(),
        },
        Goal::Stopped { member } if seen.is_stopped(member) && seen.pod_uid(member).is_none() => {
            Progress::Done(format!("{member} is stopped, and stays so until `kubectl quorate unfence`"))
        }
        Goal::Runs { member } if !seen.is_stopped(member) && seen.pod_uid(member).is_some() && ready(member) => {
            Progress::Done(format!("{member} is ready"))
        }
        Goal::Stopped { member } if seen.is_gone(member) => {
            Progress::Missed(format!("{member} was taken out meanwhile"))
        }
        Goal::Runs { member } if seen.is_gone(member) => {
            Progress::Done(format!("the fence is lifted; {member} is no member any more"))
        }
        Goal::Runs { .. } if seen.cluster.spec.paused => {
            Progress::Done("the fence is lifted; nothing is started while spec.paused is true".to_owned())
        }
        Goal::Stopped { .. } | Goal::Runs { .. } => waiting(),
        Goal::Renewed { pods } => {
            let there: Vec<_> = pods.iter().filter(|(name, _)| !seen.is_gone(name)).collect();
            if there.is_empty() {
                return Progress::Missed("who was to be restarted was taken out meanwhile".to_owned());
            }
            let left: Vec<_> = there
                .iter()
                .filter(|(name, uid)| seen.pod_uid(name).is_none_or(|now| now == uid) || !ready(name))
                .map(|(name, _)| name.as_str())
                .collect();
            if left.is_empty() {
                return Progress::Done(format!("{} restarted", there.len()));
            }
            Progress::Waiting(format!("{} of {} to go; {}", left.len(), there.len(), why(&status)))
        }
        Goal::Replaced { member, id } => {
            let inside = status.members.iter().any(|m| m.id.as_ref() == Some(id));
            if inside || seen.record(member).is_some() {
                waiting()
            } else {
                Progress::Done(format!("{member} is replaced"))
            }
        }
    }
}

/// What the operator says it does or waits for.
fn why(status: &ConsistentClusterStatus) -> String {
    let text = |kind: &str| status.condition(kind).map(|c| c.message.clone());
    let held = status.condition("Stalled").filter(|c| c.status == ConditionStatus::True).map(|c| c.message.clone());
    held.or_else(|| text("Progressing")).unwrap_or_else(|| "the operator has not looked yet".to_owned())
}
