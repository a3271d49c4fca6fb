//! What is done with a guest, whatever hypervisor runs it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;

use bulkhead_devices::vsock::control::{Event, Request};

use crate::common::Machine;

/// Makes a test of every scenario, each in a guest of its own.
macro_rules! scenarios {
    ($hypervisor:expr) => {
        scenarios!($hypervisor;
            guest_that_is_told_to_power_off_ends_the_device_process,
            control_channel_closed_ends_the_device_process,
            connection_to_a_port_nobody_expects_is_reset,
            connection_to_an_expected_port_is_served_once,
            connection_from_the_host_reaches_a_listening_guest,
            connection_from_the_host_to_a_silent_port_is_refused,
            stream_carries_a_gibibyte_both_ways_in_bounded_memory,
            stream_half_closed_by_the_guest_still_brings_the_answer,
            stream_whose_host_reader_is_gone_breaks_the_guests_pipe,
            stream_nobody_reads_keeps_the_device_small_and_loses_nothing,
            stream_cancelled_breaks_in_the_guest,
            streams_two_hundred_at_once_keep_their_bytes_apart,
            output_of_a_dead_guest_is_delivered,
            pipe_ends_at_the_guest_when_the_host_closes_it,
            regular_file_is_read_to_its_end,
            fifo_shared_with_others_stays_blocking,
            share_shows_files_links_and_owners_both_ways,
            share_device_nodes_and_fifos_are_the_guests_own,
            share_serves_one_of_every_request,
        );
    };
    ($hypervisor:expr; $($name:ident,)*) => {
        $(#[test]
        fn $name() {
            if let Some(hypervisor) = $hypervisor {
                scenarios::$name(Machine::start(&hypervisor));
            }
        })*
    };
}

const MIB: usize = 1 << 20;

/// Bytes that differ everywhere, from any seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

fn connected(event: &Event, port: u32) -> bool {
    matches!(event, Event::Connected { port: p, at_ns } if *p == port && *at_ns > 0)
}

pub fn guest_that_is_told_to_power_off_ends_the_device_process(mut machine: Machine) {
    machine.order("poweroff");
    machine.wait_hypervisor();
    machine.wait_device();
}

pub fn control_channel_closed_ends_the_device_process(mut machine: Machine) {
    let (other, _) = bulkhead_devices::vsock::control::pair().unwrap();
    machine.control = other;
    machine.wait_device();
}

pub fn connection_to_a_port_nobody_expects_is_reset(mut machine: Machine) {
    for _ in 0..50 {
        assert_eq!(machine.tell("connect 99"), "errno 104");
    }
}

pub fn connection_to_an_expected_port_is_served_once(mut machine: Machine) {
    let _socket = machine.expect(2000);
    assert_eq!(machine.tell("connect 2000"), "errno 0");
    assert!(connected(&machine.event(), 2000));
    assert_eq!(machine.event(), Event::Closed { port: 2000 });
    assert_eq!(machine.tell("connect 2000"), "errno 104");
}

pub fn connection_from_the_host_reaches_a_listening_guest(mut machine: Machine) {
    assert_eq!(machine.tell("listen 5000"), "errno 0");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let request = Request::Connect {
        guest_port: 5000,
        local_port: 6000,
        reader: true,
        writer: true,
    };
    let reader = theirs.try_clone().unwrap();
    machine
        .control
        .send(request, vec![reader.into(), theirs.into()])
        .unwrap();
    assert!(connected(&machine.event(), 6000));

    ours.write_all(b"hello").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();

    let mut answer = String::new();
    ours.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    assert_eq!(machine.event(), Event::Closed { port: 6000 });
}

pub fn connection_from_the_host_to_a_silent_port_is_refused(machine: Machine) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let request = Request::Connect {
        guest_port: 5001,
        local_port: 6000,
        reader: false,
        writer: true,
    };
    machine.control.send(request, vec![theirs.into()]).unwrap();
    assert_eq!(machine.event(), Event::Refused { port: 6000 });
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

pub fn stream_carries_a_gibibyte_both_ways_in_bounded_memory(mut machine: Machine) {
    const ROUNDS: usize = 1024;
    let socket = machine.expect(2000);
    assert_eq!(machine.tell("echo 2000 1"), "ok");
    let before = machine.device_memory("Rss");
    let pattern = noise(1, MIB);
    let mut most = 0;

    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                // Each round starts somewhere else, so that no two mebibytes are the same.
                let (tail, head) = pattern.split_at(round * 1021);
                (&socket).write_all(head).unwrap();
                (&socket).write_all(tail).unwrap();
            }
            socket.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = vec![0; MIB];
        for round in 0..ROUNDS {
            (&socket).read_exact(&mut got).unwrap();
            let (tail, head) = pattern.split_at(round * 1021);
            assert!(
                got.starts_with(head) && got.ends_with(tail),
                "wrong bytes in round {round}"
            );
            if round % 64 == 0 {
                most = most.max(machine.device_memory("Rss"));
            }
        }
        assert_eq!((&socket).read(&mut got).unwrap(), 0);
    });

    // Guest memory is mapped and counts as it is touched; what the device allocates is anonymous.
    let private = machine.device_memory("Anonymous");
    assert!(
        private < 8 * 1024,
        "{private} KiB of private memory; resident {before} to {most}"
    );
}

pub fn stream_half_closed_by_the_guest_still_brings_the_answer(mut machine: Machine) {
    let mut socket = machine.expect(2000);
    machine.order("ask 2000 question");
    let mut question = String::new();
    socket.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");

    socket.write_all(b"answer").unwrap();
    drop(socket);

    assert_eq!(machine.answer(), "answer");
}

pub fn stream_whose_host_reader_is_gone_breaks_the_guests_pipe(mut machine: Machine) {
    for _ in 0..3 {
        let mut socket = machine.expect(2000);
        machine.order("source 2000 1000000000");
        socket.read_exact(&mut vec![0; MIB]).unwrap();
        drop(socket);
        assert_eq!(machine.answer(), "errno 32");
        assert!(connected(&machine.event(), 2000));
        assert_eq!(machine.event(), Event::Closed { port: 2000 });
    }
}

pub fn stream_nobody_reads_keeps_the_device_small_and_loses_nothing(mut machine: Machine) {
    const SENT: usize = 20_000_000;
    let mut other = machine.expect(3000);
    assert_eq!(machine.tell("echo 3000 1"), "ok");
    assert!(connected(&machine.event(), 3000));
    let mut socket = machine.expect(2000);
    machine.order(&format!("source 2000 {SENT}"));
    assert!(connected(&machine.event(), 2000));

    // Another stream goes on, and gives the guest time to fill all that is in the way.
    for _ in 0..500 {
        other.write_all(b"ping").unwrap();
        other.read_exact(&mut [0; 4]).unwrap();
    }
    let private = machine.device_memory("Anonymous");
    assert!(private < 8 * 1024, "{private} KiB");

    let mut left = Vec::new();
    socket.read_to_end(&mut left).unwrap();

    assert_eq!(left.len(), SENT);
    assert_eq!(machine.answer(), "errno 0");
}

pub fn stream_cancelled_breaks_in_the_guest(mut machine: Machine) {
    let socket = machine.expect(2000);
    machine.order("source 2000 1000000000");
    assert!(connected(&machine.event(), 2000));
    machine
        .control
        .send(Request::Cancel { port: 2000 }, vec![])
        .unwrap();
    assert_eq!(machine.event(), Event::Closed { port: 2000 });
    let errno = machine.answer();
    assert!(
        ["errno 32", "errno 104"].contains(&errno.as_str()),
        "{errno}"
    );
    drop(socket);
}

pub fn streams_two_hundred_at_once_keep_their_bytes_apart(mut machine: Machine) {
    const COUNT: u32 = 200;
    let sockets: Vec<UnixStream> = (0..COUNT).map(|i| machine.expect(3000 + i)).collect();
    assert_eq!(machine.tell("echo 3000 200"), "ok");

    std::thread::scope(|scope| {
        for (i, socket) in (0..COUNT).zip(&sockets) {
            let body = move || {
                let sent = noise(u64::from(i) * 77 + 5, 128 * 1024);
                let mut got = Vec::new();
                std::thread::scope(|scope| {
                    let sent = &sent;
                    scope.spawn(move || {
                        (&*socket).write_all(sent).unwrap();
                        socket.shutdown(Shutdown::Write).unwrap();
                    });
                    (&*socket).read_to_end(&mut got).unwrap();
                });
                assert!(got == sent, "stream {i} differs");
            };
            scope.spawn(body);
        }
    });

    let mut closed = BTreeSet::new();
    while closed.len() < COUNT as usize {
        if let Event::Closed { port } = machine.event() {
            closed.insert(port);
        }
    }
    assert_eq!(closed, (3000..3000 + COUNT).collect());
}

pub fn output_of_a_dead_guest_is_delivered(mut machine: Machine) {
    // More than a pipe holds, less than the pipe and the device's buffer do.
    const SENT: usize = 200_000;
    let (mut output, writer) = pipe();
    let request = Request::Expect {
        port: 2000,
        reader: false,
        writer: true,
    };
    machine.control.send(request, vec![writer.into()]).unwrap();
    assert_eq!(machine.tell(&format!("source 2000 {SENT}")), "errno 0");
    machine.order("poweroff");
    machine.wait_hypervisor();

    let mut got = Vec::new();
    output.read_to_end(&mut got).unwrap();

    assert_eq!(got.len(), SENT);
    machine.wait_device();
}

pub fn pipe_ends_at_the_guest_when_the_host_closes_it(mut machine: Machine) {
    let (reader, mut input) = pipe();
    let request = Request::Expect {
        port: 2000,
        reader: true,
        writer: false,
    };
    machine.control.send(request, vec![reader.into()]).unwrap();
    machine.order("sink 2000");
    input.write_all(&[7; 300_000]).unwrap();
    drop(input);
    assert_eq!(machine.answer(), "got 300000 0");
}

pub fn regular_file_is_read_to_its_end(mut machine: Machine) {
    let path = machine.dir.path().join("input");
    std::fs::write(&path, noise(3, 500_000)).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let request = Request::Expect {
        port: 2000,
        reader: true,
        writer: false,
    };
    machine.control.send(request, vec![file.into()]).unwrap();
    assert_eq!(machine.tell("sink 2000"), "got 500000 0");
}

pub fn fifo_shared_with_others_stays_blocking(mut machine: Machine) {
    let path = machine.dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut end = File::options().read(true).write(true).open(&path).unwrap();
    let request = Request::Expect {
        port: 2000,
        reader: false,
        writer: true,
    };
    let writer = end.try_clone().unwrap();
    machine.control.send(request, vec![writer.into()]).unwrap();
    assert_eq!(machine.tell("source 2000 1000"), "errno 0");

    end.read_exact(&mut [0; 1000]).unwrap();

    let flags = rustix::fs::fcntl_getfl(&end).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

pub fn share_shows_files_links_and_owners_both_ways(mut machine: Machine) {
    std::fs::create_dir(machine.share().join("dir")).unwrap();
    std::fs::write(machine.share().join("dir/hello"), "from the host").unwrap();
    assert_eq!(machine.tell("cat /share/dir/hello"), "from the host");

    assert_eq!(machine.tell("put /share/dir/new text"), "errno 0");
    assert_eq!(machine.tell("chown /share/dir/new 1234 5678"), "errno 0");
    assert_eq!(machine.tell("link /share/dir/new /share/hard"), "errno 0");
    assert_eq!(machine.tell("symlink ../outside /share/soft"), "errno 0");
    assert_eq!(machine.tell("rename /share/hard /share/moved"), "errno 0");

    let moved = machine.share().join("moved");
    let meta = std::fs::metadata(&moved).unwrap();
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "text");
    assert_eq!((meta.uid(), meta.gid(), meta.nlink()), (1234, 5678, 2));
    assert_eq!(
        std::fs::read_link(machine.share().join("soft"))
            .unwrap()
            .to_str(),
        Some("../outside")
    );
}

pub fn share_serves_one_of_every_request(mut machine: Machine) {
    assert_eq!(machine.tell("tour"), "all done");
    let meta = std::fs::metadata(machine.share().join("tour/user/mydir")).unwrap();
    // The directory above hands its group down.
    assert_eq!((meta.uid(), meta.gid()), (1000, 4000));
}

pub fn share_device_nodes_and_fifos_are_the_guests_own(mut machine: Machine) {
    // A number that no driver of the host or the guest has: opening it says so.
    assert_eq!(machine.tell("mknod /share/node 240 7"), "errno 0");
    assert_eq!(machine.tell("cat /share/node"), "errno 6");
    // /dev/zero of the guest answers although the device process could not open the host's.
    assert_eq!(machine.tell("mknod /share/null 1 3"), "errno 0");
    assert_eq!(machine.tell("put /share/null gone"), "errno 0");
    assert_eq!(machine.tell("mkfifo /share/fifo"), "errno 0");
    // Without a writer there is nothing to read; the device process must not wait for one.
    assert_eq!(machine.tell("cat /share/fifo"), "");
    assert_eq!(machine.tell("put /share/after x"), "errno 0");
    let meta = std::fs::symlink_metadata(machine.share().join("fifo")).unwrap();
    assert!(meta.file_type().is_fifo());
}
