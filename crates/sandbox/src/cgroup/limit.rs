//! `linux.resources` as limits of the virtual machine as a whole: pure arithmetic.

use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice};

use super::hierarchy::Version;

/// Processes and threads of a virtual machine beyond those of its container: the sandbox process, the
/// device process, the hypervisor with its threads and helpers, the stand-in.
pub const OWN_PROCESSES: u64 = 256;

/// A CPU quota is for this period unless another is given, microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What bounds the machine where the container's own limit does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Memory of the virtual machine and of its processes, bytes: what is set if the container has a
    /// limit. A machine's memory does not change with an update of the limit.
    pub memory_bytes: u64,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    /// Bytes the machine and its processes may use.
    Memory(u64),
    /// Bytes below which memory is taken from others first; negative for none.
    Reservation(i64),
    /// Relative weight, 2 to 262144.
    Shares(u64),
    /// Microseconds of a period; negative for no limit.
    Quota {
        /// Microseconds of CPU time.
        quota: i64,
        /// Microseconds.
        period: u64,
    },
    /// Microseconds that may be saved up.
    Burst(u64),
    /// 1 for a group that runs only when nothing else wants to.
    Idle(i64),
    /// List of CPUs.
    Cpus(String),
    /// List of memory nodes.
    Mems(String),
    /// Number of processes and threads; `None` for no limit.
    Processes(Option<u64>),
    /// What is read from or written to a block device.
    Throttle {
        /// What is counted.
        what: Traffic,
        /// Major and minor number.
        device: (i64, i64),
        /// Bytes or operations each second; 0 for no limit.
        rate: u64,
    },
}

/// What of a block device's traffic a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WrittenBytes,
    /// Operations that read.
    Reads,
    /// Operations that write.
    Writes,
}

/// A file of a group and what to write to it.
pub type Entry = (&'static str, String);

impl Limit {
    /// The controller that enforces it.
    #[must_use]
    pub fn controller(&self, version: Version) -> &'static str {
        match self {
            Self::Throttle { .. } if version == Version::V1 => "blkio",
            Self::Throttle { .. } => "io",
            Self::Memory(_) | Self::Reservation(_) => "memory",
            Self::Shares(_) | Self::Quota { .. } | Self::Burst(_) | Self::Idle(_) => "cpu",
            Self::Cpus(_) | Self::Mems(_) => "cpuset",
            Self::Processes(_) => "pids",
        }
    }

    /// The field of the configuration that asks for it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Memory(_) => "linux.resources.memory.limit",
            Self::Reservation(_) => "linux.resources.memory.reservation",
            Self::Shares(_) => "linux.resources.cpu.shares",
            Self::Quota { .. } => "linux.resources.cpu.quota",
            Self::Burst(_) => "linux.resources.cpu.burst",
            Self::Idle(_) => "linux.resources.cpu.idle",
            Self::Cpus(_) => "linux.resources.cpu.cpus",
            Self::Mems(_) => "linux.resources.cpu.mems",
            Self::Processes(_) => "linux.resources.pids.limit",
            Self::Throttle { what, .. } => match what {
                Traffic::ReadBytes => "linux.resources.blockIO.throttleReadBpsDevice",
                Traffic::WrittenBytes => "linux.resources.blockIO.throttleWriteBpsDevice",
                Traffic::Reads => "linux.resources.blockIO.throttleReadIOPSDevice",
                Traffic::Writes => "linux.resources.blockIO.throttleWriteIOPSDevice",
            },
        }
    }

    /// What to write, in order.
    #[must_use]
    pub fn entries(&self, version: Version) -> Vec<Entry> {
        let max = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |n| n.to_string());
        let v1 = version == Version::V1;
        match self {
            Self::Memory(bytes) if v1 => vec![("memory.limit_in_bytes", bytes.to_string())],
            Self::Memory(bytes) => vec![("memory.max", bytes.to_string())],
            Self::Reservation(bytes) if v1 => {
                vec![("memory.soft_limit_in_bytes", bytes.to_string())]
            }
            Self::Reservation(bytes) => vec![("memory.low", max(u64::try_from(*bytes).ok()))],
            Self::Shares(shares) if v1 => vec![("cpu.shares", shares.to_string())],
            Self::Shares(shares) => vec![("cpu.weight", weight(*shares).to_string())],
            Self::Quota { quota, period } if v1 => vec![
                ("cpu.cfs_period_us", period.to_string()),
                ("cpu.cfs_quota_us", (*quota).max(-1).to_string()),
            ],
            Self::Quota { quota, period } => {
                let quota = max(u64::try_from(*quota).ok());
                vec![("cpu.max", format!("{quota} {period}"))]
            }
            Self::Burst(us) if v1 => vec![("cpu.cfs_burst_us", us.to_string())],
            Self::Burst(us) => vec![("cpu.max.burst", us.to_string())],
            Self::Idle(idle) => vec![("cpu.idle", idle.to_string())],
            Self::Cpus(list) => vec![("cpuset.cpus", list.clone())],
            Self::Mems(list) => vec![("cpuset.mems", list.clone())],
            Self::Processes(limit) => vec![("pids.max", max(*limit))],
            Self::Throttle { what, device, rate } if v1 => {
                let (major, minor) = device;
                vec![(what.file(), format!("{major}:{minor} {rate}"))]
            }
            Self::Throttle { what, device, rate } => {
                let (major, minor) = device;
                let rate = max(Some(*rate).filter(|rate| *rate > 0));
                let value = format!("{major}:{minor} {}={rate}", what.key());
                vec![("io.max", value)]
            }
        }
    }
}

impl Traffic {
    /// The file of version 1.
    fn file(self) -> &'static str {
        match self {
            Self::ReadBytes => "blkio.throttle.read_bps_device",
            Self::WrittenBytes => "blkio.throttle.write_bps_device",
            Self::Reads => "blkio.throttle.read_iops_device",
            Self::Writes => "blkio.throttle.write_iops_device",
        }
    }

    /// The key of version 2.
    fn key(self) -> &'static str {
        match self {
            Self::ReadBytes => "rbps",
            Self::WrittenBytes => "wbps",
            Self::Reads => "riops",
            Self::Writes => "wiops",
        }
    }
}

/// What `resources`, as checked by `bulkhead_oci`, mean for the machine as a whole. A limit of 0 is how
/// engines say that nothing was chosen.
#[must_use]
pub fn of(resources: &LinuxResources, bounds: Bounds) -> Vec<Limit> {
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory() {
        if memory.limit().is_some_and(|limit| limit > 0) {
            limits.push(Limit::Memory(bounds.memory_bytes));
        }
        if let Some(bytes) = memory.reservation().filter(|bytes| *bytes != 0) {
            limits.push(Limit::Reservation(bytes));
        }
    }
    if let Some(cpu) = resources.cpu() {
        limits.extend(
            cpu.shares()
                .filter(|shares| *shares != 0)
                .map(Limit::Shares),
        );
        let (quota, period) = (
            cpu.quota().filter(|quota| *quota != 0),
            cpu.period().filter(|period| *period != 0),
        );
        if quota.is_some() || period.is_some() {
            limits.push(Limit::Quota {
                quota: quota.unwrap_or(-1),
                period: period.unwrap_or(DEFAULT_PERIOD_US),
            });
        }
        limits.extend(cpu.burst().map(Limit::Burst));
        limits.extend(cpu.idle().map(Limit::Idle));
        let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
        limits.extend(list(cpu.cpus()).map(Limit::Cpus));
        limits.extend(list(cpu.mems()).map(Limit::Mems));
    }
    if let Some(pids) = resources.pids().filter(|pids| pids.limit() != 0) {
        let own = |limit: u64| limit.saturating_add(OWN_PROCESSES);
        limits.push(Limit::Processes(u64::try_from(pids.limit()).ok().map(own)));
    }
    limits.extend(resources.block_io().iter().flat_map(throttles));
    limits
}

/// What a container reads and writes, the machine's processes read and write for it.
fn throttles(block_io: &LinuxBlockIo) -> Vec<Limit> {
    let all = |what, list: &Option<Vec<LinuxThrottleDevice>>| -> Vec<Limit> {
        let list = list.iter().flatten();
        list.map(|throttle| Limit::Throttle {
            what,
            device: (throttle.major(), throttle.minor()),
            rate: throttle.rate(),
        })
        .collect()
    };
    [
        all(Traffic::ReadBytes, block_io.throttle_read_bps_device()),
        all(Traffic::WrittenBytes, block_io.throttle_write_bps_device()),
        all(Traffic::Reads, block_io.throttle_read_iops_device()),
        all(Traffic::Writes, block_io.throttle_write_iops_device()),
    ]
    .concat()
}

/// Shares from 2 to 262144 to weights from 1 to 10000, as all runtimes do it.
pub(super) fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    shares.saturating_sub(2).saturating_mul(9_999) / 262_142 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        memory_bytes: 300 << 20,
    };

    fn written(resources: serde_json::Value, version: Version) -> Vec<(String, String)> {
        let resources = serde_json::from_value(resources).unwrap();
        of(&resources, BOUNDS)
            .iter()
            .flat_map(|limit| limit.entries(version))
            .map(|(file, value)| (file.to_owned(), value))
            .collect()
    }

    fn entries(list: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = list
            .iter()
            .map(|(file, value)| (file.to_string(), value.to_string()));
        owned.collect()
    }

    #[test]
    fn limits_in_the_files_of_each_version() {
        let all = serde_json::json!({
            "memory": { "limit": 1 << 20, "reservation": 5000, "swap": 2 << 20 },
            "cpu": { "shares": 1024, "quota": 20_000, "period": 50_000, "cpus": "0-1", "mems": "0" },
            "pids": { "limit": 10 },
            "blockIO": {
                "throttleReadBpsDevice": [{ "major": 8, "minor": 1, "rate": 4096 }],
                "throttleWriteIOPSDevice": [{ "major": 8, "minor": 1, "rate": 0 }],
            },
        });

        assert_eq!(
            written(all.clone(), Version::V1),
            entries(&[
                ("memory.limit_in_bytes", "314572800"),
                ("memory.soft_limit_in_bytes", "5000"),
                ("cpu.shares", "1024"),
                ("cpu.cfs_period_us", "50000"),
                ("cpu.cfs_quota_us", "20000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "266"),
                ("blkio.throttle.read_bps_device", "8:1 4096"),
                ("blkio.throttle.write_iops_device", "8:1 0"),
            ])
        );
        assert_eq!(
            written(all, Version::V2),
            entries(&[
                ("memory.max", "314572800"),
                ("memory.low", "5000"),
                ("cpu.weight", "39"),
                ("cpu.max", "20000 50000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "266"),
                ("io.max", "8:1 rbps=4096"),
                ("io.max", "8:1 wiops=max"),
            ])
        );
    }

    #[test]
    fn no_limit_is_written_as_such_and_nothing_chosen_not_at_all() {
        let none = serde_json::json!({
            "memory": { "limit": -1 }, "cpu": { "quota": -1 }, "pids": { "limit": -1 },
        });
        assert_eq!(
            written(none.clone(), Version::V1),
            entries(&[
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "-1"),
                ("pids.max", "max"),
            ])
        );
        assert_eq!(
            written(none, Version::V2),
            entries(&[("cpu.max", "max 100000"), ("pids.max", "max")])
        );
        let zero = serde_json::json!({
            "memory": { "limit": 0, "reservation": 0 },
            "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "" }, "pids": { "limit": 0 },
        });
        assert_eq!(written(zero, Version::V1), []);
    }

    #[test]
    fn shares_become_weights_over_their_whole_range() {
        for (shares, expected) in [
            (1, 1),
            (2, 1),
            (1024, 39),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }
}
