//! The auditor: judges what clients saw, without looking inside the system that served them.
//!
//! - [`history`]: what was asked and answered, with the order of calls and returns; one JSON value per line.
//! - [`model`]: what the store must do, one call at a time, written apart from the machine it judges.
//! - [`strict`]: strict serializability in near-linear time, using the revisions in the answers.
//! - [`search`]: the same for small histories by exhaustive search, using nothing but the answers. The two check each
//!   other.
//! - [`watch_rules`]: what a watch promises, one function per promise.
//! - [`acks`]: every acknowledged write is still there at the end.
//!
//! A history that cannot be judged is a violation too: "unknown" never passes. This crate must not know the node, the
//! machine, files or sockets; the binary reads files.

pub mod acks;
pub mod history;
pub mod model;
pub mod search;
pub mod strict;
pub mod watch_rules;

pub use history::{Answer, Call, Change, History, Kv, Line, Operation, Outcome};
pub use model::Model;
