//! The relay between a guest (one end of a socket pair) and servers of this machine.

use std::collections::HashSet;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bulkhead_agent_api::dns::{self, HEAD, Head, MAX_QUERY, OUTSTANDING, Transport};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket, UnixStream};
use tokio::task::JoinHandle;

use super::relay;

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

/// The guest's end of a relay to a server.
fn guest(server: SocketAddr) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, tokio::spawn(relay::serve(theirs, server)))
}

fn query(id: u16, name: &[u8]) -> Vec<u8> {
    let mut message = b"\0\0\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    dns::set_id(&mut message, id);
    message.extend_from_slice(name);
    message
}

async fn send(guest: &mut UnixStream, transport: Transport, message: &[u8]) {
    let head = Head::of(transport, message).unwrap().encode();
    guest.write_all(&head).await.unwrap();
    guest.write_all(message).await.unwrap();
}

async fn receive(guest: &mut UnixStream) -> (Transport, Vec<u8>) {
    let mut head = [0; HEAD];
    guest.read_exact(&mut head).await.unwrap();
    let head = Head::decode(head).unwrap();
    let mut message = vec![0; head.length.into()];
    guest.read_exact(&mut message).await.unwrap();
    (head.transport, message)
}

/// Waits until there are no more tasks than that: those that were ended go one by one.
async fn at_most(tasks: usize) {
    let metrics = tokio::runtime::Handle::current().metrics();
    let fewer = async {
        while metrics.num_alive_tasks() > tasks {
            tokio::task::yield_now().await;
        }
    };
    let fewer = tokio::time::timeout(Duration::from_secs(10), fewer).await;
    assert!(fewer.is_ok(), "{} tasks", metrics.num_alive_tasks());
}

#[test]
fn datagrams_answered_in_reverse_order_reach_their_queries() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let (mut guest, _relay) = guest(server.local_addr().unwrap());
        let mut asked = Vec::new();
        for id in 0..50 {
            send(&mut guest, Transport::Datagram, &query(id, b"name")).await;
            let mut buffer = [0; 512];
            let (length, client) = server.recv_from(&mut buffer).await.unwrap();
            asked.push((buffer[..length].to_vec(), client));
        }
        let clients: HashSet<_> = asked.iter().map(|(_, client)| client).collect();
        assert_eq!(clients.len(), 50, "ports are used again");
        for (mut answer, client) in asked.into_iter().rev() {
            answer.push(answer[1]);
            server.send_to(&answer, client).await.unwrap();
        }
        for _ in 0..50 {
            let (transport, answer) = receive(&mut guest).await;
            assert_eq!(transport, Transport::Datagram);
            assert_eq!(
                answer.first_chunk().map(|b| u16::from_be_bytes(*b)),
                dns::id(&answer)
            );
            assert_eq!(answer.last(), Some(&answer[1]));
        }
    });
}

#[test]
fn datagram_with_another_id_is_not_the_answer() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let (mut guest, _relay) = guest(server.local_addr().unwrap());
        send(&mut guest, Transport::Datagram, &query(7, b"name")).await;
        let mut buffer = [0; 512];
        let (_, client) = server.recv_from(&mut buffer).await.unwrap();
        for wrong in [&b""[..], b"short", &query(8, b"forged")] {
            server.send_to(wrong, client).await.unwrap();
        }
        server.send_to(&query(7, b"right"), client).await.unwrap();
        assert_eq!(receive(&mut guest).await.1, query(7, b"right"));
    });
}

#[test]
fn stream_largest_answer_arrives_whole() {
    run(async {
        let server = TcpListener::bind(ANY).await.unwrap();
        let (mut guest, _relay) = guest(server.local_addr().unwrap());
        send(&mut guest, Transport::Stream, &query(7, b"large")).await;
        let (mut connection, _) = server.accept().await.unwrap();
        let mut asked = vec![0; connection.read_u16().await.unwrap().into()];
        connection.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, query(7, b"large"));
        let answer = query(7, &vec![b'x'; usize::from(u16::MAX) - 12]);
        connection.write_u16(u16::MAX).await.unwrap();
        connection.write_all(&answer).await.unwrap();
        let received = receive(&mut guest).await;
        assert!(received == (Transport::Stream, answer));
    });
}

#[test]
fn server_that_is_not_there_is_told_as_failure() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let address = server.local_addr().unwrap();
        drop(server);
        let (mut guest, _relay) = guest(address);
        for transport in [Transport::Datagram, Transport::Stream] {
            send(&mut guest, transport, &query(7, b"name")).await;
            let mut expected = query(7, b"name");
            dns::fail(&mut expected);
            assert_eq!(receive(&mut guest).await, (transport, expected));
        }
    });
}

#[test]
fn stream_cut_short_is_told_as_failure() {
    run(async {
        let server = TcpListener::bind(ANY).await.unwrap();
        let (mut guest, _relay) = guest(server.local_addr().unwrap());
        send(&mut guest, Transport::Stream, &query(7, b"name")).await;
        let (mut connection, _) = server.accept().await.unwrap();
        let mut asked = vec![0; connection.read_u16().await.unwrap().into()];
        connection.read_exact(&mut asked).await.unwrap();
        connection.write_all(b"\0\x20\0\x07").await.unwrap();
        drop(connection);
        assert_eq!(receive(&mut guest).await.1[3] & 15, 2);
    });
}

#[test]
fn queries_without_answer_are_bounded_and_the_oldest_are_dropped() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let (mut guest, _relay) = guest(server.local_addr().unwrap());
        let mut clients = Vec::new();
        for number in 0..u16::try_from(OUTSTANDING * 3).unwrap() {
            send(&mut guest, Transport::Datagram, &query(number, b"name")).await;
            let mut buffer = [0; 512];
            clients.push(server.recv_from(&mut buffer).await.unwrap().1);
        }
        at_most(OUTSTANDING + 1).await;
        for (number, client) in (0..).zip(&clients) {
            // A later query may have the port of one that was dropped.
            if clients
                .iter()
                .skip(usize::from(number) + 1)
                .all(|later| later != client)
            {
                let answer = query(number, b"name");
                server.send_to(&answer, *client).await.unwrap();
            }
        }
        let first = dns::id(&receive(&mut guest).await.1);
        assert_eq!(first, u16::try_from(OUTSTANDING * 2).ok());
    });
}

#[test]
fn guest_that_reads_no_answers_holds_up_a_bounded_number() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let (mut guest, relay) = guest(server.local_addr().unwrap());
        for number in 0..2000 {
            send(&mut guest, Transport::Datagram, &query(number, b"name")).await;
            let mut buffer = [0; 512];
            let (_, client) = server.recv_from(&mut buffer).await.unwrap();
            let answer = query(number, &[0; 60_000]);
            server.send_to(&answer, client).await.unwrap();
        }
        at_most(OUTSTANDING + 1).await;
        drop(guest);
        relay.await.unwrap();
    });
}

#[test]
fn guest_that_ends_takes_its_queries_along() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let (mut guest, relay) = guest(server.local_addr().unwrap());
        send(&mut guest, Transport::Datagram, &query(1, b"name")).await;
        let mut buffer = [0; 512];
        server.recv_from(&mut buffer).await.unwrap();
        drop(guest);
        relay.await.unwrap();
        at_most(0).await;
    });
}

#[test]
fn query_too_long_ends_the_stream() {
    run(async {
        let server = UdpSocket::bind(ANY).await.unwrap();
        let (mut guest, relay) = guest(server.local_addr().unwrap());
        let long = query(1, &[0; MAX_QUERY]);
        let head = Head::of(Transport::Datagram, &long).unwrap().encode();
        guest.write_all(&head).await.unwrap();
        relay.await.unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn guest_any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        run(async {
            let server = UdpSocket::bind(ANY).await.unwrap();
            let (mut guest, relay) = guest(server.local_addr().unwrap());
            // The relay may have hung up before the last of them.
            let _ = guest.write_all(&bytes).await;
            let _ = guest.shutdown().await;
            relay.await.unwrap();
        });
    }

    #[test]
    fn guest_any_messages_arrive_as_they_are(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 12..600), 1..20),
    ) {
        run(async {
            let server = UdpSocket::bind(ANY).await.unwrap();
            let (mut guest, _relay) = guest(server.local_addr().unwrap());
            for message in &messages {
                send(&mut guest, Transport::Datagram, message).await;
                let mut buffer = [0; 1000];
                let (length, _) = server.recv_from(&mut buffer).await.unwrap();
                assert_eq!(&buffer[..length], message);
            }
        });
    }
}
