//! `kubectl quorate`: what a person asks about a cluster, and what a person asks of it.
//!
//! Shows what the operator wrote into the status; asks by annotations the planner obeys under its own guards. It never changes a
//! member, a pod or a volume itself. Text is made in pure modules (`screen`, `planned`, `ask`, `merge`); `main` and the others fetch.

pub mod args;
pub mod ask;
pub mod bundle;
pub mod connect;
pub mod logs;
pub mod merge;
pub mod observe;
pub mod paint;
pub mod planned;
pub mod screen;
pub mod wait;
