//! The release before this one, for tests of upgrades: another version, and without what this one adds.
//!
//! A program of its own, so that building it never takes the place of `quorate-node`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    quorate_node::program::main()
}
