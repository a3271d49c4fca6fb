//! The header before each frame (virtio 1.2, section 5.1.6): who computes the checksum, who cuts the
//! frame into segments.

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 12;

/// A header as it is in memory: `struct virtio_net_hdr_v1`, all fields little-endian.
pub type Header = [u8; HEADER_LEN];

/// Where the number of buffers is in the header.
pub const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

const NEEDS_CHECKSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;

/// What the guest may ask to be done to the frames it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Computing a checksum.
    pub checksum: bool,
    /// Cutting TCP over IPv4 into segments.
    pub tcp4: bool,
    /// Cutting TCP over IPv6 into segments.
    pub tcp6: bool,
}

/// What is wrong with a guest's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// A checksum where there is no room for one, or without the feature.
    #[error("Its checksum lies outside the frame, or was not negotiated")]
    Checksum,
    /// Segments of a kind or size that were not negotiated or make no sense.
    #[error("Its segmentation makes no sense, or was not negotiated")]
    Segmentation,
}

/// Checks a guest's header for a frame of `frame_len` bytes and returns what the host's kernel is to
/// be told: the same, without what does not concern it.
///
/// The kernel checks it again; this keeps what nobody negotiated away from it.
///
/// # Errors
/// See [`BadHeader`].
pub fn checked(header: &Header, frame_len: usize, offload: Offload) -> Result<Header, BadHeader> {
    let [
        flags,
        gso,
        h0,
        h1,
        s0,
        s1,
        start0,
        start1,
        offset0,
        offset1,
        ..,
    ] = *header;
    let inside = |a: u16, b: u16, c: usize| {
        usize::from(a)
            .checked_add(usize::from(b))
            .and_then(|sum| sum.checked_add(c))
            .is_some_and(|end| end <= frame_len)
    };
    let needs_checksum = flags & NEEDS_CHECKSUM != 0;
    let start = u16::from_le_bytes([start0, start1]);
    let offset = u16::from_le_bytes([offset0, offset1]);
    if needs_checksum && !(offload.checksum && inside(start, offset, 2)) {
        return Err(BadHeader::Checksum);
    }
    let length = u16::from_le_bytes([h0, h1]);
    let size = u16::from_le_bytes([s0, s1]);
    let cut = match gso {
        GSO_NONE => false,
        GSO_TCP4 if offload.tcp4 => true,
        GSO_TCP6 if offload.tcp6 => true,
        _ => return Err(BadHeader::Segmentation),
    };
    // A segment gets a checksum of its own, so the frame must have asked for one.
    if cut && !(needs_checksum && size > 0 && inside(length, 0, 0)) {
        return Err(BadHeader::Segmentation);
    }
    let mut clean = [0; HEADER_LEN];
    if needs_checksum {
        clean = [
            NEEDS_CHECKSUM,
            gso,
            0,
            0,
            0,
            0,
            start0,
            start1,
            offset0,
            offset1,
            0,
            0,
        ];
    }
    if cut {
        let [.., l0, l1, z0, z1, _, _, _, _, _, _] = &mut clean;
        (*l0, *l1, *z0, *z1) = (h0, h1, s0, s1);
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Offload = Offload {
        checksum: true,
        tcp4: true,
        tcp6: true,
    };

    #[allow(clippy::too_many_arguments, reason = "the fields of the header")]
    fn header(flags: u8, gso: u8, length: u16, size: u16, start: u16, offset: u16) -> Header {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = flags;
        bytes[1] = gso;
        bytes[2..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..6].copy_from_slice(&size.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        bytes
    }

    #[test]
    fn header_of_a_plain_frame_passes_without_its_noise() {
        let mut noisy = header(0, 0, 99, 99, 9999, 9999);
        noisy[10] = 7;
        assert_eq!(checked(&noisy, 60, Offload::default()), Ok([0; 12]));
    }

    #[test]
    fn header_of_a_large_segment_passes_as_it_is() {
        let large = header(1, GSO_TCP4, 66, 1448, 34, 16);
        assert_eq!(checked(&large, 60_000, ALL), Ok(large));
    }

    #[test]
    fn checksum_outside_of_the_frame_is_refused() {
        for (start, offset, len) in [(34, 16, 51), (u16::MAX, u16::MAX, 60_000), (0, 0, 1)] {
            let bad = header(1, 0, 0, 0, start, offset);
            assert_eq!(checked(&bad, len, ALL), Err(BadHeader::Checksum));
        }
        assert!(checked(&header(1, 0, 0, 0, 34, 16), 52, ALL).is_ok());
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let none = Offload::default();
        let checksum = Offload {
            checksum: true,
            ..none
        };
        let large = header(1, GSO_TCP6, 74, 1428, 54, 16);
        assert_eq!(
            checked(&header(1, 0, 0, 0, 34, 16), 60, none),
            Err(BadHeader::Checksum)
        );
        assert_eq!(
            checked(&large, 9000, checksum),
            Err(BadHeader::Segmentation)
        );
        // UDP fragmentation, explicit congestion notification, and what nobody knows.
        for gso in [3, 5, 0x81, 0x84, 2, 0xff] {
            let bad = header(1, gso, 66, 1448, 34, 16);
            assert_eq!(checked(&bad, 9000, ALL), Err(BadHeader::Segmentation));
        }
    }

    #[test]
    fn segments_without_size_or_checksum_are_refused() {
        for bad in [
            header(1, GSO_TCP4, 66, 0, 34, 16),
            header(0, GSO_TCP4, 66, 1448, 34, 16),
            header(1, GSO_TCP4, 9001, 1448, 34, 16),
        ] {
            assert_eq!(checked(&bad, 9000, ALL), Err(BadHeader::Segmentation));
        }
    }

    proptest! {
        #[test]
        fn any_header_that_passes_stays_inside_the_frame_and_what_was_agreed(
            bytes in any::<Header>(),
            len in 0_usize..70_000,
            flags in any::<(bool, bool, bool)>(),
        ) {
            let offload = Offload { checksum: flags.0, tcp4: flags.1, tcp6: flags.2 };
            if let Ok(clean) = checked(&bytes, len, offload) {
                let word = |at: usize| usize::from(u16::from_le_bytes([clean[at], clean[at + 1]]));
                prop_assert_eq!(clean[0] & !1, 0);
                prop_assert_eq!(&clean[10..], &[0, 0]);
                if clean[0] == 1 {
                    prop_assert!(offload.checksum);
                    prop_assert!(word(6) + word(8) + 2 <= len);
                }
                match clean[1] {
                    0 => prop_assert_eq!((word(2), word(4)), (0, 0)),
                    1 => prop_assert!(offload.tcp4 && word(4) > 0 && word(2) <= len),
                    4 => prop_assert!(offload.tcp6 && word(4) > 0 && word(2) <= len),
                    _ => prop_assert!(false),
                }
                // What passes, passes again as it is.
                prop_assert_eq!(checked(&clean, len, offload), Ok(clean));
            }
        }
    }
}
