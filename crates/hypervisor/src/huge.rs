//! Memory of the host's huge pages.

use std::fs;
use std::path::Path;

use crate::{Driver, HypervisorError};

/// What the host tells of its huge pages of 2 MiB.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const PAGE_MIB: u64 = 2;

/// Refuses what the driver or the host cannot give; returns the memory in MiB.
///
/// Others may take the pages in between: whoever makes the memory takes all of them or fails.
pub(crate) fn check(driver: &dyn Driver, asked_mib: u64) -> Result<u64, HypervisorError> {
    if !driver.has_huge_pages() {
        return Err(HypervisorError::NoHugePages {
            driver: driver.kind(),
        });
    }
    let wanted = asked_mib / PAGE_MIB;
    let free = free(Path::new(POOL));
    if wanted > free {
        return Err(HypervisorError::HugePages { wanted, free });
    }
    Ok(wanted * PAGE_MIB)
}

/// How many pages nobody has, and nobody has been promised; 0 where the kernel has none of that size.
fn free(pool: &Path) -> u64 {
    let number = |name| {
        let text = fs::read_to_string(pool.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // What may be had beyond the pool is had at once or not at all.
    let beyond = number("nr_overcommit_hugepages").unwrap_or(0);
    let beyond = beyond.saturating_sub(number("surplus_hugepages").unwrap_or(0));
    let free = number("free_hugepages").unwrap_or(0);
    free.saturating_sub(number("resv_hugepages").unwrap_or(0))
        .saturating_add(beyond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_are_those_that_nobody_was_promised() {
        let pool = tempfile::tempdir().unwrap();
        assert_eq!(free(pool.path()), 0);
        let put = |name, text| fs::write(pool.path().join(name), text).unwrap();
        put("free_hugepages", "10\n");
        put("resv_hugepages", "4\n");
        assert_eq!(free(pool.path()), 6);
        put("nr_overcommit_hugepages", "5\n");
        put("surplus_hugepages", "2\n");
        assert_eq!(free(pool.path()), 9);
    }
}
