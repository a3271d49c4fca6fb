//! The relay between clients of this machine and a host (the other end of a socket pair).

use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap()
        .block_on(test)
}

struct Rig {
    datagrams: SocketAddr,
    streams: SocketAddr,
    host: UnixStream,
    relay: JoinHandle<()>,
}

async fn rig() -> Rig {
    let datagrams = UdpSocket::bind(ANY).await.unwrap();
    let streams = TcpListener::bind(ANY).await.unwrap();
    let (host, agent) = UnixStream::pair().unwrap();
    let agent = watched::both_ways(agent.into_std().unwrap().into()).unwrap();
    Rig {
        datagrams: datagrams.local_addr().unwrap(),
        streams: streams.local_addr().unwrap(),
        host,
        relay: tokio::spawn(relay(datagrams, streams, agent)),
    }
}

fn message(id: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[0; dns::HEADER], rest].concat();
    dns::set_id(&mut message, id);
    message
}

async fn client(rig: &Rig) -> UdpSocket {
    let socket = UdpSocket::bind(ANY).await.unwrap();
    socket.connect(rig.datagrams).await.unwrap();
    socket
}

async fn next_query(host: &mut UnixStream) -> (Transport, Vec<u8>) {
    let mut head = [0; HEAD];
    host.read_exact(&mut head).await.unwrap();
    let head = Head::decode(head).unwrap();
    let mut query = vec![0; head.length.into()];
    host.read_exact(&mut query).await.unwrap();
    (head.transport, query)
}

async fn answer(host: &mut UnixStream, message: &[u8]) {
    let head = Head::of(Transport::Datagram, message).unwrap().encode();
    host.write_all(&head).await.unwrap();
    host.write_all(message).await.unwrap();
}

#[test]
fn clients_with_the_same_id_get_their_own_answers() {
    run(async {
        let mut rig = rig().await;
        let mut waiting = Vec::new();
        for number in 0..50 {
            let client = client(&rig).await;
            client.send(&message(7, &[number])).await.unwrap();
            let (transport, query) = next_query(&mut rig.host).await;
            assert_eq!(transport, Transport::Datagram);
            waiting.push((client, number, query));
        }
        for (_, _, query) in waiting.iter().rev() {
            answer(&mut rig.host, query).await;
        }
        for (client, number, _) in waiting {
            let mut buffer = [0; 100];
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], message(7, &[number]));
        }
    });
}

#[test]
fn stream_several_queries_get_large_answers() {
    run(async {
        let mut rig = rig().await;
        let mut client = TcpStream::connect(rig.streams).await.unwrap();
        for id in [7, 8] {
            let query = message(id, b"name");
            client.write_u16(16).await.unwrap();
            client.write_all(&query).await.unwrap();
            let (transport, query) = next_query(&mut rig.host).await;
            assert_eq!(transport, Transport::Stream);
            let mut large = message(0, &vec![b'x'; usize::from(u16::MAX) - dns::HEADER]);
            dns::set_id(&mut large, dns::id(&query).unwrap());
            let reading = async {
                let length = client.read_u16().await.unwrap();
                let mut all = vec![0; length.into()];
                client.read_exact(&mut all).await.unwrap();
                all
            };
            let (all, ()) = tokio::join!(reading, answer(&mut rig.host, &large));
            dns::set_id(&mut large, id);
            assert!(all == large);
        }
    });
}

#[test]
fn datagrams_that_are_no_queries_are_dropped() {
    run(async {
        let mut rig = rig().await;
        let client = client(&rig).await;
        for wrong in [&b""[..], b"short", &message(1, &[0; MAX_QUERY])] {
            client.send(wrong).await.unwrap();
        }
        client.send(&message(2, b"right")).await.unwrap();
        let (_, query) = next_query(&mut rig.host).await;
        assert_eq!(query[2..], message(2, b"right")[2..]);
    });
}

#[test]
fn stream_that_sends_no_query_is_closed() {
    run(async {
        let rig = rig().await;
        for wrong in [&b"\0\x05short"[..], b"\xff\xff"] {
            let mut client = TcpStream::connect(rig.streams).await.unwrap();
            client.write_all(wrong).await.unwrap();
            let mut rest = Vec::new();
            // A reset is an end, too.
            let _ = client.read_to_end(&mut rest).await;
            assert_eq!(rest, b"");
        }
    });
}

#[test]
fn host_that_takes_nothing_blocks_nobody_and_the_newest_are_answered() {
    run(async {
        let mut rig = rig().await;
        let client = client(&rig).await;
        for _ in 0..5000 {
            client.send(&message(1, &[0; 500])).await.unwrap();
            tokio::task::yield_now().await;
        }
        let last = async {
            loop {
                let (_, query) = next_query(&mut rig.host).await;
                answer(&mut rig.host, &query).await;
                if query.ends_with(b"last") {
                    return;
                }
            }
        };
        let asking = async {
            let mut buffer = [0; 1000];
            loop {
                client.send(&message(2, b"last")).await.unwrap();
                let length = client.recv(&mut buffer).await.unwrap();
                if buffer[..length] == message(2, b"last") {
                    return;
                }
            }
        };
        tokio::join!(last, asking);
    });
}

#[test]
fn host_hangs_up_then_nobody_listens_any_more() {
    run(async {
        let rig = rig().await;
        drop(rig.host);
        rig.relay.await.unwrap();
        assert!(TcpStream::connect(rig.streams).await.is_err());
        UdpSocket::bind(rig.datagrams).await.unwrap();
    });
}

#[test]
fn serve_address_that_is_none_is_refused() {
    let resolver = Resolver {
        address: vec![127, 0, 0],
        ..Default::default()
    };
    let error = run(serve(&[resolver])).unwrap_err();
    assert!(matches!(error, DnsError::Address(3)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn host_any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        run(async {
            let mut rig = rig().await;
            // The relay may have hung up before the last of them.
            let _ = rig.host.write_all(&bytes).await;
            let _ = rig.host.shutdown().await;
            rig.relay.await.unwrap();
        });
    }
}
