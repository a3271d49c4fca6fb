//! A session in front of a hypervisor that does not keep to the protocol.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Device, End, Session, SessionError};
use crate::fs::{Fs, share};
use crate::net::Net;

const GET_FEATURES: u32 = 1;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

/// What came of a session to which the hypervisor sent `bytes` before it went away.
fn session(bytes: &[u8]) -> (Result<End, SessionError>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let proc_fd = File::open("/proc/self/fd").unwrap();
    let tree = share(dir.path(), proc_fd.into(), 1000).unwrap();
    session_of(Fs::new(tree, "tag").unwrap(), bytes)
}

/// The same for any device.
fn session_of(device: impl Device, bytes: &[u8]) -> (Result<End, SessionError>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut hypervisor = UnixStream::connect(dir.path().join("socket")).unwrap();
    let stop = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut session = Session::new(listener, device, &stop).unwrap();
    hypervisor.write_all(bytes).unwrap();
    hypervisor.shutdown(std::net::Shutdown::Write).unwrap();

    let end = session.run();

    drop(session);
    let mut answers = Vec::new();
    // Unread bytes of ours make it a reset.
    let _ = hypervisor.read_to_end(&mut answers);
    (end, answers)
}

fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = request.to_ne_bytes().to_vec();
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap().to_ne_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn hypervisor_that_asks_and_leaves_ends_the_session() {
    let (end, answers) = session(&message(GET_FEATURES, &[]));
    assert!(matches!(end, Ok(End::Disconnected)), "{end:?}");
    assert_eq!(answers.len(), 20);
}

#[test]
fn hypervisor_that_leaves_within_a_message_ends_the_session() {
    for cut in [1, 11, 12, 15] {
        let (end, _) = session(&message(SET_VRING_NUM, &[0; 8])[..cut]);
        assert!(
            matches!(end, Ok(_) | Err(SessionError::Protocol { .. })),
            "{cut}: {end:?}"
        );
    }
}

#[test]
fn hypervisor_that_names_a_ring_that_is_not_there_is_dropped() {
    let mut body = 99u32.to_ne_bytes().to_vec();
    body.extend(16u32.to_ne_bytes());
    let (end, _) = session(&message(SET_VRING_NUM, &body));
    assert!(matches!(end, Err(SessionError::Protocol { .. })), "{end:?}");
}

#[test]
fn hypervisor_that_gives_a_ring_an_odd_size_is_dropped() {
    for size in [0u32, 3, 100_000] {
        let mut body = 0u32.to_ne_bytes().to_vec();
        body.extend(size.to_ne_bytes());
        let (end, _) = session(&message(SET_VRING_NUM, &body));
        assert!(
            matches!(end, Err(SessionError::Protocol { .. })),
            "{size}: {end:?}"
        );
    }
}

#[test]
fn hypervisor_that_enables_a_ring_before_the_features_is_dropped() {
    let mut body = 0u32.to_ne_bytes().to_vec();
    body.extend(1u32.to_ne_bytes());
    let (end, _) = session(&message(SET_VRING_ENABLE, &body));
    assert!(matches!(end, Err(SessionError::Protocol { .. })), "{end:?}");
}

/// As QEMU does.
#[test]
fn hypervisor_that_enables_a_cards_rings_before_the_features_is_answered() {
    let (frames, _host) = UnixDatagram::pair().unwrap();
    let card = || Net::new(frames.try_clone().unwrap(), [2; 6], None).unwrap();
    let enable = |index: u32, flags: u32| {
        let mut body = index.to_ne_bytes().to_vec();
        body.extend(1u32.to_ne_bytes());
        let mut bytes = message(SET_VRING_ENABLE, &body);
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes
    };
    let asks = message(GET_FEATURES, &[]);

    // Without and with the wish for an answer.
    let (end, answers) = session_of(card(), &[enable(0, 1), asks.clone()].concat());
    assert!(matches!(end, Ok(End::Disconnected)), "{end:?}");
    assert_eq!(answers.len(), 20);
    let (end, answers) = session_of(card(), &[enable(1, 9), asks.clone()].concat());
    assert!(matches!(end, Ok(End::Disconnected)), "{end:?}");
    assert_eq!(answers.len(), 40);
    assert_eq!(answers[12..20], [0; 8]);

    // A ring that is not there is answered with a failure, and does not end the session.
    let (end, answers) = session_of(card(), &[enable(7, 9), asks].concat());
    assert!(matches!(end, Ok(End::Disconnected)), "{end:?}");
    assert_eq!(answers[12..20], 1u64.to_ne_bytes());
}

#[test]
fn hypervisor_that_reads_far_behind_the_configuration_is_not_served() {
    let mut body = u32::MAX.to_ne_bytes().to_vec();
    body.extend(u32::MAX.to_ne_bytes());
    body.extend([0; 4]);
    let (end, _) = session(&message(GET_CONFIG, &body));
    assert!(matches!(end, Err(SessionError::Protocol { .. })), "{end:?}");
}

#[test]
fn stop_signal_ends_a_session_that_nobody_connected_to() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let proc_fd = File::open("/proc/self/fd").unwrap();
    let device = Fs::new(share(dir.path(), proc_fd.into(), 1000).unwrap(), "tag").unwrap();
    let stop = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut session = Session::new(listener, device, &*stop).unwrap();

    stop.write(1).unwrap();

    assert!(matches!(session.run(), Ok(End::Stopped)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_end_the_session_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        requests in proptest::collection::vec((0u32..45, proptest::collection::vec(any::<u8>(), 0..48)), 0..6),
    ) {
        let mut all: Vec<u8> = requests.iter().flat_map(|(r, body)| message(*r, body)).collect();
        all.extend(bytes);
        let _ = session(&all);
    }
}
