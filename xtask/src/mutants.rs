//! `cargo xtask mutants`: plants every known bug, everywhere somebody might notice, and prints one table.
//!
//! The core's and the log's own tests, the whole-cluster simulation and the planner's model each say in lines of their own
//! what they killed. A bug that nobody kills makes the run fail, and so does a rule without any planted bug.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cmd;

/// Seeds of the simulation each bug meets at first, and those that nobody else kills.
const SEEDS_FIRST: u64 = 40;
const SEEDS_LAST: u64 = 1_000;

/// The rules that are easy to get wrong, each with the bugs that break it. Bugs of no rule are listed all the same.
const RULES: [(&str, &[&str]); 17] = [
    ("1 heartbeats match no log", &["heartbeat-matches-log", "heartbeat-commit-above-match", "probe-from-the-start"]),
    ("2 a lower term is answered with the own", &["lower-term-ignored", "pre-vote-rejection-without-term"]),
    (
        "3 a lease is what voters promised",
        &[
            "lease-from-own-timeout",
            "lease-from-receive-time",
            "lease-counts-new-half-only",
            "promise-while-hinting",
            "restart-forgets-old-timeout",
        ],
    ),
    ("4 drift bounds any two clocks", &["lease-ignores-drift"]),
    (
        "5 reading under a lease",
        &["lease-before-ready", "lease-without-setting", "lease-kept-in-transfer", "read-before-applied"],
    ),
    (
        "6 a snapshot never takes back entries",
        &["snapshot-drops-tail", "log-kept-under-snapshot", "snapshot-below-commit", "mark-keeps-alien-log"],
    ),
    (
        "7 the engine stays behind the log",
        &[
            "engine-persists-past-durable",
            "engine-beyond-log-not-marked",
            "applied-apart-from-data",
            "cut-past-persisted",
            "engine-beyond-log-ignored",
            "engine-behind-accepted",
            "cleared-before-mark",
            "tail-trusted-unflushed",
        ],
    ),
    (
        "8 a vote leaves when both copies are durable",
        &[
            "vote-sent-after-one-copy",
            "newer-slot-overwritten",
            "lost-vote-ignored",
            "vote-reply-before-fsync",
            "vote-not-persisted",
            "checkpoint-forgets-vote",
        ],
    ),
    (
        "9 a log that went back is not fed on",
        &["log-reversion-accepted", "reversion-ignored", "truncation-taken-for-reversion", "truncation-below-commit"],
    ),
    (
        "10 one data directory, one voice",
        &[
            "old-copy-admitted",
            "twin-admitted",
            "foreign-disk-opened",
            "generation-not-raised",
            "lost-slot-generation-reused",
        ],
    ),
    ("11 compare and set over (term, index)", &["compare-index-only", "no-compare"]),
    (
        "12 one change at a time",
        &["change-while-joint", "joint-left-before-ready", "two-changes-in-flight", "change-before-ready"],
    ),
    (
        "13 votes ask the candidate's log only",
        &["vote-by-own-config", "removed-told-uncommitted", "vote-without-log-check"],
    ),
    ("14 a broken connection is a hint", &["hint-without-wait", "hint-from-any-peer", "hint-under-lease"]),
    ("15 completions always have room", &["completion-dropped-when-full"]),
    (
        "16 growth stops before the disk is full",
        &["growth-not-refused", "reserve-not-used", "low-space-not-seen", "spare-ends-log", "spare-error-forgiven"],
    ),
    (
        "17 rot is never cut as torn",
        &["rot-cut-as-torn", "seal-not-written", "repair-unchecked", "repair-in-place", "scrub-skips-bodies"],
    ),
];

/// What killed a bug, and after how long.
#[derive(Clone, Debug)]
struct Kill {
    by: String,
    seconds: f64,
}

#[derive(Debug, Default)]
struct Table {
    bugs: BTreeMap<String, Option<Kill>>,
    /// Which bugs each of those who look has killed.
    seen_by: BTreeMap<String, BTreeSet<String>>,
}

impl Table {
    fn planted(&mut self, name: &str) -> &mut Option<Kill> {
        self.bugs.entry(name.to_owned()).or_default()
    }

    /// The quickest kill is kept.
    fn killed(&mut self, name: &str, by: String, seconds: f64) {
        let who = by.split([',', ':']).next().unwrap_or_default().to_owned();
        self.seen_by.entry(who).or_default().insert(name.to_owned());
        let kill = self.planted(name);
        if kill.as_ref().is_none_or(|known| seconds < known.seconds) {
            *kill = Some(Kill { by, seconds });
        }
    }

    fn survivors(&self) -> Vec<&str> {
        self.bugs.iter().filter(|(_, kill)| kill.is_none()).map(|(name, _)| name.as_str()).collect()
    }

    fn print(&self) {
        println!("{:<34} {:<46} {:>8}  what killed it", "planted bug", "rule", "seconds");
        for (name, kill) in &self.bugs {
            let rule = rule_of(name);
            match kill {
                Some(kill) => println!("{name:<34} {rule:<46} {:>8.2}  {}", kill.seconds, shorten(&kill.by)),
                None => println!("{name:<34} {rule:<46} {:>8}  NOTHING: it survives", "-"),
            }
        }
    }

    fn slowest_seconds(&self) -> f64 {
        self.bugs.values().flatten().map(|kill| kill.seconds).fold(0.0, f64::max)
    }

    fn median_seconds(&self) -> f64 {
        let mut all: Vec<f64> = self.bugs.values().flatten().map(|kill| kill.seconds).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    }
}

fn rule_of(name: &str) -> &'static str {
    RULES.iter().find(|(_, bugs)| bugs.contains(&name)).map_or("", |(rule, _)| rule)
}

fn shorten(text: &str) -> String {
    text.chars().take(110).collect()
}

pub fn mutants() -> Result<()> {
    let mut table = Table::default();
    let mut failed = Vec::new();
    let test = |package: &str, more: &[&str]| {
        let mut command = cmd::cargo();
        command.args(["test", "--release", "--locked", "-p", package, "--features", "mutants"]);
        command.args(more).args(["--", "--nocapture", "mutant", "planted", "guard"]);
        command
    };
    let tests: [(&str, &str, &[&str]); 3] = [
        ("core", "quorate-raft", &["--test", "mutants"]),
        ("log", "quorate-log", &[]),
        ("planner", "quorate-plan", &["--test", "mutants"]),
    ];
    for (who, package, more) in tests {
        eprintln!("\n=== planted bugs, {who}");
        if !listen(&mut test(package, more), |line, seconds| note(&mut table, who, line, seconds))? {
            failed.push(who);
        }
    }
    simulate(&mut table, SEEDS_FIRST, &[])?;
    let survivors: Vec<String> = table.survivors().into_iter().map(str::to_owned).collect();
    if !survivors.is_empty() {
        simulate(&mut table, SEEDS_LAST, &survivors)?;
    }
    table.print();
    let survivors = table.survivors();
    let planted: BTreeSet<&str> = table.bugs.keys().map(String::as_str).collect();
    let bare: Vec<&str> =
        RULES.iter().filter(|(_, bugs)| !bugs.iter().any(|bug| planted.contains(bug))).map(|(rule, _)| *rule).collect();
    let seen_by: Vec<String> = table.seen_by.iter().map(|(who, bugs)| format!("{who} {}", bugs.len())).collect();
    println!(
        "{} planted bugs, {} killed, median {:.2} s, slowest {:.2} s; killed by {}",
        table.bugs.len(),
        table.bugs.len() - survivors.len(),
        table.median_seconds(),
        table.slowest_seconds(),
        seen_by.join(", ")
    );
    if !survivors.is_empty() || !bare.is_empty() || !failed.is_empty() {
        bail!("survivors: {survivors:?}; rules without a planted bug: {bare:?}; tests that failed: {failed:?}");
    }
    Ok(())
}

/// Reads one line of a test: `name Area 12 ms  what killed it`, `killed name 12 ms  what`, `name caught: what`, or one
/// with SURVIVES or SURVIVED.
fn note(table: &mut Table, who: &str, line: &str, seconds: f64) {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["killed", name, took, "ms", by @ ..] => {
            let seconds = took.parse::<f64>().map_or(seconds, |ms| ms / 1000.0);
            table.killed(name, format!("{who}: {}", by.join(" ")), seconds);
        }
        ["SURVIVED", name, ..] => {
            table.planted(name);
        }
        [name, area, took, "ms", by @ ..] if is_name(name) && !area.is_empty() => {
            let seconds = took.parse::<f64>().map_or(seconds, |ms| ms / 1000.0);
            table.killed(name, format!("{who}: {}", by.join(" ")), seconds);
        }
        [name, "caught:", by @ ..] => table.killed(&kebab(name), format!("{who}: {}", by.join(" ")), seconds),
        [name, rest @ ..] if is_name(name) && rest.iter().any(|word| word.starts_with("SURVIVE")) => {
            table.planted(name);
        }
        _ => {}
    }
}

fn is_name(word: &str) -> bool {
    word.contains('-') && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// `NoCanary` is `no-canary`.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// The whole-cluster simulation, over every bug it can plant or over these.
fn simulate(table: &mut Table, seeds: u64, only: &[String]) -> Result<()> {
    eprintln!("\n=== planted bugs, simulator, {seeds} seeds each");
    let mut command = cmd::cargo();
    command.args(["run", "--release", "--locked", "-p", "quorate-sim", "--features", "mutants", "--", "--mutants"]);
    command.args(["--seeds", &seeds.to_string()]);
    if !only.is_empty() {
        command.args(["--only", &only.join(",")]);
    }
    listen(&mut command, |line, _| {
        let cells: Vec<&str> = line.split('\t').collect();
        let ["MUTANT", name, by, seconds] = cells.as_slice() else { return };
        if by.is_empty() {
            table.planted(name);
        } else {
            table.killed(name, (*by).to_owned(), seconds.parse().unwrap_or_default());
        }
    })?;
    Ok(())
}

/// Runs a command and hands out each line of its output with the time since the line before.
fn listen(command: &mut Command, mut hear: impl FnMut(&str, f64)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let out = child.stdout.take().context("the output is piped")?;
    let mut last = Instant::now();
    for line in BufReader::new(out).lines() {
        let line = line?;
        eprintln!("{line}");
        hear(&line, last.elapsed().as_secs_f64());
        last = Instant::now();
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_tests_are_understood() {
        let mut table = Table::default();
        note(&mut table, "core", "vote-not-persisted   Votes    120 ms  script election.txt: I5 …", 9.0);
        note(&mut table, "core", "no-compare   Membership   SURVIVES: nobody compares", 9.0);
        note(&mut table, "log", "killed   rot-cut-as-torn      7 ms  basics::rot", 9.0);
        note(&mut table, "planner", "NoCanary      caught: scenario roll", 0.5);
        note(&mut table, "core", "test every_planted_bug_is_killed ... ok", 0.5);
        assert_eq!(table.survivors(), ["no-compare"]);
        assert_eq!(table.bugs.len(), 4);
        assert!((table.bugs["vote-not-persisted"].as_ref().expect("killed").seconds - 0.12).abs() < 1e-9);
        assert_eq!(table.bugs["no-canary"].as_ref().expect("killed").by, "planner: scenario roll");
        table.killed("no-canary", "simulator, seed 7: I5".to_owned(), 3.0);
        assert_eq!(table.bugs["no-canary"].as_ref().expect("killed").by, "planner: scenario roll", "it was quicker");
        let seen_by: Vec<(&str, usize)> = table.seen_by.iter().map(|(who, bugs)| (who.as_str(), bugs.len())).collect();
        assert_eq!(seen_by, [("core", 1), ("log", 1), ("planner", 1), ("simulator", 1)]);
        assert!((table.slowest_seconds() - 0.5).abs() < 1e-9);
    }
}
