//! What all members of a cluster understand, and what waits for it.
//!
//! A command that an earlier release cannot carry out may not enter the log before every member runs a release that can.
//! So the log itself says from which entry on that is so: [`crate::Command::ClusterVersion`] raises the version that the
//! cluster has agreed on, and the machine refuses what is newer. It never falls: what the log holds stays there, and a
//! program that knows less than the version agreed on must not apply what follows.

use std::fmt;

/// Major and minor number of a release: what decides which commands it knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ClusterVersion {
    pub major: u16,
    pub minor: u16,
}

impl ClusterVersion {
    pub const fn new(major: u16, minor: u16) -> ClusterVersion {
        ClusterVersion { major, minor }
    }

    /// What this program understands. A test holds it equal to the package's version.
    pub const SPOKEN: ClusterVersion =
        if cfg!(feature = "previous") { ClusterVersion::new(0, 0) } else { ClusterVersion::new(0, 1) };
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a cluster does only once all of its members can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// Alarms that a person raises: replicated, and obeyed by every member when it applies a command.
    RaisedAlarms,
}

impl Feature {
    /// The first version whose members can.
    pub const fn since(self) -> ClusterVersion {
        match self {
            Feature::RaisedAlarms => ClusterVersion::new(0, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(feature = "previous"))]
    fn the_version_spoken_is_that_of_the_package() {
        let package = [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")].join(".");
        assert_eq!(ClusterVersion::SPOKEN.to_string(), package, "set SPOKEN when the package's version moves");
    }

    #[test]
    fn versions_are_ordered_by_major_then_minor() {
        assert!(ClusterVersion::new(1, 0) > ClusterVersion::new(0, 9));
        assert!(ClusterVersion::new(0, 10) > ClusterVersion::new(0, 9));
    }
}
