//! The ledger of seeds: which were run, on which core and log, and what came of it.
//!
//! Only rows of the same core and log count together: a seed that passed on other code proves nothing about this.

use std::fmt::Write;

/// Above the rows.
const HEAD: &str = "\
# Seeds that were run

Each row is one run of `quorate-sim --ledger docs/seeds.md --seeds A..B`. The commit is the last one that touched the core
or the log (`git log -1 --format=%h -- node/raft node/log`); only rows of one commit count together.

| Seeds | Core and log | Result | Simulated hours | Hours that count | Client calls | Faults | Speed |
|---|---|---|---|---|---|---|---|
";

/// One run of a range of seeds.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// From the first to before the second.
    pub seeds: (u64, u64),
    pub commit: String,
    pub failed: u64,
    pub simulated_hours: f64,
    pub counted_hours: f64,
    pub operations: u64,
    pub faults: u64,
    /// Simulated time by real time, on all cores.
    pub speed: f64,
}

/// What the rows of one commit add up to.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Total {
    pub seeds: u64,
    pub failed: u64,
    pub counted_hours: f64,
}

impl Row {
    pub fn print(&self) -> String {
        let result = if self.failed == 0 { "green".to_owned() } else { format!("{} failed", self.failed) };
        format!(
            "| {}..{} | {} | {result} | {:.2} | {:.2} | {} | {} | {:.0}× |\n",
            self.seeds.0,
            self.seeds.1,
            self.commit,
            self.simulated_hours,
            self.counted_hours,
            self.operations,
            self.faults,
            self.speed
        )
    }

    fn parse(line: &str) -> Option<Row> {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        let [seeds, commit, result, hours, counted, operations, faults, speed] = cells.as_slice() else { return None };
        let (from, to) = seeds.split_once("..")?;
        Some(Row {
            seeds: (from.parse().ok()?, to.parse().ok()?),
            commit: (*commit).to_owned(),
            failed: if *result == "green" { 0 } else { result.split_once(' ')?.0.parse().ok()? },
            simulated_hours: hours.parse().ok()?,
            counted_hours: counted.parse().ok()?,
            operations: operations.parse().ok()?,
            faults: faults.parse().ok()?,
            speed: speed.strip_suffix('×')?.parse().ok()?,
        })
    }
}

/// The ledger with one row more.
pub fn append(ledger: &str, row: &Row) -> String {
    let mut text = if ledger.is_empty() { HEAD.to_owned() } else { ledger.to_owned() };
    write!(text, "{}", row.print()).expect("writing to a string does not fail");
    text
}

/// Adds up the rows of one commit. Seeds that were run twice count once.
pub fn total(ledger: &str, commit: &str) -> Total {
    let mut rows: Vec<Row> = ledger.lines().filter_map(Row::parse).filter(|row| row.commit == commit).collect();
    rows.sort_by_key(|row| row.seeds);
    let (mut total, mut end) = (Total::default(), 0);
    for row in rows {
        let fresh = row.seeds.1.saturating_sub(row.seeds.0.max(end));
        let all = (row.seeds.1 - row.seeds.0).max(1);
        total.seeds += fresh;
        total.failed += row.failed;
        total.counted_hours += row.counted_hours * fresh as f64 / all as f64;
        end = end.max(row.seeds.1);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seeds: (u64, u64), commit: &str, failed: u64) -> Row {
        let commit = commit.to_owned();
        Row {
            seeds,
            commit,
            failed,
            simulated_hours: 9.5,
            counted_hours: 8.0,
            operations: 700,
            faults: 60,
            speed: 1200.0,
        }
    }

    #[test]
    fn a_row_is_read_back() {
        let row = row((1, 1001), "abc1234", 2);
        assert_eq!(Row::parse(row.print().trim_end()), Some(row));
    }

    #[test]
    fn only_rows_of_one_commit_count_and_each_seed_once() {
        let mut ledger = append("", &row((1, 101), "abc", 0));
        for next in [row((51, 151), "abc", 1), row((1, 1001), "other", 0), row((500, 600), "abc", 0)] {
            ledger = append(&ledger, &next);
        }
        let total = total(&ledger, "abc");
        assert_eq!((total.seeds, total.failed), (250, 1));
        assert!((total.counted_hours - 20.0).abs() < 1e-9, "{total:?}");
    }
}
