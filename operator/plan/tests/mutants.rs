//! Takes the planner's guards away one at a time: each loss must be noticed by the model or by a script.
//!
//! `cargo test -p quorate-plan --features mutants --test mutants -- --nocapture`

#![cfg(feature = "mutants")]

mod script;
mod world;

use quorate_plan::mutants::{Mutant, plant};
use world::run::{Scenario, enumerate, run};
use world::scenarios;

/// Where a mutant was noticed, the cheapest look first.
fn noticed(mutant: Mutant) -> Option<String> {
    plant(Some(mutant));
    let found = noticed_by_scenarios(&scenarios::all()).or_else(noticed_by_scripts);
    let found = found.or_else(|| noticed_by_faults(&scenarios::all()));
    plant(None);
    found
}

fn noticed_by_scenarios(all: &[Scenario]) -> Option<String> {
    all.iter().find_map(|s| run(s, None).err()).map(|text| text.lines().next().unwrap_or_default().to_owned())
}

fn noticed_by_scripts() -> Option<String> {
    script::all().into_iter().find(|s| script::run(&s.text) != s.text).map(|s| format!("script {}", s.name))
}

fn noticed_by_faults(all: &[Scenario]) -> Option<String> {
    all.iter()
        .find_map(|s| enumerate(s).1.into_iter().next())
        .map(|text| text.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn every_missing_guard_is_noticed() {
    assert!(
        noticed_by_scenarios(&scenarios::all()).is_none() && noticed_by_scripts().is_none(),
        "clean without mutants"
    );
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let shown = format!("{mutant:?}");
        match noticed(mutant) {
            Some(by) => println!("{shown:<28} caught: {by}"),
            None => survivors.push(mutant),
        }
    }
    assert!(survivors.is_empty(), "nobody notices {survivors:?}");
}
