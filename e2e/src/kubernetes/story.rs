//! What happened, read from two sources: what the operator and people asked of the API server (the audit log), and what the
//! members say they did (their own logs). Pure; what it means is judged elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::audit::Request;

/// Names the members that a person wants stopped.
pub const ANNOTATION_FENCE: &str = "quorate.dev/fence";

/// Incarnation, term and index of a configuration.
pub type ConfigAt = (u64, u64, u64);

/// What a member's log tells about leadership and membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A process of this member id began.
    Started {
        id: String,
    },
    BecameLeader {
        term: u64,
    },
    /// It serves: its own entry is committed and applied.
    LeaderReady {
        term: u64,
    },
    /// It hears a leader.
    Follows,
    /// It stepped down, was removed, knows no leader: whatever it was, it does not lead now.
    Retired,
    HandingOver {
        to: String,
    },
    /// The voters of a committed configuration.
    Committed {
        at: (u64, u64, u64),
        voters: BTreeSet<String>,
    },
    /// The operator asked this member to take another out.
    AskedToRemove {
        id: String,
    },
    /// The log ended: the process is gone.
    Ended,
}

/// One line of a member's log. Members are named `namespace/record`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Timestamp,
    pub member: String,
    pub event: Event,
}

/// What the operator did that takes a process down or a voter out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    DeletePod,
    Evict,
    /// `replicas: 0` on the record.
    Stop,
    DeleteRecord,
    /// Asked of the leader, not of the API server.
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disruption {
    pub at: Timestamp,
    pub member: String,
    pub what: What,
}

/// What somebody asked of a cluster by an edit of its resource. What an edit does not name stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub at: Timestamp,
    /// `namespace/name`.
    pub cluster: String,
    /// Members that are to be stopped and stay so.
    pub fenced: Option<BTreeSet<String>>,
    pub replicas: Option<i64>,
    /// That it be there, or go: a name may be used by one cluster after another.
    pub exists: Option<bool>,
}

/// Reads a line of a member's log: time, level, target, message, fields. Nothing when it tells nothing about this.
pub fn line(member: &str, text: &str) -> Option<Line> {
    let (stamp, rest) = text.trim_start().split_once(' ')?;
    let at: Timestamp = stamp.parse().ok()?;
    let term = || field(rest, "term=")?.parse().ok();
    let event = if rest.contains(": started member=") {
        Event::Started { id: field(rest, "member=")?.to_owned() }
    } else if rest.contains(": became leader ") {
        Event::BecameLeader { term: term()? }
    } else if rest.contains(": leader ready") {
        Event::LeaderReady { term: term()? }
    } else if rest.contains(": became follower ") && rest.contains("leader=Some(") {
        Event::Follows
    } else if [": became follower ", ": stepped down ", ": this member was removed"].iter().any(|m| rest.contains(m)) {
        Event::Retired
    } else if rest.contains(": handing leadership over ") {
        Event::HandingOver { to: field(rest, "to=")?.to_owned() }
    } else if rest.contains(": configuration committed ") {
        Event::Committed { at: config_at(rest)?, voters: ids(between(rest, "voters={", "}")?) }
    } else if rest.contains(": the operator asks for a change of the configuration ") {
        let change = between(rest, "change=", " expect=").unwrap_or(rest);
        let removed = between(change, "Remove { id: ", " ").or_else(|| between(change, "old: ", ","))?;
        Event::AskedToRemove { id: removed.to_owned() }
    } else if rest.ends_with(LOG_ENDED) {
        Event::Ended
    } else {
        return None;
    };
    Some(Line { at, member: member.to_owned(), event })
}

/// Written after a log that came to its end.
pub const LOG_ENDED: &str = "the log ended here";

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split(' ').find_map(|word| word.strip_prefix(key))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = text.split_once(start)?.1;
    Some(rest.split_once(end).map_or(rest, |(inside, _)| inside))
}

fn ids(list: &str) -> BTreeSet<String> {
    list.split(", ").filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

fn config_at(text: &str) -> Option<ConfigAt> {
    let at = between(text, "at=ConfigAt { ", " }")?;
    let number = |key| between(at, key, ",")?.trim().parse().ok();
    Some((number("incarnation: ")?, number("term: ")?, number("index: ")?))
}

/// What in the operator's requests disrupts a member. What was refused disrupted nobody.
pub fn disruptions(requests: &[Request]) -> Vec<Disruption> {
    let disrupts = |r: &Request| {
        let on = (r.verb.as_str(), r.resource.as_str(), r.subresource.as_str());
        let what = match on {
            ("delete", "pods", "") => What::DeletePod,
            ("create", "pods", "eviction") => What::Evict,
            ("update" | "patch", "statefulsets", "") if r.body["spec"]["replicas"] == 0 => What::Stop,
            ("delete", "statefulsets", "") => What::DeleteRecord,
            _ => return None,
        };
        let record = if r.resource == "pods" { r.name.strip_suffix("-0").unwrap_or(&r.name) } else { &r.name };
        Some(Disruption { at: r.at, member: format!("{}/{record}", r.namespace), what })
    };
    requests.iter().filter(|r| r.succeeded()).filter_map(disrupts).collect()
}

/// What edits of clusters asked for, the earliest first.
pub fn asked(requests: &[Request]) -> Vec<Asked> {
    let edits = requests.iter().filter(|r| {
        let changes = matches!(r.verb.as_str(), "create" | "update" | "patch" | "delete");
        changes && r.succeeded() && r.resource == "consistentclusters" && r.subresource.is_empty()
    });
    let asked = |r: &Request| {
        let fence = r.body.pointer("/metadata/annotations").and_then(|all| all.get(ANNOTATION_FENCE));
        // Null takes the annotation away.
        let names =
            |value: &Value| value.as_str().unwrap_or_default().split(',').map(|n| n.trim().to_owned()).collect();
        Asked {
            at: r.at,
            cluster: format!("{}/{}", r.namespace, r.name),
            fenced: fence.map(names),
            replicas: r.body["spec"]["replicas"].as_i64(),
            exists: match r.verb.as_str() {
                "delete" => Some(false),
                // Also by a patch, where an object is described rather than changed.
                _ if r.code == 201 => Some(true),
                _ => None,
            },
        }
    };
    let mut all: Vec<_> =
        edits.map(asked).filter(|a| a.fenced.is_some() || a.replicas.is_some() || a.exists.is_some()).collect();
    all.sort_by_key(|asked| asked.at);
    all
}

/// What people wanted of a cluster at some time.
#[derive(Debug, Default)]
pub struct Wishes<'a> {
    /// It sleeps or goes: all of it is to stop.
    pub all_stop: bool,
    /// Since when there is a cluster of this name; what a namesake did, and was asked for, before is another story.
    pub since: Option<Timestamp>,
    fenced: Option<&'a BTreeSet<String>>,
}

impl<'a> Wishes<'a> {
    pub fn at(asked: &'a [Asked], cluster: &str, at: Timestamp) -> Wishes<'a> {
        let mut wishes = Wishes::default();
        let (mut replicas, mut exists) = (None, None);
        for asked in asked.iter().rev().filter(|a| a.at <= at && a.cluster == cluster) {
            replicas = replicas.or(asked.replicas);
            exists = exists.or(asked.exists);
            wishes.fenced = wishes.fenced.or(asked.fenced.as_ref());
            if asked.exists == Some(true) {
                wishes.since = Some(asked.at);
                break;
            }
        }
        wishes.all_stop = replicas == Some(0) || exists == Some(false);
        wishes
    }

    /// Whether a person wants this member stopped.
    pub fn fences(&self, member: &str) -> bool {
        let record = member.rsplit('/').next().unwrap_or_default();
        self.fenced.is_some_and(|names| names.contains(record))
    }
}

/// Members of one cluster share all of their name but the suffix.
pub fn cluster_of(member: &str) -> &str {
    member.rsplit_once('-').map_or(member, |(cluster, _)| cluster)
}

/// The newest configuration of a cluster that is known to be committed at a time; `lines` are in order.
pub fn voters_at<'a>(
    lines: &[&'a Line],
    cluster: &str,
    since: Option<Timestamp>,
    at: Timestamp,
) -> Option<(ConfigAt, &'a BTreeSet<String>)> {
    let until = lines.iter().take_while(|l| l.at <= at).filter(|l| since.is_none_or(|since| since <= l.at));
    let committed = until.filter(|l| cluster_of(&l.member) == cluster).filter_map(|line| match &line.event {
        Event::Committed { at, voters } => Some((*at, voters)),
        _ => None,
    });
    committed.max_by_key(|(at, _)| *at)
}

/// Which member ids belong to which name.
pub struct Names<'a>(BTreeMap<(&'a str, &'a str), &'a str>);

impl<'a> Names<'a> {
    pub fn of(lines: &[&'a Line]) -> Names<'a> {
        let started = lines.iter().filter_map(|line| match &line.event {
            Event::Started { id } => Some(((cluster_of(&line.member), id.as_str()), line.member.as_str())),
            _ => None,
        });
        Names(started.collect())
    }

    pub fn member(&self, cluster: &str, id: &str) -> Option<&'a str> {
        self.0.get(&(cluster, id)).copied()
    }

    pub fn ids(&self, member: &str) -> BTreeSet<&'a str> {
        self.0.iter().filter(|(_, name)| **name == member).map(|((_, id), _)| *id).collect()
    }
}

#[cfg(test)]
pub mod fixture {
    use super::*;

    pub const A: &str = "n/orders-aaaaa";
    pub const B: &str = "n/orders-bbbbb";
    pub const START: &str = "2026-11-25T07:00:00.000001Z  INFO quorate_node: started member=1a cluster_id=\"9f\" generation=1
2026-11-25T07:00:00.100000Z  INFO quorate_node::driver: became leader term=2
2026-11-25T07:00:00.110000Z  INFO quorate_node::driver: leader ready: own term's no-op committed and applied term=2 noop_index=5 failover_ms=0
2026-11-25T07:00:00.200000Z  INFO quorate_node::driver: configuration committed at=ConfigAt { incarnation: 1, term: 2, index: 9 } voters={1a, 2b, 3c} joint=false";
    pub const SECOND: &str =
        "2026-11-25T07:00:00.050000Z  INFO quorate_node: started member=2b cluster_id=\"9f\" generation=1";
    pub const GIVEN: &str = "2026-11-25T07:00:09.000000Z  INFO quorate_node::driver: handing leadership over to=2b
2026-11-25T07:00:09.010000Z  INFO quorate_node::driver: became follower term=3 leader=None";
    pub const TAKEN: &str = "2026-11-25T07:00:09.008000Z  INFO quorate_node::driver: became leader term=3
2026-11-25T07:00:09.030000Z  INFO quorate_node::driver: leader ready: own term's no-op committed and applied term=3 noop_index=50 failover_ms=20";

    pub fn log(member: &str, text: &str) -> Vec<Line> {
        text.lines().filter_map(|l| line(member, l)).collect()
    }

    pub fn logs(parts: &[(&str, &str)]) -> Vec<Line> {
        parts.iter().flat_map(|(member, text)| log(member, text)).collect()
    }

    pub fn at(second: &str, member: &str, what: What) -> Disruption {
        Disruption { at: format!("2026-11-25T07:00:{second}Z").parse().unwrap(), member: member.to_owned(), what }
    }

    pub fn edit(second: &str, body: Value) -> Request {
        Request {
            at: format!("2026-11-25T07:00:{second}Z").parse().unwrap(),
            user: "a person".to_owned(),
            verb: "patch".to_owned(),
            group: "quorate.dev".to_owned(),
            resource: "consistentclusters".to_owned(),
            subresource: String::new(),
            namespace: "n".to_owned(),
            name: "orders".to_owned(),
            is_complete: true,
            code: 200,
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::fixture::{A, GIVEN, START, at, edit, log};
    use super::*;

    #[test]
    fn every_line_that_matters_is_read() {
        assert_eq!(log(A, START).len(), 4);
        assert_eq!(log(A, GIVEN).len(), 2);
        let asked = "2026-11-25T07:00:10.0Z  INFO quorate_node::api::admin: the operator asks for a change of the configuration \
                     change=Remove { id: 2b } expect=ConfigAt { incarnation: 1, term: 3, index: 9 }";
        assert_eq!(line(A, asked).unwrap().event, Event::AskedToRemove { id: "2b".to_owned() });
        let swap = asked.replace("Remove { id: 2b }", "Swap { new: 4d, old: 1a, lag_max: 1000 }");
        assert_eq!(line(A, &swap).unwrap().event, Event::AskedToRemove { id: "1a".to_owned() });
        assert_eq!(line(A, &asked.replace("Remove { id: 2b }", "Promote { id: 2b, lag_max: 1000 }")), None);
        assert_eq!(line(A, "thread 'main' panicked"), None);
        let ended = format!("2026-11-25T07:00:20.000000Z {LOG_ENDED}");
        assert_eq!(line(A, &ended).unwrap().event, Event::Ended);
    }

    #[test]
    fn what_was_asked_of_a_namesake_is_asked_no_more() {
        let told = |second: &str, verb: &str, code, body| Request { verb: verb.to_owned(), code, ..edit(second, body) };
        let fenced = json!({"metadata": {"annotations": {ANNOTATION_FENCE: "orders-aaaaa"}}, "spec": {"replicas": 0}});
        let all = asked(&[
            told("01", "create", 201, fenced),
            told("02", "delete", 200, Value::Null),
            told("03", "create", 201, json!({"spec": {}})),
        ]);
        let wishes = |second: &str| Wishes::at(&all, "n/orders", at(second, A, What::Evict).at);
        assert!(wishes("01.5").all_stop && wishes("01.5").fences(A));
        assert!(wishes("02.5").all_stop);
        assert!(!wishes("04").all_stop && !wishes("04").fences(A));
        assert_eq!(wishes("04").since, Some(at("03", A, What::Evict).at));
    }

    #[test]
    fn refused_requests_and_other_resources_disrupt_nobody() {
        let request = |verb: &str, resource: &str, subresource: &str, code, body| Request {
            at: "2026-11-25T07:00:00Z".parse().unwrap(),
            user: "operator".to_owned(),
            verb: verb.to_owned(),
            group: String::new(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: "n".to_owned(),
            name: "orders-aaaaa-0".to_owned(),
            is_complete: true,
            code,
            body,
        };
        let zero = serde_json::json!({"spec": {"replicas": 0}});
        let none = serde_json::Value::Null;
        let all = [
            request("delete", "pods", "", 200, none.clone()),
            request("delete", "pods", "", 409, none.clone()),
            request("create", "pods", "eviction", 201, none.clone()),
            request("create", "pods", "eviction", 429, none.clone()),
            request("update", "statefulsets", "", 200, zero),
            request("update", "statefulsets", "", 200, serde_json::json!({"spec": {"replicas": 1}})),
            request("patch", "pods", "", 200, none),
        ];
        let found: Vec<_> = disruptions(&all).iter().map(|d| d.what).collect();
        assert_eq!(found, [What::DeletePod, What::Evict, What::Stop]);
        assert_eq!(disruptions(&all)[0].member, "n/orders-aaaaa");
    }
}
