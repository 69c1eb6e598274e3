//! Which version each member speaks, and what all of them can agree on.
//!
//! Each member tells its version when it dials; it counts as known for as long as that connection lives, so a member that
//! comes back as an older build is soon known as that; if the version was raised meanwhile, it stops. Whoever leads
//! proposes the lowest version of all members once it knows them all; see [`quorate_state::cluster_version`] for what
//! follows from that.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_raft::RoleName;
use quorate_raft::types::MemberId;
use quorate_state::{ClusterVersion, Command};

use crate::files::{checked_line, write_durably};
use crate::handle::Handle;

/// How often the leader looks whether all members understand more than was agreed on.
const AGREE_EVERY: Duration = Duration::from_millis(500);

/// Versions of the members that are connected, as they told them.
#[derive(Debug, Default)]
pub(crate) struct Versions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_member: BTreeMap<MemberId, Told>,
    connections: u64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    version: ClusterVersion,
    /// Tells a connection from the one that took its place.
    connection: u64,
}

/// Forgets what was told when the connection ends.
#[derive(Debug)]
pub(crate) struct Connected {
    versions: Arc<Versions>,
    member: MemberId,
    connection: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut known = self.versions.lock();
        if known.by_member.get(&self.member).is_some_and(|told| told.connection == self.connection) {
            known.by_member.remove(&self.member);
        }
    }
}

impl Versions {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connected(self: &Arc<Versions>, member: MemberId, version: ClusterVersion) -> Connected {
        let mut known = self.lock();
        known.connections += 1;
        let connection = known.connections;
        known.by_member.insert(member, Told { version, connection });
        Connected { versions: self.clone(), member, connection }
    }

    /// The lowest version of these members. None: one of them has not told its own.
    fn lowest<'a>(&self, own: MemberId, members: impl IntoIterator<Item = &'a MemberId>) -> Option<ClusterVersion> {
        let known = self.lock();
        let mut lowest = ClusterVersion::SPOKEN;
        for member in members {
            if *member != own {
                lowest = lowest.min(known.by_member.get(member)?.version);
            }
        }
        Some(lowest)
    }
}

/// While this member leads, raises the cluster's version to what all members understand.
pub(crate) async fn agree(handle: Handle, versions: Arc<Versions>) {
    loop {
        tokio::time::sleep(AGREE_EVERY).await;
        let (status, view) = (handle.status(), handle.view());
        let raft = &status.raft;
        let leads = raft.role == RoleName::Leader && raft.noop_index.is_some_and(|at| view.applied_index() >= at);
        // Who is about to join counts, too.
        if !leads || raft.is_change_in_flight {
            continue;
        }
        let members = raft.newest_config.config.members.keys();
        let Some(lowest) = versions.lowest(handle.identity().member_id, members) else { continue };
        if lowest <= view.cluster_version() {
            continue;
        }
        match handle.propose(&Command::ClusterVersion(lowest)).await {
            Ok(_) => tracing::info!(version = %lowest, "all members understand this version from now on"),
            Err(error) => tracing::debug!("the cluster's version is not raised yet: {error}"),
        }
    }
}

/// Beside the log: what the cluster had agreed on when this member applied it. The log tells it too, but an older program would
/// get there only after it had answered others, who would count on it.
const FILE: &str = "cluster-version";

/// Durable on return.
pub(crate) fn keep(dir: &Path, agreed: ClusterVersion) -> io::Result<()> {
    write_durably(&dir.join(FILE), checked_line(&agreed.to_string()).as_bytes())
}

/// What was kept. A damaged file says nothing, for what it says stands in the log as well.
pub(crate) fn kept(dir: &Path) -> io::Result<Option<ClusterVersion>> {
    let text = match std::fs::read(dir.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let parsed = parse(&text);
    if parsed.is_none() {
        tracing::warn!("{} is damaged and ignored", dir.join(FILE).display());
    }
    Ok(parsed)
}

fn parse(text: &[u8]) -> Option<ClusterVersion> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split(' ').next()?.split_once('.')?;
    let version = ClusterVersion::new(major.parse().ok()?, minor.parse().ok()?);
    (checked_line(&version.to_string()).as_bytes() == text).then_some(version)
}

/// Why this program may not go on from a state of that version. None: it may.
pub(crate) fn why_too_old(agreed: ClusterVersion) -> Option<String> {
    (agreed > ClusterVersion::SPOKEN).then(|| {
        format!(
            "the cluster has agreed on version {agreed}, and this program understands {} at most: \
             run a release of {agreed} or later; nothing is lost",
            ClusterVersion::SPOKEN
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MemberId = MemberId(1);
    const OLD: ClusterVersion = ClusterVersion::new(0, 0);
    const ALL: [MemberId; 3] = [MemberId(1), MemberId(2), MemberId(3)];

    #[test]
    fn one_older_or_unknown_member_holds_all_back() {
        let versions = Arc::new(Versions::default());
        assert_eq!(versions.lowest(OWN, [&OWN]), Some(ClusterVersion::SPOKEN));
        let _second = versions.connected(MemberId(2), ClusterVersion::new(9, 0));
        assert_eq!(versions.lowest(OWN, &ALL), None, "the third has said nothing");
        let third = versions.connected(MemberId(3), OLD);
        assert_eq!(versions.lowest(OWN, &ALL), Some(OLD));
        drop(third);
        assert_eq!(versions.lowest(OWN, &ALL), None, "it may come back as anything");
    }

    #[test]
    fn the_end_of_an_old_connection_does_not_undo_the_new_one() {
        let versions = Arc::new(Versions::default());
        let before = versions.connected(MemberId(2), ClusterVersion::SPOKEN);
        let _after = versions.connected(MemberId(2), OLD);
        drop(before);
        assert_eq!(versions.lowest(OWN, &[MemberId(2)]), Some(OLD));
    }

    #[test]
    fn what_was_agreed_on_is_kept_and_a_damaged_file_says_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(kept(dir.path()).expect("readable"), None);
        keep(dir.path(), ClusterVersion::new(7, 2)).expect("writable");
        assert_eq!(kept(dir.path()).expect("readable"), Some(ClusterVersion::new(7, 2)));
        let file = dir.path().join(FILE);
        let sound = std::fs::read(&file).expect("readable");
        for bit in 0..sound.len() * 8 {
            let mut rotten = sound.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, &rotten).expect("writable");
            assert_eq!(kept(dir.path()).expect("readable"), None, "bit {bit}");
        }
    }

    #[test]
    fn only_what_is_newer_than_this_program_stops_it() {
        assert_eq!(why_too_old(ClusterVersion::SPOKEN), None);
        let why = why_too_old(ClusterVersion::new(7, 2)).expect("too new");
        assert!(why.contains("7.2"), "{why}");
    }
}
