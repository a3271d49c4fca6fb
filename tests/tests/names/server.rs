//! A name server in a network namespace made for one test.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use bulkhead_tests::Invocation;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where it listens, as Docker's does.
pub const ADDRESS: &str = "127.0.0.11";

/// How many addresses `large.test` has: more than fit into a datagram.
pub const LARGE: usize = 300;

const AT: (&str, u16) = (ADDRESS, 53);
const STOP: &[u8] = b"stop";

/// A network namespace with a loopback interface, deleted when dropped.
#[derive(Debug)]
pub struct Namespace(String);

impl Namespace {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self(format!("bhn{}-{number}", std::process::id()));
        ip(&format!("netns add {}", namespace.0));
        ip(&format!("-n {} link set lo up", namespace.0));
        namespace
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// Runs `work` on a thread that is in the namespace; sockets made there stay there.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.0));
    }
}

fn ip(words: &str) {
    let ip = Invocation::new("/usr/sbin/ip").args(words.split(' '));
    ip.output().expect_code(0);
}

/// Answers over UDP and TCP until dropped.
#[derive(Debug)]
pub struct Server<'n> {
    namespace: &'n Namespace,
    threads: Vec<JoinHandle<()>>,
}

impl<'n> Server<'n> {
    pub fn start(namespace: &'n Namespace) -> Self {
        let datagrams = namespace.enter(|| UdpSocket::bind(AT).unwrap());
        let streams = namespace.enter(|| TcpListener::bind(AT).unwrap());
        let threads = vec![
            std::thread::spawn(move || serve_datagrams(&datagrams)),
            std::thread::spawn(move || serve_streams(&streams)),
        ];
        Self { namespace, threads }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.namespace.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.send_to(STOP, AT).unwrap();
            drop(TcpStream::connect(AT).unwrap());
        });
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn serve_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).unwrap();
        let query = &buffer[..length];
        if query == STOP {
            return;
        }
        let mut answer = answer(query);
        if answer.len() > 512 {
            // Truncated: to be asked for over TCP.
            answer = query.to_vec();
            answer[2] |= 0x82;
        }
        socket.send_to(&answer, client).unwrap();
    }
}

fn serve_streams(listener: &TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query).unwrap();
        let answer = answer(&query);
        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, &answer[..]].concat()).unwrap();
    }
}

/// `N.test` has 10.0.0.N, `here.test` 127.0.0.1, `large.test` many; others are not there.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    let is_address = query[at + 1..at + 3] == [0, 1];
    let question = &query[12..at + 5];
    let addresses: Vec<[u8; 4]> = match labels.join(".").strip_suffix(".test") {
        Some("here") => vec![[127, 0, 0, 1]],
        Some("large") => vec![[10, 1, 2, 3]; LARGE],
        Some(number) => number
            .parse()
            .map(|n| vec![[10, 0, 0, n]])
            .unwrap_or_default(),
        None => Vec::new(),
    };
    let found = !addresses.is_empty();
    let addresses = if is_address { addresses } else { Vec::new() };
    let count = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    let code = if found { 0x80 } else { 0x83 };
    let mut answer = vec![
        query[0], query[1], 0x81, code, 0, 1, count[0], count[1], 0, 0, 0, 0,
    ];
    answer.extend_from_slice(question);
    for address in addresses {
        answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04");
        answer.extend_from_slice(&address);
    }
    answer
}
