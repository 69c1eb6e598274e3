//! Flushes that fail, and flushes that hang.
//!
//! After a failed flush nobody knows what is on the disk: the member must end at once, without a second try. A leader whose
//! flush hangs hands over; a follower whose flush hangs slows nobody down.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::chaos::rig::{Tamper, tool};
use crate::chaos::{Campaign, Row, Setting};
use crate::poll;

const ROUNDS: u32 = 5;
/// Everything the log and the checkpoints flush with.
const FLUSHES: &str = "fdatasync,fsync";
/// From the failed flush to the end of the process.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long a flush hangs.
const HANG: Duration = Duration::from_secs(4);
/// Writes resume after this: two of the longest election timeouts, and half a second. Tracing slows a member down, so
/// this is twice what we hold ourselves to on a quiet machine.
const STALL_GAP_MAX: Duration = Duration::from_millis(2 * (2 * 300 + 500));
/// A slow follower costs nobody a wait that a person would see.
const FOLLOWER_GAP_MAX: Duration = Duration::from_millis(500);

pub async fn run(setting: &Setting) -> Result<Vec<Row>> {
    self_test(&setting.dir).await.context("self-test of failing flushes")?;
    let mut campaign = Campaign::on_loopback(setting, &["--snapshot-count", "2000"]).await?;
    let body = classes(&mut campaign, setting).await;
    campaign.finish("fsync", body).await
}

async fn classes(campaign: &mut Campaign, setting: &Setting) -> Result<()> {
    let rounds = setting.rounds(ROUNDS);
    campaign
        .class("flush fails on leader", rounds, async |c, _| {
            let victim = c.members.led().await?;
            fails(c, victim).await
        })
        .await?;
    campaign
        .class("flush fails on follower", rounds, async |c, _| {
            let victim = (c.members.led().await? + 1) % 3;
            fails(c, victim).await
        })
        .await?;
    campaign
        .class("flush hangs on leader", rounds, async |c, _| {
            let victim = c.members.led().await?;
            let gap = hangs(c, victim).await?;
            let now = c.members.led().await?;
            ensure!(now != victim, "the leader stayed while its flush hung");
            ensure!(gap <= STALL_GAP_MAX, "no write for {} ms", gap.as_millis());
            Ok(1)
        })
        .await?;
    campaign
        .class("flush hangs on follower", rounds, async |c, _| {
            let victim = (c.members.led().await? + 1) % 3;
            let gap = hangs(c, victim).await?;
            ensure!(gap <= FOLLOWER_GAP_MAX, "no write for {} ms although only a follower is slow", gap.as_millis());
            Ok(1)
        })
        .await
}

async fn fails(campaign: &mut Campaign, victim: usize) -> Result<u32> {
    let trace = campaign.context.dir.join("trace");
    let member = &mut campaign.members.list[victim];
    let log_from = member.log_bytes();
    // Each thread's first; the log has one thread that flushes.
    let inject = format!("{FLUSHES}:error=EIO:when=1");
    let tamper = Tamper::attach(member.pid()?, FLUSHES, &inject, trace).await?;
    let status = member.ended(END_LIMIT).await.context("a member whose flush failed goes on")?;
    let lines = tamper.detach().await?;
    ensure!(!status.success(), "the member ended with success after a failed flush");
    let seen = lines.iter().filter(|l| l.contains("(INJECTED)")).count();
    ensure!(seen > 0, "no flush was made to fail");
    no_second_try(&lines)?;
    let said = member.log_since(log_from);
    ensure!(said.contains("os error 5"), "the log does not name the reason: {}", member.log_tail(5));
    campaign.members.start(victim)?;
    Ok(u32::try_from(seen).unwrap_or(u32::MAX))
}

/// After its failed flush a thread flushes nothing any more.
fn no_second_try(lines: &[String]) -> Result<()> {
    for (at, failed) in lines.iter().enumerate().filter(|(_, l)| l.contains("(INJECTED)")) {
        let thread = failed.split_whitespace().next().unwrap_or_default();
        let again = lines[at + 1..].iter().find(|l| l.split_whitespace().next() == Some(thread) && l.contains("sync("));
        ensure!(again.is_none(), "the thread flushed again after a failed flush: {}", again.expect("just found"));
    }
    Ok(())
}

/// Lets flushes of a member hang for a while; returns the worst gap of all clients meanwhile.
async fn hangs(campaign: &mut Campaign, victim: usize) -> Result<Duration> {
    let trace = campaign.context.dir.join("trace");
    let inject = format!("{FLUSHES}:delay_enter={}", HANG.as_micros());
    let tamper = Tamper::attach(campaign.members.list[victim].pid()?, FLUSHES, &inject, trace).await?;
    let seen = poll::until("a flush to hang", HANG, Duration::from_millis(10), async || {
        ensure!(tamper.lines().iter().any(|l| l.contains("sync(")), "no flush was called");
        Ok(())
    });
    // strace writes the line of a delayed call when it begins.
    seen.await?;
    campaign.recorder().forget_gap();
    tokio::time::sleep(HANG / 2).await;
    let gap = campaign.recorder().take_gap();
    // strace says that a call was delayed when it returns.
    tokio::time::sleep(HANG).await;
    let lines = tamper.detach().await?;
    ensure!(lines.iter().any(|l| l.contains("(DELAYED)")), "no flush was delayed");
    Ok(gap)
}

/// A flush of `dd` fails as told, and takes longer as told.
async fn self_test(dir: &Path) -> Result<()> {
    let file = dir.join("self-test");
    let dd = |inject: &'static str| {
        let out = format!("of={}", file.display());
        async move {
            let args = ["-f", "-e", "trace=fdatasync", "-e", inject, "dd", "if=/dev/zero"];
            let started = std::time::Instant::now();
            let result = tool("strace", args.into_iter().chain([out.as_str(), "count=1", "conv=fdatasync"])).await;
            (result, started.elapsed())
        }
    };
    let (failed, _) = dd("inject=fdatasync:error=EIO").await;
    ensure!(failed.is_err_and(|e| e.to_string().contains("Input/output error")), "an injected error has no effect");
    let (slow, took) = dd("inject=fdatasync:delay_enter=300000").await;
    slow?;
    ensure!(took >= Duration::from_millis(300), "an injected delay of 300 ms took {} ms", took.as_millis());
    std::fs::remove_file(&file)?;
    eprintln!("    self-test: an injected error reached dd, and a delay of 300 ms took {} ms", took.as_millis());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::no_second_try;

    #[test]
    fn a_second_flush_of_the_same_thread_is_seen() {
        let line = |thread: &str, rest: &str| format!("{thread} 1.0 {rest}");
        let failed = line("7", "fdatasync(9) = -1 EIO (Input/output error) (INJECTED)");
        let other = line("8", "fdatasync(9) = 0");
        assert!(no_second_try(&[failed.clone(), other]).is_ok());
        assert!(no_second_try(&[failed, line("7", "fdatasync(9) = 0")]).is_err());
    }
}
