//! What processes send to a name server's port 53 goes to a port of the agent's, and answers come from
//! port 53 again: programs the kernel runs when a process gives an address or is told one
//! (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`). Packets carry the real ports.
//!
//! Docker does the same on the host by translating addresses. Here the container sees no rules that it
//! could remove, and none are needed of the guest's kernel.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use tokio::net::{TcpListener, UdpSocket};

use crate::bpf::Register::{R0, R1, R2, R3, R6};
use crate::bpf::{self, Instruction, Kind};
use crate::container::CGROUP_ROOT;

/// The port of name servers.
const PORT: u16 = 53;

// `struct bpf_sock_addr` of linux/bpf.h: addresses and ports as in packets.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;
const PROTOCOL: i16 = 36;

const TCP: u32 = libc::IPPROTO_TCP.cast_unsigned();
const UDP: u32 = libc::IPPROTO_UDP.cast_unsigned();

/// `bpf_get_netns_cookie`
const GET_NETNS_COOKIE: u32 = 122;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
const SOCK_ADDR: u32 = 18;

/// When a program runs (`BPF_CGROUP_*`), for an IPv4 and for an IPv6 socket.
const CONNECT: [u32; 2] = [10, 11];
const SENDMSG: [u32; 2] = [14, 15];
const RECVMSG: [u32; 2] = [19, 20];
const GETPEERNAME: [u32; 2] = [29, 30];

/// A name server and the agent's ports for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Redirect {
    server: IpAddr,
    datagrams: u16,
    streams: u16,
    /// Number of the network namespace: the server's address is another one in namespaces that the
    /// container makes.
    cookie: u64,
}

/// Whose addresses a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// What a program makes of a port.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    protocol: u32,
    from: u16,
    to: u16,
}

impl Redirect {
    /// To the ports of these sockets, which listen at the server's address.
    pub(super) fn to(
        server: IpAddr,
        datagrams: &UdpSocket,
        streams: &TcpListener,
    ) -> io::Result<Self> {
        Ok(Self {
            server,
            datagrams: datagrams.local_addr()?.port(),
            streams: streams.local_addr()?.port(),
            cookie: netns_cookie(datagrams)?,
        })
    }

    /// Lets it apply to every process of the guest, for as long as the guest lasts.
    pub(super) fn install(&self) -> io::Result<()> {
        let root = File::open(CGROUP_ROOT)?;
        for (attach, family, exchanges) in self.programs() {
            let kind = Kind {
                program: SOCK_ADDR,
                attach,
            };
            let program = self.compile(family, &exchanges);
            bpf::attach(kind, "names", &program, root.as_fd())?;
        }
        Ok(())
    }

    fn programs(&self) -> Vec<(u32, Family, Vec<Exchange>)> {
        let exchange = |protocol, from, to| Exchange { protocol, from, to };
        let datagrams = exchange(UDP, PORT, self.datagrams);
        let streams = exchange(TCP, PORT, self.streams);
        let from_datagrams = exchange(UDP, self.datagrams, PORT);
        let from_streams = exchange(TCP, self.streams, PORT);
        let mut programs = Vec::new();
        for (when, exchanges) in [
            (CONNECT, vec![datagrams, streams]),
            (SENDMSG, vec![datagrams]),
            (RECVMSG, vec![from_datagrams]),
            (GETPEERNAME, vec![from_datagrams, from_streams]),
        ] {
            let [v4, v6] = when;
            if self.server.is_ipv4() {
                programs.push((v4, Family::V4, exchanges.clone()));
            }
            // IPv6 sockets have IPv4 addresses, too.
            programs.push((v6, Family::V6, exchanges));
        }
        programs
    }

    /// The program lets every address pass, and replaces a port if address and port are those.
    fn compile(&self, family: Family, exchanges: &[Exchange]) -> Vec<Instruction> {
        let end = [bpf::set(R0, 1), bpf::exit()];
        let mut program = vec![bpf::copy(R6, R1)];
        for (offset, word) in self.address(family) {
            program.extend([
                bpf::load_word(R2, R6, offset),
                bpf::jump_unless_equal(R2, word, 1),
                bpf::jump(end.len()),
            ]);
            program.extend(end);
        }
        program.push(bpf::call(GET_NETNS_COOKIE));
        program.extend(bpf::set_long(R2, self.cookie));
        program.push(bpf::jump_unless_same(R0, R2, 1));
        program.push(bpf::jump(end.len()));
        program.extend(end);
        for exchange in exchanges {
            let replace = [
                bpf::set(R3, in_packet(exchange.to)),
                bpf::store_word(R6, USER_PORT, R3),
            ];
            let skip = replace.len() + end.len();
            program.extend([
                bpf::load_word(R2, R6, PROTOCOL),
                bpf::jump_unless_equal(R2, exchange.protocol, skip + 2),
                bpf::load_word(R2, R6, USER_PORT),
                bpf::jump_unless_equal(R2, in_packet(exchange.from), skip),
            ]);
            program.extend(replace);
            program.extend(end);
        }
        program.extend(end);
        program
    }

    /// Where in the context the server's address would be, and its words.
    fn address(&self, family: Family) -> Vec<(i16, u32)> {
        let v6 = match (self.server, family) {
            (IpAddr::V4(v4), Family::V4) => {
                return vec![(USER_IP4, u32::from_ne_bytes(v4.octets()))];
            }
            (IpAddr::V4(v4), Family::V6) => v4.to_ipv6_mapped(),
            (IpAddr::V6(v6), _) => v6,
        };
        (USER_IP6..).step_by(4).zip(words(v6)).collect()
    }
}

fn words(address: Ipv6Addr) -> Vec<u32> {
    let octets = address.octets();
    let words = octets.chunks_exact(4).filter_map(|word| word.first_chunk());
    words.map(|word| u32::from_ne_bytes(*word)).collect()
}

/// A port as the context has it.
fn in_packet(port: u16) -> u32 {
    u32::from(port.to_be())
}

fn netns_cookie(socket: &UdpSocket) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the option is a number of 64 bits, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x1_0000_0005;

    fn redirect(server: &str) -> Redirect {
        Redirect {
            server: server.parse().unwrap(),
            datagrams: 40_000,
            streams: 50_000,
            cookie: COOKIE,
        }
    }

    /// The port after the program has seen an address, in a network namespace.
    fn port_after(
        redirect: Redirect,
        when: [u32; 2],
        (address, port): (&str, u16),
        protocol: u32,
        cookie: u64,
    ) -> u16 {
        let address: IpAddr = address.parse().unwrap();
        let mut context = [0; 18];
        let kind = match address {
            IpAddr::V4(v4) => {
                context[1] = u32::from_ne_bytes(v4.octets());
                when[0]
            }
            IpAddr::V6(v6) => {
                context[2..6].copy_from_slice(&words(v6));
                when[1]
            }
        };
        context[6] = in_packet(port);
        context[9] = protocol;
        let before = context;
        let programs = redirect.programs();
        let found = programs.into_iter().find(|(attach, ..)| *attach == kind);
        if let Some((_, family, exchanges)) = found {
            let program = redirect.compile(family, &exchanges);
            assert_eq!(bpf::interpret(&program, &mut context, cookie), 1);
        }
        let after = u16::from_be(u16::try_from(context[6]).unwrap());
        context[6] = before[6];
        assert_eq!(context, before, "more than the port was changed");
        after
    }

    #[test]
    fn queries_to_the_server_are_redirected_and_answers_back() {
        for (server, seen) in [
            ("127.0.0.11", "127.0.0.11"),
            ("127.0.0.11", "::ffff:127.0.0.11"),
            ("::1", "::1"),
        ] {
            let after = |when, port, protocol| {
                port_after(redirect(server), when, (seen, port), protocol, COOKIE)
            };
            assert_eq!(after(CONNECT, 53, UDP), 40_000);
            assert_eq!(after(CONNECT, 53, TCP), 50_000);
            assert_eq!(after(SENDMSG, 53, UDP), 40_000);
            assert_eq!(after(RECVMSG, 40_000, UDP), 53);
            assert_eq!(after(GETPEERNAME, 40_000, UDP), 53);
            assert_eq!(after(GETPEERNAME, 50_000, TCP), 53);
        }
    }

    #[test]
    fn anything_else_is_left_alone() {
        let server = redirect("127.0.0.11");
        for (address, port, protocol, cookie) in [
            ("127.0.0.12", 53, UDP, COOKIE),
            ("127.0.0.11", 54, UDP, COOKIE),
            ("127.0.0.11", 53, 136, COOKIE),
            ("127.0.0.11", 53, UDP, COOKIE + 1),
            ("127.0.0.11", 53, UDP, COOKIE & 0xffff_ffff),
            ("::ffff:127.0.0.10", 53, UDP, COOKIE),
            ("::ff:127.0.0.11", 53, UDP, COOKIE),
            ("1::ffff:127.0.0.11", 53, UDP, COOKIE),
        ] {
            let after = port_after(server, CONNECT, (address, port), protocol, cookie);
            assert_eq!(after, port, "{address} {port} {protocol} {cookie}");
        }
        let after = port_after(server, RECVMSG, ("127.0.0.11", 50_000), UDP, COOKIE);
        assert_eq!(after, 50_000);
    }
}
