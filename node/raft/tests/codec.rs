//! Whatever is encoded comes back equal, and no input makes a decoder panic or accept a second spelling.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use quorate_raft::types::{Config, ConfigAt, Entry, HardState, MemberId, MemberInfo, Payload, SnapMeta};
use quorate_raft::wire::{self, Msg, WireError};

fn info() -> impl Strategy<Value = MemberInfo> {
    let urls = || prop::collection::vec("[a-z:/]{0,12}", 0..3);
    ("[a-z]{0,8}", urls(), urls()).prop_map(|(name, peer_urls, client_urls)| MemberInfo {
        name,
        peer_urls,
        client_urls,
    })
}

/// Every id gets a role: voter, outgoing voter, both, learner or removed.
fn config() -> impl Strategy<Value = Config> {
    prop::collection::btree_map(2_u64..60, (0_u8..5, info()), 0..8).prop_map(|roles| {
        if roles.is_empty() {
            return Config::default();
        }
        let mut config = Config::default();
        let first = MemberId(1);
        config.voters.insert(first);
        config.members.insert(first, MemberInfo::default());
        for (id, (role, info)) in roles {
            let id = MemberId(id);
            match role {
                0 => drop(config.voters.insert(id)),
                1 => drop(config.voters_outgoing.insert(id)),
                2 => drop((config.voters.insert(id), config.voters_outgoing.insert(id))),
                3 => drop(config.learners.insert(id)),
                _ => drop(config.removed.insert(id)),
            }
            if role < 4 {
                config.members.insert(id, info);
            }
        }
        config
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let payload = prop_oneof![
        Just(Payload::Noop),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(|data| Payload::Data(data.into())),
        config().prop_map(Payload::Config),
    ];
    (any::<u64>(), any::<u64>(), payload).prop_map(|(term, index, payload)| Entry { term, index, payload })
}

fn msg() -> impl Strategy<Value = Msg> {
    let entries = prop::collection::vec(entry(), 0..4);
    (0_u8..16, any::<[u64; 6]>(), any::<bool>(), entries).prop_map(|(kind, [term, a, b, c, d, e], flag, entries)| {
        match kind {
            0 => Msg::PreVote { term, last_term: a, last_index: b },
            1 => Msg::PreVoteReply { term, granted: flag },
            2 => Msg::Vote { term, last_term: a, last_index: b, forced: flag },
            3 => Msg::VoteReply { term, granted: flag },
            4 => Msg::Append { term, prev_term: a, prev_index: b, entries, commit: c },
            5 => Msg::AppendReply { term, matched: a },
            6 => Msg::AppendReject { term, prev_index: a, hint_index: b, hint_term: c },
            7 => Msg::Heartbeat { term, commit: a, round: b },
            8 => Msg::HeartbeatReply { term, round: a, received: b, durable: c, promise_us: d, last_index: e },
            9 => Msg::TimeoutNow { term },
            10 => Msg::ReadIndex { term, ctx: a, lease: flag },
            11 => Msg::ReadIndexReply { term, ctx: a, index: flag.then_some(b) },
            12 => Msg::SnapshotReply { term, index: a },
            13 => Msg::YouAreRemoved { term, config_term: a, config_index: b },
            14 => Msg::YourLogReverted { term, held: a },
            _ => Msg::Commit { term, commit: a },
        }
    })
}

fn bytes_of(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut buf = BytesMut::new();
    encode(&mut buf);
    buf.freeze()
}

proptest! {
    #[test]
    fn messages_round_trip_and_leave_the_rest(first in msg(), second in msg()) {
        let mut bytes = bytes_of(|buf| { wire::encode(&first, buf); wire::encode(&second, buf) });
        prop_assert_eq!(wire::decode(&mut bytes), Ok(first));
        prop_assert_eq!(wire::decode(&mut bytes), Ok(second));
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn entries_round_trip(value in entry()) {
        let mut bytes = bytes_of(|buf| wire::encode_entry(&value, buf));
        if let Payload::Data(data) = &value.payload {
            prop_assert_eq!(bytes.len(), wire::entry_encoded_len(data.len()));
        }
        prop_assert_eq!(wire::decode_entry(&mut bytes), Ok(value));
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn snapshot_marks_round_trip(config in config(), [index, term, incarnation, at_term, at_index] in any::<[u64; 5]>()) {
        let config_at = ConfigAt { incarnation, term: at_term, index: at_index };
        let meta = SnapMeta { index, term, config, config_at };
        let mut bytes = bytes_of(|buf| wire::encode_snap_meta(&meta, buf));
        prop_assert_eq!(wire::decode_snap_meta(&mut bytes), Ok(meta));
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn hard_states_round_trip(term in any::<u64>(), vote in any::<u64>()) {
        let hard = HardState { term, vote: (vote != 0).then_some(MemberId(vote)) };
        let mut bytes = bytes_of(|buf| wire::encode_hard_state(&hard, buf));
        prop_assert_eq!(wire::decode_hard_state(&mut bytes), Ok(hard));
    }

    #[test]
    fn a_cut_message_is_an_error(value in msg(), cut in any::<prop::sample::Index>()) {
        let bytes = bytes_of(|buf| wire::encode(&value, buf));
        let mut short = bytes.slice(..cut.index(bytes.len()));
        prop_assert!(wire::decode(&mut short).is_err());
    }

    #[test]
    fn a_flipped_bit_never_panics_and_what_is_accepted_has_one_spelling(value in msg(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = bytes_of(|buf| wire::encode(&value, buf)).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        one_spelling(Bytes::from(bytes))?;
    }

    #[test]
    fn garbage_never_panics(tag in 0_u8..17, tail in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..200)) {
        let mut bytes = vec![tag];
        bytes.extend(tail);
        let _ = wire::decode_entry(&mut Bytes::from(bytes.clone()));
        let _ = wire::decode_config(&mut Bytes::from(bytes.clone()));
        let _ = wire::decode_snap_meta(&mut Bytes::from(bytes.clone()));
        let _ = wire::decode_hard_state(&mut Bytes::from(bytes.clone()));
        one_spelling(Bytes::from(bytes))?;
    }
}

fn one_spelling(bytes: Bytes) -> Result<(), TestCaseError> {
    let mut rest = bytes.clone();
    if let Ok(msg) = wire::decode(&mut rest) {
        let used = bytes.len() - rest.len();
        prop_assert_eq!(bytes_of(|buf| wire::encode(&msg, buf)), bytes.slice(..used));
    }
    Ok(())
}

#[test]
fn a_claimed_count_allocates_nothing() {
    let mut buf = vec![5_u8];
    buf.extend([0; 32]);
    buf.extend(60_000_u32.to_le_bytes());
    assert_eq!(
        wire::decode(&mut Bytes::from(buf)),
        Err(WireError::Short { field: "entries", wanted: 60_000 * 17, left: 0 })
    );
}

#[test]
fn a_payload_is_a_slice_of_the_input() {
    let data = Bytes::from(vec![7_u8; 4096]);
    let entry = Entry { term: 1, index: 1, payload: Payload::Data(data) };
    let mut bytes = bytes_of(|buf| wire::encode_entry(&entry, buf));
    let range = bytes.as_ptr_range();
    let Payload::Data(data) = wire::decode_entry(&mut bytes).unwrap().payload else { panic!("a command") };
    assert!(range.contains(&data.as_ptr()));
}

#[test]
fn configurations_that_break_an_invariant_are_refused() {
    let good = Config {
        voters: BTreeSet::from([MemberId(1)]),
        members: BTreeMap::from([(MemberId(1), MemberInfo::default())]),
        ..Config::default()
    };
    let id = MemberId(1);
    let broken = [
        Config { learners: BTreeSet::from([id]), ..good.clone() },
        Config { removed: BTreeSet::from([id]), ..good.clone() },
        Config { members: BTreeMap::new(), ..good.clone() },
        Config { voters: BTreeSet::new(), learners: BTreeSet::from([id]), ..good.clone() },
    ];
    for config in broken {
        let mut bytes = bytes_of(|buf| wire::encode_config(&config, buf));
        assert!(matches!(wire::decode_config(&mut bytes), Err(WireError::Config { .. })), "{config:?}");
    }
}

/// There is room for members that vote and hold no state; a program that does not know them must not take them for others.
#[test]
fn a_member_of_an_unknown_kind_is_refused_by_name() {
    let members = BTreeMap::from([(MemberId(5), MemberInfo::default())]);
    let config = Config { voters: BTreeSet::from([MemberId(5)]), members, ..Config::default() };
    let mut bytes = bytes_of(|buf| wire::encode_config(&config, buf)).to_vec();
    // Three empty sets and one of one id, the count of members, the member's id.
    let at = 4 * 4 + 8 + 4 + 8;
    assert_eq!(bytes[at], 0);
    bytes[at] = 1;
    let refused = wire::decode_config(&mut Bytes::from(bytes));
    assert_eq!(refused, Err(WireError::MemberKind { id: MemberId(5), kind: 1 }));
}
