//! For exhaustive search: the same member without what only time and chance make different.

use crate::rng::Rng;
use crate::types::{Index, Time};

use super::{NEVER, Node, Role};

impl Node {
    /// Forgets every instant, the state of the generator and how many writes there were: nobody has been heard,
    /// everything is due. Returns by how much write numbers went down.
    pub(crate) fn forget_time(&mut self) -> u64 {
        self.now = Time(0);
        self.rng = Rng::new(0);
        self.contact = None;
        self.last_contact = Time(0);
        self.refuse_until = Time(0);
        self.election_due = Time(0);
        if let Role::Leader(leader) = &mut self.role {
            leader.forget_time();
        }
        self.durable.rebase()
    }

    pub(crate) fn last_index(&self) -> Index {
        self.log.last_index()
    }

    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    /// A leader that is ready and has no change under way.
    pub(crate) fn may_change(&self) -> bool {
        let newest = self.history.newest();
        matches!(&self.role, Role::Leader(leader) if leader.is_ready)
            && newest.at.index <= self.commit
            && !newest.config.is_joint()
    }

    pub(crate) fn rounds(&self) -> u64 {
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
        }
    }
}
