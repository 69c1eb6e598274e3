//! One program for all targets: `QUORATE_FUZZ_TARGET` names the one to run, `list` prints them, and
//! `QUORATE_FUZZ_SEEDS` writes the first corpus into a directory.
#![no_main]

mod mem;
mod seeds;
mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

use targets::{TARGETS, Target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn choose() {
    if let Ok(dir) = std::env::var("QUORATE_FUZZ_SEEDS") {
        seeds::write(Path::new(&dir));
        std::process::exit(0);
    }
    let name = std::env::var("QUORATE_FUZZ_TARGET").unwrap_or_else(|_| "list".to_owned());
    if name == "list" {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("no fuzz target is called {name:?}: QUORATE_FUZZ_TARGET=list prints them");
        std::process::exit(2);
    };
    let _ = CHOSEN.set(target);
}

fuzz_target!(init: choose(), |data: &[u8]| {
    (CHOSEN.get().expect("chosen before the first input").run)(data);
});
