//! Bytes of commands: round trips, garbage, limits.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod common;

use bytes::{BufMut, Bytes, BytesMut};
use common::commands;
use common::rng::Rng;
use quorate_state::codec::{DecodeError, LIST_LEN_MAX, TXN_DEPTH_MAX};
use quorate_state::{Command, Put, Txn, TxnOp};

fn encoded(command: &Command) -> Bytes {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    out.freeze()
}

#[test]
fn every_command_comes_back_and_no_prefix_of_it_is_a_command() {
    let mut rng = Rng::new(7);
    for _ in 0..2_000 {
        let command = commands::command(&mut rng, 50);
        let bytes = encoded(&command);
        assert_eq!(Command::decode(bytes.clone()), Ok(command));
        for len in 0..bytes.len() {
            assert!(Command::decode(bytes.slice(..len)).is_err(), "a prefix of {len} bytes of {bytes:?}");
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert_eq!(Command::decode(longer), Err(DecodeError::Trailing { left: 1 }));
    }
}

#[test]
fn garbage_is_refused_or_means_what_it_says_but_never_panics() {
    let mut rng = Rng::new(8);
    for _ in 0..20_000 {
        let mut bytes = encoded(&commands::command(&mut rng, 50)).to_vec();
        for _ in 0..=rng.below(3) {
            let at = usize::try_from(rng.below(bytes.len() as u64)).unwrap();
            bytes[at] = rng.next().to_le_bytes()[0];
        }
        if let Ok(command) = Command::decode(bytes.into()) {
            assert_eq!(Command::decode(encoded(&command)), Ok(command));
        }
        let noise: Vec<u8> = (0..rng.below(64)).map(|_| rng.next().to_le_bytes()[0]).collect();
        drop(Command::decode(noise.into()));
    }
}

#[test]
fn a_small_put_costs_few_bytes() {
    let put = Put { key: "key".into(), value: "value".into(), ..Put::default() };
    assert_eq!(encoded(&put.into()).len(), 2 + 4 + 6 + 1 + 1);
}

#[test]
fn keys_and_values_are_slices_of_the_input() {
    let put = Put { key: "key".into(), value: "v".repeat(100).into(), ..Put::default() };
    let bytes = encoded(&put.into());
    let Ok(Command::Put(put)) = Command::decode(bytes.clone()) else { panic!("it is a put") };
    assert!(bytes.as_ptr_range().contains(&put.value.as_ptr()));
}

#[test]
fn nesting_and_counts_are_bounded() {
    let nested = |depth: usize| {
        let inner = (1..depth).fold(Txn::default(), |txn, _| Txn { success: vec![TxnOp::Txn(txn)], ..Txn::default() });
        encoded(&inner.into())
    };
    assert!(Command::decode(nested(TXN_DEPTH_MAX)).is_ok());
    let too_deep = Command::decode(nested(TXN_DEPTH_MAX + 1)).unwrap_err();
    assert!(matches!(too_deep, DecodeError::TooLarge { field: "txn depth", .. }), "{too_deep}");

    // A count of 2^40 compares in a few bytes must not allocate for them.
    let mut huge = BytesMut::new();
    huge.put_slice(&[1, 3, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
    let refused = Command::decode(huge.freeze()).unwrap_err();
    assert_eq!(refused, DecodeError::TooLarge { field: "compares", got: 1 << 40, limit: LIST_LEN_MAX });
}

#[test]
fn another_format_version_is_named() {
    let error = Command::decode(Bytes::from_static(&[9, 1])).unwrap_err();
    assert_eq!(error, DecodeError::Version { got: 9 });
    assert_eq!(error.to_string(), "format version 9 is unknown (this program writes 1); upgrade this member");
}
