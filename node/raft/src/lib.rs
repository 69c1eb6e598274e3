//! The consensus core: inputs in, effects out. See [`io`] for the contract.
pub mod codec;
pub mod io;
pub mod types;
pub mod wire;
