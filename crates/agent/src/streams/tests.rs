//! The relays between real pipes, pseudo-terminals and stream sockets of this machine. A Unix
//! socket pair stands for the connection to the host.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::sync::{mpsc, watch};

use super::{Debt, Handover, input, output, terminal};
use crate::watched;

/// More than every buffer between the two ends can hold.
const MUCH: usize = 8 << 20;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap()
        .block_on(test)
}

/// The agent's socket and the host's.
fn sockets() -> (OwnedFd, UnixStream) {
    let (agent, host) = UnixStream::pair().unwrap();
    agent.set_nonblocking(true).unwrap();
    (agent.into(), host)
}

/// Read end and write end.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// What a process' end needs, as [`super::Streams::relay`] makes it.
fn debt() -> (Debt, Handover) {
    let (exited, ended) = watch::channel(false);
    let (owing, handed_over) = mpsc::channel::<Infallible>(1);
    (
        Debt {
            exited: ended,
            owing: Some(owing),
        },
        Handover {
            exited,
            owing: handed_over,
        },
    )
}

/// Bytes that show every loss, repetition and swap.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    next.take(length).collect()
}

fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(work)
}

/// Waits for a thread without stopping the event loop.
async fn join<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    tokio::task::spawn_blocking(|| thread.join().unwrap())
        .await
        .unwrap()
}

#[test]
fn output_much_data_arrives_unchanged_and_ends() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let (debt, _handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        let producer = in_thread(move || File::from(write).write_all(&pattern(MUCH)).unwrap());
        let consumer = in_thread(move || {
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            all
        });
        join(producer).await;
        assert!(join(consumer).await == pattern(MUCH));
        relay.await.unwrap();
    });
}

#[test]
fn output_host_that_does_not_read_stops_the_producer() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let (debt, _handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let write = watched::writable(write).unwrap();
        // Filled until neither the pipe nor the socket takes a byte more, with the relay idle.
        let mut sent = 0;
        let bytes = pattern(64 << 10);
        loop {
            match rustix::io::write(write.get_ref(), &bytes) {
                Ok(count) => sent += count,
                Err(_) => {
                    tokio::task::yield_now().await;
                    let mut full = write.writable().now_or_never();
                    match &mut full {
                        Some(Ok(guard)) => guard.clear_ready(),
                        _ => break,
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        assert!(sent < MUCH, "{sent} bytes are buffered somewhere");
        drop(write);
        let consumer = in_thread(move || {
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            all.len()
        });
        assert_eq!(join(consumer).await, sent);
        relay.await.unwrap();
    });
}

/// `future.await` if that needs no waiting.
trait NowOrNever: Future + Sized {
    fn now_or_never(self) -> Option<Self::Output> {
        let mut future = std::pin::pin!(self);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}

impl<F: Future> NowOrNever for F {}

#[test]
fn output_host_closes_idle_stream_then_next_write_breaks() {
    run(async {
        let (socket, host) = sockets();
        let (read, write) = pipe();
        let (debt, handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        drop(host);
        relay.await.unwrap();
        let error = File::from(write).write(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        handover.complete().await;
    });
}

#[test]
fn output_host_closes_only_its_sending_half_then_bytes_still_flow() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let (debt, _handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        host.shutdown(Shutdown::Write).unwrap();
        tokio::task::yield_now().await;
        File::from(write).write_all(b"late").unwrap();
        relay.await.unwrap();
        let mut all = String::new();
        host.read_to_string(&mut all).unwrap();
        assert_eq!(all, "late");
    });
}

#[test]
fn output_ended_process_whose_child_holds_the_pipe_is_handed_over() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let (debt, handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        let mut background = File::from(write);
        background.write_all(b"before").unwrap();
        handover.complete().await;
        let mut early = [0; 6];
        host.read_exact(&mut early).unwrap();
        assert_eq!(&early, b"before");
        background.write_all(b"after").unwrap();
        drop(background);
        relay.await.unwrap();
        let mut late = String::new();
        host.read_to_string(&mut late).unwrap();
        assert_eq!(late, "after");
    });
}

#[test]
fn output_ended_process_whose_child_writes_for_ever_is_handed_over() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let (debt, handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        let chatter = in_thread(move || {
            while (&File::from(write.try_clone().unwrap()))
                .write(&[7; 4096])
                .is_ok()
            {}
        });
        let consumer = in_thread(move || {
            // Until the test is over and shuts the socket down.
            let mut buffer = vec![0; 1 << 16];
            let closer = host.try_clone().unwrap();
            (
                closer,
                in_thread(move || while host.read(&mut buffer).is_ok_and(|count| count > 0) {}),
            )
        });
        let (closer, consumer) = join(consumer).await;
        handover.complete().await;
        closer.shutdown(Shutdown::Both).unwrap();
        relay.await.unwrap();
        join(chatter).await;
        join(consumer).await;
    });
}

#[test]
fn output_ended_process_with_unread_bytes_is_not_handed_over() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let mut before = 0;
        while let Ok(count) = rustix::io::write(&socket, &[0; 4096]) {
            before += count;
        }
        let (debt, handover) = debt();
        let relay = tokio::spawn(output::relay(
            watched::readable(read).unwrap(),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        let mut process = File::from(write);
        // Fits into the pipe; the socket is full already.
        process.write_all(&pattern(60_000)).unwrap();
        drop(process);
        let complete = handover.complete();
        tokio::pin!(complete);
        for _ in 0..100 {
            assert!(complete.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        let consumer = in_thread(move || {
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            all
        });
        complete.await;
        assert!(join(consumer).await.split_off(before) == pattern(60_000));
        relay.await.unwrap();
    });
}

#[test]
fn input_much_data_arrives_unchanged_and_ends() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let relay = tokio::spawn(input::relay(
            watched::both_ways(socket).unwrap(),
            watched::writable(write).unwrap(),
        ));
        let producer = in_thread(move || host.write_all(&pattern(MUCH)).unwrap());
        let consumer = in_thread(move || {
            let mut all = Vec::new();
            File::from(read).read_to_end(&mut all).unwrap();
            all
        });
        join(producer).await;
        assert!(join(consumer).await == pattern(MUCH));
        relay.await.unwrap();
    });
}

#[test]
fn input_process_closes_idle_input_then_host_is_told() {
    run(async {
        let (socket, mut host) = sockets();
        let (read, write) = pipe();
        let relay = tokio::spawn(input::relay(
            watched::both_ways(socket).unwrap(),
            watched::writable(write).unwrap(),
        ));
        tokio::task::yield_now().await;
        drop(read);
        relay.await.unwrap();
        assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// Master and slave, the latter without line editing.
fn terminal_pair() -> (OwnedFd, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let mut settings = tcgetattr(&slave).unwrap();
    settings.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &settings).unwrap();
    (master, slave.into())
}

#[test]
fn terminal_bytes_flow_both_ways_until_last_user_closes() {
    run(async {
        let (socket, mut host) = sockets();
        let (master, mut slave) = terminal_pair();
        let (debt, handover) = debt();
        let relay = tokio::spawn(terminal::relay(
            Arc::new(watched::both_ways(master).unwrap()),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        let process = in_thread(move || {
            let mut line = [0; 5];
            slave.read_exact(&mut line).unwrap();
            slave.write_all(&line.repeat(20_000)).unwrap();
        });
        let person = in_thread(move || {
            host.write_all(b"hello").unwrap();
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            all
        });
        join(process).await;
        assert!(join(person).await == b"hello".repeat(20_000));
        handover.complete().await;
        relay.await.unwrap();
    });
}

#[test]
fn terminal_host_sends_no_more_then_output_goes_on() {
    run(async {
        let (socket, mut host) = sockets();
        let (master, mut slave) = terminal_pair();
        let (debt, _handover) = debt();
        let relay = tokio::spawn(terminal::relay(
            Arc::new(watched::both_ways(master).unwrap()),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        host.shutdown(Shutdown::Write).unwrap();
        tokio::task::yield_now().await;
        slave.write_all(b"still here").unwrap();
        drop(slave);
        relay.await.unwrap();
        let mut all = String::new();
        host.read_to_string(&mut all).unwrap();
        assert_eq!(all, "still here");
    });
}

#[test]
fn terminal_host_closes_then_its_users_are_hung_up_on() {
    run(async {
        let (socket, host) = sockets();
        let (master, mut slave) = terminal_pair();
        let (debt, handover) = debt();
        let relay = tokio::spawn(terminal::relay(
            Arc::new(watched::both_ways(master).unwrap()),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        drop(host);
        relay.await.unwrap();
        assert_eq!(slave.read(&mut [0; 1]).unwrap(), 0);
        assert!(slave.write(b"x").is_err());
        handover.complete().await;
    });
}

#[test]
fn terminal_ended_process_with_another_user_is_handed_over() {
    run(async {
        let (socket, mut host) = sockets();
        let (master, mut slave) = terminal_pair();
        let (debt, handover) = debt();
        let relay = tokio::spawn(terminal::relay(
            Arc::new(watched::both_ways(master).unwrap()),
            watched::both_ways(socket).unwrap(),
            debt,
        ));
        slave.write_all(b"last words").unwrap();
        handover.complete().await;
        let mut words = [0; 10];
        host.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"last words");
        drop(slave);
        relay.await.unwrap();
    });
}
