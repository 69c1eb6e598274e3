//! Runs scripts: what was done to a group, and what came of it.
//!
//! A script is a list of blocks: commands, then `---`, then what they made happen. Nothing happens by itself: time
//! passes, messages arrive and disks flush only when a command says so (`run` and `settle` do all of it).
//!
//! | Command | Does |
//! |---|---|
//! | `cluster 1 2 3 [setting=value..]` | starts voters 1, 2 and 3 with a configuration that names them |
//! | `joiner 4 [setting=value..]` | starts member 4 without a configuration |
//! | `elect 1` | lets all timeouts pass at member 1 first, and delivers everything until it leads |
//! | `tick 1`, `wake 1` | wakes member 1; `tick` first moves the clock to its deadline |
//! | `wait 10ms`, `run 500ms` | moves the clock; `run` also wakes, delivers, flushes and applies |
//! | `settle` | delivers, flushes and applies until nothing is under way |
//! | `deliver 1->2 [n]`, `drop 1->2 [n]` | the oldest n (else all) messages on that link; `*` for any member |
//! | `hold 1->2`, `release` | takes messages on that link aside, and puts all of those back under way |
//! | `snapshot 1->3` | member 1 sends its engine's state, asked or not |
//! | `flush 1 [n]`, `apply 1 [n]` | the oldest n (else all) writes become durable, entries are applied |
//! | `persist 1`, `install 1` | the engine persists what it applied; swaps to a staged snapshot |
//! | `propose 1 a b`, `read 1`, `read 1 lease` | commands as one batch; a linearizable read |
//! | `clock 2 25000` | member 2's clock runs that many parts per million faster, from the start on |
//! | `change 1 add 4`, `promote 4 lag=0`, `demote 3`, `remove 3`, `swap 4 3`, `rename 3 x` | with `expect=term.index` |
//! | `transfer 1 2`, `gone 2 1` | member 1 hands over to 2; member 2 lost its connection to 1 |
//! | `crash 1 [n]`, `start 1 [setting=value..]` | the oldest n writes survive the crash |
//! | `full 3`, `room 3` | member 3 takes no snapshot, and takes them again |
//! | `wipe 1` | the disk of a member that is down is emptied |
//! | `cut 1 2`, `cut 1->2`, `isolate 1`, `heal` | links that lose everything |
//! | `stall 1`, `fail 1` | a flush hangs, a write fails |
//! | `show`, `log 1`, `config 1`, `progress 1`, `inbox` | prints |
//! | `trace on`, `trace off` | prints messages and writes too, not only events and answers |

#![allow(dead_code, reason = "each test binary uses its own part of the bench")]

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use quorate_raft::Cfg;
use quorate_raft::cfg::LeaseCfg;
use quorate_raft::io::{Change, Effect, Event, Input, ReadMode};
use quorate_raft::types::{Config, ConfigAt, Entry, MemberId, MemberInfo, Payload, Record, SnapMeta, Time};
use quorate_raft::wire::Msg;

use crate::net::{self, Flight, Net, Packet, bootstrap, id};

struct Script {
    net: Net,
    cuts: Vec<(MemberId, MemberId)>,
    /// Messages that arrive much later.
    held: Vec<Flight>,
    is_traced: bool,
    text: String,
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

fn member(text: &str) -> MemberId {
    id(number(text))
}

fn count(words: &[&str], at: usize) -> usize {
    words.get(at).map_or(usize::MAX, |text| usize::try_from(number(text)).unwrap())
}

fn micros(text: &str) -> u64 {
    number(text.strip_suffix("ms").unwrap_or_else(|| panic!("{text:?} is not a time in ms"))) * 1_000
}

fn cfg(number_of: &str, settings: &[&str], mutate: &dyn Fn(&mut Cfg)) -> Cfg {
    let mut cfg = Cfg { keep_entries: 0, hint_on_disconnect: false, ..Cfg::lan(member(number_of)) };
    set(&mut cfg, settings);
    mutate(&mut cfg);
    cfg
}

fn set(cfg: &mut Cfg, settings: &[&str]) {
    for setting in settings {
        let (name, value) = setting.split_once('=').unwrap_or_else(|| panic!("{setting:?} is not name=value"));
        let size = || usize::try_from(number(value)).unwrap();
        match name {
            "keep" => cfg.keep_entries = number(value),
            "hint" => cfg.hint_on_disconnect = value == "on",
            "window" => cfg.inflight_bytes_max = size(),
            "append" => cfg.max_append_bytes = size(),
            "uncommitted" => cfg.uncommitted_bytes_max = size(),
            "entry" => cfg.entry_bytes_max = size(),
            "held" => cfg.held_bytes_max = size(),
            "lag" => cfg.live_lag_max = number(value),
            "et" => {
                cfg.election_us = (micros(value), 2 * micros(value));
                cfg.start_refusal_us = micros(value);
            }
            "spread" => cfg.election_us.1 = cfg.election_us.0 + micros(value),
            "refusal" => cfg.start_refusal_us = micros(value),
            "leases" => cfg.leases = (value == "on").then_some(LeaseCfg::DEFAULT),
            "guard" => cfg.leases.as_mut().expect("leases=on comes first").guard_us = micros(value),
            other => panic!("no setting is called {other:?}"),
        }
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Delivered,
    Lost,
    Held,
}

impl Script {
    fn new() -> Script {
        Script { net: Net::new(1), cuts: Vec::new(), held: Vec::new(), is_traced: false, text: String::new() }
    }

    fn run(&mut self, line: &str, mutate: &dyn Fn(&mut Cfg)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let rest = &words[1..];
        match words[0] {
            "cluster" => self.cluster(rest, mutate),
            "joiner" => self.net.add(cfg(rest[0], &rest[1..], mutate), SnapMeta::default()),
            "elect" => self.elect(member(rest[0])),
            "tick" => {
                let deadline = self.net.deadline(member(rest[0]));
                assert!(deadline < Time(u64::MAX), "member {} waits for nothing", rest[0]);
                self.net.now = self.net.now.max(deadline);
                self.net.tick(member(rest[0]));
            }
            "wake" => self.net.tick(member(rest[0])),
            "wait" => self.net.now = self.net.now.after(micros(rest[0])),
            "run" => {
                let cuts = self.cuts.clone();
                self.net.run(micros(rest[0]), |from, to| cuts.contains(&(from, to)));
            }
            "settle" => self.settle(),
            "deliver" => self.fly(rest[0], count(rest, 1), Fate::Delivered),
            "drop" => self.fly(rest[0], count(rest, 1), Fate::Lost),
            "hold" => {
                let kept = self.net.flights.len();
                self.fly(rest[0], usize::MAX, Fate::Held);
                assert!(self.net.flights.len() < kept, "nothing to hold on {}", rest[0]);
            }
            "release" => self.net.flights.append(&mut self.held),
            "snapshot" => {
                let (from, to) = Script::link(rest[0]);
                self.net.send_snapshot(from.expect("a sender"), to.expect("a receiver"));
            }
            "flush" => self.net.flush(member(rest[0]), count(rest, 1)),
            "apply" => self.net.apply(member(rest[0]), count(rest, 1)),
            "persist" => self.net.persist(member(rest[0])),
            "install" => self.net.install(member(rest[0])),
            "propose" => {
                let batch = rest[1..].iter().map(|word| Bytes::from((*word).to_owned())).collect();
                self.net.propose_batch(member(rest[0]), batch);
            }
            "read" => {
                let mode = if rest.get(1) == Some(&"lease") { ReadMode::Lease } else { ReadMode::Index };
                self.net.read(member(rest[0]), mode);
            }
            "clock" => {
                assert_eq!(self.net.now, Time(0), "a clock that changes its rate later would jump");
                let rate = rest[1].parse().expect("a rate in parts per million");
                self.net.members.get_mut(&member(rest[0])).expect("a member").rate_ppm = rate;
            }
            "full" | "room" => {
                self.net.members.get_mut(&member(rest[0])).expect("a member").is_full = words[0] == "full";
            }
            "wipe" => self.net.wipe(member(rest[0])),
            "change" => self.change(rest),
            "transfer" => drop(self.net.transfer(member(rest[0]), member(rest[1]))),
            "gone" => self.net.step(member(rest[0]), Input::PeerGone { peer: member(rest[1]) }),
            "crash" => self.net.crash(member(rest[0]), rest.get(1).map_or(0, |_| count(rest, 1))),
            "start" => {
                let member = self.net.members.get_mut(&member(rest[0])).expect("a member");
                set(&mut member.cfg, &rest[1..]);
                self.net.start(id(number(rest[0])));
            }
            "cut" => self.cut(rest),
            "isolate" => {
                let others: Vec<MemberId> = self.net.members.keys().copied().collect();
                self.cuts
                    .extend(others.iter().flat_map(|other| [(member(rest[0]), *other), (*other, member(rest[0]))]));
            }
            "heal" => self.cuts.clear(),
            "stall" => self.net.step(member(rest[0]), Input::DiskStalled),
            "fail" => self.net.step(member(rest[0]), Input::WriteFailed),
            "trace" => self.is_traced = rest[0] == "on",
            "show" => self.print_after(|net| net.summary()),
            "log" => self.print_after(|net| log(net, member(rest[0]))),
            "config" => {
                self.print_after(|net| config(&net.member(member(rest[0])).node().status().newest_config.config))
            }
            "progress" => self.print_after(|net| progress(net, member(rest[0]))),
            "inbox" => {
                self.print_after(|net| net.flights.iter().map(|flight| format!("{}\n", flight_text(flight))).collect())
            }
            other => panic!("no command is called {other:?}"),
        }
        self.print_trace();
    }

    fn cluster(&mut self, words: &[&str], mutate: &dyn Fn(&mut Cfg)) {
        let (settings, voters): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| word.contains('='));
        let numbers: Vec<u64> = voters.iter().map(|word| number(word)).collect();
        for voter in voters {
            self.net.add(cfg(voter, &settings, mutate), bootstrap(&numbers));
        }
    }

    fn settle(&mut self) {
        let cuts = self.cuts.clone();
        self.net.settle(|from, to| cuts.contains(&(from, to)));
    }

    /// Longer than any election timeout passes; whoever led and hears nobody is woken first, and gives up.
    fn elect(&mut self, id: MemberId) {
        self.settle();
        self.net.now = self.net.now.after(400_000);
        for other in self.net.up() {
            if self.net.member(other).node().is_leader() {
                self.net.tick(other);
            }
        }
        self.net.tick(id);
        self.settle();
        assert!(self.net.member(id).node().is_leader(), "member {id} leads\n{}", self.net.summary());
    }

    fn link(text: &str) -> (Option<MemberId>, Option<MemberId>) {
        let (from, to) = text.split_once("->").unwrap_or_else(|| panic!("{text:?} is not a link like 1->2"));
        let end = |text: &str| (text != "*").then(|| member(text));
        (end(from), end(to))
    }

    fn fly(&mut self, link: &str, count: usize, fate: Fate) {
        let (from, to) = Script::link(link);
        // Only what is under way now: an answer to a delivered message waits for the next command.
        let is_on_link =
            |flight: &Flight| from.is_none_or(|id| id == flight.from) && to.is_none_or(|id| id == flight.to);
        let mut chosen = Vec::new();
        let mut kept = Vec::new();
        for flight in std::mem::take(&mut self.net.flights) {
            if chosen.len() < count && is_on_link(&flight) { chosen.push(flight) } else { kept.push(flight) }
        }
        self.net.flights = kept;
        for flight in chosen {
            match fate {
                Fate::Delivered => self.net.deliver(flight),
                Fate::Lost => self.net.lose(flight),
                Fate::Held => self.held.push(flight),
            }
        }
    }

    fn cut(&mut self, words: &[&str]) {
        if let [one, other] = words {
            self.cuts.extend([(member(one), member(other)), (member(other), member(one))]);
        } else if let (Some(from), Some(to)) = Script::link(words[0]) {
            self.cuts.push((from, to));
        }
    }

    fn change(&mut self, words: &[&str]) {
        let (options, words): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| word.contains('='));
        let option = |name: &str| options.iter().find_map(|text| text.strip_prefix(name)?.strip_prefix('='));
        let lag_max = option("lag").map_or(0, number);
        let expect = option("expect").map(|text| {
            let (term, index) = text.split_once('.').expect("expect=term.index");
            ConfigAt { incarnation: net::INCARNATION, term: number(term), index: number(index) }
        });
        let (leader, target) = (member(words[0]), member(words[2]));
        let change = match words[1] {
            "add" => Change::AddLearner { id: target, info: MemberInfo::default() },
            "promote" => Change::Promote { id: target, lag_max },
            "demote" => Change::Demote { id: target },
            "remove" => Change::Remove { id: target },
            "swap" => Change::Swap { new: target, old: member(words[3]), lag_max },
            "rename" => {
                let info = MemberInfo { name: words[3].to_owned(), ..MemberInfo::default() };
                Change::UpdateInfo { id: target, info }
            }
            other => panic!("no change is called {other:?}"),
        };
        self.net.change(leader, expect, change);
    }

    fn print_after(&mut self, text: impl Fn(&Net) -> String) {
        self.print_trace();
        self.text.push_str(&text(&self.net));
    }

    fn print_trace(&mut self) {
        for (id, effect) in std::mem::take(&mut self.net.trace) {
            if self.is_traced || !is_detail(&effect) {
                let _ = writeln!(self.text, "{id} {}", effect_text(&effect));
            }
        }
    }
}

/// Only told while tracing: how, not what.
fn is_detail(effect: &Effect) -> bool {
    match effect {
        Effect::Write { .. } | Effect::Send { .. } | Effect::Commit { .. } | Effect::Acked { .. } => true,
        Effect::Event(Event::ConfigCommitted { .. }) => true,
        Effect::ReadAt { .. }
        | Effect::Resolve { .. }
        | Effect::SendSnapshot { .. }
        | Effect::Install { .. }
        | Effect::Event(_) => false,
    }
}

fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::Write { seq, record } => format!("write {} {}", seq.0, record_text(record)),
        Effect::Send { to, msg, after: None } => format!("-> {to} {}", msg_text(msg)),
        Effect::Send { to, msg, after: Some(seq) } => format!("-> {to} {} (after write {})", msg_text(msg), seq.0),
        Effect::Commit { entries } => format!("commits {}", entries_text(entries)),
        Effect::ReadAt { token, index } => format!("read #{} at {index}", token.0),
        Effect::Resolve { token, outcome } => format!("answers #{}: {outcome:?}", token.0),
        Effect::Acked { peer, durable } => format!("knows {peer} holds {durable}"),
        Effect::SendSnapshot { to, term: _ } => format!("sends a snapshot to {to}"),
        Effect::Install { meta } => format!("installs snapshot {}@{}", meta.index, meta.term),
        Effect::Event(event) => event_text(event),
    }
}

fn event_text(event: &Event) -> String {
    match event {
        Event::BecameFollower { term, leader: Some(leader) } => format!("follows {leader} in term {term}"),
        Event::BecameFollower { term, leader: None } => format!("enters term {term}"),
        Event::BecamePreCandidate { term } => format!("asks for pre-votes in term {term}"),
        Event::BecameCandidate { term } => format!("is a candidate in term {term}"),
        Event::BecameLeader { term } => format!("leads term {term}"),
        Event::LeaderReady { noop_index, .. } => format!("is ready at {noop_index}"),
        Event::ConfigActive { at, config: active } => {
            format!("config {}.{} active: {}", at.term, at.index, config(active).trim_end())
        }
        Event::ConfigCommitted { at, config: _ } => format!("config {}.{} committed", at.term, at.index),
        Event::Removed { at } => format!("is removed by config {}.{}", at.term, at.index),
        Event::TransferStarted { to } => format!("starts a transfer to {to}"),
        Event::Reverted { held, last_index } => format!("stops for good: it held {held} and ends at {last_index}"),
        Event::LogReverted { peer, held, last_index } => format!("finds {peer} at {last_index} that held {held}"),
        Event::SteppedDown { term, why } => format!("stops leading term {term}: {why:?}"),
    }
}

fn msg_text(msg: &Msg) -> String {
    match msg {
        Msg::Append { term, prev_term, prev_index, entries, commit } => {
            format!("Append term={term} prev={prev_index}@{prev_term} {} commit={commit}", entries_text(entries))
        }
        Msg::HeartbeatReply { term, round, received, durable, promise_us: 0, last_index: _ } => {
            format!("HeartbeatReply term={term} round={round} received={received} durable={durable}")
        }
        Msg::HeartbeatReply { term, round, received, durable, promise_us, last_index: _ } => {
            let promise = promise_us / 1_000;
            format!(
                "HeartbeatReply term={term} round={round} received={received} durable={durable} promise={promise}ms"
            )
        }
        other => format!("{other:?}")
            .replace([',', '{', '}'], "")
            .replace(": ", "=")
            .replace("  ", " ")
            .trim_end()
            .to_owned(),
    }
}

fn entry_text(entry: &Entry) -> String {
    let payload = match &entry.payload {
        Payload::Noop => "noop".to_owned(),
        Payload::Data(data) => String::from_utf8_lossy(data).into_owned(),
        Payload::Config(_) => "config".to_owned(),
    };
    format!("{}@{}:{payload}", entry.index, entry.term)
}

fn entries_text(entries: &[Entry]) -> String {
    let entries: Vec<String> = entries.iter().map(entry_text).collect();
    format!("[{}]", entries.join(" "))
}

fn record_text(record: &Record) -> String {
    match record {
        Record::HardState(hard) => {
            format!("term={} vote={}", hard.term, hard.vote.map_or("-".to_owned(), |id| id.to_string()))
        }
        Record::Append(entries) => format!("append {}", entries_text(entries)),
        Record::TruncateTo(index) => format!("truncate to {index}"),
        Record::SnapshotMark(meta) => format!("mark {}@{}", meta.index, meta.term),
    }
}

fn flight_text(flight: &Flight) -> String {
    let packet = match &flight.packet {
        Packet::Msg(msg) => msg_text(msg),
        Packet::Snapshot(_, engine) => format!("snapshot {}@{}", engine.meta().index, engine.meta().term),
    };
    format!("{} -> {} {packet}", flight.from, flight.to)
}

fn config(config: &Config) -> String {
    let ids =
        |ids: &std::collections::BTreeSet<MemberId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut text = format!("voters={}", ids(&config.voters));
    for (name, set) in
        [("outgoing", &config.voters_outgoing), ("learners", &config.learners), ("removed", &config.removed)]
    {
        if !set.is_empty() {
            let _ = write!(text, " {name}={}", ids(set));
        }
    }
    text + "\n"
}

fn log(net: &Net, id: MemberId) -> String {
    let node = net.member(id).node();
    let entries: Vec<String> = node.entries().map(entry_text).collect();
    format!("{id} log behind {}: {}\n", node.status().compacted, entries.join(" "))
}

fn progress(net: &Net, id: MemberId) -> String {
    let mut text = String::new();
    for peer in net.member(id).node().status().progress {
        let active = if peer.is_active { "active" } else { "silent" };
        let snapshot = if peer.is_snapshotting { " snapshot" } else { "" };
        let reverted = if peer.is_reverted { " reverted" } else { "" };
        let _ = writeln!(text, "{} matched={} {active}{snapshot}{reverted}", peer.id, peer.matched);
    }
    text
}

/// Runs one script and returns it with what happened.
pub fn run(script: &str, mutate: &dyn Fn(&mut Cfg)) -> String {
    let mut state = Script::new();
    let mut result = String::new();
    let mut is_output = false;
    for line in script.lines() {
        if line == "---" {
            is_output = true;
            let _ = writeln!(result, "---\n{}", std::mem::take(&mut state.text));
        } else if is_output {
            is_output = !line.is_empty();
        } else {
            let _ = writeln!(result, "{line}");
            let command = line.split('#').next().unwrap_or_default().trim();
            if !command.is_empty() {
                state.run(command, mutate);
            }
        }
    }
    result.trim_end().to_owned() + "\n"
}

/// Every script with its path.
pub fn scripts() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap())).collect()
}
