//! Prints one line a scenario and keeps count.

use std::time::Instant;

use anyhow::{Result, bail};

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(String, bool, f64, String)>,
}

impl Report {
    /// Runs one scenario; its Ok text is a remark for the table. Later scenarios need the state earlier ones leave, so
    /// the first failure ends the suite.
    pub async fn scenario(&mut self, name: &str, body: impl Future<Output = Result<String>>) -> Result<()> {
        let started = Instant::now();
        eprintln!("--- {name}");
        let result = body.await;
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(remark) => {
                eprintln!("    ok in {seconds:.1} s  {remark}");
                self.rows.push((name.to_owned(), true, seconds, remark));
                Ok(())
            }
            Err(error) => {
                eprintln!("    FAILED after {seconds:.1} s: {error:#}");
                self.rows.push((name.to_owned(), false, seconds, format!("{error:#}")));
                Err(error)
            }
        }
    }

    pub fn print(&self) -> Result<()> {
        println!("\n{:<58} {:<7} {:>7}  remark", "scenario", "result", "time");
        for (name, ok, seconds, remark) in &self.rows {
            println!("{name:<58} {:<7} {seconds:>6.1}s  {remark}", if *ok { "ok" } else { "FAILED" });
        }
        let failed = self.rows.iter().filter(|row| !row.1).count();
        println!("{} passed, {failed} failed", self.rows.len() - failed);
        if failed > 0 {
            bail!("{failed} scenario(s) failed");
        }
        Ok(())
    }
}
