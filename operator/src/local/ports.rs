//! Ports of a member: three in a row, found free once and kept in its record.

use std::net::TcpListener;

use serde::{Deserialize, Serialize};

/// Below the range from which systems take ports for outgoing connections, so that a stopped member finds its ports free again.
const FIRST: u16 = 20_000;
const SPAN: u16 = 10_000;
const PORTS: u16 = 3;

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub client: u16,
    pub peer: u16,
    pub admin: u16,
}

impl Ports {
    /// The first three free ports in a row from a place that `seed` names, none of them in `taken`.
    pub fn free(seed: u64, taken: &[Ports]) -> Option<Ports> {
        let slots = SPAN / PORTS;
        let start = u16::try_from(seed % u64::from(slots)).expect("a remainder is below its divisor");
        (0..slots)
            .map(|n| FIRST + (start + n) % slots * PORTS)
            .map(Ports::at)
            .find(|ports| !taken.contains(ports) && [ports.client, ports.peer, ports.admin].into_iter().all(is_free))
    }

    fn at(first: u16) -> Ports {
        Ports { client: first, peer: first + 1, admin: first + 2 }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_and_busy_ports_are_passed_over() {
        let first = Ports::free(7, &[]).unwrap();
        let second = Ports::free(7, &[first]).unwrap();
        assert_ne!(first, second);
        let _busy = TcpListener::bind(("127.0.0.1", second.peer)).unwrap();
        let third = Ports::free(7, &[first]).unwrap();
        assert!(third != first && third != second);
    }
}
