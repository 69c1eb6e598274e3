//! Whole clusters of the shipped core and log on a simulated disk, network and clock, from one seed.
//!
//! Single thread, no clock, no randomness but the seed's: equal seeds give equal runs, as the trace hash shows. The core
//! (`quorate_raft::Node`) and the log with its recovery (`quorate_log::Log`) are the shipped ones; the network, the disk
//! below the log, the clocks and the engine are simulated. Every promise is checked while a run goes on (`oracle`,
//! `watch`), and every run ends with a healed quorum that must serve and agree.

#[cfg(feature = "mutants")]
macro_rules! planted {
    ($world:expr, $variant:ident) => {
        $world.shell_mutant == Some(crate::mutant::Mutant::$variant)
    };
}
#[cfg(not(feature = "mutants"))]
macro_rules! planted {
    ($world:expr, $variant:ident) => {{
        let _: &crate::world::World = $world;
        false
    }};
}

mod bounds;
mod clients;
pub mod faults;
mod forgetful;
mod hands;
mod identity;
pub mod ledger;
mod lives;
pub mod machine;
#[cfg(feature = "mutants")]
pub mod mutant;
pub mod net;
pub mod oracle;
mod process;
pub mod rng;
mod room;
pub mod run;
pub mod shrink;
pub mod storage;
pub mod watch;
mod watchers;
pub mod world;
