//! The wire between child and agent.

use proptest::prelude::*;

use crate::container::{Failure, FailureKind, Reports};

fn failure() -> impl Strategy<Value = Failure> {
    let kind = prop_oneof![
        Just(FailureKind::SetUp),
        Just(FailureKind::NotFound),
        Just(FailureKind::NotExecutable)
    ];
    (kind, ".*", any::<i32>(), proptest::option::of(".*")).prop_map(|(kind, step, errno, field)| {
        Failure {
            kind,
            step,
            errno,
            field,
        }
    })
}

proptest! {
    #[test]
    fn failure_in_any_pieces_is_read_as_it_was_written(
        failure in failure(), ready in any::<bool>(), size in 1..50_usize,
    ) {
        let mut bytes = if ready { vec![b'R'] } else { Vec::new() };
        bytes.extend(failure.encode());

        let mut reports = Reports::default();
        let mut was_ready = false;
        for piece in bytes.chunks(size) {
            was_ready |= reports.push(piece);
        }

        prop_assert_eq!(was_ready, ready);
        prop_assert_eq!(reports.end(), Some(failure));
    }

    #[test]
    fn any_bytes_at_all_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut reports = Reports::default();
        reports.push(&bytes);
        let failed = reports.end().is_some();
        prop_assert_eq!(failed, bytes.iter().any(|&byte| byte != b'R'));
    }
}
