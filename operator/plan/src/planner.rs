//! One planning pass: concerns in order of precedence, the first that has something to do decides.
//!
//! A concern returns nothing when it has nothing to do, a step, or why it must wait. A wait that need not stop the rest (a pod
//! that takes long to end) is kept aside and becomes the answer only when nobody else has one.

use quorate_api::{PodDisruptionBudget, names};

use crate::approval::hold_for_approval;
use crate::bootstrap::{bootstrap, seal_and_activate};
use crate::delete::plan_deletion;
use crate::hands::{fence_asked, restart_asked, told_to_stay, transfer_asked};
use crate::intent::{Intent, ValidatedCluster};
use crate::membership::{
    clean_up_removed, grow, leads_alone_and_leaves, mark_leavers, move_volumes, record_ids, remove_retiring,
    restore_records, shrink, shrink_down, start_stopped, successor,
};
use crate::mutants::{Mutant, is_planted};
use crate::observation::{MemberId, MemberRecord, Observation, Presence, Running, Volume};
use crate::outline::outline;
use crate::repair::awaited;
use crate::report::{Blocked, Decision, Operation, Plan, Report, Waiting};
use crate::roll::{heal_without_leader, roll};
use crate::sleep::sleep;
use crate::step::{RecordRef, Step, VolumeRef};
use crate::view::{Disk, Leader, View, quorum};

/// What a concern has to say; nothing when it has nothing to do.
pub(crate) type Next = Option<Decision>;

/// One pass over one observation.
pub(crate) struct Pass<'a> {
    pub cluster: &'a ValidatedCluster,
    pub view: View<'a>,
    pub now_ms: u64,
    pub seed: u64,
    pub template_hash: String,
    /// The voter that is being replaced because nobody hears it.
    pub silent: Option<&'a MemberRecord>,
    /// Waits that stop nothing else.
    pub aside: Vec<Waiting>,
    pub report: Report,
}

/// Chooses at most one step that moves the cluster toward the intent.
///
/// Pure: equal arguments give equal plans. `now_ms` counts milliseconds since the Unix epoch; `seed` is
/// `quorate_api::names::seed(uid)`, from which new members' names follow, so that two planners with one observation ask for the
/// same name and the second gets a conflict.
pub fn plan(intent: &Intent, observed: &Observation, now_ms: u64, seed: u64) -> Plan {
    match intent {
        Intent::Delete(policy) => plan_deletion(policy, observed, now_ms),
        Intent::Refused(refused) => {
            let next = Decision::Blocked(Blocked::InvalidSpec { problems: refused.problems.clone() });
            Plan { next, upcoming: Vec::new(), report: Report::default() }
        }
        Intent::Run(cluster) => plan_run(cluster, observed, now_ms, seed),
    }
}

fn plan_run(cluster: &ValidatedCluster, observed: &Observation, now_ms: u64, seed: u64) -> Plan {
    // A caller that has settled it already loses nothing.
    let cluster = &cluster.clone().settled(observed);
    let mut pass = Pass {
        cluster,
        view: View::new(observed, &cluster.identity),
        now_ms,
        seed,
        template_hash: cluster.template_hash(),
        silent: None,
        aside: Vec::new(),
        report: Report::default(),
    };
    let decided = decide(&mut pass);
    let held = hold_if_paused(cluster, decided);
    let next = hold_for_approval(&mut pass, held);
    let upcoming = outline(&pass, &next);
    Plan { next, upcoming, report: pass.report }
}

fn hold_if_paused(cluster: &ValidatedCluster, decided: Decision) -> Decision {
    match decided {
        Decision::Act(step) if cluster.paused && !is_planted(Mutant::IgnorePause) => {
            Decision::Blocked(Blocked::Paused { step: step.name() })
        }
        other => other,
    }
}

fn decide(pass: &mut Pass<'_>) -> Decision {
    if let Some(what) = pass.view.observed.unread.first()
        && !is_planted(Mutant::IgnoreUnread)
    {
        return Decision::Wait(Waiting::ObservationIncomplete { what: what.clone() });
    }
    let first: [fn(&mut Pass<'_>) -> Next; 5] = [shared_objects, budget, sleep, bootstrap, start_stopped];
    if let Some(decision) = first.iter().find_map(|concern| concern(pass)) {
        return decision;
    }
    let Some(leader) = pass.view.leader else { return without_leader(pass) };
    let then: [fn(&mut Pass<'_>, Leader<'_>) -> Next; 17] = [
        record_ids,
        seal_and_activate,
        restore_records,
        mark_leavers,
        clean_up_removed,
        change_in_flight,
        transfer_asked,
        fence_asked,
        restart_asked,
        remove_retiring,
        grow,
        shrink_down,
        roll,
        shrink,
        move_volumes,
        settle,
        told_to_stay,
    ];
    let decided = then.iter().find_map(|concern| concern(pass, leader));
    decided.unwrap_or_else(|| pass.aside.first().cloned().map_or(Decision::Steady, Decision::Wait))
}

fn shared_objects(pass: &mut Pass<'_>) -> Next {
    let objects = &pass.view.observed.objects;
    if objects.finalizer == Presence::Absent {
        return act(Step::AddFinalizer);
    }
    let (hash, policy) = (pass.cluster.objects_hash(), pass.cluster.policy_hash(&objects.home));
    let is_there = objects.applied_hash.as_ref() == Some(&hash) && objects.policy_hash == policy;
    (!is_there).then_some(Decision::Act(Step::ApplyObjects { hash, policy }))
}

/// The floor of voters that evictions by others must leave: raised before growth, lowered after the shrink.
///
/// An integer, since `maxUnavailable: 1` of a size that changes has let drains take more; never below the quorum.
pub fn budget_floor(voters: usize) -> u32 {
    let floor = if is_planted(Mutant::BudgetOfQuorumOnly) {
        quorum(voters)
    } else {
        quorum(voters).max(voters.saturating_sub(1))
    };
    u32::try_from(floor).expect("at most nine voters are wanted, and a configuration is smaller than 2^32")
}

fn budget(pass: &mut Pass<'_>) -> Next {
    let current = pass.view.observed.objects.budget_min_available;
    let beside = |leader| usize::from(leads_alone_and_leaves(pass, leader));
    let active = pass.view.leader.map(|leader| leader.voters().count() + beside(leader));
    let wanted = match pass.cluster.budget {
        PodDisruptionBudget::Disabled => None,
        PodDisruptionBudget::Enabled => {
            let voters = active.unwrap_or(0).max(pass.cluster.replicas);
            (voters > 0).then(|| budget_floor(voters))
        }
    };
    // Without a leader the active size is unknown: the budget may be raised, never lowered.
    let raises = wanted > current;
    let known = active.is_some() || pass.cluster.budget == PodDisruptionBudget::Disabled;
    (wanted != current && (raises || known)).then_some(Decision::Act(Step::SetBudget { min_available: wanted }))
}

/// Nobody may be asked about membership: only what cannot hurt is done.
fn without_leader(pass: &mut Pass<'_>) -> Decision {
    if let Some(decision) = heal_without_leader(pass) {
        return decision;
    }
    let lost = |r: &&MemberRecord| pass.view.disk(r) == Disk::Lost;
    let records = pass.records();
    let answering = records.iter().filter(|r| pass.view.word(r).is_some()).count();
    let Some(word) = pass.view.configuration() else {
        // Who votes is not known, so only the loss of every disk is proof.
        let started: Vec<_> = records.iter().copied().filter(|r| r.start.is_some()).collect();
        if !started.is_empty() && started.iter().all(lost) {
            return Decision::Blocked(Blocked::QuorumLost { with_disk: 0, quorum: quorum(started.len()) });
        }
        return Decision::Wait(Waiting::NoLeader { answering, voters: started.len() });
    };
    let voters: Vec<_> = word.members.iter().filter(|m| !m.is_learner && !m.is_outgoing).collect();
    let gone = voters.iter().filter(|m| pass.record_of(m.id).is_some_and(|r| lost(&r))).count();
    let (with_disk, quorum) = (voters.len() - gone, quorum(voters.len()));
    if with_disk < quorum {
        return Decision::Blocked(Blocked::QuorumLost { with_disk, quorum });
    }
    Decision::Wait(Waiting::NoLeader { answering, voters: voters.len() })
}

fn change_in_flight(_: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    leader.is_changing().then_some(Decision::Wait(Waiting::ChangeInFlight))
}

/// The last concern: volumes that are too small, and members that are not back yet.
fn settle(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    let wanted = pass.cluster.storage.size_bytes;
    for record in pass.view.records.values() {
        if let Some(volume) = pass.view.volume(record).filter(|v| v.size_bytes < wanted) {
            return act(Step::GrowVolume { volume: volume_ref(volume), size: pass.cluster.storage.size.clone() });
        }
    }
    for record in pass.view.records.values() {
        let serves = pass.view.word(record).is_some_and(|w| w.ready);
        let back = serves && record.member_id.is_some_and(|id| leader.is_caught_up(id));
        let stays = pass.is_fenced(record) && record.running == Running::Stopped;
        if !back && !stays && record.retirement.is_none() {
            return Some(Decision::Wait(awaited(pass, leader, record)));
        }
    }
    None
}

impl<'a> Pass<'a> {
    /// By name.
    pub fn records(&self) -> Vec<&'a MemberRecord> {
        self.view.records.values().copied().collect()
    }

    /// Our records that are voters of the committed configuration and stay.
    pub fn keepers(&self, leader: Leader<'_>) -> Vec<&'a MemberRecord> {
        self.voter_records(leader).into_iter().filter(|r| r.retirement.is_none()).collect()
    }

    /// Our records that are voters of the committed configuration, leaving or not.
    pub fn voter_records(&self, leader: Leader<'_>) -> Vec<&'a MemberRecord> {
        let is_voter = |r: &&&MemberRecord| r.member_id.and_then(|id| leader.member(id)).is_some_and(|m| !m.is_learner);
        self.view.records.values().filter(is_voter).copied().collect()
    }

    pub fn record_of(&self, id: MemberId) -> Option<&'a MemberRecord> {
        self.view.records.values().find(|r| r.member_id == Some(id)).copied()
    }

    /// A name nobody has or had: it follows from the configuration's index, which only grows.
    pub fn fresh_name(&self) -> String {
        let index = self.view.leader.map_or(0, |leader| leader.config_at().index);
        let taken = |name: &str| {
            let observed = self.view.observed;
            self.view.records.contains_key(name)
                || observed.volumes.iter().any(|v| v.record == name)
                || observed.words.iter().any(|w| w.members.iter().any(|m| m.name == name))
        };
        (0..)
            .map(|attempt| names::member(&self.cluster.identity.name, self.seed, index, attempt))
            .find(|name| !taken(name))
            .expect("eleven million names are more than one cluster can take")
    }

    pub fn operate(&mut self, operation: Operation, member: Option<&str>) {
        self.report.operation = Some(operation);
        self.report.member = member.map(str::to_owned);
    }

    /// Moves leadership away from a member that is about to leave or restart.
    pub fn transfer_away(&self, leader: Leader<'_>) -> Decision {
        match successor(self, leader) {
            Some(to) => Decision::Act(Step::TransferLeader { leader: leader.id(), to, expect_term: leader.word.term }),
            None => Decision::Wait(Waiting::NoSuccessor { leader: leader.id() }),
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "every concern answers with an Option, and this is its short form")]
pub(crate) fn act(step: Step) -> Next {
    Some(Decision::Act(step))
}

pub(crate) fn record_ref(record: &MemberRecord) -> RecordRef {
    RecordRef { name: record.name.clone(), uid: record.uid.clone(), resource_version: record.resource_version.clone() }
}

pub(crate) fn volume_ref(volume: &Volume) -> VolumeRef {
    VolumeRef { name: volume.name.clone(), uid: volume.uid.clone(), resource_version: volume.resource_version.clone() }
}
