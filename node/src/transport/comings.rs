//! Tells those who dial a member that a new process of it has just introduced itself: the address that they wait for may be
//! gone, and the pause that they keep is in vain.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use quorate_raft::types::MemberId;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// News that wait for one who dials. Who missed some looks again at once.
const WAITING_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Comings {
    /// The newest process heard of each member.
    boots: Mutex<BTreeMap<MemberId, u64>>,
    news: broadcast::Sender<MemberId>,
}

impl Default for Comings {
    fn default() -> Comings {
        Comings { boots: Mutex::default(), news: broadcast::Sender::new(WAITING_MAX) }
    }
}

impl Comings {
    /// Every connection of a member says hello; only the first of a process is news.
    pub(super) fn note(&self, member: MemberId, boot_nonce: u64) {
        let before = self.boots.lock().unwrap_or_else(PoisonError::into_inner).insert(member, boot_nonce);
        if before != Some(boot_nonce) {
            // Nobody may be dialling.
            let _ = self.news.send(member);
        }
    }

    pub(super) fn of(&self, member: MemberId) -> Coming {
        Coming { member, news: self.news.subscribe() }
    }
}

/// The comings of one member.
#[derive(Debug)]
pub(super) struct Coming {
    member: MemberId,
    news: broadcast::Receiver<MemberId>,
}

impl Coming {
    /// Until a new process of the member has introduced itself. Nothing is lost when it is dropped before.
    pub(super) async fn next(&mut self) {
        loop {
            match self.news.recv().await {
                Ok(member) if member == self.member => return,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_process_is_news_once_and_to_those_who_dial_it() {
        let (one, two) = (MemberId(1), MemberId(2));
        let comings = Comings::default();
        let mut coming = comings.of(one);
        let mut is_told = || coming.next().now_or_never().is_some();
        assert!(!is_told());
        comings.note(one, 7);
        assert!(is_told() && !is_told());
        comings.note(one, 7);
        comings.note(two, 8);
        assert!(!is_told(), "the same process, and another member");
        comings.note(one, 9);
        assert!(is_told() && !is_told());
    }

    #[test]
    fn who_missed_news_looks_again() {
        let comings = Comings::default();
        let mut coming = comings.of(MemberId(1));
        (0..=WAITING_MAX as u64).for_each(|nonce| comings.note(MemberId(2), nonce));
        assert!(coming.next().now_or_never().is_some());
        assert!(coming.next().now_or_never().is_none());
    }
}
