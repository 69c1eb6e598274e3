//! One simulated cluster: its members, the network between them, clients, and the order of events.
//!
//! What one member does with an input is in `process`, crashes and starts in `lives`, clients in `clients`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use quorate_audit::History;
use quorate_audit::history::Start;
use quorate_log::Boot;
use quorate_raft::Cfg;
use quorate_raft::cfg::LeaseCfg;
use quorate_raft::io::{Change, Input};
use quorate_raft::types::{
    Config, ConfigAt, Index, MemberId, MemberInfo, Record, SnapMeta, Term, Time, Token, WriteSeq,
};
use quorate_raft::wire::Msg;

use crate::clients::{Calls, Client, Ticket};
use crate::machine::Machine;
use crate::net::Net;
use crate::oracle::{Durable, Oracle, Violation};
use crate::process::{Asked, Process};
use crate::rng::Rng;
use crate::storage::Storage;
use crate::watchers::Watcher;

/// A cluster that needs more events than this per run is in a loop.
const EVENTS_MAX: u64 = 3_000_000;

/// Lower bounds of election timeouts; the upper ones are twice that.
const ELECTION_US: [u64; 2] = [150_000, 300_000];

/// What a queue without reserved places would hold: only a planted bug asks.
const QUEUE_LENGTH: usize = 2;

/// Sizes and limits of one run, drawn from its seed.
#[derive(Clone, Debug)]
pub struct Shape {
    pub voters: u64,
    pub clients: u64,
    pub think_us: u64,
    pub keep_entries: u64,
    pub persist_every: u64,
    /// How long the engine takes to make a state durable; 0 and 0 is at once.
    pub persist_us: (u64, u64),
    pub flush_us: (u64, u64),
    /// Between commit and apply; 0 and 0 applies at once.
    pub apply_us: (u64, u64),
    pub segment_bytes: u64,
    pub max_append_bytes: usize,
    pub inflight_bytes_max: usize,
    /// Somebody asks each new leader for a change at once.
    pub eager_changes: bool,
    /// Lease reads are on: clocks keep to the drift that is allowed, and run on while a guest is paused.
    pub leases: Option<LeaseCfg>,
    /// Lease reads are switched on or off with restarts, one member after the other.
    pub mixed_leases: bool,
    /// Election timeouts are changed with restarts, one member after the other.
    pub mixed_timeouts: bool,
    pub watchers: usize,
}

#[derive(Debug)]
pub(crate) enum Event {
    Wake {
        member: MemberId,
        life: u64,
    },
    Deliver {
        from: MemberId,
        to: MemberId,
        /// Which start of the sender it came from.
        boot: Boot,
        msg: Msg,
    },
    PeerGone {
        member: MemberId,
        peer: MemberId,
    },
    Flushed {
        member: MemberId,
        life: u64,
        flush: u64,
    },
    StallCheck {
        member: MemberId,
        life: u64,
        flush: u64,
    },
    Apply {
        member: MemberId,
        life: u64,
    },
    /// A member measures its volume and tells its leader.
    TellRoom {
        member: MemberId,
        life: u64,
    },
    /// It hears whether another member's volume is nearly full.
    Room {
        from: MemberId,
        to: MemberId,
        boot: Boot,
        is_low: bool,
    },
    /// The last instant of a lease, unless it was made longer.
    LeaseEnds {
        member: MemberId,
        life: u64,
    },
    Installed {
        member: MemberId,
        life: u64,
        index: Index,
    },
    /// The engine has made a state durable.
    Persisted {
        member: MemberId,
        life: u64,
        image: Box<(SnapMeta, Machine)>,
    },
    /// A watcher looks for what it missed, or for another member.
    Watcher {
        watcher: usize,
    },
    /// The bounds are looked at.
    Look,
    /// A directed link breaks or is mended.
    Link {
        from: MemberId,
        to: MemberId,
        cut: bool,
    },
    Client {
        client: u64,
    },
    ClientTimeout {
        ticket: Ticket,
    },
    SnapshotArrives {
        from: MemberId,
        to: MemberId,
        term: Term,
        life: u64,
        boot: Boot,
        is_whole: bool,
        image: Box<(SnapMeta, Vec<Bytes>)>,
    },
    /// A change asked of a leader that has just been elected.
    Eager {
        member: MemberId,
    },
    Restart {
        member: MemberId,
    },
    /// It was told that it may never speak again.
    Halt {
        member: MemberId,
    },
    Resume {
        member: MemberId,
    },
    Fault,
}

impl Event {
    /// The member whose process must run to see this.
    fn receiver(&self) -> Option<MemberId> {
        match self {
            Event::Wake { member, .. }
            | Event::Flushed { member, .. }
            | Event::StallCheck { member, .. }
            | Event::Apply { member, .. }
            | Event::LeaseEnds { member, .. }
            | Event::TellRoom { member, .. }
            | Event::Installed { member, .. }
            | Event::Persisted { member, .. }
            | Event::PeerGone { member, .. } => Some(*member),
            Event::Deliver { to, .. } | Event::Room { to, .. } | Event::SnapshotArrives { to, .. } => Some(*to),
            Event::Client { .. }
            | Event::ClientTimeout { .. }
            | Event::Watcher { .. }
            | Event::Look
            | Event::Link { .. }
            | Event::Eager { .. }
            | Event::Restart { .. }
            | Event::Halt { .. }
            | Event::Resume { .. }
            | Event::Fault => None,
        }
    }
}

/// A member's own clock: runs at another rate than the world's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    world: u64,
    local: u64,
    /// Parts per thousand; 1000 is true, 0 stands still.
    rate: u64,
}

impl Clock {
    pub(crate) fn read(&self, now: u64) -> Time {
        Time(self.local + (now - self.world) * self.rate / 1000)
    }
    pub(crate) fn world_at(&self, local: Time, now: u64) -> u64 {
        let ahead = local.0.saturating_sub(self.read(now).0);
        now.saturating_add(ahead.saturating_mul(1000).div_ceil(self.rate.max(1)))
    }
    pub(crate) fn set_rate(&mut self, now: u64, rate: u64) {
        *self = Clock { world: now, local: self.read(now).0, rate };
    }
    /// Moves forward or back at once.
    pub(crate) fn jump(&mut self, now: u64, by_us: i64) {
        let local = self.read(now).0.saturating_add_signed(by_us);
        *self = Clock { world: now, local, rate: self.rate };
    }
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }
    /// The last instant of the world at which this clock reads less than `local`.
    pub(crate) fn world_before(&self, local: Time, now: u64) -> u64 {
        let ahead = local.0.saturating_sub(self.read(now).0);
        (now + (ahead * 1000).div_ceil(self.rate.max(1))).saturating_sub(1)
    }
    pub(crate) fn is_true(&self) -> bool {
        self.rate == 1000
    }
}

#[derive(Debug)]
pub struct Member {
    pub(crate) storage: Storage,
    /// What the disk surely holds, by what was reported durable.
    pub(crate) durable: Durable,
    pub(crate) clock: Clock,
    /// The clock's rate before it was stopped with its guest.
    pub(crate) rate_before: Option<u64>,
    pub(crate) life: u64,
    /// Its election timeout, and that of its last run.
    pub(crate) election_us: (u64, u64),
    /// It goes by leases, if the cluster does.
    pub(crate) has_leases: bool,
    pub(crate) process: Option<Process>,
    pub(crate) paused: bool,
    /// The newest start of each other member it has seen, kept durably.
    pub(crate) seen: BTreeMap<MemberId, Boot>,
    /// Copies of its volume, oldest first.
    pub(crate) copies: Vec<VolumeCopy>,
    /// It runs on an old copy or an empty disk under its old id: what it held before, as it was promised.
    pub(crate) lost: Option<Durable>,
    /// Its log lost what it had promised, and nobody has told it yet.
    pub(crate) forgot: Option<Forgot>,
    /// Flushes of its log keep nothing.
    pub(crate) is_lying: bool,
    /// Its next start meets a read that fails.
    pub(crate) read_fails: bool,
    /// A repair was tried since it last ran.
    pub(crate) was_repaired: bool,
    /// Factor on flush times.
    pub disk_slowness: u64,
    pub(crate) backlog: Vec<Event>,
    /// Its disk was found damaged: it never starts again, a person or the operator replaces it.
    pub is_dead: bool,
    /// Damage was done to it.
    pub(crate) is_rotten: bool,
    /// The batch that was on its way to the disk at the last crash.
    pub(crate) under_way: Vec<(WriteSeq, Record)>,
}

/// What a member's log had promised and lost, and since when.
#[derive(Debug)]
pub(crate) struct Forgot {
    pub(crate) durable: Durable,
    pub(crate) since: u64,
}

/// A copy of a member's volume, as a backup or a clone of it.
#[derive(Debug)]
pub(crate) struct VolumeCopy {
    pub(crate) storage: Storage,
    /// Starts of the data directory when it was taken.
    pub(crate) generation: u64,
    /// Where its log ends at the latest.
    pub(crate) last_index: Index,
    /// By its own configuration it can lead only with others' votes.
    pub(crate) needs_others: bool,
}

#[derive(Debug)]
pub struct World {
    pub now: u64,
    pub members: BTreeMap<MemberId, Member>,
    pub net: Net,
    pub oracle: Oracle,
    pub rng: Rng,
    pub shape: Shape,
    pub counts: BTreeMap<&'static str, u64>,
    pub trace: bool,
    /// Faults and changes caused so far.
    pub faults: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    handled: u64,
    pub(crate) clients: Vec<Client>,
    pub(crate) clients_stopped: bool,
    pub calls: Calls,
    tokens: u64,
    pub(crate) values: u64,
    next_id: u64,
    hash: u64,
    /// Changes that must be refused, whatever the state.
    pub(crate) must_refuse: BTreeSet<Token>,
    pub(crate) watchers: Vec<Watcher>,
    /// Since when the network is whole, as looked at now and then.
    pub(crate) net_calm_since: Option<u64>,
    /// Since when nothing was wrong that could keep a majority from serving.
    pub(crate) calm_since: Option<u64>,
    pub(crate) last_ack: u64,
    /// Highest term seen, now and then, for its growth.
    pub(crate) terms: Vec<(u64, Term)>,
    /// Most terms that began within the time they are compared over.
    pub most_terms: u64,
    #[cfg(feature = "mutants")]
    pub mutant: Option<quorate_raft::mutant::Mutant>,
    #[cfg(feature = "mutants")]
    pub log_mutant: Option<quorate_log::mutant::Mutant>,
    #[cfg(feature = "mutants")]
    pub shell_mutant: Option<crate::mutant::Mutant>,
}

fn info(id: MemberId) -> MemberInfo {
    MemberInfo { name: format!("m{}", id.0), peer_urls: vec![format!("sim://{}", id.0)], client_urls: Vec::new() }
}

impl World {
    pub fn new(seed: u64, shape: Shape) -> World {
        let mut rng = Rng::new(seed);
        let voters: BTreeSet<MemberId> = (1..=shape.voters).map(MemberId).collect();
        let config = Config {
            members: voters.iter().map(|id| (*id, info(*id))).collect(),
            voters: voters.clone(),
            ..Config::default()
        };
        let bootstrap = SnapMeta {
            config: config.clone(),
            config_at: ConfigAt { incarnation: 1, term: 0, index: 0 },
            ..SnapMeta::default()
        };
        let net = Net::new(rng.fork());
        let clients = (0..shape.clients).map(|_| Client::new(rng.fork())).collect();
        let mut world = World {
            now: 1_000_000,
            members: BTreeMap::new(),
            net,
            oracle: Oracle::new(config),
            next_id: shape.voters + 1,
            rng,
            shape,
            counts: BTreeMap::new(),
            trace: false,
            faults: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            handled: 0,
            clients,
            clients_stopped: false,
            calls: Calls::default(),
            tokens: 0,
            values: 0,
            hash: 0,
            must_refuse: BTreeSet::new(),
            watchers: Vec::new(),
            net_calm_since: None,
            calm_since: None,
            last_ack: 0,
            terms: Vec::new(),
            most_terms: 0,
            #[cfg(feature = "mutants")]
            mutant: None,
            #[cfg(feature = "mutants")]
            log_mutant: None,
            #[cfg(feature = "mutants")]
            shell_mutant: None,
        };
        for id in voters {
            world.add_member(id, bootstrap.clone());
        }
        world
    }

    pub(crate) fn add_member(&mut self, id: MemberId, bootstrap: SnapMeta) {
        let durable = Durable { snapshot: bootstrap.clone(), ..Durable::default() };
        let clock = Clock { world: self.now, local: self.rng.below(1 << 40), rate: 1000 };
        let member = Member {
            storage: Storage::new(id, bootstrap, self.shape.segment_bytes, &mut self.rng),
            durable,
            clock,
            rate_before: None,
            life: 0,
            election_us: (ELECTION_US[0], ELECTION_US[0]),
            has_leases: true,
            process: None,
            paused: false,
            seen: BTreeMap::new(),
            copies: Vec::new(),
            lost: None,
            forgot: None,
            is_lying: false,
            read_fails: false,
            was_repaired: false,
            disk_slowness: 1,
            backlog: Vec::new(),
            is_dead: false,
            is_rotten: false,
            under_way: Vec::new(),
        };
        self.members.insert(id, member);
    }

    /// Starts every member and every client.
    pub fn start(&mut self) -> Result<(), Violation> {
        for id in self.ids() {
            self.restart(id)?;
        }
        self.start_watchers();
        self.at(self.now, Event::Look);
        for client in 0..self.shape.clients {
            let wait = self.rng.below(self.shape.think_us);
            self.at(self.now + wait, Event::Client { client });
        }
        Ok(())
    }

    pub fn ids(&self) -> Vec<MemberId> {
        self.members.keys().copied().collect()
    }

    pub fn is_up(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|m| m.process.is_some())
    }

    pub fn up(&self) -> Vec<MemberId> {
        self.ids().into_iter().filter(|id| self.is_up(*id)).collect()
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn trace_hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.6} {}", self.now as f64 / 1e6, text());
        }
    }

    pub(crate) fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    pub(crate) fn at(&mut self, when: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((when, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    pub fn schedule_fault(&mut self, after_us: u64) {
        self.at(self.now + after_us, Event::Fault);
    }

    pub fn schedule_link(&mut self, from: MemberId, to: MemberId, cut: bool, after_us: u64) {
        self.at(self.now + after_us, Event::Link { from, to, cut });
    }

    pub fn schedule_restart(&mut self, member: MemberId, after_us: u64) {
        self.at(self.now + after_us, Event::Restart { member });
    }

    /// Links that were to break later stay whole.
    pub fn forget_links(&mut self) {
        self.events.retain(|_, event| !matches!(event, Event::Link { .. }));
    }

    /// Runs until `until`; a due fault is handed to `faults`.
    pub fn run(
        &mut self,
        until: u64,
        faults: &mut dyn FnMut(&mut World) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        while let Some(Reverse((when, number))) = self.queue.peek().copied() {
            if when > until {
                break;
            }
            let Some(event) = self.events.remove(&number) else {
                self.queue.pop();
                continue;
            };
            self.handled += 1;
            if self.handled > EVENTS_MAX {
                return Err(Violation(format!("I17 more than {EVENTS_MAX} events: a loop; {}", self.describe())));
            }
            self.queue.pop();
            self.now = when;
            self.mix(when);
            match event {
                Event::Fault => faults(self)?,
                event => self.handle(event)?,
            }
        }
        self.now = until;
        Ok(())
    }

    pub(crate) fn handle(&mut self, event: Event) -> Result<(), Violation> {
        let drops_completions = planted!(self, CompletionDropped);
        // A paused process sees everything later, in order.
        if let Some(member) = event.receiver().and_then(|id| self.members.get_mut(&id))
            && member.paused
        {
            let is_completion = matches!(event, Event::Flushed { .. } | Event::Apply { .. } | Event::Persisted { .. });
            if is_completion && drops_completions && member.backlog.len() > QUEUE_LENGTH {
                return Ok(());
            }
            member.backlog.push(event);
            return Ok(());
        }
        match event {
            Event::Wake { member, life } => self.wake(member, life),
            Event::Deliver { from, to, boot, msg } => {
                self.mix(to.0 << 8 | from.0);
                if !self.admits(to, from, boot)? {
                    return Ok(());
                }
                self.say(|| format!("{from} -> {to}: {msg:?}"));
                let word = if let Msg::YourLogReverted { held, .. } = msg { Some(held) } else { None };
                self.input(to, Input::Msg { from, msg })?;
                word.map_or(Ok(()), |held| self.must_have_stopped(to, held))
            }
            Event::PeerGone { member, peer } => self.input(member, Input::PeerGone { peer }),
            Event::Flushed { member, life, flush } => self.flushed(member, life, flush),
            Event::StallCheck { member, life, flush } => self.check_stall(member, life, flush),
            Event::Apply { member, life } => self.apply(member, life),
            Event::TellRoom { member, life } => self.tell_room(member, life),
            Event::Room { from, to, boot, is_low } => self.hear_room(from, to, boot, is_low),
            Event::LeaseEnds { member, life } => self.lease_ends(member, life),
            Event::Installed { member, life, index } => self.installed(member, life, index),
            Event::Client { client } => self.client(client),
            Event::ClientTimeout { ticket } => {
                self.client_unknown(ticket);
                Ok(())
            }
            Event::SnapshotArrives { from, to, term, life, boot, is_whole, image } => {
                if !self.admits(to, from, boot)? {
                    return self.snapshot_failed(from, life, to, image.0.index);
                }
                self.snapshot_arrives(from, to, term, life, is_whole, *image)
            }
            Event::Persisted { member, life, image } => self.persisted(member, life, *image),
            Event::Watcher { watcher } => self.watcher_looks(watcher),
            Event::Look => self.look(),
            Event::Link { from, to, cut } => {
                if cut {
                    self.net.cut(from, to);
                } else {
                    self.net.mend(from, to);
                }
                Ok(())
            }
            Event::Eager { member } => self.eager_change(member),
            Event::Restart { member } => self.restart(member),
            Event::Halt { member } => {
                self.crash(member, false)?;
                if let Some(member) = self.members.get_mut(&member) {
                    member.is_dead = true;
                }
                Ok(())
            }
            Event::Resume { member } => self.resume(member),
            Event::Fault => unreachable!("faults are handled by the caller"),
        }
    }

    pub(crate) fn alive(&mut self, id: MemberId, life: u64) -> Option<&mut Process> {
        self.members.get_mut(&id).filter(|m| m.life == life)?.process.as_mut()
    }

    pub(crate) fn process(&mut self, id: MemberId) -> Option<&mut Process> {
        self.members.get_mut(&id)?.process.as_mut()
    }

    /// A member starts, perhaps with other settings than before.
    pub(crate) fn draw_settings(&mut self, id: MemberId) {
        let draw = self.shape.mixed_timeouts.then(|| self.rng.chance(500));
        let has_leases = !self.shape.mixed_leases || self.rng.chance(500);
        let Some(member) = self.members.get_mut(&id).filter(|member| member.process.is_none()) else { return };
        member.has_leases = has_leases;
        if let Some(is_long) = draw {
            member.election_us = (ELECTION_US[usize::from(is_long)], member.election_us.0);
        }
    }

    pub(crate) fn cfg(&self, id: MemberId) -> Cfg {
        let member = self.members.get(&id);
        let (now_us, before_us) = member.map_or((ELECTION_US[0], ELECTION_US[0]), |m| m.election_us);
        let has_leases = member.is_none_or(|m| m.has_leases);
        Cfg {
            election_us: (now_us, 2 * now_us),
            start_refusal_us: now_us.max(before_us),
            leases: self.shape.leases.filter(|_| has_leases),
            keep_entries: self.shape.keep_entries,
            max_append_bytes: self.shape.max_append_bytes,
            inflight_bytes_max: self.shape.inflight_bytes_max,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ..Cfg::lan(id)
        }
    }

    pub fn set_clock_rate(&mut self, id: MemberId, rate: u64) {
        let now = self.now;
        if let Some(member) = self.members.get_mut(&id) {
            member.clock.set_rate(now, rate);
        }
        self.plan_wake(id);
    }

    pub fn jump_clock(&mut self, id: MemberId, by_us: i64) {
        let now = self.now;
        if let Some(member) = self.members.get_mut(&id) {
            member.clock.jump(now, by_us);
            if let Some(process) = member.process.as_mut() {
                // What others told of their room may seem to be long ago.
                (process.low_since, process.led_since) = (None, process.led_since.map(|_| now));
            }
        }
        self.plan_wake(id);
    }

    // Membership.

    /// The leader of the highest term, as the members say.
    pub fn leader(&self) -> Option<MemberId> {
        let leading = |(id, member): (&MemberId, &Member)| {
            let node = &member.process.as_ref()?.node;
            node.is_leader().then_some((node.term(), *id))
        };
        self.members.iter().filter_map(leading).max().map(|(_, id)| id)
    }

    pub(crate) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Asks `id` for a change, compared with the configuration it has committed.
    pub fn change(&mut self, id: MemberId, change: Change) -> Result<(), Violation> {
        let Some(process) = self.process(id) else { return Ok(()) };
        let expect = Some(process.node.status().committed_config.at);
        let token = self.token();
        self.ask_change(id, token, expect, change)
    }

    /// Asks for a change that must be refused.
    pub fn change_wrongly(&mut self, id: MemberId, expect: Option<ConfigAt>, change: Change) -> Result<(), Violation> {
        let token = self.token();
        self.must_refuse.insert(token);
        self.ask_change(id, token, expect, change)
    }

    /// Somebody removes or demotes a member the moment a leader is elected.
    fn eager_change(&mut self, leader: MemberId) -> Result<(), Violation> {
        let members: Vec<MemberId> = self.config().members.keys().copied().collect();
        let Some(id) = self.rng.pick(&members).copied() else { return Ok(()) };
        let change = if self.rng.chance(500) { Change::Demote { id } } else { Change::Remove { id } };
        let token = self.token();
        self.count("eager change");
        self.ask_change(leader, token, None, change)
    }

    /// No member's log holds a configuration other than the newest committed one.
    pub fn is_config_settled(&self) -> bool {
        let same = |member: &Member| {
            member.process.as_ref().is_none_or(|p| *p.node.status().newest_config.config == self.oracle.config)
        };
        let members = self.oracle.config.members.keys();
        members.filter_map(|id| self.members.get(id)).all(|member| member.process.is_some() && same(member))
    }

    /// Whether one more voter can be lost for good: without a majority of intact copies the right answer is to refuse.
    pub fn may_lose(&self, id: MemberId) -> bool {
        let voters = &self.config().voters;
        let is_gone =
            |member: &Member| member.is_dead || member.is_lying || member.lost.is_some() || member.forgot.is_some();
        let gone = voters.iter().filter(|id| self.members.get(id).is_some_and(is_gone)).count();
        voters.contains(&id) && gone < voters.len().saturating_sub(1) / 2 && self.is_config_settled()
    }

    /// A member runs on a copy of its past and nobody has told it yet.
    pub fn has_impostor(&self) -> bool {
        self.members.values().any(|member| member.lost.is_some() && !member.is_dead)
    }

    pub fn is_rotten(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|member| member.is_rotten)
    }

    pub fn is_dead(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|member| member.is_dead)
    }

    pub(crate) fn ask_change(
        &mut self,
        id: MemberId,
        token: Token,
        expect: Option<ConfigAt>,
        change: Change,
    ) -> Result<(), Violation> {
        self.say(|| format!("change {token:?} at {id} expecting {expect:?}: {change:?}"));
        self.ask(id, token, Asked::Change);
        self.disturb();
        self.input(id, Input::Change { token, expect, change })
    }

    pub fn transfer(&mut self, id: MemberId, to: MemberId) -> Result<(), Violation> {
        let token = self.token();
        self.ask(id, token, Asked::Transfer);
        self.disturb();
        self.input(id, Input::Transfer { token, to })
    }

    /// A new member with an empty disk that waits to be told; the change that adds it goes to `leader`.
    pub fn join(&mut self, leader: MemberId) -> Result<(), Violation> {
        let id = MemberId(self.next_id);
        self.next_id += 1;
        self.add_member(id, SnapMeta::default());
        self.restart(id)?;
        self.change(leader, World::add_learner(id))
    }

    pub fn add_learner(id: MemberId) -> Change {
        Change::AddLearner { id, info: info(id) }
    }

    /// The newest committed configuration.
    pub fn config(&self) -> &Config {
        &self.oracle.config
    }

    // The end of a run.

    /// Number of acknowledged writes so far.
    pub fn acknowledged(&self) -> u64 {
        self.counts.get("writes acknowledged").copied().unwrap_or_default()
    }

    /// Members of the committed configuration that run, with applied index and state hash.
    pub fn states(&self) -> Vec<(MemberId, Index, u64)> {
        let state = |(id, member): (&MemberId, &Member)| {
            let machine = &member.process.as_ref()?.machine;
            self.oracle.config.contains(*id).then(|| (*id, machine.applied(), machine.hash()))
        };
        self.members.iter().filter_map(state).collect()
    }

    /// What each running member says of itself, for a message.
    pub fn describe(&self) -> String {
        let line = |(id, member): (&MemberId, &Member)| {
            let status = member.process.as_ref()?.node.status();
            let (role, term, leader) = (status.role, status.term, status.leader);
            let (commit, last, applied) = (status.commit, status.last_index, status.applied);
            Some(format!("{id} {role:?} term {term} leader {leader:?} applied {applied} commit {commit} last {last}"))
        };
        let lines: Vec<String> = self.members.iter().filter_map(line).collect();
        format!("[{}], configuration {:?}", lines.join("; "), self.config())
    }

    /// I1, I2 and I4: what clients saw is one order of calls that agrees with real time, nothing acknowledged is missing,
    /// and watchers saw what they were promised.
    pub fn check_history(&mut self) -> Result<(), Violation> {
        let mut reference = Machine::new();
        let changes = self.oracle.committed.iter().filter_map(|entry| reference.apply(entry));
        let history = History {
            start: Start { revision: 1, kvs: Vec::new() },
            operations: self.calls.operations().to_vec(),
            changes: changes.flat_map(|applied| applied.changes()).collect(),
            final_revision: None,
            watches: self.watchers.iter().flat_map(Watcher::logs).cloned().collect(),
        };
        let history = History { final_revision: Some(reference.revision()), ..history };
        quorate_audit::strict::check(&history).map_err(|error| Violation(format!("I2 {error}")))?;
        let events = quorate_audit::watch_rules::check(&history);
        let events = events.map_err(|error| Violation(format!("I4 {error}")))?;
        *self.counts.entry("watch events").or_default() += events as u64;
        Ok(())
    }
}
