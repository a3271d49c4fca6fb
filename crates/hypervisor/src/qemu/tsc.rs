//! The rate of the host's time stamp counter.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// The rate in kHz, exactly as the host's kernel uses it, otherwise measured (20 ms).
pub(super) fn khz() -> Option<u64> {
    known().or_else(measured)
}

/// Parts of `struct perf_event_attr`, in its first published size.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    rest: [u64; 6],
}

/// The beginning of `struct perf_event_mmap_page`.
#[repr(C)]
struct MappedPage {
    version: u32,
    compat_version: u32,
    lock: u32,
    index: u32,
    offset: i64,
    time_enabled: u64,
    time_running: u64,
    capabilities: u64,
    pmc_width: u16,
    time_shift: u16,
    time_mult: u32,
}

/// The kernel tells user space how to turn counts into time, on the first page of a mapped
/// performance event, even of one that counts nothing.
fn known() -> Option<u64> {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const PERF_COUNT_SW_DUMMY: u64 = 9;
    const CAP_USER_TIME: u64 = 1 << 3;
    const PAGE: usize = 4096;
    let attributes = Attributes {
        kind: PERF_TYPE_SOFTWARE,
        size: u32::try_from(size_of::<Attributes>()).ok()?,
        config: PERF_COUNT_SW_DUMMY,
        rest: [0; 6],
    };
    // SAFETY: reads `attributes` for the size it tells; the rest are integers: this thread, any
    // processor, no group, close-on-exec.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            0,
            -1,
            -1,
            1 << 3,
        )
    };
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).ok().filter(|fd| *fd >= 0)?) };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page is mapped, aligned, and larger than the structure; it may change, so it is
    // read once, volatile.
    let read = unsafe { page.cast::<MappedPage>().read_volatile() };
    // SAFETY: the mapping just made.
    unsafe { libc::munmap(page, PAGE) };
    if read.capabilities & CAP_USER_TIME == 0 || read.time_mult == 0 {
        return None;
    }
    // nanoseconds = count * mult >> shift
    let khz = (1_000_000u128 << read.time_shift.min(64)) / u128::from(read.time_mult);
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// Counts over a span of the monotonic clock.
#[cfg(target_arch = "x86_64")]
fn measured() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction.
    let count = || unsafe { std::arch::x86_64::_rdtsc() };
    let (began, first) = (Instant::now(), count());
    std::thread::sleep(Duration::from_millis(20));
    let (counted, elapsed) = (count().checked_sub(first)?, began.elapsed());
    let khz = u128::from(counted).checked_mul(1_000_000)? / elapsed.as_nanos();
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

#[cfg(not(target_arch = "x86_64"))]
fn measured() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn rate_told_by_the_kernel_is_the_measured_one() {
        let (known, measured) = (known().unwrap(), measured().unwrap());
        assert!(known.abs_diff(measured) < known / 100, "{known} {measured}");
    }
}
