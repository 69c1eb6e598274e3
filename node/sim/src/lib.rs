//! Whole clusters of the shipped core on a simulated disk, network and clock, from one seed.
//!
//! Single thread, no clock, no randomness but the seed's: equal seeds give equal runs, as the trace hash shows.

pub mod faults;
pub mod machine;
pub mod net;
pub mod oracle;
pub mod rng;
pub mod run;
pub mod storage;
pub mod world;
