//! Clients: each has one call at a time, remembers a leader, and never learns more than an answer tells it.
//!
//! Every call goes into a history that the auditor judges at the end of the run.

use std::collections::BTreeMap;

use quorate_audit::history::{Compare, Relation, Target};
use quorate_audit::{Answer, Call, Operation, Outcome};
use quorate_raft::io::{Input, ReadMode, Refusal};
use quorate_raft::types::MemberId;

use crate::machine::{self, Applied, RequestId};
use crate::oracle::{Violation, hold};
use crate::process::Asked;
use crate::rng::Rng;
use crate::world::{Event, World};

/// How long a client waits before an outcome is unknown to it.
const CLIENT_TIMEOUT_US: u64 = 1_500_000;
/// Keys the clients share: few, so that reads see other clients' writes.
const KEYS: u64 = 12;
/// The client number of whoever writes without waiting.
const NOBODY: u64 = 1_000;
/// Revisions kept by a compaction.
const KEPT_REVISIONS: i64 = 20;

/// Names one call: the number of its token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
pub(crate) struct Client {
    rng: Rng,
    busy: Option<Ticket>,
    leader_hint: Option<MemberId>,
    /// A key and the mod revision it was last seen with: what a compare-and-set builds on.
    seen: Option<(String, i64)>,
}

impl Client {
    pub(crate) fn new(rng: Rng) -> Client {
        Client { rng, busy: None, leader_hint: None, seen: None }
    }
}

/// What all clients did, in order of invocation.
#[derive(Debug, Default)]
pub struct Calls {
    order: u64,
    operations: Vec<Operation>,
    open: BTreeMap<Ticket, usize>,
}

impl Calls {
    fn tick(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn invoke(&mut self, ticket: Ticket, client: u64, call: Call) {
        let invoked = self.tick();
        self.open.insert(ticket, self.operations.len());
        self.operations.push(Operation { id: ticket.0, client, call, invoked, outcome: Outcome::Unknown });
    }

    /// Ends a call that is still open; gives whose it was.
    fn end(&mut self, ticket: Ticket, outcome: Outcome) -> Option<u64> {
        let operation = &mut self.operations[self.open.remove(&ticket)?];
        operation.outcome = outcome;
        Some(operation.client)
    }

    fn call(&self, ticket: Ticket) -> Option<&Call> {
        self.open.get(&ticket).map(|at| &self.operations[*at].call)
    }

    pub fn count(&self) -> usize {
        self.operations.len()
    }

    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }
}

impl World {
    fn client_mut(&mut self, client: u64) -> Option<&mut Client> {
        self.clients.get_mut(usize::try_from(client).ok()?)
    }

    /// A client starts its next call at the member it believes to lead, or at any.
    pub(crate) fn client(&mut self, client: u64) -> Result<(), Violation> {
        if self.clients_stopped {
            return Ok(());
        }
        let mut up = self.up();
        if up.iter().any(|id| self.config().contains(*id)) && !self.rng.chance(50) {
            // Discovery names the members; now and then it is out of date.
            up.retain(|id| self.oracle.config.contains(*id));
        }
        self.values += 1;
        let value = format!("v{}", self.values);
        let Some(state) = self.client_mut(client) else { return Ok(()) };
        if state.busy.is_some() {
            return Ok(());
        }
        let hint = state.leader_hint.filter(|id| up.contains(id)).filter(|_| !state.rng.chance(150));
        let Some(target) = hint.or_else(|| state.rng.pick(&up).copied()) else {
            self.next_call(client);
            return Ok(());
        };
        let call = state.draw(value);
        let is_read = matches!(call, Call::Range { .. });
        let is_growth = machine::grows(&call);
        let token = self.token();
        let ticket = Ticket(token.0);
        if let Some(state) = self.client_mut(client) {
            state.busy = Some(ticket);
        }
        self.at(self.now + CLIENT_TIMEOUT_US, Event::ClientTimeout { ticket });
        let request = RequestId { origin: target, number: token.0 };
        let payload = (!is_read).then(|| machine::encode(request, &call));
        self.calls.invoke(ticket, client, call);
        match payload {
            None => {
                let mode = if self.rng.chance(500) { ReadMode::Lease } else { ReadMode::Index };
                self.ask(target, token, Asked::Read(ticket, self.oracle.committed.len() as u64));
                self.input(target, Input::Read { token, mode })
            }
            Some(payload) => {
                if is_growth && !self.takes_growth(target)? {
                    self.end_call(ticket, Outcome::Refused, Some(target));
                    return Ok(());
                }
                self.ask(target, token, Asked::Write(ticket));
                self.input(target, Input::Propose { batch: vec![(token, payload)] })
            }
        }
    }

    /// Many writes at once for which nobody waits.
    pub fn burst(&mut self, target: MemberId, count: u64) -> Result<(), Violation> {
        if !self.takes_growth(target)? {
            return Ok(());
        }
        let mut batch = Vec::new();
        for _ in 0..count {
            self.values += 1;
            let call = Call::Put { key: format!("k{}", self.rng.below(KEYS)), value: format!("v{}", self.values) };
            let token = self.token();
            batch.push((token, machine::encode(RequestId { origin: target, number: token.0 }, &call)));
            self.calls.invoke(Ticket(token.0), NOBODY, call);
            self.ask(target, token, Asked::Write(Ticket(token.0)));
        }
        self.input(target, Input::Propose { batch })
    }

    /// Asks the store to forget old revisions.
    pub fn compact(&mut self, target: MemberId) -> Result<(), Violation> {
        let Some(revision) = self.process(target).map(|process| process.machine.revision() - KEPT_REVISIONS) else {
            return Ok(());
        };
        let token = self.token();
        self.ask(target, token, Asked::Compaction);
        let payload = machine::encode_compaction(RequestId { origin: target, number: token.0 }, revision.max(1));
        self.input(target, Input::Propose { batch: vec![(token, payload)] })
    }

    fn next_call(&mut self, client: u64) {
        let think_us = self.shape.think_us;
        let Some(state) = self.client_mut(client) else { return };
        let wait = state.rng.between(1, think_us * 2);
        self.at(self.now + wait, Event::Client { client });
    }

    /// Ends a call, and sends its client to the next one.
    fn end_call(&mut self, ticket: Ticket, outcome: Outcome, hint: Option<MemberId>) {
        let Some(client) = self.calls.end(ticket, outcome) else { return };
        if let Some(state) = self.client_mut(client) {
            state.busy = None;
            state.leader_hint = hint;
        }
        self.next_call(client);
    }

    fn answered(&mut self, id: MemberId, ticket: Ticket, answer: Answer) {
        if let Some(client) = self.calls.open.get(&ticket).map(|at| self.calls.operations[*at].client)
            && let Answer::Range { kvs, .. } = &answer
            && let Some(kv) = kvs.first()
            && let Some(state) = self.client_mut(client)
        {
            state.seen = Some((kv.key.clone(), kv.mod_revision));
        }
        let returned = self.calls.tick();
        self.end_call(ticket, Outcome::Returned { returned, answer }, Some(id));
    }

    /// The machine's answer to a command that was asked for here.
    pub(crate) fn answer_write(&mut self, id: MemberId, applied: Applied) -> Result<(), Violation> {
        let ticket = Ticket(applied.request.number);
        let is_open = self.process(id).is_some_and(|process| process.writes.remove(&ticket));
        if !is_open || self.calls.call(ticket).is_none() {
            return Ok(());
        }
        match applied.into_answer() {
            Ok(answer) => {
                self.count("writes acknowledged");
                self.last_ack = self.now;
                self.answered(id, ticket, answer);
                Ok(())
            }
            Err(error) => Err(Violation(format!("I13 {id} refuses a right command: {error}"))),
        }
    }

    /// Answers the reads whose index this member has applied.
    pub(crate) fn answer_reads(&mut self, id: MemberId) -> Result<(), Violation> {
        let is_hasty = planted!(self, ReadBeforeApplied);
        loop {
            let Some(process) = self.process(id) else { return Ok(()) };
            let applied = process.machine.applied();
            let Some(at) = process.reads_ready.iter().position(|(index, _)| *index <= applied || is_hasty) else {
                return Ok(());
            };
            let (_, ticket) = process.reads_ready.swap_remove(at);
            let Some(Call::Range { key, .. }) = self.calls.call(ticket).cloned() else { continue };
            let Some(process) = self.process(id) else { return Ok(()) };
            let answer = process.machine.read(&key);
            hold!(answer.revision() >= 1, "I3 {id} answers at revision {}", answer.revision());
            self.count("reads answered");
            self.answered(id, ticket, answer);
        }
    }

    /// Certainly not executed; the client may have learned who leads.
    pub(crate) fn client_refused(&mut self, ticket: Ticket, refusal: &Refusal) {
        let hint = match refusal {
            Refusal::NotLeader { leader } => *leader,
            _ => None,
        };
        self.end_call(ticket, Outcome::Refused, hint);
    }

    pub(crate) fn client_unknown(&mut self, ticket: Ticket) {
        if self.calls.call(ticket).is_some() {
            self.count("unknown outcomes");
        }
        self.end_call(ticket, Outcome::Unknown, None);
    }

    pub fn stop_clients(&mut self) {
        self.clients_stopped = true;
    }
}

impl Client {
    fn draw(&mut self, value: String) -> Call {
        let key = format!("k{}", self.rng.below(KEYS));
        let read = |key: &str| Call::Range {
            key: key.to_owned(),
            range_end: String::new(),
            revision: 0,
            limit: 0,
            serializable: false,
        };
        match self.rng.below(10) {
            0..=3 => read(&key),
            4..=6 => Call::Put { key, value },
            7 => Call::DeleteRange { key, range_end: String::new() },
            _ => match self.seen.take() {
                Some((key, revision)) => Call::Txn {
                    compares: vec![Compare {
                        key: key.clone(),
                        relation: Relation::Equal,
                        target: Target::Mod(revision),
                    }],
                    success: vec![Call::Put { key: key.clone(), value }],
                    failure: vec![read(&key)],
                },
                None => read(&key),
            },
        }
    }
}
