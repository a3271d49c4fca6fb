//! The virtio-vsock packet header (virtio 1.2, section 5.10.6). Pure: bytes in, values out.

/// Length of a header in bytes; the payload follows it directly.
pub const HEADER_LEN: usize = 44;
/// The same, as rings count.
pub const HEADER_BYTES: u32 = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// Largest payload we put into one packet and accept from the guest, in bytes. Linux splits at
/// this size too.
pub const MAX_PAYLOAD: u32 = 64 * 1024;
/// The only socket type served: byte streams.
const TYPE_STREAM: u16 = 1;

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or aborts one.
    Reset = 3,
    /// Announces that the sender will no longer send, receive, or either: see [`Shutdown`].
    Shutdown = 4,
    /// Carries payload.
    Data = 5,
    /// Tells the receiver how much it may send.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Op {
    fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown,
            5 => Op::Data,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }
}

/// The directions a shutdown packet closes, as seen by its sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// The sender will receive no more.
    pub receive: bool,
    /// The sender will send no more.
    pub send: bool,
}

impl Shutdown {
    fn from_wire(flags: u32) -> Self {
        Self {
            receive: flags & 1 != 0,
            send: flags & 2 != 0,
        }
    }

    fn to_wire(self) -> u32 {
        u32::from(self.receive) | u32::from(self.send) << 1
    }

    /// The directions closed by either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            receive: self.receive || other.receive,
            send: self.send || other.send,
        }
    }
}

/// Names a stream: the port on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// Port on the host.
    pub host: u32,
    /// Port in the guest.
    pub guest: u32,
}

/// A header whose addresses, type and operation were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The stream it belongs to.
    pub pair: Pair,
    /// What it is about.
    pub op: Op,
    /// For [`Op::Shutdown`]: the directions closed.
    pub shutdown: Shutdown,
    /// Length of the payload that follows, in bytes.
    pub len: u32,
    /// Size of the sender's receive buffer, in bytes.
    pub buf_alloc: u32,
    /// Free-running count of the bytes the sender's reader has taken from that buffer.
    pub fwd_cnt: u32,
}

/// Why a packet from the guest is not acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    /// It does not come from this guest or is not for the host: nobody to answer.
    Address,
    /// Type or operation are unknown; the stream it names is to be reset.
    Unsupported(Pair),
    /// It is a reset with something wrong about it: never answered, or two peers would reset each
    /// other for ever.
    Reset,
}

impl Header {
    /// Reads a header that the guest `guest_cid` put on its transmit ring.
    ///
    /// # Errors
    /// [`Junk`] says what is wrong and whether it deserves a reset.
    pub fn from_guest(bytes: &[u8; HEADER_LEN], guest_cid: u64) -> Result<Self, Junk> {
        let mut fields = Fields(bytes);
        let (src_cid, dst_cid) = (fields.u64(), fields.u64());
        let pair = Pair {
            guest: fields.u32(),
            host: fields.u32(),
        };
        let (len, kind, op) = (fields.u32(), fields.u16(), fields.u16());
        let (flags, buf_alloc, fwd_cnt) = (fields.u32(), fields.u32(), fields.u32());
        if src_cid != guest_cid || dst_cid != HOST_CID {
            return Err(Junk::Address);
        }
        match Op::from_wire(op) {
            Some(Op::Reset) if kind != TYPE_STREAM => Err(Junk::Reset),
            Some(op) if kind == TYPE_STREAM => Ok(Self {
                pair,
                op,
                shutdown: if op == Op::Shutdown {
                    Shutdown::from_wire(flags)
                } else {
                    Shutdown::default()
                },
                len,
                buf_alloc,
                fwd_cnt,
            }),
            _ => Err(Junk::Unsupported(pair)),
        }
    }

    /// The bytes of this header as sent from the host to the guest `guest_cid`.
    #[must_use]
    pub fn to_guest(&self, guest_cid: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &HOST_CID.to_le_bytes(),
            &guest_cid.to_le_bytes(),
            &self.pair.host.to_le_bytes(),
            &self.pair.guest.to_le_bytes(),
            &self.len.to_le_bytes(),
            &TYPE_STREAM.to_le_bytes(),
            &(self.op as u16).to_le_bytes(),
            &self.shutdown.to_wire().to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The reset that answers a packet of a stream we do not know.
    #[must_use]
    pub fn reset(pair: Pair) -> Self {
        Self {
            pair,
            op: Op::Reset,
            shutdown: Shutdown::default(),
            len: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// Takes little-endian fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Swaps the roles of the two sides, which turns a packet for the guest into one from it.
    fn turned(mut bytes: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
        let (a, b) = bytes.split_at_mut(8);
        a.swap_with_slice(&mut b[..8]);
        let (a, b) = bytes[16..].split_at_mut(4);
        a.swap_with_slice(&mut b[..4]);
        bytes
    }

    fn header(op: Op) -> Header {
        Header {
            pair: Pair {
                host: 1024,
                guest: 77,
            },
            op,
            shutdown: Shutdown::default(),
            len: 5,
            buf_alloc: 6,
            fwd_cnt: 7,
        }
    }

    #[test]
    fn header_written_and_read_back_is_the_same() {
        let sent = header(Op::Data);
        assert_eq!(Header::from_guest(&turned(sent.to_guest(3)), 3), Ok(sent));
    }

    #[test]
    fn header_shutdown_flags_survive() {
        let sent = Header {
            shutdown: Shutdown {
                receive: false,
                send: true,
            },
            ..header(Op::Shutdown)
        };
        assert_eq!(sent.to_guest(3)[32], 2);
        assert_eq!(Header::from_guest(&turned(sent.to_guest(3)), 3), Ok(sent));
    }

    #[test]
    fn header_of_another_guest_is_dropped() {
        let bytes = turned(header(Op::Request).to_guest(3));
        assert_eq!(Header::from_guest(&bytes, 4), Err(Junk::Address));
    }

    #[test]
    fn header_for_another_destination_is_dropped() {
        let mut bytes = turned(header(Op::Request).to_guest(3));
        bytes[8] = 1;
        assert_eq!(Header::from_guest(&bytes, 3), Err(Junk::Address));
    }

    #[test]
    fn header_of_unknown_type_is_reset() {
        let mut bytes = turned(header(Op::Request).to_guest(3));
        bytes[28] = 2;
        assert_eq!(
            Header::from_guest(&bytes, 3),
            Err(Junk::Unsupported(Pair {
                host: 1024,
                guest: 77
            }))
        );
    }

    #[test]
    fn header_of_bad_reset_is_not_answered() {
        let mut bytes = turned(header(Op::Reset).to_guest(3));
        bytes[28] = 9;
        assert_eq!(Header::from_guest(&bytes, 3), Err(Junk::Reset));
    }

    proptest! {
        #[test]
        fn header_from_any_bytes_never_panics(bytes in any::<[u8; 32]>(), tail in any::<[u8; 12]>(), cid: u64) {
            let mut all = [0; HEADER_LEN];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            let _ = Header::from_guest(&all, cid);
            all[..8].copy_from_slice(&cid.to_le_bytes());
            all[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
            let _ = Header::from_guest(&all, cid);
        }
    }
}
