//! The short form of the exhaustive search; `cargo run --release -p quorate-raft --example exhaustive` is the long one.

#[path = "../examples/exhaustive/search.rs"]
mod search;

use std::time::Duration;

const FOREVER: Duration = Duration::from_secs(3_600);

#[test]
fn exhaustive_search_finds_no_broken_invariant() {
    for scope in search::scopes() {
        match search::search(&scope, 20_000, FOREVER) {
            Ok(report) => println!("{:8} states, complete: {}: {}", report.states, report.is_complete, scope.name),
            Err(broken) => panic!("{}: {}\n{}", scope.name, broken.why, broken.schedule.join("\n")),
        }
    }
}
