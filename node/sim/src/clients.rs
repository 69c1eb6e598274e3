//! Clients: each has one operation at a time, remembers a leader, and never learns more than an answer tells it.

use bytes::Bytes;
use quorate_raft::io::{Input, ReadMode, Refusal};
use quorate_raft::types::MemberId;

use crate::machine::{self, RequestId};
use crate::oracle::{Done, Operation, Violation};
use crate::process::Asked;
use crate::rng::Rng;
use crate::world::{Event, World};

/// How long a client waits before an outcome is unknown to it.
const CLIENT_TIMEOUT_US: u64 = 1_500_000;
/// Keys the clients share: few, so that reads see other clients' writes.
const KEYS: u64 = 12;

/// Names one operation of one client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket {
    client: u64,
    number: u64,
}

#[derive(Debug)]
pub(crate) struct Client {
    rng: Rng,
    busy: Option<Busy>,
    operations: u64,
    leader_hint: Option<MemberId>,
}

/// The outstanding operation.
#[derive(Clone, Debug)]
struct Busy {
    number: u64,
    started: u64,
    wanted: Wanted,
}

#[derive(Clone, Debug)]
enum Wanted {
    Put { key: Bytes, value: Bytes },
    Get { key: Bytes },
}

impl Client {
    pub(crate) fn new(rng: Rng) -> Client {
        Client { rng, busy: None, operations: 0, leader_hint: None }
    }
}

impl World {
    fn client_mut(&mut self, client: u64) -> &mut Client {
        &mut self.clients[usize::try_from(client).expect("there are few clients")]
    }

    /// A client starts its next operation at the member it believes to lead, or at any.
    pub(crate) fn client(&mut self, client: u64) -> Result<(), Violation> {
        if self.clients_stopped {
            return Ok(());
        }
        let mut up = self.up();
        if up.iter().any(|id| self.config().contains(*id)) && !self.rng.chance(50) {
            // Discovery names the members; now and then it is out of date.
            up.retain(|id| self.oracle.config.contains(*id));
        }
        let state = self.client_mut(client);
        if state.busy.is_some() {
            return Ok(());
        }
        state.operations += 1;
        let number = state.operations;
        let key = Bytes::from(format!("k{}", state.rng.below(KEYS)));
        let hint = state.leader_hint.filter(|id| up.contains(id)).filter(|_| !state.rng.chance(150));
        let target = hint.or_else(|| state.rng.pick(&up).copied());
        let is_read = state.rng.chance(400);
        let Some(target) = target else {
            self.next_operation(client);
            return Ok(());
        };
        let wanted = if is_read {
            Wanted::Get { key }
        } else {
            self.values += 1;
            Wanted::Put { key, value: Bytes::from(format!("v{}", self.values)) }
        };
        let ticket = Ticket { client, number };
        let started = self.now;
        self.client_mut(client).busy = Some(Busy { number, started, wanted: wanted.clone() });
        self.at(self.now + CLIENT_TIMEOUT_US, Event::ClientTimeout { ticket });
        let token = self.token();
        match wanted {
            Wanted::Get { .. } => {
                self.ask(target, token, Asked::Read(ticket));
                self.input(target, Input::Read { token, mode: ReadMode::Index })
            }
            Wanted::Put { key, value } => {
                self.ask(target, token, Asked::Put(ticket));
                if let Some(process) = self.process(target) {
                    process.puts.insert(token.0, ticket);
                }
                let request = RequestId { origin: target, number: token.0 };
                let payload = machine::encode_put(request, &key, &value);
                self.input(target, Input::Propose { batch: vec![(token, payload)] })
            }
        }
    }

    fn next_operation(&mut self, client: u64) {
        let think_us = self.shape.think_us;
        let wait = self.client_mut(client).rng.between(1, think_us * 2);
        self.at(self.now + wait, Event::Client { client });
    }

    /// Takes the outstanding operation if the ticket still names it.
    fn take_busy(&mut self, ticket: Ticket) -> Option<Busy> {
        let busy = self.client_mut(ticket.client).busy.take_if(|busy| busy.number == ticket.number)?;
        self.next_operation(ticket.client);
        Some(busy)
    }

    fn finish(&mut self, started: u64, operation: Operation) {
        let ended = self.now;
        self.oracle.done(Done { started, ended, operation });
    }

    pub(crate) fn answer_put(&mut self, id: MemberId, number: u64, revision: i64) {
        let Some(ticket) = self.process(id).and_then(|process| process.puts.remove(&number)) else { return };
        let Some(busy) = self.take_busy(ticket) else { return };
        self.client_mut(ticket.client).leader_hint = Some(id);
        if let Wanted::Put { key, value } = busy.wanted {
            self.count("puts acknowledged");
            self.finish(busy.started, Operation::Put { key, value, revision: Some(revision), certain_failure: false });
        }
    }

    /// Answers the reads whose index this member has applied.
    pub(crate) fn answer_reads(&mut self, id: MemberId) {
        loop {
            let Some(process) = self.process(id) else { return };
            let applied = process.machine.applied();
            let Some(at) = process.reads_ready.iter().position(|(index, _)| *index <= applied) else { return };
            let (_, ticket) = process.reads_ready.swap_remove(at);
            let Some(busy) = self.take_busy(ticket) else { continue };
            let Wanted::Get { key } = busy.wanted else { continue };
            let Some(process) = self.process(id) else { return };
            let (found, store_revision) = (process.machine.get(&key), process.machine.revision());
            self.count("reads answered");
            self.finish(busy.started, Operation::Get { key, found, store_revision });
        }
    }

    /// Certainly not executed; the client may have learned who leads.
    pub(crate) fn client_refused(&mut self, ticket: Ticket, refusal: &Refusal) {
        let hint = match refusal {
            Refusal::NotLeader { leader } => *leader,
            _ => None,
        };
        let Some(busy) = self.take_busy(ticket) else { return };
        self.client_mut(ticket.client).leader_hint = hint;
        if let Wanted::Put { key, value } = busy.wanted {
            self.finish(busy.started, Operation::Put { key, value, revision: None, certain_failure: true });
        }
    }

    pub(crate) fn client_unknown(&mut self, ticket: Ticket) {
        let Some(busy) = self.take_busy(ticket) else { return };
        self.client_mut(ticket.client).leader_hint = None;
        if let Wanted::Put { key, value } = busy.wanted {
            self.count("unknown outcomes");
            self.finish(busy.started, Operation::Put { key, value, revision: None, certain_failure: false });
        }
    }

    pub fn stop_clients(&mut self) {
        self.clients_stopped = true;
    }
}
