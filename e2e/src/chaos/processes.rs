//! Killed and paused processes.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use crate::chaos::{Campaign, Row, Setting};
use crate::poll;

const KILL_ROUNDS: u32 = 10;
const STOP_ROUNDS: u32 = 5;
/// How long a killed member stays away: from "back before anybody noticed" to "a new leader is at work".
const AWAY_MS_MAX: u64 = 800;
/// How long a member is paused. The longest are above any election.
const PAUSED_MS_MAX: u64 = 3_000;
/// A signal takes effect at once.
const SIGNAL_LIMIT: Duration = Duration::from_secs(2);

pub async fn kill(setting: &Setting) -> Result<Vec<Row>> {
    let mut campaign = Campaign::on_loopback(setting, &["--snapshot-count", "2000"]).await?;
    let (rounds, mut rng) = (setting.rounds(KILL_ROUNDS), setting.rng(1));
    let body = async {
        campaign
            .class("kill leader", rounds, async |c, _| {
                let victim = c.members.led().await?;
                kill_some(c, &[victim], &mut rng).await
            })
            .await?;
        campaign
            .class("kill follower", rounds, async |c, _| {
                let victim = (c.members.led().await? + 1) % 3;
                kill_some(c, &[victim], &mut rng).await
            })
            .await?;
        campaign.class("kill all", rounds, async |c, _| kill_some(c, &[0, 1, 2], &mut rng).await).await
    };
    let body = body.await;
    campaign.finish("kill", body).await
}

async fn kill_some(campaign: &mut Campaign, victims: &[usize], rng: &mut Rng) -> Result<u32> {
    // All at once, then reaped: the last must not see the first gone.
    for &victim in victims {
        campaign.members.list[victim].signal(Signal::KILL)?;
    }
    let mut seen = 0;
    for &victim in victims {
        let status = campaign.members.list[victim].ended(SIGNAL_LIMIT).await?;
        ensure!(status.signal() == Some(9), "the member ended with {status}, not by SIGKILL");
        seen += 1;
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(..AWAY_MS_MAX))).await;
    campaign.members.start_missing()?;
    Ok(seen)
}

pub async fn stop(setting: &Setting) -> Result<Vec<Row>> {
    let mut campaign = Campaign::on_loopback(setting, &["--snapshot-count", "2000"]).await?;
    let (rounds, mut rng) = (setting.rounds(STOP_ROUNDS), setting.rng(2));
    let body = async {
        campaign
            .class("stop leader", rounds, async |c, _| {
                let victim = c.members.led().await?;
                pause(c, victim, &mut rng).await
            })
            .await?;
        campaign
            .class("stop follower", rounds, async |c, _| {
                let victim = (c.members.led().await? + 1) % 3;
                pause(c, victim, &mut rng).await
            })
            .await
    };
    let body = body.await;
    campaign.finish("stop", body).await
}

async fn pause(campaign: &mut Campaign, victim: usize, rng: &mut Rng) -> Result<u32> {
    let member = &campaign.members.list[victim];
    member.signal(Signal::STOP)?;
    poll::until("the process to stand still", SIGNAL_LIMIT, Duration::from_millis(1), async || {
        let state = member.state()?;
        ensure!(state == 'T', "its state is {state}");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(100 + rng.u64(..PAUSED_MS_MAX))).await;
    let state = member.state()?;
    ensure!(state == 'T', "the paused process went on by itself: its state is {state}");
    member.signal(Signal::CONT)?;
    Ok(1)
}
