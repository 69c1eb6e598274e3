//! Decides what the operator does next: observation + intent + now -> at most one step, and a report of what waits and why.
//!
//! Pure: no kube, no runtime, no clock, no I/O, no randomness. The same planner drives Kubernetes, local mode and the tests'
//! model; a shell observes, hands the observation in, carries out the one step, and observes again.
//!
//! ```text
//! Intent::of(&cluster) ─┐
//! Observation ──────────┼─> plan(..) ─> Plan { next, upcoming, report } ─> status(..)
//! now, seed ────────────┘
//! ```

mod approval;
mod bootstrap;
pub mod certificates;
mod delete;
mod hands;
pub mod intent;
mod membership;
pub mod mutants;
pub mod observation;
mod outline;
mod planner;
mod repair;
pub mod report;
mod roll;
mod secured;
mod sleep;
mod status;
pub mod step;
pub mod topology;
pub mod view;

pub use delete::STOP_WAIT_MS;
pub use intent::{DeletionPolicy, Identity, Intent, RefusedSpec, StorageIntent, TimingIntent, ValidatedCluster};
pub use membership::LEARNER_DEADLINE_MS;
pub use observation::{
    ClusterId, ConfigAt, ConfigMember, Deletion, MemberId, MemberRecord, MemberWord, Observation, Pod, PodPhase,
    Presence, Probe, Progress, Readiness, RetireReason, Retirement, Role, Running, SharedObjects, Spoken, StartAs,
    Termination, TlsWord, Volume,
};
pub use planner::{budget_floor, plan};
pub use report::{Blocked, Decision, Operation, Plan, PlannedStep, Report, Waiting};
pub use secured::{Defaults, NetworkIntent, PlaneIntent, Source, TlsIntent};
pub use status::{StatusInput, shown, status};
pub use step::{Eviction, RecordFor, RecordRef, Step, VolumeRef};
