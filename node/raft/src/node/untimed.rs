//! For exhaustive search: the same member without what only time and chance make different, and its decisions without
//! the deadlines that lead to them. Nothing else uses it.

use std::collections::BTreeMap;

use crate::io::Effect;
use crate::rng::Rng;
use crate::types::{Config, Index, MemberId, Time};

use super::{NEVER, Node, Role};

impl Node {
    /// Forgets every instant, the state of the generator and how many writes there were: nobody has been heard,
    /// everything is due. Returns by how much write numbers went down.
    pub fn forget_time(&mut self) -> u64 {
        self.now = Time(0);
        self.rng = Rng::new(0);
        self.contact = None;
        self.last_contact = Time(0);
        self.refuse_until = Time(0);
        self.election_due = Time(0);
        self.sealed.clear();
        if let Role::Leader(leader) = &mut self.role {
            leader.forget_time();
        }
        self.durable.rebase()
    }

    /// An election timeout passed and a majority would vote.
    pub fn start_election(&mut self, out: &mut Vec<Effect>) {
        self.campaign(false, out);
    }

    /// A heartbeat is due.
    pub fn send_heartbeats(&mut self, out: &mut Vec<Effect>) {
        self.heartbeat_round(out);
    }

    /// A change passed every check that depends on time.
    pub fn append_change(&mut self, config: Config, out: &mut Vec<Effect>) {
        self.append_config(config, out);
    }

    pub fn last_index(&self) -> Index {
        self.log.last_index()
    }

    pub fn applied(&self) -> Index {
        self.applied
    }

    /// A leader that is ready and has no change under way.
    pub fn may_change(&self) -> bool {
        let newest = self.history.newest();
        matches!(&self.role, Role::Leader(leader) if leader.is_ready)
            && newest.at.index <= self.commit
            && !newest.config.is_joint()
    }

    /// Heartbeat rounds of this leadership.
    pub fn rounds(&self) -> u64 {
        match &self.role {
            Role::Leader(leader) => leader.round,
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => 0,
        }
    }
}

impl super::leader::Leader {
    fn forget_time(&mut self) {
        self.since = Time(0);
        self.heartbeat_due = Time(0);
        self.quorum_due = NEVER;
        self.rounds_sent.clear();
        for peer in self.peers.values_mut() {
            peer.acked_sent = None;
            peer.last_ack = peer.last_ack.map(|_| Time(0));
            peer.snapshot_due = Time(0);
        }
    }
}

/// The same members under other names: what a group does cannot depend on them.
impl Node {
    /// This member, with `name` for every member's id. Only for what the search reaches: no reads, transfers or snapshots.
    pub fn renamed(&self, name: &dyn Fn(MemberId) -> MemberId) -> Node {
        let mut node = self.clone();
        let config = |config: &Config| Config {
            voters: config.voters.iter().map(|id| name(*id)).collect(),
            voters_outgoing: config.voters_outgoing.iter().map(|id| name(*id)).collect(),
            learners: config.learners.iter().map(|id| name(*id)).collect(),
            members: config.members.iter().map(|(id, info)| (name(*id), info.clone())).collect(),
            removed: config.removed.iter().map(|id| name(*id)).collect(),
        };
        node.cfg.id = name(self.cfg.id);
        node.hard.vote = self.hard.vote.map(name);
        node.leader = self.leader.map(name);
        node.history.rewrite(config);
        let votes =
            |votes: &BTreeMap<MemberId, bool>| votes.iter().map(|(id, granted)| (name(*id), *granted)).collect();
        node.role = match &self.role {
            Role::Follower => Role::Follower,
            Role::PreCandidate { votes: old } => Role::PreCandidate { votes: votes(old) },
            Role::Candidate { votes: old } => Role::Candidate { votes: votes(old) },
            Role::Leader(leader) => {
                let mut leader = leader.clone();
                leader.peers = leader.peers.into_iter().map(|(id, peer)| (name(id), peer)).collect();
                Role::Leader(leader)
            }
        };
        node
    }
}
