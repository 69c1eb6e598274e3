//! The one table from our refusals to what clients of etcd recognise.
//!
//! Go clients map errors by message text, others by code, so both are part of the interface. Texts of our own appear
//! only where etcd has none.

use quorate_raft::io::Refusal;
use quorate_state::{ClusterVersion, Feature, StateError};
use tonic::{Code, Status};

use crate::handle::CallError;

pub(crate) const NO_LEADER: &str = "etcdserver: no leader";
const LEADER_CHANGED: &str = "etcdserver: leader changed";
const STOPPED: &str = "etcdserver: server stopped";
const TIMEOUT: &str = "etcdserver: request timed out";
const TIMEOUT_LEADER_FAILED: &str = "etcdserver: request timed out, possibly due to previous leader failure";
const TOO_LARGE: &str = "etcdserver: request is too large";
const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";
const MEMBER_NOT_FOUND: &str = "etcdserver: member not found";
const LEARNER_NOT_READY: &str = "etcdserver: can only promote a learner member which is in sync with leader";

pub(crate) fn no_leader() -> Status {
    Status::unavailable(NO_LEADER)
}

pub(crate) fn not_leader() -> Status {
    Status::failed_precondition("etcdserver: not leader")
}

pub(crate) fn not_for_learner() -> Status {
    Status::failed_precondition("etcdserver: rpc not supported for learner")
}

pub(crate) fn not_activated() -> Status {
    Status::unavailable("etcdserver: this member waits for its operator to activate it and serves no clients yet")
}

pub(crate) fn removed() -> Status {
    Status::unavailable("etcdserver: this member was removed from the cluster; ask another one")
}

pub(crate) fn no_space() -> Status {
    Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
}

pub(crate) fn too_large() -> Status {
    Status::invalid_argument(TOO_LARGE)
}

pub(crate) fn invalid_sort_option() -> Status {
    Status::invalid_argument("etcdserver: invalid sort option")
}

pub(crate) fn invalid_client_api_version() -> Status {
    Status::invalid_argument("etcdserver: invalid client api version")
}

pub(crate) fn member_not_found() -> Status {
    Status::not_found(MEMBER_NOT_FOUND)
}

pub(crate) fn invalid_member_urls() -> Status {
    Status::invalid_argument("etcdserver: given member URLs are invalid")
}

pub(crate) fn peer_urls_exist() -> Status {
    Status::failed_precondition("etcdserver: Peer URLs already exists")
}

pub(crate) fn too_many_learners() -> Status {
    Status::failed_precondition("etcdserver: too many learner members in cluster")
}

pub(crate) fn not_all_members_can(what: &str, feature: Feature, agreed: ClusterVersion) -> Status {
    Status::failed_precondition(format!(
        "etcdserver: {what} needs cluster version {}, and the cluster has agreed on {agreed}: \
         it rises by itself once every member runs a release that understands it, so upgrade all of them first",
        feature.since()
    ))
}

/// Names what is not there, so that a person knows that retrying is in vain.
pub(crate) fn absent(what: &str) -> Status {
    Status::unimplemented(format!("etcdserver: {what} is not implemented by this server"))
}

pub(crate) fn of_state(error: StateError) -> Status {
    let code = match error {
        StateError::Compacted | StateError::FutureRevision => Code::OutOfRange,
        StateError::LeaseNotFound => Code::NotFound,
        StateError::EmptyKey
        | StateError::KeyNotFound
        | StateError::ValueProvided
        | StateError::LeaseProvided
        | StateError::TooManyOps
        | StateError::DuplicateKey => Code::InvalidArgument,
        StateError::NoSpace | StateError::TooManyAlarms => Code::ResourceExhausted,
        StateError::NotAllMembersCan => Code::FailedPrecondition,
        StateError::NotReadOnly => Code::Internal,
    };
    Status::new(code, error.message())
}

pub(crate) fn of_call(error: CallError) -> Status {
    match error {
        CallError::NoLeader => no_leader(),
        CallError::NotLeader => not_leader(),
        // The words tell a person that it may have taken effect.
        CallError::Unknown => Status::unavailable(TIMEOUT_LEADER_FAILED),
        CallError::Timeout => Status::unavailable(TIMEOUT),
        CallError::Stopped => Status::unavailable(STOPPED),
        CallError::TooLarge { .. } => too_large(),
        CallError::NoSpace => no_space(),
        CallError::TooManyRequests => Status::resource_exhausted(TOO_MANY_REQUESTS),
        CallError::NotActivated => not_activated(),
        CallError::TransferAborted => {
            Status::unavailable("etcdserver: request timed out, leader transfer took too long")
        }
        CallError::Refused(refusal) => of_refusal(&refusal),
        CallError::State(error) => of_state(error),
    }
}

pub(crate) fn of_refusal(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::NotLeader { .. } => not_leader(),
        Refusal::NotReady | Refusal::Transferring { .. } => Status::unavailable(LEADER_CHANGED),
        Refusal::Overloaded { .. } | Refusal::TooManyReads { .. } => Status::resource_exhausted(TOO_MANY_REQUESTS),
        Refusal::TooLarge { .. } => too_large(),
        Refusal::DiskStalled => Status::unavailable("etcdserver: the leader's disk is stalled; try again"),
        Refusal::ConfigMismatch { expected, current } => Status::failed_precondition(format!(
            "etcdserver: the configuration is {current:?}, not {expected:?}; read it again and decide anew"
        )),
        Refusal::ChangeInFlight => {
            Status::unavailable("etcdserver: another change of the configuration is under way; try again")
        }
        Refusal::UnknownMember { .. } => member_not_found(),
        Refusal::AlreadyMember { .. } => Status::failed_precondition("etcdserver: member ID already exist"),
        Refusal::NotLearner { .. } => Status::failed_precondition("etcdserver: can only promote a learner member"),
        Refusal::NotVoter { id } => Status::failed_precondition(format!("etcdserver: member {id} is not a voter")),
        Refusal::LearnerBehind { .. } => Status::failed_precondition(LEARNER_NOT_READY),
        Refusal::MemberSilent { .. } => Status::failed_precondition(LEARNER_NOT_READY),
        Refusal::QuorumAtRisk { .. } => {
            Status::failed_precondition("etcdserver: re-configuration failed due to not enough started members")
        }
        Refusal::BadTransferee { .. } => Status::failed_precondition("etcdserver: bad leader transferee"),
        Refusal::Stopped => Status::unavailable(STOPPED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_find_the_code_and_the_text_of_etcd() {
        let compacted = of_state(StateError::Compacted);
        assert_eq!(compacted.code(), Code::OutOfRange);
        assert_eq!(compacted.message(), "etcdserver: mvcc: required revision has been compacted");
        let large = of_call(CallError::TooLarge { bytes: 2, limit_bytes: 1 });
        assert_eq!((large.code(), large.message()), (Code::InvalidArgument, TOO_LARGE));
        let unknown = of_call(CallError::Unknown);
        assert_eq!(unknown.code(), Code::Unavailable);
        assert!(unknown.message().starts_with(TIMEOUT));
        let lost = of_refusal(&Refusal::UnknownMember { id: quorate_raft::types::MemberId(7) });
        assert_eq!((lost.code(), lost.message()), (Code::NotFound, MEMBER_NOT_FOUND));
    }

    #[test]
    fn every_refusal_of_the_state_begins_as_in_etcd() {
        for error in [StateError::EmptyKey, StateError::TooManyOps, StateError::DuplicateKey, StateError::LeaseNotFound]
        {
            assert!(of_state(error).message().starts_with("etcdserver: "), "{error:?}");
        }
    }
}
