//! Was a leader ever disrupted without handing over first? Joined from two sources: what the operator asked of the API server
//! (the audit log) and what the members say they did (their own logs). What a person asked for (a fence, a cluster scaled to
//! zero) is read from the audit log as well. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::audit::Request;

/// A member that led within this many seconds before it was disrupted counts as one that handed over.
const RECENTLY_SECONDS: i64 = 120;

/// Names the members that a person wants stopped.
pub(super) const ANNOTATION_FENCE: &str = "quorate.dev/fence";

/// Incarnation, term and index of a configuration.
type ConfigAt = (u64, u64, u64);

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
    /// It follows, stepped down, was removed: whatever it was, it does not lead now.
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

/// A member that led shortly before it was disrupted, and how it handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    pub member: String,
    pub what: What,
    pub successor: String,
    /// From "handing leadership over" to the successor's readiness; absent when leadership went without being asked to.
    pub took_ms: Option<i64>,
    /// From the successor's readiness to the disruption.
    pub before_ms: i64,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub checked: usize,
    pub handed_over: Vec<HandOver>,
    pub violations: Vec<String>,
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

/// Members of one cluster share all of their name but the suffix.
fn cluster_of(member: &str) -> &str {
    member.rsplit_once('-').map_or(member, |(cluster, _)| cluster)
}

/// Checks every disruption against the logs.
pub fn check(lines: &[Line], disruptions: &[Disruption], asked: &[Asked]) -> Verdict {
    let mut lines: Vec<&Line> = lines.iter().collect();
    lines.sort_by_key(|line| line.at);
    let mut verdict = Verdict::default();
    let names = Names::of(&lines);
    let removals = lines.iter().filter_map(|line| match &line.event {
        Event::AskedToRemove { id } => {
            let member = names.member(cluster_of(&line.member), id)?;
            Some(Disruption { at: line.at, member: member.to_owned(), what: What::Remove })
        }
        _ => None,
    });
    let all: Vec<Disruption> = disruptions.iter().cloned().chain(removals).collect();
    for disruption in &all {
        let cluster = cluster_of(&disruption.member);
        let before = || asked.iter().rev().filter(|a| a.at <= disruption.at && a.cluster == cluster);
        let sleeps = before().find_map(|a| a.replicas) == Some(0);
        let is_deleted = before().find_map(|a| a.exists) == Some(false);
        // All are to stop.
        if sleeps || is_deleted {
            continue;
        }
        verdict.checked += 1;
        // What a namesake did before is another story.
        let since = before().find(|a| a.exists == Some(true)).map(|a| a.at);
        let history = History::between(since, &lines, disruption);
        let record = disruption.member.rsplit('/').next().unwrap_or_default();
        let is_fenced = before().find_map(|a| a.fenced.as_ref()).is_some_and(|names| names.contains(record));
        verdict.violations.extend(history.violation(disruption, &names, is_fenced));
        verdict.handed_over.extend(history.hand_over(disruption));
    }
    verdict
}

/// Which member ids belong to which name.
struct Names<'a>(BTreeMap<(&'a str, &'a str), &'a str>);

impl<'a> Names<'a> {
    fn of(lines: &[&'a Line]) -> Names<'a> {
        let started = lines.iter().filter_map(|line| match &line.event {
            Event::Started { id } => Some(((cluster_of(&line.member), id.as_str()), line.member.as_str())),
            _ => None,
        });
        Names(started.collect())
    }

    fn member(&self, cluster: &str, id: &str) -> Option<&'a str> {
        self.0.get(&(cluster, id)).copied()
    }

    fn ids(&self, member: &str) -> BTreeSet<&'a str> {
        self.0.iter().filter(|(_, name)| **name == member).map(|((_, id), _)| *id).collect()
    }
}

/// What the logs of one cluster told up to a disruption.
struct History<'a> {
    /// Every leadership in order: who, term, since when.
    leaderships: Vec<(&'a str, u64, Timestamp)>,
    /// When each member's newest leadership ended by its own log.
    ended: BTreeMap<&'a str, Timestamp>,
    /// Members whose process is no more.
    gone: BTreeSet<&'a str>,
    ready: BTreeMap<u64, (&'a str, Timestamp)>,
    handing_over: BTreeMap<&'a str, Timestamp>,
    voters: Option<(ConfigAt, &'a BTreeSet<String>)>,
}

impl<'a> History<'a> {
    fn between(since: Option<Timestamp>, lines: &[&'a Line], disruption: &Disruption) -> History<'a> {
        let mut history = History {
            leaderships: Vec::new(),
            ended: BTreeMap::new(),
            gone: BTreeSet::new(),
            ready: BTreeMap::new(),
            handing_over: BTreeMap::new(),
            voters: None,
        };
        let cluster = cluster_of(&disruption.member);
        let ours = lines.iter().take_while(|l| l.at <= disruption.at).filter(|l| cluster_of(&l.member) == cluster);
        ours.filter(|l| since.is_none_or(|since| since <= l.at)).for_each(|line| history.take(line));
        history
    }

    fn take(&mut self, line: &'a Line) {
        let member = line.member.as_str();
        match line.event {
            Event::Ended => self.gone.insert(member),
            _ => self.gone.remove(member),
        };
        match &line.event {
            Event::BecameLeader { term } => {
                self.leaderships.push((member, *term, line.at));
                self.ended.remove(member);
            }
            Event::LeaderReady { term } => {
                self.ready.insert(*term, (member, line.at));
            }
            Event::Retired | Event::Started { .. } | Event::Ended => {
                self.ended.entry(member).or_insert(line.at);
            }
            Event::HandingOver { .. } => {
                self.handing_over.insert(member, line.at);
            }
            Event::Committed { at, voters } => {
                if self.voters.is_none_or(|(newest, _)| newest <= *at) {
                    self.voters = Some((*at, voters));
                }
            }
            Event::AskedToRemove { .. } => {}
        }
    }

    /// The last leadership of this member: its term, and when it ended (by its own word or by another's higher term).
    fn last_leadership(&self, member: &str) -> Option<(u64, Option<Timestamp>)> {
        let (_, term, _) = self.leaderships.iter().rev().find(|(who, ..)| *who == member)?;
        let outvoted = self.leaderships.iter().find(|(who, t, _)| *who != member && t > term).map(|(.., at)| *at);
        Some((*term, self.ended.get(member).copied().into_iter().chain(outvoted).min()))
    }

    /// A fenced member may be stopped while it votes, but not while it leads.
    fn violation(&self, disruption: &Disruption, names: &Names<'_>, is_fenced: bool) -> Option<String> {
        let Disruption { at, member, what } = disruption;
        let own: BTreeSet<&str> = names.ids(member);
        let votes = |set: &BTreeSet<String>| own.iter().any(|id| set.contains(*id));
        if let (What::Stop | What::DeleteRecord, Some((_, voters))) = (what, self.voters)
            && votes(voters)
            && !(is_fenced && *what == What::Stop)
        {
            return Some(format!("{at}: {what:?} of {member} while it is a voter of the committed configuration"));
        }
        // The only voter has nobody to hand over to; its downtime is the edit's.
        if self.voters.is_some_and(|(_, voters)| voters.len() == 1 && votes(voters)) {
            return None;
        }
        let (term, ended) = self.last_leadership(member)?;
        if ended.is_none() {
            return Some(format!("{at}: {what:?} of {member}, which leads term {term} and did not hand over"));
        }
        // A process that is gone cannot be disrupted; who lives must have seen another leader serve.
        let served = self.ready.range(term + 1..).any(|(_, (who, _))| who != member);
        (!served && !self.gone.contains(member.as_str()))
            .then(|| format!("{at}: {what:?} of {member}, which led term {term}, before another leader served"))
    }

    fn hand_over(&self, disruption: &Disruption) -> Option<HandOver> {
        let Disruption { at, member, what } = disruption;
        let (term, ended) = self.last_leadership(member)?;
        let ended = ended.filter(|ended| at.duration_since(*ended).as_secs() < RECENTLY_SECONDS)?;
        let (successor, ready) = self.ready.range(term + 1..).map(|(_, r)| r).find(|(who, _)| who != member)?;
        let asked = self
            .handing_over
            .get(member.as_str())
            .filter(|asked| asked.duration_since(ended).as_secs().abs() < RECENTLY_SECONDS && *asked <= ready);
        let ms = |from: &Timestamp, to: &Timestamp| i64::try_from(to.duration_since(*from).as_millis()).unwrap_or(0);
        Some(HandOver {
            member: member.clone(),
            what: *what,
            successor: (*successor).to_owned(),
            took_ms: asked.map(|asked| ms(asked, ready)),
            before_ms: ms(ready, at),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "n/orders-aaaaa";
    const B: &str = "n/orders-bbbbb";
    const START: &str = "2026-11-25T07:00:00.000001Z  INFO quorate_node: started member=1a cluster_id=\"9f\" generation=1
2026-11-25T07:00:00.100000Z  INFO quorate_node::driver: became leader term=2
2026-11-25T07:00:00.110000Z  INFO quorate_node::driver: leader ready: own term's no-op committed and applied term=2 noop_index=5 failover_ms=0
2026-11-25T07:00:00.200000Z  INFO quorate_node::driver: configuration committed at=ConfigAt { incarnation: 1, term: 2, index: 9 } voters={1a, 2b, 3c} joint=false";
    const SECOND: &str =
        "2026-11-25T07:00:00.050000Z  INFO quorate_node: started member=2b cluster_id=\"9f\" generation=1";
    const GIVEN: &str = "2026-11-25T07:00:09.000000Z  INFO quorate_node::driver: handing leadership over to=2b
2026-11-25T07:00:09.010000Z  INFO quorate_node::driver: became follower term=3 leader=None";
    const TAKEN: &str = "2026-11-25T07:00:09.008000Z  INFO quorate_node::driver: became leader term=3
2026-11-25T07:00:09.030000Z  INFO quorate_node::driver: leader ready: own term's no-op committed and applied term=3 noop_index=50 failover_ms=20";

    fn log(member: &str, text: &str) -> Vec<Line> {
        text.lines().filter_map(|l| line(member, l)).collect()
    }

    fn logs(parts: &[(&str, &str)]) -> Vec<Line> {
        parts.iter().flat_map(|(member, text)| log(member, text)).collect()
    }

    fn at(second: &str, member: &str, what: What) -> Disruption {
        Disruption { at: format!("2026-11-25T07:00:{second}Z").parse().unwrap(), member: member.to_owned(), what }
    }

    fn judge(lines: &[Line], disruption: Disruption) -> Verdict {
        check(lines, &[disruption], &[])
    }

    fn edit(second: &str, body: Value) -> Request {
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
    fn a_leader_that_is_evicted_while_it_leads_is_a_violation() {
        let lines = logs(&[(A, START), (B, SECOND)]);
        let verdict = judge(&lines, at("10.0", A, What::Evict));
        assert_eq!(verdict.violations.len(), 1, "{verdict:?}");
        assert!(verdict.violations[0].contains("leads term 2"), "{verdict:?}");
        assert!(judge(&lines, at("10.0", B, What::Evict)).violations.is_empty());
    }

    #[test]
    fn a_leader_that_handed_over_first_is_none_and_is_counted() {
        let lines = logs(&[(A, START), (B, SECOND), (A, GIVEN), (B, TAKEN)]);
        let verdict = judge(&lines, at("10.0", A, What::Evict));
        assert!(verdict.violations.is_empty(), "{verdict:?}");
        let [hand_over] = &verdict.handed_over[..] else { panic!("{verdict:?}") };
        assert_eq!((hand_over.successor.as_str(), hand_over.took_ms, hand_over.before_ms), (B, Some(30), 970));
    }

    #[test]
    fn the_order_counts_to_the_millisecond() {
        let lines = logs(&[(A, START), (B, SECOND), (A, GIVEN), (B, TAKEN)]);
        // Between the old leader's word and the new one's readiness nobody served.
        assert_eq!(judge(&lines, at("09.020", A, What::DeletePod)).violations.len(), 1);
        assert_eq!(judge(&lines, at("09.005", A, What::DeletePod)).violations.len(), 1);
        assert_eq!(judge(&lines, at("09.031", A, What::DeletePod)).violations.len(), 0);
        // Leadership that came after does not excuse the new leader.
        assert_eq!(judge(&lines, at("10.0", B, What::DeletePod)).violations.len(), 1);
    }

    #[test]
    fn a_member_that_is_gone_may_be_deleted() {
        let ended = format!("2026-11-25T07:00:05.000000Z {LOG_ENDED}");
        let lines = logs(&[(A, START), (B, SECOND), (A, &ended)]);
        assert!(judge(&lines, at("10.0", A, What::DeletePod)).violations.is_empty());
        assert_eq!(judge(&lines, at("04.0", A, What::DeletePod)).violations.len(), 1);
    }

    #[test]
    fn stopping_a_voter_is_a_violation_until_it_is_committed_to_be_out() {
        let lines = logs(&[(A, START), (B, SECOND)]);
        let verdict = judge(&lines, at("10.0", B, What::Stop));
        assert!(verdict.violations[0].contains("voter"), "{verdict:?}");
        let out = "2026-11-25T07:00:09.0Z  INFO quorate_node::driver: configuration committed at=ConfigAt { incarnation: 1, term: 2, index: 12 } voters={1a, 3c} joint=false";
        let lines = logs(&[(A, START), (B, SECOND), (A, out)]);
        assert!(judge(&lines, at("10.0", B, What::Stop)).violations.is_empty());
    }

    #[test]
    fn a_voter_that_a_person_fenced_may_be_stopped_but_not_while_it_leads() {
        let fence = |names: Value| json!({"metadata": {"annotations": {ANNOTATION_FENCE: names}}});
        let edits = [edit("09.5", fence(json!("orders-bbbbb , orders-aaaaa"))), edit("11", fence(Value::Null))];
        let lines = logs(&[(A, START), (B, SECOND)]);
        let verdict = |disruption| check(&lines, &[disruption], &asked(&edits)).violations;
        assert_eq!(verdict(at("10.0", B, What::Stop)), Vec::<String>::new());
        assert!(verdict(at("10.0", A, What::Stop))[0].contains("leads term 2"));
        assert_eq!(verdict(at("09.0", B, What::Stop)).len(), 1, "nobody had asked yet");
        assert_eq!(verdict(at("12.0", B, What::Stop)).len(), 1, "nobody asks any more");
        assert_eq!(verdict(at("10.0", B, What::DeleteRecord)).len(), 1, "a fence deletes nothing");
    }

    #[test]
    fn a_cluster_scaled_to_zero_stops_as_a_whole() {
        let edits = [edit("09", json!({"spec": {"replicas": 0}})), edit("11", json!({"spec": {"replicas": 3}}))];
        let lines = logs(&[(A, START), (B, SECOND)]);
        let verdict = |disruption| check(&lines, &[disruption], &asked(&edits)).violations;
        assert_eq!(verdict(at("10.0", A, What::Stop)), Vec::<String>::new());
        assert_eq!(verdict(at("12.0", A, What::Stop)).len(), 1);
    }

    #[test]
    fn a_leader_asked_to_remove_itself_is_a_violation() {
        let asked = |id: &str| {
            format!(
                "2026-11-25T07:00:08.0Z  INFO quorate_node::api::admin: the operator asks for a change of the configuration \
                 change=Remove {{ id: {id} }} expect=ConfigAt {{ incarnation: 1, term: 2, index: 9 }}"
            )
        };
        let verdict = |id| check(&logs(&[(A, START), (B, SECOND), (A, &asked(id))]), &[], &[]);
        assert_eq!(verdict("1a").violations.len(), 1, "{:?}", verdict("1a"));
        assert_eq!((verdict("2b").checked, verdict("2b").violations.len()), (1, 0));
    }

    #[test]
    fn the_only_voter_and_a_deleted_cluster_have_nobody_to_hand_over_to() {
        let alone = START.replace("{1a, 2b, 3c}", "{1a}");
        assert!(judge(&logs(&[(A, &alone)]), at("10.0", A, What::Evict)).violations.is_empty());
        let verdict = |edits: &[Request], second: &str| {
            let lines = logs(&[(A, START), (B, SECOND)]);
            check(&lines, &[at(second, A, What::Stop)], &asked(edits)).violations.len()
        };
        let told = |second: &str, verb: &str, code: u64| Request {
            verb: verb.to_owned(),
            code,
            ..edit(second, serde_json::Value::Null)
        };
        let gone = told("09.0", "delete", 200);
        assert_eq!(verdict(std::slice::from_ref(&gone), "10.0"), 0);
        assert_eq!(verdict(std::slice::from_ref(&gone), "08.0"), 1, "not yet");
        assert_eq!(verdict(&[], "10.0"), 1);
        assert_eq!(verdict(&[told("09.0", "delete", 404)], "10.0"), 1, "it was refused");
        // One of the same name is no part of that, before or after.
        let again = [told("00.0", "create", 201), told("20.0", "delete", 200)];
        assert_eq!(verdict(&again, "10.0"), 1);
        assert_eq!(verdict(&again, "21.0"), 0);
        assert_eq!(verdict(&[gone, told("11.0", "patch", 201)], "12.0"), 0, "what led before it was made led another");
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
