//! The shell of the operator: observes, hands the observation to the planner, carries out the one step it gets back, and tells
//! the status from the same observation.
//!
//! Two worlds, one loop: `kubernetes` (objects of an API server) and `local` (processes and directories). Nothing here decides
//! about members; that is `quorate_plan`.

pub mod args;
pub mod clock;
pub mod events;
pub mod kubernetes;
pub mod local;
pub mod members;
pub mod metrics;
pub mod reconcile;
pub mod serve;
pub mod world;
