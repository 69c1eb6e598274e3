//! What follows from an observation: who leads, who is caught up, what a record is to the configuration.
//!
//! Everything that authorises a disruption is counted here, from the leader's progress table and fresh words, never from pod
//! readiness. What is not known is not counted.

use std::collections::BTreeMap;

use crate::intent::Identity;
use crate::mutants::{Mutant, is_planted};
use crate::observation::{
    ClusterId, ConfigAt, ConfigMember, Deletion, MemberId, MemberRecord, MemberWord, Observation, PodPhase, Readiness,
    Role, Termination, Volume,
};

/// Older evidence authorises nothing, in milliseconds. Two missed confirmations of a WAN leader fit in.
pub const EVIDENCE_AGE_MS_MAX: u64 = 3_000;
/// A leader that no majority confirmed for longer than this may have been replaced, in milliseconds.
pub const CONFIRMED_AGE_MS_MAX: u64 = 2_000;
/// Entries a member may be behind the leader's commit and still count as caught up, and a learner be promoted. A follower
/// under full load has some hundreds in flight; a thousand more are sent in well under a second.
pub const LAG_ENTRIES_MAX: u64 = 1_000;

/// What a pod waits for on its ordinary way up.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// An observation with its joins made.
#[derive(Debug)]
pub struct View<'a> {
    pub observed: &'a Observation,
    /// By name.
    pub records: BTreeMap<&'a str, &'a MemberRecord>,
    pub leader: Option<Leader<'a>>,
}

/// The one leader whose word counts: confirmed by a majority lately, its own entry committed and applied.
#[derive(Debug, Clone, Copy)]
pub struct Leader<'a> {
    pub word: &'a MemberWord,
    records: &'a [MemberRecord],
}

/// What is known about a started member's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// It never ran, so its disk holds nothing.
    Fresh,
    Sound,
    /// Gone, about to go, or of no use: proven by the volume itself or by the member's own word.
    Lost,
}

impl<'a> View<'a> {
    pub fn new(observed: &'a Observation, identity: &Identity) -> View<'a> {
        let records = observed.records.iter().map(|r| (r.name.as_str(), r)).collect();
        let leader = confirmed_leader(observed, identity);
        View { observed, records, leader }
    }

    /// The member's own answer of this pass, from the pod the record has now.
    pub fn word(&self, record: &MemberRecord) -> Option<&'a MemberWord> {
        let pod = record.pod.as_ref()?;
        let fresh =
            |w: &&MemberWord| w.record == record.name && w.pod_uid == pod.uid && w.age_ms <= EVIDENCE_AGE_MS_MAX;
        self.observed.words.iter().find(fresh)
    }

    /// The volume made for this very record. One with another stamp is somebody else's.
    pub fn volume(&self, record: &MemberRecord) -> Option<&'a Volume> {
        self.observed.volumes.iter().find(|v| v.record == record.name && v.record_uid == record.uid)
    }

    pub fn disk(&self, record: &MemberRecord) -> Disk {
        if self.word(record).is_some_and(|w| !w.fault.is_empty()) {
            return Disk::Lost;
        }
        match (record.start, self.volume(record)) {
            (None, _) => Disk::Fresh,
            (Some(_), Some(volume)) if volume.deletion == Deletion::No => Disk::Sound,
            (Some(_), _) => Disk::Lost,
        }
    }

    /// The newest committed configuration anybody told of: the leader's, or without one the highest among the words.
    pub fn configuration(&self) -> Option<&'a MemberWord> {
        let told = || self.observed.words.iter().filter(|w| w.age_ms <= EVIDENCE_AGE_MS_MAX && !w.members.is_empty());
        self.leader.map(|l| l.word).or_else(|| told().max_by_key(|w| (w.config_at, w.record.as_str())))
    }

    /// Says whether a started process can be ruled out from the pod alone. Silence is not proof.
    pub fn is_proven_down(record: &MemberRecord) -> bool {
        let Some(pod) = &record.pod else { return false };
        let idle = match pod.phase {
            PodPhase::Pending | PodPhase::Ended => true,
            PodPhase::Running => pod.waiting_reason.is_some(),
            PodPhase::Unknown => false,
        };
        idle && pod.readiness == Readiness::NotReady
    }

    /// Its pod is told to end; the member may still answer for a while.
    pub fn is_ending(record: &MemberRecord) -> bool {
        record.pod.as_ref().is_some_and(|pod| pod.termination == Termination::Terminating)
    }

    /// Why a pod cannot start, if something refuses it. Being made is no refusal.
    pub fn refusal(record: &MemberRecord) -> Option<&str> {
        let reason = record.pod.as_ref()?.waiting_reason.as_deref()?;
        (!STARTING.contains(&reason)).then_some(reason)
    }

    /// Why a member does not answer, as far as its pod tells.
    pub fn why_down(record: &MemberRecord) -> String {
        match &record.pod {
            None => "its pod does not exist yet".to_owned(),
            Some(pod) => pod.waiting_reason.clone().unwrap_or_else(|| match pod.phase {
                PodPhase::Pending => "its pod is pending".to_owned(),
                PodPhase::Ended => "its process ended".to_owned(),
                PodPhase::Unknown => "its node does not answer".to_owned(),
                PodPhase::Running => "it is starting".to_owned(),
            }),
        }
    }
}

/// A leader of the highest term that a majority confirmed lately and that may serve. Without one nothing about membership is known.
fn confirmed_leader<'a>(observed: &'a Observation, identity: &Identity) -> Option<Leader<'a>> {
    let ours = |id: ClusterId| observed.objects.bootstrapped.is_none_or(|bootstrapped| bootstrapped == id);
    let confirmed = |w: &&MemberWord| {
        w.role == Role::Leader
            && w.own_term_committed
            && w.own_term_applied
            && w.age_ms <= EVIDENCE_AGE_MS_MAX
            && (w.quorum_confirmed_age_ms <= CONFIRMED_AGE_MS_MAX || is_planted(Mutant::BelieveUnconfirmedLeader))
            && w.fault.is_empty()
            && w.incarnation == identity.incarnation
            && ours(w.cluster_id)
            && w.members.iter().any(|m| m.id == w.member_id)
    };
    observed
        .words
        .iter()
        .filter(confirmed)
        .max_by_key(|w| w.term)
        .map(|word| Leader { word, records: &observed.records })
}

impl<'a> Leader<'a> {
    pub fn id(&self) -> MemberId {
        self.word.member_id
    }

    pub fn config_at(&self) -> ConfigAt {
        self.word.config_at
    }

    /// A change is under way: nothing is decided about membership until it is committed and left.
    pub fn is_changing(&self) -> bool {
        self.word.change_in_flight || self.word.joint
    }

    pub fn member(&self, id: MemberId) -> Option<&'a ConfigMember> {
        self.word.members.iter().find(|m| m.id == id && !m.is_outgoing)
    }

    pub fn voters(&self) -> impl Iterator<Item = &'a ConfigMember> {
        self.word.members.iter().filter(|m| !m.is_learner && !m.is_outgoing)
    }

    pub fn learners(&self) -> impl Iterator<Item = &'a ConfigMember> {
        self.word.members.iter().filter(|m| m.is_learner)
    }

    /// Entries this member is behind the leader's commit; absent when the leader has not heard it lately.
    pub fn lag(&self, id: MemberId) -> Option<u64> {
        if id == self.id() {
            return Some(0);
        }
        let progress = self.word.progress.iter().find(|p| p.member_id == id)?;
        let heard = progress.active && progress.last_ack_age_ms.saturating_add(self.word.age_ms) <= EVIDENCE_AGE_MS_MAX;
        heard.then(|| self.word.commit_index.saturating_sub(progress.matched))
    }

    /// One whose pod ends is not: it serves on for a while, and nothing may be built on that.
    pub fn is_caught_up(&self, id: MemberId) -> bool {
        self.lag(id).is_some_and(|lag| lag <= LAG_ENTRIES_MAX)
            && (!self.is_ending(id) || is_planted(Mutant::EndingPodCounts))
    }

    fn is_ending(&self, id: MemberId) -> bool {
        self.records.iter().any(|r| r.member_id == Some(id) && View::is_ending(r))
    }

    /// How long the leader has surely not heard this member, in milliseconds: since its last answer, or since it leads if
    /// there was none in this term. The leader's own clock says so: an operator that was away, began anew or has a wrong
    /// clock changes nothing. A new leader starts anew, for it cannot know.
    pub fn silence_ms(&self, id: MemberId) -> u64 {
        let progress = self.word.progress.iter().find(|p| p.member_id == id);
        progress.filter(|p| !p.active).map_or(0, |p| p.last_ack_age_ms.min(self.word.led_ms))
    }

    pub fn is_reachable(&self, id: MemberId) -> bool {
        self.lag(id).is_some()
    }

    /// Durable at that member, as the leader verified it.
    pub fn matched(&self, id: MemberId) -> u64 {
        self.word.progress.iter().find(|p| p.member_id == id).map_or(0, |p| p.matched)
    }

    pub fn caught_up_count(&self) -> usize {
        self.voters().filter(|v| self.is_caught_up(v.id)).count()
    }
}

/// Voters it takes to decide anything.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}
