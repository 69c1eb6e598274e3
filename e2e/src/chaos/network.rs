//! Each member in a network namespace of its own, on a bridge; packets dropped at chosen receivers.
//!
//! A rule at one receiver cuts one direction only. Clients sit on the bridge and reach every member all the time: a member
//! that is cut off from the others must not answer them wrongly.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::chaos::members::{Home, Members};
use crate::chaos::rig::{run, tool};
use crate::chaos::{Campaign, Row, Setting};

const ROUNDS: u32 = 4;
/// How long a fault lasts: many elections.
const FAULT_MS: u64 = 2_500;
/// Loss that TCP survives, but that costs it many retransmissions.
const LOSS: &str = "0.15";
const BRIDGE: &str = "chaos0";
/// A try to connect across a cut link ends after this.
const CONNECT_SECONDS: &str = "0.5";

fn host(n: usize) -> String {
    format!("10.77.0.{}", 10 + n)
}

fn namespace(n: usize) -> String {
    format!("m{n}")
}

/// Packets of one member that another does not receive.
#[derive(Clone, Copy, Debug)]
struct Cut {
    from: usize,
    at: usize,
}

pub async fn run_suite(setting: &Setting) -> Result<Vec<Row>> {
    build().await?;
    self_test().await.context("self-test of the network faults")?;
    let homes = (0..3).map(|n| Home {
        data_dir: setting.dir.join(namespace(n)),
        host: host(n),
        port_offset: 0,
        namespace: Some(namespace(n)),
    });
    let members = Members::new(setting.program(&["--snapshot-count", "2000"]), homes.collect(), &setting.dir)?;
    let mut campaign = Campaign::start(setting, members).await?;
    let body = classes(&mut campaign, setting).await;
    campaign.finish("net", body).await
}

async fn classes(campaign: &mut Campaign, setting: &Setting) -> Result<()> {
    let (rounds, mut rng) = (setting.rounds(ROUNDS), setting.rng(3));
    campaign
        .class("cut leader off", rounds, async |c, _| {
            let leader = c.members.led().await?;
            let others = [(leader + 1) % 3, (leader + 2) % 3];
            let cuts = others.map(|o| [Cut { from: o, at: leader }, Cut { from: leader, at: o }]);
            cut_for_a_while(cuts.as_flattened(), &[], &mut rng).await
        })
        .await?;
    campaign
        .class("leader hears nobody", rounds, async |c, _| {
            let leader = c.members.led().await?;
            let cuts = [(leader + 1) % 3, (leader + 2) % 3].map(|from| Cut { from, at: leader });
            cut_for_a_while(&cuts, &[], &mut rng).await
        })
        .await?;
    campaign
        .class("nobody hears leader", rounds, async |c, _| {
            let leader = c.members.led().await?;
            let cuts = [(leader + 1) % 3, (leader + 2) % 3].map(|at| Cut { from: leader, at });
            cut_for_a_while(&cuts, &[], &mut rng).await
        })
        .await?;
    // All six directed links, one after the other.
    campaign
        .class("one directed link", rounds.max(6), async |_, n| {
            let from = n as usize % 3;
            let at = (from + 1 + n as usize / 3 % 2) % 3;
            cut_for_a_while(&[Cut { from, at }], &[], &mut rng).await
        })
        .await?;
    // Each pair but one can talk: the leader may be on either end of the cut, or between.
    campaign
        .class("partial partition", rounds, async |_, n| {
            let (a, b) = (n as usize % 3, (n as usize + 1) % 3);
            cut_for_a_while(&[Cut { from: a, at: b }, Cut { from: b, at: a }], &[], &mut rng).await
        })
        .await?;
    let loss = ["-m", "statistic", "--mode", "random", "--probability", LOSS];
    campaign
        .class("random loss", rounds, async |_, _| {
            let cuts = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)].map(|(from, at)| Cut { from, at });
            cut_for_a_while(&cuts, &loss, &mut rng).await
        })
        .await
}

/// Puts the rules in place, waits, counts what they dropped and takes them away.
async fn cut_for_a_while(cuts: &[Cut], condition: &[&str], rng: &mut Rng) -> Result<u32> {
    for cut in cuts {
        rule("-A", *cut, condition).await?;
    }
    tokio::time::sleep(Duration::from_millis(FAULT_MS / 2 + rng.u64(..FAULT_MS))).await;
    let mut seen = 0;
    for cut in cuts {
        let dropped = dropped(*cut).await?;
        ensure!(dropped > 0, "the rule of {cut:?} dropped no packet");
        seen += 1;
    }
    for cut in cuts {
        rule("-D", *cut, condition).await?;
    }
    Ok(seen)
}

async fn rule(action: &str, cut: Cut, condition: &[&str]) -> Result<()> {
    let (namespace, from) = (namespace(cut.at), host(cut.from));
    let mut args = vec!["netns", "exec", &namespace, "iptables", "-w", action, "INPUT", "-s", &from];
    args.extend(condition);
    args.extend(["-j", "DROP"]);
    tool("ip", args).await.map(drop)
}

/// Packets the rule of a cut has dropped.
async fn dropped(cut: Cut) -> Result<u64> {
    let listing = run(&format!("ip netns exec {} iptables -w -nvxL INPUT", namespace(cut.at))).await?;
    let from = host(cut.from);
    let line = listing.lines().find(|l| l.contains("DROP") && l.split_whitespace().any(|w| w == from));
    let packets = line.and_then(|l| l.split_whitespace().next()).with_context(|| format!("no rule of {cut:?}"))?;
    Ok(packets.parse()?)
}

/// Namespaces `m0` to `m2` with an address each, and a bridge here that joins them.
async fn build() -> Result<()> {
    run("ip link set lo up").await?;
    run(&format!("ip link add {BRIDGE} type bridge")).await.context("no right to make network devices")?;
    run(&format!("ip addr add 10.77.0.1/24 dev {BRIDGE}")).await?;
    run(&format!("ip link set {BRIDGE} up")).await?;
    for n in 0..3 {
        let (name, host) = (namespace(n), host(n));
        run(&format!("ip netns add {name}")).await?;
        run(&format!("ip link add {name}a type veth peer name eth0 netns {name}")).await?;
        run(&format!("ip link set {name}a master {BRIDGE} up")).await?;
        run(&format!("ip -n {name} link set lo up")).await?;
        run(&format!("ip -n {name} addr add {host}/24 dev eth0")).await?;
        run(&format!("ip -n {name} link set eth0 up")).await?;
    }
    Ok(())
}

/// A cut stops packets of one sender at one receiver and nobody else's; without it they pass.
async fn self_test() -> Result<()> {
    // Nothing listens, so a packet that arrives is answered by a reset at once: told from silence by the exit.
    ensure!(reaches(0, 1).await? && reaches(1, 0).await?, "the namespaces do not reach each other without a fault");
    let cut = Cut { from: 0, at: 1 };
    rule("-A", cut, &[]).await?;
    let (through, others) = (reaches(0, 1).await?, reaches(2, 1).await?);
    let count = dropped(cut).await?;
    rule("-D", cut, &[]).await?;
    ensure!(!through && count > 0, "packets pass the cut ({count} dropped)");
    ensure!(others, "the cut stops others, too");
    ensure!(reaches(0, 1).await?, "the cut stays after it was taken away");
    eprintln!(
        "    self-test: a cut dropped {count} packet(s) of one sender at one receiver, and none without the rule"
    );
    Ok(())
}

/// Whether a packet from one member is answered by another, if only by a refusal.
async fn reaches(from: usize, to: usize) -> Result<bool> {
    let script = format!("exec 3<>/dev/tcp/{}/9", host(to));
    let name = namespace(from);
    let args = ["netns", "exec", &name, "timeout", CONNECT_SECONDS, "bash", "-c", &script];
    let output = tokio::process::Command::new("ip").args(args).output().await?;
    // 124 is the time limit's; a refused connection ends with 1.
    Ok(output.status.code() != Some(124))
}
