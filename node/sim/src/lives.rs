//! Crashes, starts and pauses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use quorate_log::{Boot, LogError, Progress, ROOM_TOLD_EVERY_US, Rooms, Verdict};
use quorate_raft::Node;
use quorate_raft::io::Input;
use quorate_raft::types::{Entry, Index, MemberId, Payload, WriteSeq};

use crate::clients::Ticket;
use crate::oracle::Violation;
use crate::process::{Asked, Process};
use crate::watch::Watch;
use crate::world::{Event, Member, World};

/// Operations of a running log within which it dies.
const WRITES_AHEAD: u64 = 24;
/// Times a repair may ask others.
const REPAIR_ROUNDS_MAX: u32 = 3;

impl Member {
    /// A copy, or a log that lost its end, that is started again and again would pass for the original one day; by then it has been replaced.
    fn give_up_copy(&mut self) {
        self.is_dead |= self.lost.is_some() || self.forgot.is_some();
    }

    /// The process runs on, and its clock with it.
    fn wake_up(&mut self, now: u64) {
        self.paused = false;
        if let Some(rate) = self.rate_before.take() {
            self.clock.set_rate(now, rate);
        }
    }
}

impl World {
    /// A damaged log is rebuilt from what is left and from others' entries; what comes of it is judged at the start
    /// that follows.
    fn repair(&mut self, id: MemberId) -> Result<(), Violation> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let mut repair = member.storage.repair();
        for _ in 0..REPAIR_ROUNDS_MAX {
            let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
            match member.storage.look(&mut repair) {
                Ok(Progress::Wants(wanted)) => {
                    for (first, last) in wanted.iter().map(|wanted| (wanted.first, wanted.last)) {
                        let entries = self.others_entries(id, first, last);
                        repair.offer(entries);
                    }
                }
                Ok(Progress::Ready(_)) => {
                    match member.storage.write_repaired(&mut repair) {
                        Ok(()) => self.count("rot repaired"),
                        Err(error) if error.verdict() == Verdict::Retry => {
                            // The volume is full: the damage stays, and so does the wish to mend it.
                            member.was_repaired = false;
                            self.schedule_restart(id, 200_000);
                            return Ok(());
                        }
                        Err(error) => return Err(Violation(format!("I13 {id} cannot write what it rebuilt: {error}"))),
                    }
                    break;
                }
                Ok(Progress::Whole) | Err(_) => break,
            }
        }
        self.restart(id)
    }

    /// What reachable members hold of a range, and now and then a wrong entry among it.
    fn others_entries(&mut self, id: MemberId, first: Index, last: Index) -> Vec<Entry> {
        let mut found = Vec::new();
        for peer in self.up() {
            if self.net.is_cut(id, peer, self.now) || self.net.is_cut(peer, id, self.now) {
                continue;
            }
            let Some(process) = self.process(peer) else { continue };
            found.extend(process.node.entries().filter(|entry| (first..=last).contains(&entry.index)).cloned());
        }
        if self.rng.chance(300)
            && let Some(entry) = self.rng.pick(&found).cloned()
        {
            found.insert(0, Entry { payload: Payload::Data(Bytes::from_static(b"never proposed")), ..entry });
        }
        found
    }

    /// Ends a process. With `power`, what was not flushed is gone as the disk decides; else the page cache lives on.
    pub fn crash(&mut self, id: MemberId, power: bool) -> Result<(), Violation> {
        let now = self.now;
        self.disturb();
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(process) = member.process.take() else { return Ok(()) };
        member.life += 1;
        member.give_up_copy();
        member.wake_up(now);
        member.backlog.clear();
        let was_lying = std::mem::take(&mut member.is_lying);
        if was_lying {
            // It shows where the newest slot says what was promised, and nowhere else.
            member.storage.disk.own_up();
        }
        member.storage.disk.lie_about(None);
        let under_way = process.flushing.clone().unwrap_or_default();
        let asked: Vec<Asked> = process.asked.values().map(|(_, asked)| *asked).collect();
        let tickets: Vec<Ticket> =
            process.writes.into_iter().chain(process.reads_ready.into_iter().map(|(_, t)| t)).collect();
        member.storage.crash(process.log, process.flushing.as_deref(), power, &mut self.rng);
        member.under_way = under_way;
        self.say(|| format!("{id} {}", if power { "loses power" } else { "crashes" }));
        // Clients see their connections break and do not know.
        for asked in asked {
            if let Asked::Write(ticket) | Asked::Read(ticket, _) = asked {
                self.client_unknown(ticket);
            }
        }
        for ticket in tickets {
            self.client_unknown(ticket);
        }
        // The other ends see their connections reset, unless the network is cut too or the whole machine is gone.
        for peer in self.up() {
            if !power && !self.net.is_cut(id, peer, self.now) {
                let delay = self.rng.between(100, 1_000);
                self.at(self.now + delay, Event::PeerGone { member: peer, peer: id });
            }
        }
        Ok(())
    }

    pub fn restart(&mut self, id: MemberId) -> Result<(), Violation> {
        let now = self.now;
        let (seed, nonce) = (self.rng.next_u64(), self.rng.next_u64());
        self.draw_settings(id);
        let cfg = self.cfg(id);
        #[cfg(feature = "mutants")]
        let ignores_engine = planted!(self, EngineAheadNotMarked);
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if member.process.is_some() || member.is_dead {
            return Ok(());
        }
        #[cfg(feature = "mutants")]
        {
            member.storage.mutant = self.log_mutant;
            member.storage.ignores_engine = ignores_engine;
        }
        let may_fail = std::mem::take(&mut member.read_fails);
        if may_fail {
            member.storage.disk.fail_next_read();
        }
        let (log, recovered) = match member.storage.open(nonce) {
            Ok(found) => found,
            Err(_) if member.storage.disk.is_crashed() => {
                let power = self.rng.chance(500);
                member.storage.go_down(power, &mut self.rng);
                member.give_up_copy();
                self.count("crash inside recovery");
                let back = self.rng.between(1_000, 300_000);
                self.schedule_restart(id, back);
                return Ok(());
            }
            Err(LogError::Io { .. }) if may_fail => {
                member.storage.disk.process_crash();
                self.count("read error");
                self.schedule_restart(id, 100_000);
                return Ok(());
            }
            Err(LogError::Corrupt { .. }) if member.is_rotten && !member.was_repaired => {
                member.storage.disk.process_crash();
                member.was_repaired = true;
                return self.repair(id);
            }
            Err(LogError::Corrupt { .. } | LogError::LostVote { .. }) if member.is_rotten => {
                member.is_dead = true;
                self.count("rot refused");
                self.say(|| format!("{id} refuses to start: its disk is damaged"));
                return Ok(());
            }
            Err(error) if error.verdict() == Verdict::Retry => {
                self.schedule_restart(id, 200_000);
                return Ok(());
            }
            Err(error) => return Err(Violation(format!("I1 {id} cannot start again: {error}"))),
        };
        let under_way = std::mem::take(&mut member.under_way);
        let adopted = recovered.entries.is_empty() && recovered.snapshot == member.storage.engine.0;
        let is_impostor = member.lost.is_some() || member.forgot.is_some();
        if is_impostor || adopted && member.durable.snapshot != recovered.snapshot {
            // The engine was beyond the log, so what the log held before no longer matters; or the volume is another.
            member.durable = crate::oracle::Durable {
                hard: recovered.hard,
                snapshot: recovered.snapshot.clone(),
                entries: recovered.entries.clone(),
            };
        } else {
            member.durable.check_recovered(id, &recovered, &under_way)?;
        }
        if !is_impostor {
            self.oracle.voted(id, &recovered.hard);
        }
        let (meta, machine) = member.storage.engine.clone();
        let time = member.clock.read(now);
        let watch = Watch::new(id, &cfg, time);
        let node = Node::restart(cfg, recovered, time, seed);
        let committed = node.commit();
        let boot = Boot { generation: log.generation(), nonce };
        member.process = Some(Process {
            node,
            boot,
            admitted: BTreeMap::new(),
            log,
            machine,
            watch,
            applied_term: meta.term,
            applied_config: (meta.config_at, meta.config.clone()),
            to_apply: VecDeque::new(),
            is_applying: false,
            to_write: VecDeque::new(),
            flushing: None,
            flush_number: 0,
            written: WriteSeq(0),
            led_upto: WriteSeq(0),
            held: VecDeque::new(),
            staged: None,
            rooms: Rooms::default(),
            led_since: None,
            low_since: None,
            watches_lease: false,
            installing: None,
            persisting: false,
            latest: time,
            over_since: None,
            has_sent_snapshot: false,
            next_wake: None,
            asked: BTreeMap::new(),
            writes: BTreeSet::new(),
            reads_ready: Vec::new(),
        });
        member.was_repaired = false;
        let life = member.life;
        self.say(|| format!("{id} starts"));
        let first = self.rng.below(ROOM_TOLD_EVERY_US);
        self.at(now + first, Event::TellRoom { member: id, life });
        if meta.index > committed {
            self.input(id, Input::Persisted { meta })?;
        }
        self.input(id, Input::Tick)
    }

    pub fn pause(&mut self, id: MemberId, for_us: u64) {
        self.disturb();
        if let Some(member) = self.members.get_mut(&id).filter(|m| m.process.is_some() && !m.paused) {
            member.paused = true;
            self.at(self.now + for_us, Event::Resume { member: id });
        }
    }

    /// A hypervisor stops a guest, and the guest's clock with it.
    pub fn freeze(&mut self, id: MemberId, for_us: u64) {
        self.pause(id, for_us);
        let now = self.now;
        if let Some(member) = self.members.get_mut(&id).filter(|m| m.paused && m.rate_before.is_none()) {
            member.rate_before = Some(member.clock.rate());
            member.clock.set_rate(now, 0);
        }
    }

    pub(crate) fn resume(&mut self, id: MemberId) -> Result<(), Violation> {
        let now = self.now;
        self.disturb();
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if !member.paused {
            return Ok(());
        }
        member.wake_up(now);
        for event in std::mem::take(&mut member.backlog) {
            self.handle(event)?;
        }
        // A wake that was planned while its clock stood still lies in the far future.
        self.plan_wake(id);
        Ok(())
    }

    /// The next flush of this member fails.
    pub fn fail_next_fsync(&mut self, id: MemberId) {
        if let Some(member) = self.members.get(&id).filter(|m| m.process.is_some()) {
            member.storage.disk.fail_next_sync();
        }
    }

    /// The next write of this member fails.
    pub fn fail_next_write(&mut self, id: MemberId) {
        if let Some(member) = self.members.get(&id).filter(|m| m.process.is_some()) {
            member.storage.disk.fail_next_write();
        }
    }

    /// The machine dies in the middle of one of its next operations on the disk.
    pub fn crash_in_a_write(&mut self, id: MemberId) {
        let op = 1 + self.rng.below(WRITES_AHEAD);
        if let Some(member) = self.members.get(&id).filter(|m| m.process.is_some()) {
            member.storage.disk.crash_at(member.storage.disk.op_count() + op);
        }
    }

    /// The process dies, and dies again while it starts.
    pub fn crash_in_recovery(&mut self, id: MemberId, power: bool) -> Result<(), Violation> {
        self.crash(id, power)?;
        if let Some(member) = self.members.get_mut(&id) {
            member.storage.die_at_start(&mut self.rng);
        }
        Ok(())
    }

    /// The process dies, and its next start meets a read that fails.
    pub fn fail_read_at_start(&mut self, id: MemberId) -> Result<(), Violation> {
        self.crash(id, false)?;
        if let Some(member) = self.members.get_mut(&id) {
            member.read_fails = true;
        }
        Ok(())
    }

    /// From now on flushes of the log's segments keep nothing, until it shows.
    pub fn lie(&mut self, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id).filter(|m| m.process.is_some()) {
            member.storage.disk.lie_about(Some("wal-"));
            member.is_lying = true;
            member.is_rotten = true;
        }
    }

    /// A flush has lied: the newest slot names it as promised, then the power goes. Nothing but a refusal may follow.
    pub(crate) fn lie_shows(&mut self, id: MemberId) -> Result<(), Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let Some(process) = member.process.as_mut() else { return Ok(()) };
        if let Err(error) = process.log.seal_tail() {
            return self.log_failed(id, &error);
        }
        member.is_lying = false;
        self.count("lying flush");
        self.crash(id, true)?;
        self.restart(id)
    }

    /// Ends the faults of a member's disk and clock.
    pub fn heal_member(&mut self, id: MemberId) {
        self.end_stall(id);
        let now = self.now;
        if let Some(member) = self.members.get_mut(&id) {
            member.rate_before = member.rate_before.map(|_| 1000);
            if member.is_lying {
                member.storage.disk.own_up();
                member.is_lying = false;
            }
            member.storage.disk.heal();
            if member.rate_before.is_none() {
                member.clock.set_rate(now, 1000);
            }
        }
        self.plan_wake(id);
    }

    /// Fills the disk of a member. Late: it says that it has room, takes every write and refuses at the flush.
    pub fn fill_disk(&mut self, id: MemberId, is_late: bool) {
        if let Some(member) = self.members.get(&id) {
            let used = member.storage.disk.used_bytes();
            member.storage.disk.refuse_late(is_late);
            member.storage.disk.set_capacity(Some(used));
        }
    }

    /// There is room again.
    pub fn empty_disk(&mut self, id: MemberId) {
        if let Some(member) = self.members.get(&id) {
            member.storage.disk.set_capacity(None);
        }
    }

    /// Damages the promised part of a member's disk and starts it again. It must refuse, or have lost nothing.
    pub fn rot(&mut self, id: MemberId) -> Result<bool, Violation> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(false) };
        let Some(process) = member.process.as_mut() else { return Ok(false) };
        // An unsealed last batch that rots is cut like a torn one: a loss this version declares.
        if process.flushing.is_some() {
            return Ok(false);
        }
        if let Err(error) = process.log.seal_tail() {
            self.log_failed(id, &error)?;
            return Ok(false);
        }
        self.crash(id, false)?;
        if let Some(member) = self.members.get_mut(&id) {
            let what = member.storage.rot(&mut self.rng);
            member.is_rotten = true;
            self.count(what);
        }
        self.restart(id)?;
        Ok(true)
    }
}
