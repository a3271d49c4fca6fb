//! The guest's memory: one memfd, which the device process maps as well.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::mmap::GuestRegionMmap;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion,
    ReadVolatile,
};

use crate::VmmError;
use crate::arch::layout;

/// Size of a huge page, bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

/// The mappings of this process.
type Mappings = GuestMemoryMmap<()>;

/// The memory of one machine.
#[derive(Debug)]
pub struct Memory {
    file: File,
    mappings: Mappings,
}

impl Memory {
    /// Makes `bytes` of memory, a whole number of MiB; nothing of it is taken from the host until it
    /// is touched.
    ///
    /// # Errors
    /// [`VmmError::Memory`] when the host refuses.
    pub fn new(bytes: u64) -> Result<Self, VmmError> {
        Self::with(MemfdFlags::empty(), bytes)
    }

    /// Makes `bytes` of memory, a whole number of [`HUGE_PAGE`]s, of the host's huge pages. All of them
    /// are the machine's from now on, touched or not: it cannot run out of them later.
    ///
    /// # Errors
    /// [`VmmError::HugePages`] when the host has not as many; [`VmmError::Memory`].
    pub fn huge(bytes: u64) -> Result<Self, VmmError> {
        let memory = Self::with(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, bytes)?;
        let few = |source: rustix::io::Errno| VmmError::HugePages {
            pages: bytes / HUGE_PAGE,
            source: source.into(),
        };
        let length = usize::try_from(bytes).map_err(|_| few(rustix::io::Errno::NOMEM))?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // The mappings of the memory reserve nothing. This one does, for the file, and need not stay.
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists; the
        // second call removes exactly that, before anybody has learnt its address.
        unsafe {
            let whole = mmap(ptr::null_mut(), length, protection, flags, &memory.file, 0);
            munmap(whole.map_err(few)?, length)
        }
        .map_err(few)?;
        Ok(memory)
    }

    fn with(pages: MemfdFlags, bytes: u64) -> Result<Self, VmmError> {
        let failed = |step| move |source: std::io::Error| VmmError::Memory { step, source };
        let fd = rustix::fs::memfd_create(
            c"guest-memory",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages,
        )
        .map_err(|e| failed("make")(e.into()))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(|e| failed("size")(e.into()))?;
        // Whoever else maps it must not be able to make an access of ours fault.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|e| failed("seal")(e.into()))?;
        let file = File::from(fd);
        let mut ranges = Vec::new();
        let mut offset = 0;
        for (start, size) in layout::ram(bytes) {
            let part = file.try_clone().map_err(failed("share"))?;
            let size_here =
                usize::try_from(size).map_err(|e| failed("map")(std::io::Error::other(e)))?;
            ranges.push((
                GuestAddress(start),
                size_here,
                Some(FileOffset::new(part, offset)),
            ));
            offset = offset.saturating_add(size);
        }
        let mappings = Mappings::from_ranges_with_files(ranges)
            .map_err(|e| failed("map")(std::io::Error::other(e)))?;
        Ok(Self { file, mappings })
    }

    /// Start and size of each part, in the order of addresses.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.mappings
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
    }

    /// All of it, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ranges().map(|(_, size)| size).sum()
    }

    /// Whether `length` bytes at `address` lie in one part of the memory.
    #[must_use]
    pub fn holds(&self, address: u64, length: u64) -> bool {
        let Some(end) = address.checked_add(length) else {
            return false;
        };
        self.ranges()
            .any(|(start, size)| address >= start && end <= start.saturating_add(size))
    }

    /// Copies `bytes` to `address`.
    ///
    /// # Errors
    /// [`VmmError::TooSmall`] when there is no memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), VmmError> {
        self.mappings
            .write_slice(bytes, GuestAddress(address))
            .map_err(|_| VmmError::TooSmall {
                what: "what the kernel is started with",
                address,
            })
    }

    /// Copies `length` bytes from `source` to `address`.
    ///
    /// # Errors
    /// [`VmmError::TooSmall`] when there is no memory for `what`, or `source` ends before.
    pub fn load(
        &self,
        what: &'static str,
        address: u64,
        source: &mut impl ReadVolatile,
        length: usize,
    ) -> Result<(), VmmError> {
        self.mappings
            .read_exact_volatile_from(GuestAddress(address), source, length)
            .map_err(|_| VmmError::TooSmall { what, address })
    }

    /// Copies `length` bytes at `address`, for tests.
    ///
    /// # Errors
    /// [`VmmError::TooSmall`] when there is no memory.
    #[cfg(test)]
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), VmmError> {
        self.mappings
            .read_slice(bytes, GuestAddress(address))
            .map_err(|_| VmmError::TooSmall {
                what: "what was to be read",
                address,
            })
    }

    /// Puts the memory into a machine, which must not outlive it.
    ///
    /// # Errors
    /// [`VmmError::Kvm`].
    pub(crate) fn give_to(&self, vm: &VmFd) -> Result<(), VmmError> {
        for (slot, region) in (0..).zip(self.mappings.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
            };
            // SAFETY: the region is mapped, for as long as `self` lives, and the caller keeps `self`
            // longer than the machine. Other mappings of the file are somebody else's processes'.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(VmmError::kvm("give the guest its memory"))?;
        }
        Ok(())
    }

    /// What a vhost-user back end is told of the memory. Addresses of the guest stand in for those of
    /// this process, which are no concern of the back end's.
    pub(crate) fn table(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let regions = self.mappings.iter();
        regions
            .map(|region: &GuestRegionMmap<()>| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.start_addr().0,
                mmap_offset: region.file_offset().map_or(0, FileOffset::start),
                mmap_handle: self.file.as_raw_fd(),
            })
            .collect()
    }

    /// How many pages the host has given the guest so far, of 4096 bytes.
    #[must_use]
    pub fn touched_pages(&self) -> u64 {
        // In units of 512 bytes.
        let blocks = rustix::fs::fstat(&self.file).map_or(0, |stat| stat.st_blocks);
        u64::try_from(blocks).unwrap_or(0) / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_untouched_takes_no_pages() {
        let memory = Memory::new(64 * MIB).unwrap();
        assert_eq!(memory.touched_pages(), 0);
        memory.write(5 * MIB, b"x").unwrap();
        // A page, or a huge one.
        assert!((1..=512).contains(&memory.touched_pages()));
    }

    #[test]
    fn huge_pages_that_the_host_has_not_are_told_with_their_number() {
        // More than any host has: the sizes of files end before those of processes do.
        let error = Memory::huge(1 << 46).unwrap_err();
        assert!(
            matches!(
                error,
                VmmError::HugePages {
                    pages: 0x0200_0000,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
    }

    #[test]
    fn memory_beyond_the_hole_continues_above_four_gib() {
        let memory = Memory::new(4096 * MIB).unwrap();
        assert!(memory.holds(0, 1));
        assert!(!memory.holds(layout::MMIO, 1));
        assert!(memory.holds(4096 * MIB, 1));
        let total: u64 = memory.ranges().map(|(_, size)| size).sum();
        assert_eq!(total, 4096 * MIB);
    }

    #[test]
    fn range_across_the_end_is_not_held() {
        let memory = Memory::new(64 * MIB).unwrap();
        assert!(memory.holds(64 * MIB - 16, 16));
        assert!(!memory.holds(64 * MIB - 16, 17));
        assert!(!memory.holds(u64::MAX - 1, 16));
    }

    #[test]
    fn write_outside_is_an_error() {
        let memory = Memory::new(64 * MIB).unwrap();
        assert!(memory.write(64 * MIB, b"x").is_err());
    }
}
