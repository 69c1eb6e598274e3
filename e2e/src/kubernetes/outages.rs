//! Were two voters of a cluster ever down at once by the operator's hand? Joined from the operator's requests and what kubelets
//! told of pods (both from the audit log), and what members' logs tell of their lives and of the configurations they committed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::audit::Request;
use super::story::{Asked, Disruption, Event, Line, Names, What, Wishes, cluster_of, voters_at};

/// Whether a pod is ready, as a kubelet, or for a lost node the controller of nodes, told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub at: Timestamp,
    /// `namespace/record`.
    pub member: String,
    /// Of the pod: the next one of the same name has another.
    pub uid: String,
    pub is_ready: bool,
}

/// What was told about pods of members, the earliest first.
pub fn heard(requests: &[Request]) -> Vec<Heard> {
    let of_pods = requests.iter().filter(|r| r.resource == "pods" && r.subresource == "status" && r.succeeded());
    let heard = |r: &Request| {
        let conditions = r.body.pointer("/status/conditions").and_then(Value::as_array)?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
        Some(Heard {
            at: r.at,
            member: format!("{}/{}", r.namespace, r.name.strip_suffix("-0")?),
            uid: r.body.pointer("/metadata/uid")?.as_str()?.to_owned(),
            is_ready: ready["status"] == "True",
        })
    };
    let mut all: Vec<_> = of_pods.filter_map(heard).collect();
    all.sort_by_key(|heard| heard.at);
    all
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Times that a voter that was up was taken down.
    pub taken_down: usize,
    /// Disruptions that were no such thing: of members without a vote or that were down already, or as a person wanted.
    pub others: usize,
    /// How long the longest of those that were taken down was down, where it came up again.
    pub longest_ms: i64,
    pub violations: Vec<String>,
}

/// Voters up to which nobody can go down without a pause in service: the edit itself asks for that pause.
const SIZE_WITHOUT_MARGIN: usize = 2;

/// A kubelet tells that a pod is not ready for as long as it has not asked again; so long a member's own word counts for more.
const PROBED_WITHIN_MS: i128 = 5_000;

/// What is known of a member's pod.
#[derive(Debug, Default)]
struct Pod<'a> {
    ready: Option<&'a str>,
    newest: Option<&'a str>,
    /// Its process began, by its own log.
    has_started: bool,
    /// That process hears a leader, or leads. A kubelet notices seconds later.
    serves: Option<Timestamp>,
    down: Option<Down<'a>>,
}

/// The operator disrupted it, and it is not up again.
#[derive(Debug, Clone, Copy)]
struct Down<'a> {
    since: Timestamp,
    what: What,
    /// The pod that was there: not the one that is waited for.
    uid: Option<&'a str>,
    was_up: bool,
}

impl<'a> Pod<'a> {
    fn is_up(&self) -> bool {
        self.down.is_none() && (self.ready.is_some() || self.serves.is_some())
    }

    fn take_down(&mut self, disruption: &Disruption) {
        let (since, was_up) = (disruption.at, self.is_up());
        self.down = Some(Down { since, what: disruption.what, uid: self.newest, was_up });
        (self.has_started, self.serves) = (false, None);
    }

    /// Gives since when it had been taken down, if it is up again by this.
    fn hear(&mut self, heard: &'a Heard) -> Option<Timestamp> {
        self.newest = Some(&heard.uid);
        if !heard.is_ready {
            let was_ready = self.ready == Some(&heard.uid);
            self.ready = self.ready.filter(|uid| *uid != heard.uid);
            // Nor is it news that a pod is not ready yet, which kubelets tell as often as they like.
            let is_recent = |since: Timestamp| heard.at.duration_since(since).as_millis() < PROBED_WITHIN_MS;
            self.serves = self.serves.filter(|since| !was_ready || is_recent(*since));
            return None;
        }
        self.ready = Some(&heard.uid);
        // A pod that ends may be told ready once more.
        self.down.take_if(|down| down.uid != Some(&heard.uid)).filter(|down| down.was_up).map(|down| down.since)
    }

    /// The same, by its own log.
    fn read(&mut self, line: &Line) -> Option<Timestamp> {
        match line.event {
            Event::Started { .. } => (self.has_started, self.serves) = (true, None),
            Event::Ended => (self.has_started, self.serves) = (false, None),
            Event::Follows | Event::LeaderReady { .. } if self.has_started => {
                self.serves = Some(line.at);
                return self.down.take().filter(|down| down.was_up).map(|down| down.since);
            }
            _ => {}
        }
        None
    }
}

enum Told<'a> {
    Heard(&'a Heard),
    Line(&'a Line),
}

impl Told<'_> {
    fn at(&self) -> Timestamp {
        match self {
            Told::Heard(heard) => heard.at,
            Told::Line(line) => line.at,
        }
    }
}

struct Pods<'a> {
    told: std::iter::Peekable<std::vec::IntoIter<Told<'a>>>,
    pods: BTreeMap<&'a str, Pod<'a>>,
    longest_ms: i64,
}

impl<'a> Pods<'a> {
    fn new(heard: &'a [Heard], lines: &[&'a Line]) -> Pods<'a> {
        let mut told: Vec<_> = heard.iter().map(Told::Heard).chain(lines.iter().map(|line| Told::Line(line))).collect();
        told.sort_by_key(Told::at);
        Pods { told: told.into_iter().peekable(), pods: BTreeMap::new(), longest_ms: 0 }
    }

    fn learn_until(&mut self, at: Timestamp) {
        while let Some(told) = self.told.next_if(|told| told.at() <= at) {
            let now = told.at();
            let since = match told {
                Told::Heard(heard) => self.pods.entry(&heard.member).or_default().hear(heard),
                Told::Line(line) => self.pods.entry(&line.member).or_default().read(line),
            };
            let ms = since.map_or(0, |since| i64::try_from(now.duration_since(since).as_millis()).unwrap_or(i64::MAX));
            self.longest_ms = self.longest_ms.max(ms);
        }
    }
}

/// Checks every disruption of a voter that was up: no other voter may be down by the operator's hand, whatever it obeyed with
/// that, and of all others a quorum must be ready, whoever took the rest down. What a person wants (a fence, a cluster that
/// stops as a whole) may take a member down at any time.
pub fn check(heard: &[Heard], lines: &[Line], disruptions: &[Disruption], asked: &[Asked]) -> Verdict {
    let mut lines: Vec<&Line> = lines.iter().collect();
    lines.sort_by_key(|line| line.at);
    let names = Names::of(&lines);
    let mut disruptions: Vec<&Disruption> = disruptions.iter().collect();
    disruptions.sort_by_key(|disruption| disruption.at);
    let mut verdict = Verdict::default();
    let mut known = Pods::new(heard, &lines);
    for disruption in disruptions {
        let Disruption { at, member, what } = disruption;
        known.learn_until(*at);
        let cluster = cluster_of(member);
        let wishes = Wishes::at(asked, cluster, *at);
        let voters = voters_at(&lines, cluster, wishes.since, *at).map(|(_, voters)| voters);
        let votes = |member: &str| voters.is_some_and(|all| names.ids(member).iter().any(|id| all.contains(*id)));
        let pods = &mut known.pods;
        let pod = pods.entry(member).or_default();
        if !votes(member) || wishes.all_stop {
            verdict.others += 1;
            continue;
        }
        let was_up = pod.is_up();
        // What is asked for twice ends once.
        pod.take_down(disruption);
        if !was_up || wishes.fences(member) {
            verdict.others += 1;
            continue;
        }
        verdict.taken_down += 1;
        let size = voters.map_or(0, BTreeSet::len);
        if size <= SIZE_WITHOUT_MARGIN {
            continue;
        }
        let others = || pods.iter().filter(|(name, _)| *name != member && cluster_of(name) == cluster && votes(name));
        let is_ours = |down: &Down<'_>| wishes.since.is_none_or(|made| made <= down.since);
        let down = others().filter_map(|(name, pod)| Some((name, pod.down.filter(is_ours)?)));
        let down: Vec<_> = down.map(|(name, d)| format!("{:?} of {name} at {}", d.what, d.since)).collect();
        if !down.is_empty() {
            verdict.violations.push(format!("{at}: {what:?} of {member}, while down by {}", down.join(", ")));
        }
        let left = others().filter(|(_, pod)| pod.is_up()).count();
        if left <= size / 2 {
            verdict.violations.push(format!("{at}: {what:?} of {member}, which leaves {left} of {size} voters ready"));
        }
    }
    known.learn_until(Timestamp::MAX);
    verdict.longest_ms = known.longest_ms;
    verdict
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::story::fixture::{A, B, SECOND, START, at, edit, logs};
    use crate::kubernetes::story::{ANNOTATION_FENCE, asked};

    fn told(second: &str, member: &str, uid: &str, is_ready: bool) -> Heard {
        let at = format!("2026-11-25T07:00:{second}Z").parse().unwrap();
        Heard { at, member: member.to_owned(), uid: uid.to_owned(), is_ready }
    }

    const C: &str = "n/orders-ccccc";
    const THIRD: &str =
        "2026-11-25T07:00:00.060000Z  INFO quorate_node: started member=3c cluster_id=\"9f\" generation=1";

    fn all_ready() -> Vec<Heard> {
        [(A, "a1"), (B, "b1"), (C, "c1")].map(|(member, uid)| told("02", member, uid, true)).to_vec()
    }

    fn judge_by(lines: &[Line], later: &[Heard], disruptions: &[Disruption], edits: &[Request]) -> Verdict {
        let heard: Vec<_> = all_ready().into_iter().chain(later.iter().cloned()).collect();
        check(&heard, lines, disruptions, &asked(edits))
    }

    fn judge(later: &[Heard], disruptions: &[Disruption], edits: &[Request]) -> Verdict {
        judge_by(&logs(&[(A, START), (B, SECOND), (C, THIRD)]), later, disruptions, edits)
    }

    /// That somebody is down by the operator's hand, and that no quorum is left.
    fn faults(verdict: &Verdict) -> (usize, usize) {
        let count = |words: &str| verdict.violations.iter().filter(|v| v.contains(words)).count();
        (count("while down by"), count("voters ready"))
    }

    #[test]
    fn the_next_may_go_when_the_last_is_ready_again() {
        let two = [at("10", A, What::Evict), at("20", B, What::Evict)];
        let early = judge(&[], &two, &[]);
        assert_eq!((early.taken_down, faults(&early)), (2, (1, 1)), "{early:?}");
        // One that ends serves on for a while, and may be told ready while it does.
        let ending = [told("11", A, "a1", true), told("13", A, "a1", false)];
        assert_eq!(faults(&judge(&ending, &two, &[])), (1, 1));
        let back = [told("13", A, "a1", false), told("17", A, "a2", true), told("29", B, "b2", true)];
        let verdict = judge(&back, &two, &[]);
        assert_eq!((faults(&verdict), verdict.longest_ms), ((0, 0), 9_000), "{verdict:?}");
        let late = [told("21", A, "a2", true)];
        assert_eq!(faults(&judge(&late, &two, &[])), (1, 1));
        // A kubelet asks every few seconds; the member's own log knows before.
        let began = START.lines().next().expect("it starts").replace("07:00:00.000001", "07:00:12");
        let by_log = |second: &str| {
            let heard = format!(
                "2026-11-25T07:00:{second}Z  INFO quorate_node::driver: became follower term=2 leader=Some(2b)"
            );
            let lines = logs(&[(A, START), (B, SECOND), (C, THIRD), (A, &began), (A, &heard)]);
            let told = [told("13", A, "a2", false), told("16", A, "a2", false)];
            faults(&judge_by(&lines, &told, &two, &[]))
        };
        assert_eq!(by_log("15"), (0, 0));
        // It was never told ready, so that it is not ready yet is no news, however late.
        let heard = "2026-11-25T07:00:13Z  INFO quorate_node::driver: became follower term=2 leader=Some(2b)";
        let lines = logs(&[(A, START), (B, SECOND), (C, THIRD), (A, &began), (A, heard)]);
        let slow = [told("12", A, "a2", false), told("19.5", A, "a2", false), told("21", A, "a2", true)];
        assert_eq!(faults(&judge_by(&lines, &slow, &two, &[])), (0, 0));
        assert_eq!(by_log("11.5"), (1, 1), "that was the process that ended");
        assert_eq!(by_log("21"), (1, 1));
    }

    #[test]
    fn whoever_took_the_others_down_a_quorum_stays() {
        let gone = [told("05", B, "b1", false)];
        let verdict = judge(&gone, &[at("10", A, What::Evict)], &[]);
        assert_eq!((verdict.taken_down, faults(&verdict)), (1, (0, 1)), "{verdict:?}");
        // Back for a moment only.
        let crashing = [told("13", A, "a1", false), told("17", A, "a2", true), told("19", A, "a2", false)];
        let verdict = judge(&crashing, &[at("10", A, What::Evict), at("20", B, What::Evict)], &[]);
        assert_eq!(faults(&verdict), (0, 1), "{verdict:?}");
    }

    #[test]
    fn what_is_down_already_is_not_taken_down_but_is_not_up_either() {
        let gone = [told("05", B, "b1", false)];
        let verdict = judge(&gone, &[at("10", B, What::DeletePod), at("20", C, What::Evict)], &[]);
        assert_eq!((verdict.taken_down, verdict.others, faults(&verdict)), (1, 1, (1, 1)), "{verdict:?}");
        let again = judge(&[], &[at("10", A, What::Evict), at("11", A, What::DeletePod)], &[]);
        assert_eq!((again.taken_down, again.others, faults(&again)), (1, 1, (0, 0)), "{again:?}");
    }

    #[test]
    fn who_has_no_vote_is_not_missed() {
        let out = "2026-11-25T07:00:15Z  INFO quorate_node::driver: configuration committed \
                   at=ConfigAt { incarnation: 1, term: 2, index: 12 } voters={2b, 3c} joint=false";
        let logs_with = |last: &str| logs(&[(A, START), (B, SECOND), (C, THIRD), (A, last)]);
        let two = |first: &str| [at(first, A, What::DeleteRecord), at("20", B, What::Evict)];
        // Two voters have no margin; what is asked of them asks for a pause.
        assert_eq!(faults(&judge_by(&logs_with(out), &[], &two("16"), &[])), (0, 0));
        let four = out.replace("{2b, 3c}", "{2b, 3c, 4d}");
        // Taken down while it voted, and out since: the fourth is not heard of.
        assert_eq!(faults(&judge_by(&logs_with(&four), &[], &two("10"), &[])), (0, 1));
        assert_eq!(faults(&judge(&[], &two("10"), &[])), (1, 1));
    }

    #[test]
    fn what_people_wanted_is_not_the_operators_doing_but_counts() {
        let fence = |names: &str| edit("05", json!({"metadata": {"annotations": {ANNOTATION_FENCE: names}}}));
        let sleep = edit("15", json!({"spec": {"replicas": 0}}));
        let two = [at("10", A, What::Stop), at("20", B, What::Stop)];
        assert_eq!(faults(&judge(&[], &two, &[])), (1, 1));
        assert_eq!(faults(&judge(&[], &two, &[fence("orders-aaaaa,orders-bbbbb")])), (0, 0));
        assert_eq!(faults(&judge(&[], &two, &[sleep])), (0, 0));
        assert_eq!(faults(&judge(&[], &two, &[fence("orders-aaaaa")])), (1, 1), "it is down whoever wanted that");
    }

    #[test]
    fn kubelets_are_heard() {
        let patch = |name: &str, body: Value, code| Request {
            resource: "pods".to_owned(),
            subresource: "status".to_owned(),
            name: name.to_owned(),
            code,
            ..edit("03", body)
        };
        let body = |status: &str| json!({"metadata": {"uid": "a1"}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
        let all = [
            patch("orders-aaaaa-0", body("True"), 200),
            patch("orders-aaaaa-0", body("False"), 200),
            patch("orders-aaaaa-0", body("True"), 409),
            patch("writer", body("True"), 200),
            patch("orders-aaaaa-0", json!({"metadata": {"uid": "a1"}, "status": {"phase": "Running"}}), 200),
        ];
        assert_eq!(heard(&all), [told("03", A, "a1", true), told("03", A, "a1", false)]);
    }
}
