//! Makes a failing run smaller: fewer faults, less time, fewer clients, as long as it breaks the same promise.

use std::collections::BTreeSet;

use crate::run::{Options, Outcome, run};

/// Runs a shrink may take.
const RUNS_MAX: u32 = 600;
/// Room for what a fault causes, when the time after the last one is cut.
const TAIL_US: u64 = 500_000;

/// The smallest failing run that was found.
#[derive(Debug)]
pub struct Shrunk {
    pub options: Options,
    pub outcome: Outcome,
    pub runs: u32,
}

struct Search {
    seed: u64,
    promise: String,
    best: (Options, Outcome),
    runs: u32,
}

/// The promise a violation is about: its first word.
fn promise(outcome: &Outcome) -> Option<String> {
    outcome.violation.as_deref().and_then(|text| text.split_whitespace().next()).map(str::to_owned)
}

/// `None` when the seed does not fail at all.
pub fn shrink(seed: u64, options: &Options) -> Option<Shrunk> {
    let first = run(seed, options);
    let promise = promise(&first)?;
    let mut search = Search { seed, promise, best: (options.clone(), first), runs: 1 };
    search.cut_time();
    search.drop_faults();
    search.drop_clients();
    search.cut_time();
    search.drop_faults();
    let (options, outcome) = search.best;
    Some(Shrunk { options, outcome, runs: search.runs })
}

impl Search {
    /// Whether the run still fails so; keeps it if it does.
    fn tries(&mut self, options: Options) -> bool {
        if self.runs >= RUNS_MAX {
            return false;
        }
        self.runs += 1;
        let outcome = run(self.seed, &options);
        let fails = promise(&outcome).as_ref() == Some(&self.promise);
        if fails {
            self.best = (options, outcome);
        }
        fails
    }

    fn options(&self) -> Options {
        self.best.0.clone()
    }

    /// Faults end earlier.
    fn cut_time(&mut self) {
        let mut until = self.best.1.lasted_us;
        while until > TAIL_US {
            until /= 2;
            let options = Options { faults_until_us: Some(until), ..self.options() };
            if !self.tries(options) {
                break;
            }
        }
        let last = self.best.1.faults.last().map_or(0, |fault| fault.1);
        let options = Options { faults_until_us: Some(last + TAIL_US), ..self.options() };
        self.tries(options);
    }

    /// Faults go, many at a time at first (delta debugging; Zeller, Hildebrandt 2002).
    fn drop_faults(&mut self) {
        let mut size = self.best.1.faults.len().div_ceil(2);
        while size > 0 && self.runs < RUNS_MAX {
            let mut at = 0;
            while at < self.best.1.faults.len() {
                let part = self.best.1.faults.iter().skip(at).take(size).map(|fault| fault.0);
                let mut options = self.options();
                let skipped: BTreeSet<u64> = part.collect();
                options.skip.extend(skipped);
                if !self.tries(options) {
                    at += size;
                }
            }
            size /= 2;
        }
    }

    fn drop_clients(&mut self) {
        for clients in 1..6 {
            let options = Options { clients_max: Some(clients), ..self.options() };
            if self.tries(options) {
                return;
            }
        }
    }
}
