//! A cluster is made once: one seed, which serves nobody until it is durably on record that the cluster exists.
//!
//! Afterwards an empty disk is a loss, never a new cluster.

use crate::membership::clean_up;
use crate::mutants::{Mutant, is_planted};
use crate::observation::{Deletion, MemberRecord, Running, StartAs};
use crate::planner::{Next, Pass, act, record_ref};
use crate::report::{Blocked, Decision, Operation, Waiting};
use crate::roll::fix_template;
use crate::step::{RecordFor, Step};
use crate::view::{Leader, View};

pub(crate) fn bootstrap(pass: &mut Pass<'_>) -> Next {
    if pass.view.observed.objects.bootstrapped.is_some() {
        return None;
    }
    pass.operate(Operation::Bootstrap, None);
    if let Some(leader) = pass.view.leader {
        return act(Step::RecordBootstrap { cluster_id: leader.word.cluster_id });
    }
    // An id or a sealed start is written only after the marker: the marker was lost, the cluster was not.
    if pass.view.records.values().any(|r| r.member_id.is_some() || r.start == Some(StartAs::Member)) {
        return None;
    }
    let mut records = pass.records();
    records.sort_by_key(|r| (r.deletion == Deletion::Requested, r.created_ms, r.name.as_str()));
    // Nothing was ever acknowledged by what is dropped here.
    for extra in records.iter().filter(|r| r.deletion == Deletion::Requested).chain(records.iter().skip(1)) {
        let done = clean_up(pass, extra);
        if done.is_some() {
            return done;
        }
    }
    match records.first() {
        Some(seed) if seed.deletion == Deletion::No => start_seed(pass, seed),
        Some(gone) => Some(Decision::Wait(Waiting::RecordDeleting { member: gone.name.clone() })),
        None => create_seed(pass),
    }
}

fn create_seed(pass: &mut Pass<'_>) -> Next {
    let volumes = pass.view.observed.volumes.len();
    if volumes > 0 && !is_planted(Mutant::BootstrapOverVolumes) {
        return Some(Decision::Blocked(Blocked::BootstrapRefused { volumes }));
    }
    let (name, template_hash) = (pass.fresh_name(), pass.template_hash.clone());
    act(Step::CreateMember { name, template_hash, purpose: RecordFor::Seed })
}

fn start_seed(pass: &mut Pass<'_>, seed: &MemberRecord) -> Next {
    pass.operate(Operation::Bootstrap, Some(&seed.name));
    match pass.view.volume(seed) {
        None => return act(Step::CreateVolume { record: record_ref(seed) }),
        Some(volume) if volume.deletion == Deletion::Requested => {
            return Some(Decision::Wait(Waiting::VolumeDeleting { member: seed.name.clone() }));
        }
        Some(_) => {}
    }
    if seed.start.is_none() || seed.running == Running::Stopped {
        return act(Step::StartMember {
            record: record_ref(seed),
            start: StartAs::Seed,
            member_id: None,
            template_hash: pass.template_hash.clone(),
        });
    }
    // It serves nobody yet, so a spec that was corrected is taken at once.
    fix_template(pass, seed).or_else(|| {
        let reason = View::why_down(seed);
        Some(Decision::Wait(Waiting::MemberStarting { member: seed.name.clone(), reason }))
    })
}

/// Takes away the seed's right to make a cluster, then lets it serve.
pub(crate) fn seal_and_activate(pass: &mut Pass<'_>, leader: Leader<'_>) -> Next {
    for record in pass.records() {
        if let (Some(StartAs::Seed), Some(member_id)) = (record.start, record.member_id)
            && !is_planted(Mutant::NeverSealSeed)
        {
            pass.operate(Operation::Bootstrap, Some(&record.name));
            let template_hash = pass.template_hash.clone();
            return act(Step::SealSeed { record: record_ref(record), member_id, template_hash });
        }
    }
    let alone = leader.voters().count() == 1;
    let cluster_id = pass.view.observed.objects.bootstrapped?;
    (alone && !leader.word.activated).then(|| {
        pass.operate(Operation::Bootstrap, Some(&leader.word.record));
        Decision::Act(Step::Activate { record: leader.word.record.clone(), member_id: leader.id(), cluster_id })
    })
}
