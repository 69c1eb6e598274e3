//! Was a leader ever disrupted without handing over first? Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::story::{Asked, ConfigAt, Disruption, Event, Line, Names, What, Wishes, cluster_of, voters_at};

/// A member that led within this many seconds before it was disrupted counts as one that handed over.
const RECENTLY_SECONDS: i64 = 120;

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
        let wishes = Wishes::at(asked, cluster, disruption.at);
        if wishes.all_stop {
            continue;
        }
        verdict.checked += 1;
        let history = History::between(wishes.since, &lines, disruption);
        verdict.violations.extend(history.violation(disruption, &names, wishes.fences(&disruption.member)));
        verdict.handed_over.extend(history.hand_over(disruption));
    }
    verdict
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
        let cluster = cluster_of(&disruption.member);
        let mut history = History {
            leaderships: Vec::new(),
            ended: BTreeMap::new(),
            gone: BTreeSet::new(),
            ready: BTreeMap::new(),
            handing_over: BTreeMap::new(),
            voters: voters_at(lines, cluster, since, disruption.at),
        };
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
            Event::Retired | Event::Follows | Event::Started { .. } | Event::Ended => {
                self.ended.entry(member).or_insert(line.at);
            }
            Event::HandingOver { .. } => {
                self.handing_over.insert(member, line.at);
            }
            Event::Committed { .. } | Event::AskedToRemove { .. } => {}
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
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::audit::Request;
    use crate::kubernetes::story::fixture::{A, B, GIVEN, SECOND, START, TAKEN, at, edit, logs};
    use crate::kubernetes::story::{ANNOTATION_FENCE, LOG_ENDED, asked};

    fn judge(lines: &[Line], disruption: Disruption) -> Verdict {
        check(lines, &[disruption], &[])
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
}
