//! Prints one line a scenario and keeps count.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, bail};

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    outcome: Outcome,
    seconds: f64,
    /// The longest time without an acknowledged write, where a writer ran.
    gap_ms: Option<u64>,
    /// The longest time until the status told what had happened.
    told_ms: Option<u64>,
    remark: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
    LeftOut,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed => "FAILED",
            Outcome::LeftOut => "left out",
        }
    }
}

impl Report {
    /// Runs one scenario; its Ok text is a remark for the table. Later scenarios need the state earlier ones leave, so
    /// a failure is the caller's to heal or to end with.
    pub async fn scenario(&mut self, name: &str, body: impl Future<Output = Result<String>>) -> Result<()> {
        let started = Instant::now();
        eprintln!("--- {name}");
        let result = body.await;
        let seconds = started.elapsed().as_secs_f64();
        let (outcome, remark) = match &result {
            Ok(remark) => (Outcome::Ok, remark.clone()),
            Err(error) => (Outcome::Failed, format!("{error:#}")),
        };
        match outcome {
            Outcome::Failed => eprintln!("    FAILED after {seconds:.1} s: {remark}"),
            Outcome::Ok | Outcome::LeftOut => eprintln!("    ok in {seconds:.1} s  {remark}"),
        }
        self.rows.push(Row { name: name.to_owned(), outcome, seconds, gap_ms: None, told_ms: None, remark });
        result.map(drop)
    }

    /// Says that a scenario was not run, and why.
    pub fn left_out(&mut self, name: &str, why: &str) {
        eprintln!("--- {name}: left out, {why}");
        let (name, remark) = (name.to_owned(), why.to_owned());
        self.rows.push(Row { name, outcome: Outcome::LeftOut, seconds: 0.0, gap_ms: None, told_ms: None, remark });
    }

    /// What was measured during the last scenario: the longest time without an acknowledged write, and until the status
    /// told what had happened.
    pub fn measured(&mut self, gap_ms: u64, told_ms: u64) {
        if let Some(row) = self.rows.last_mut() {
            (row.gap_ms, row.told_ms) = (Some(gap_ms), Some(told_ms));
            eprintln!("    worst write gap {gap_ms} ms, status at most {told_ms} ms late");
        }
    }

    pub fn print(&self) -> Result<()> {
        println!("\n{:<58} {:<8} {:>7} {:>9} {:>9}  remark", "scenario", "result", "time", "gap", "status");
        for Row { name, outcome, seconds, gap_ms, told_ms, remark } in &self.rows {
            let (gap, told) = (shown(*gap_ms), shown(*told_ms));
            println!("{name:<58} {:<8} {seconds:>6.1}s {gap:>9} {told:>9}  {remark}", outcome.as_str());
        }
        let count = |outcome| self.rows.iter().filter(|row| row.outcome == outcome).count();
        println!(
            "{} passed, {} failed, {} left out",
            count(Outcome::Ok),
            count(Outcome::Failed),
            count(Outcome::LeftOut)
        );
        if count(Outcome::Failed) > 0 {
            bail!("{} scenario(s) failed", count(Outcome::Failed));
        }
        Ok(())
    }

    /// The rows of a Markdown table.
    pub fn markdown(&self) -> String {
        let mut text =
            "| Scenario | Result | Time | Worst write gap | Status late by | Remark |\n|---|---|---|---|---|---|\n"
                .to_owned();
        for Row { name, outcome, seconds, gap_ms, told_ms, remark } in &self.rows {
            let (gap, told) = (shown(*gap_ms), shown(*told_ms));
            let remark = remark.replace('|', "\\|").replace('\n', " ");
            let written =
                writeln!(text, "| `{name}` | {} | {seconds:.1} s | {gap} | {told} | {remark} |", outcome.as_str());
            written.expect("a String takes every text");
        }
        text
    }
}

fn shown(ms: Option<u64>) -> String {
    ms.map_or_else(String::new, |ms| format!("{ms} ms"))
}
