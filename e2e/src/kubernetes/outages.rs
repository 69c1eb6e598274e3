//! Were two voters of a cluster ever down at once by the operator's hand? Joined from the operator's requests and what kubelets
//! told of pods (both from the audit log), and the configurations that the members committed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::audit::Request;
use super::story::{Asked, Disruption, Line, Names, What, Wishes, cluster_of, voters_at};

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
    /// How long the longest of them was down, where it came up again.
    pub longest_ms: i64,
    pub violations: Vec<String>,
}

/// What is known of a member's pod.
#[derive(Default)]
struct Pod<'a> {
    ready: Option<&'a str>,
    /// When the operator took it down, how, and which pod it was.
    down: Option<(Timestamp, What, &'a str)>,
}

impl<'a> Pod<'a> {
    /// Gives when it was taken down, if it is up again by this.
    fn hear(&mut self, heard: &'a Heard) -> Option<Timestamp> {
        if !heard.is_ready {
            self.ready = self.ready.filter(|uid| *uid != heard.uid);
            return None;
        }
        self.ready = Some(&heard.uid);
        // A pod that ends may be told ready once more; it is not the one that is waited for.
        self.down.take_if(|(_, _, uid)| *uid != heard.uid).map(|(at, ..)| at)
    }
}

/// Checks every disruption of a voter that was up. A voter that a person had stopped, or of a cluster that is to stop as a
/// whole, is not the operator's doing; what was down already is not taken down.
pub fn check(heard: &[Heard], lines: &[Line], disruptions: &[Disruption], asked: &[Asked]) -> Verdict {
    let mut lines: Vec<&Line> = lines.iter().collect();
    lines.sort_by_key(|line| line.at);
    let names = Names::of(&lines);
    let mut disruptions: Vec<&Disruption> = disruptions.iter().collect();
    disruptions.sort_by_key(|disruption| disruption.at);
    let mut verdict = Verdict::default();
    let mut pods = BTreeMap::<&str, Pod>::new();
    let mut told = heard.iter().peekable();
    for disruption in disruptions {
        let Disruption { at, member, what } = disruption;
        while let Some(heard) = told.next_if(|heard| heard.at <= *at) {
            let since = pods.entry(&heard.member).or_default().hear(heard);
            let ms = since.map_or(0, |since| i64::try_from(heard.at.duration_since(since).as_millis()).unwrap_or(0));
            verdict.longest_ms = verdict.longest_ms.max(ms);
        }
        let cluster = cluster_of(member);
        let wishes = Wishes::at(asked, cluster, *at);
        let Some((_, voters)) = voters_at(&lines, cluster, wishes.since, *at) else { continue };
        let votes = |member: &str| names.ids(member).iter().any(|id| voters.contains(*id));
        let ready = pods.get(member.as_str()).and_then(|pod| pod.ready);
        let Some(uid) = ready.filter(|_| !wishes.all_stop && !wishes.fences(member) && votes(member)) else { continue };
        let is_down_since = |(name, pod): (&&str, &Pod<'_>)| {
            let (since, what, _) = pod.down?;
            let is_other = *name != member && cluster_of(name) == cluster && votes(name);
            (is_other && wishes.since.is_none_or(|made| made <= since))
                .then(|| format!("{what:?} of {name} at {since}"))
        };
        let others: BTreeSet<String> = pods.iter().filter_map(is_down_since).collect();
        if !others.is_empty() {
            verdict.violations.push(format!("{at}: {what:?} of {member}, while down by {others:?}"));
        }
        let pod = pods.entry(member).or_default();
        // What is asked for twice ends once.
        if pod.down.is_none_or(|(_, _, ending)| ending != uid) {
            verdict.taken_down += 1;
            pod.down = Some((*at, *what, uid));
        }
    }
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

    fn both_ready() -> Vec<Heard> {
        vec![told("02", A, "a1", true), told("02", B, "b1", true)]
    }

    fn judge(later: &[Heard], disruptions: &[Disruption], edits: &[Request]) -> Verdict {
        let heard: Vec<_> = both_ready().into_iter().chain(later.iter().cloned()).collect();
        check(&heard, &logs(&[(A, START), (B, SECOND)]), disruptions, &asked(edits))
    }

    #[test]
    fn the_next_may_go_when_the_last_is_ready_again() {
        let two = [at("10", A, What::Evict), at("20", B, What::Evict)];
        let early = judge(&[], &two, &[]);
        assert_eq!((early.taken_down, early.violations.len()), (2, 1), "{early:?}");
        // One that ends serves on for a while, and may be told ready while it does.
        let ending = [told("11", A, "a1", true), told("13", A, "a1", false)];
        assert_eq!(judge(&ending, &two, &[]).violations.len(), 1);
        let back = [told("13", A, "a1", false), told("17", A, "a2", true)];
        let verdict = judge(&back, &two, &[]);
        assert_eq!((verdict.violations.len(), verdict.longest_ms), (0, 7_000), "{verdict:?}");
        let late = [told("21", A, "a2", true)];
        assert_eq!(judge(&late, &two, &[]).violations.len(), 1);
    }

    #[test]
    fn what_is_down_already_is_not_taken_down() {
        let gone = [told("05", B, "b1", false)];
        let verdict = judge(&gone, &[at("10", A, What::Evict), at("20", B, What::DeletePod)], &[]);
        assert_eq!((verdict.taken_down, verdict.violations.len()), (1, 0), "{verdict:?}");
        let again = judge(&[], &[at("10", A, What::Evict), at("11", A, What::DeletePod)], &[]);
        assert_eq!((again.taken_down, again.violations.len()), (1, 0), "{again:?}");
    }

    #[test]
    fn who_has_no_vote_is_not_missed() {
        let out = "2026-11-25T07:00:15Z  INFO quorate_node::driver: configuration committed \
                   at=ConfigAt { incarnation: 1, term: 2, index: 12 } voters={2b, 3c} joint=false";
        let lines = logs(&[(A, START), (B, SECOND), (A, out)]);
        let two = |first: &str| [at(first, A, What::DeleteRecord), at("20", B, What::Evict)];
        assert_eq!(check(&both_ready(), &lines, &two("16"), &[]).violations, Vec::<String>::new());
        // Taken down while it voted, and out since.
        assert_eq!(check(&both_ready(), &lines, &two("10"), &[]).violations, Vec::<String>::new());
        assert_eq!(check(&both_ready(), &logs(&[(A, START), (B, SECOND)]), &two("10"), &[]).violations.len(), 1);
    }

    #[test]
    fn what_people_wanted_is_not_the_operators_doing() {
        let fence = edit("05", json!({"metadata": {"annotations": {ANNOTATION_FENCE: "orders-aaaaa"}}}));
        let sleep = edit("15", json!({"spec": {"replicas": 0}}));
        let two = [at("10", A, What::Stop), at("20", B, What::Stop)];
        assert_eq!(judge(&[], &two, &[]).violations.len(), 1);
        assert_eq!(judge(&[], &two, &[fence]).violations, Vec::<String>::new());
        assert_eq!(judge(&[], &two, &[sleep]).violations, Vec::<String>::new());
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
