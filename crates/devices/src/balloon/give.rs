//! What the guest names, checked, and given back to the host.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;
use virtio_queue::DescriptorChain;
use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestMemoryRegion, GuestUsize};

use crate::guest::Segments;
use crate::session::Memory;

/// What the guest counts in, bytes, whatever its pages are.
pub(super) const PAGE: u64 = 4096;

/// The most pages one request may list; drivers list 256.
const MOST_PAGES: usize = 1024;

/// What came of a request.
#[derive(Debug)]
pub(super) enum Given {
    /// All that was named went back to the host.
    All,
    /// Not all of it.
    Less(Failed),
}

/// Why memory the guest named was not given back.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The guest does not have it.
    #[error("A request of the guest names memory that it does not have")]
    NotThere,
    /// It is no whole pages.
    #[error("A request of the guest names memory that is no whole pages")]
    Uneven,
    /// More than one request may name.
    #[error("A request of the guest names too many pages")]
    TooMany,
    /// The memory is no file of the host's.
    #[error("The guest's memory is not shared, and so cannot be given back")]
    NotShared,
    /// The host refuses.
    #[error("Cannot give memory back to the host: {0}")]
    Host(#[source] io::Error),
}

fn sum(results: impl Iterator<Item = Result<(), Failed>>) -> Given {
    // What can be given is given: one mistake of the guest costs it nothing else.
    let mut given = Given::All;
    for result in results {
        if let Err(error) = result {
            given = Given::Less(error);
        }
    }
    given
}

/// Gives back what a report names: each descriptor is a piece of free memory. Its contents are gone
/// then, whatever the guest said of it; nobody else's are.
pub(super) fn reported(memory: &Memory, chain: DescriptorChain<&Memory>) -> Given {
    let pieces = chain.writable();
    sum(pieces.map(|piece| give(memory, piece.addr().0, u64::from(piece.len()))))
}

/// Gives back the pages whose numbers a request lists.
pub(super) fn listed(memory: &Memory, chain: DescriptorChain<&Memory>) -> Given {
    let Ok(list) = Segments::readable(chain, memory) else {
        return Given::Less(Failed::NotThere);
    };
    let mut bytes = vec![0; list.len().min(MOST_PAGES * 4)];
    list.copy_to(&mut bytes);
    let mut numbers: Vec<u64> = bytes
        .chunks_exact(4)
        .filter_map(|bytes| Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?))))
        .collect();
    numbers.sort_unstable();
    let given = sum(runs(&numbers).map(|(first, count)| {
        give(
            memory,
            first.saturating_mul(PAGE),
            count.saturating_mul(PAGE),
        )
    }));
    if list.len() > bytes.len() {
        return Given::Less(Failed::TooMany);
    }
    given
}

/// Neighbouring numbers of a sorted list as one: the first, and how many.
pub(super) fn runs(numbers: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    numbers
        .chunk_by(|one, next| one == next || one.checked_add(1) == Some(*next))
        .filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            Some((*first, last.checked_sub(*first)?.checked_add(1)?))
        })
}

/// Gives `length` bytes at `address` back to the host; they read as zero afterwards.
fn give(memory: &Memory, address: u64, length: u64) -> Result<(), Failed> {
    if !address.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
        return Err(Failed::Uneven);
    }
    if length == 0 {
        return Ok(());
    }
    let last = address.checked_add(length - 1).ok_or(Failed::NotThere)?;
    let region = memory
        .find_region(GuestAddress(address))
        .ok_or(Failed::NotThere)?;
    // A piece that reaches into the next region is none that a kernel has as one.
    if last > region.last_addr().0 {
        return Err(Failed::NotThere);
    }
    let offset: GuestUsize = address
        .checked_sub(region.start_addr().0)
        .ok_or(Failed::NotThere)?;
    let file: &FileOffset = region.file_offset().ok_or(Failed::NotShared)?;
    let start = file.start().checked_add(offset).ok_or(Failed::NotThere)?;
    // The file keeps its size, which is sealed: no access of anybody can fault.
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file.file().as_fd(), hole, start, length)
        .map_err(|errno| Failed::Host(errno.into()))
}
