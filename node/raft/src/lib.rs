//! The consensus core: inputs in, effects out. See [`io`] for the contract.
//!
//! One [`Node`] is one member of one Raft group. It never reads a clock, a disk or a socket: the shell feeds it
//! [`io::Input`]s with the current time and carries out the [`io::Effect`]s it returns. The same code runs in
//! production, in the simulator and under exhaustive search, so everything it does follows from its arguments.
//!
//! What is here: elections with pre-vote and check-quorum, pipelined replication, commit, ReadIndex, membership with
//! joint replacement, leadership transfer, lease reads, snapshots as marks. What is not: the bytes on disk, connections, the
//! replicated machine and acknowledgement policies.
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice"; shaped after etcd-io/raft.

#[cfg(feature = "mutants")]
macro_rules! planted {
    ($node:expr, $variant:ident) => {
        $node.cfg.mutant == Some(crate::mutant::Mutant::$variant)
    };
}
#[cfg(not(feature = "mutants"))]
macro_rules! planted {
    ($node:expr, $variant:ident) => {
        crate::not_planted()
    };
}

/// Without the feature no bug is planted. A function, so that every use stays an ordinary condition.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
const fn not_planted() -> bool {
    false
}

pub mod cfg;
pub mod codec;
mod durable;
pub mod frame;
pub mod io;
mod log;
pub mod membership;
#[cfg(feature = "mutants")]
pub mod mutant;
pub mod node;
mod progress;
pub mod quorum;
mod rng;
pub mod types;
pub mod wire;

pub use cfg::Cfg;
pub use node::{Node, PeerStatus, RoleName, Status};
