//! Control groups that systemd makes: a scope for each container, asked for over the system bus, as runc
//! does with `--systemd-cgroup`.
//!
//! systemd gets the limits, too, so that what it writes to the group when it reloads is what we wrote.

mod bus;
mod wire;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use bus::BusError;

use super::error::CgroupError;
use super::hierarchy::Version;
use super::limit::{Limit, weight};
use bus::Bus;
use wire::{Call, Message, SIGNAL, Value, Writer};

/// Exists where systemd is process 1 (sd_booted(3)).
const RUNNING: &str = "/run/systemd/system";

/// Where scopes go that name no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// A name systemd takes has fewer bytes.
const MAX_NAME: usize = 256;

/// systemd writes quotas in steps of this, microseconds for each second.
const QUOTA_STEP: u64 = 10_000;

/// No limit.
const INFINITY: u64 = u64::MAX;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Its name, as in `libpod-abc.scope`.
    pub name: String,
    /// The slice it is in.
    pub slice: String,
}

impl Scope {
    /// The scope that `linux.cgroupsPath` names as `slice:prefix:name`; without one a scope of our own
    /// for the container `id`.
    ///
    /// # Errors
    /// [`CgroupError::NotSystemd`] for a path in another form, [`CgroupError::NoSystemd`] where systemd
    /// does not run.
    pub fn find(path: &Path, id: &str) -> Result<Self, CgroupError> {
        let text = path.to_string_lossy();
        let scope = Self::parse(&text, id).ok_or_else(|| CgroupError::NotSystemd(text.into()))?;
        if Path::new(RUNNING).is_dir() {
            Ok(scope)
        } else {
            Err(CgroupError::NoSystemd)
        }
    }

    fn parse(text: &str, id: &str) -> Option<Self> {
        let parts: Vec<&str> = match text {
            "" => vec!["", "bulkhead", id],
            text => text.split(':').collect(),
        };
        let [slice, prefix, name] = parts[..] else {
            return None;
        };
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let good = |name: &str| {
            let character = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-\\@".contains(&byte);
            name.len() < MAX_NAME && name.bytes().all(character)
        };
        // A slice (libcontainer would take it for the container) has no processes of its own.
        let is_one = !name.is_empty() && !name.ends_with(".slice");
        directory(slice)?;
        (is_one && good(&unit) && good(slice)).then(|| Self {
            name: unit,
            slice: slice.to_owned(),
        })
    }

    /// The group's path below the root of each hierarchy.
    #[must_use]
    pub fn group(&self) -> PathBuf {
        directory(&self.slice).unwrap_or_default().join(&self.name)
    }

    /// Makes the scope with a process in it. Blocks until systemd has done so.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub fn start(&self, pid: u32, limits: &[Limit], version: Version) -> Result<(), CgroupError> {
        let wrong = |source| self.wrong("make", source);
        let mut bus = Bus::connect().map_err(wrong)?;
        let properties = || {
            let text = |text: &str| Value::Text(text.to_owned());
            let mut list = vec![
                (
                    "Description",
                    text("Container in a virtual machine (Bulkhead)"),
                ),
                ("Slice", text(&self.slice)),
                ("PIDs", Value::Numbers(vec![pid])),
                ("Delegate", Value::Bool(true)),
                ("DefaultDependencies", Value::Bool(false)),
                ("CollectMode", text("inactive-or-failed")),
                ("MemoryAccounting", Value::Bool(true)),
                ("CPUAccounting", Value::Bool(true)),
                ("TasksAccounting", Value::Bool(true)),
            ];
            list.extend(limits.iter().flat_map(|limit| property(limit, version)));
            list
        };
        let ask = |bus: &mut Bus| {
            job(bus, &self.name, |bus| {
                let mut body = Writer::default();
                body.text(&self.name);
                body.text("fail");
                body.properties(&properties());
                // No auxiliary units.
                body.array(8, |_| {});
                manager(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
            })
        };
        match ask(&mut bus) {
            // What failed before keeps its name until it is told to be forgotten.
            Err(BusError::Refused { name, .. }) if name.ends_with(".UnitExists") => {
                forget(&mut bus, &self.name);
                ask(&mut bus)
            }
            done => done,
        }
        .map_err(wrong)
    }

    /// Tells systemd of changed limits, until the next boot.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub fn set(&self, limits: &[Limit], version: Version) -> Result<(), CgroupError> {
        let properties: Vec<_> = limits.iter().flat_map(|l| property(l, version)).collect();
        if properties.is_empty() {
            return Ok(());
        }
        let set = || {
            let mut body = Writer::default();
            body.text(&self.name);
            // Of this boot only.
            body.bool(true);
            body.properties(&properties);
            manager(&mut Bus::connect()?, "SetUnitProperties", "sba(sv)", body)
        };
        set()
            .map(drop)
            .map_err(|source| self.wrong("change", source))
    }

    /// Ends the scope, if it has not ended with its last process. Blocks until systemd has done so.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub fn stop(&self) -> Result<(), CgroupError> {
        let stop = || {
            let mut bus = Bus::connect()?;
            let stopped = job(&mut bus, &self.name, |bus| {
                let mut body = Writer::default();
                body.text(&self.name);
                body.text("replace");
                manager(bus, "StopUnit", "ss", body)
            });
            forget(&mut bus, &self.name);
            match stopped {
                Err(BusError::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
                stopped => stopped,
            }
        };
        stop().map_err(|source| self.wrong("remove", source))
    }

    fn wrong(&self, what: &'static str, source: BusError) -> CgroupError {
        CgroupError::Systemd {
            what,
            unit: self.name.clone(),
            source,
        }
    }
}

/// The directory of a slice: `a-b.slice` is in `a.slice`. `None` for what is no slice's name.
fn directory(slice: &str) -> Option<PathBuf> {
    let mut dir = PathBuf::from("/");
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(dir);
    }
    let mut above = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        above.push_str(part);
        dir.push(format!("{above}.slice"));
        above.push('-');
    }
    Some(dir)
}

/// A limit as a property; `None` for what systemd has no name for. The control files have those, too.
fn property(limit: &Limit, version: Version) -> Vec<(&'static str, Value)> {
    let v1 = version == Version::V1;
    let one = |name, value| vec![(name, Value::U64(value))];
    match limit {
        Limit::Memory(bytes) if v1 => one("MemoryLimit", *bytes),
        Limit::Memory(bytes) => one("MemoryMax", *bytes),
        Limit::Reservation(bytes) if !v1 => {
            one("MemoryLow", u64::try_from(*bytes).unwrap_or(INFINITY))
        }
        Limit::Shares(shares) if v1 => one("CPUShares", *shares),
        Limit::Shares(shares) => one("CPUWeight", weight(*shares)),
        Limit::Quota { quota, period } => vec![
            ("CPUQuotaPeriodUSec", Value::U64(*period)),
            (
                "CPUQuotaPerSecUSec",
                Value::U64(
                    u64::try_from(*quota).map_or(INFINITY, |quota| per_second(quota, *period)),
                ),
            ),
        ],
        Limit::Processes(limit) => one("TasksMax", limit.unwrap_or(INFINITY)),
        Limit::Cpus(list) if !v1 => bits("AllowedCPUs", list),
        Limit::Mems(list) if !v1 => bits("AllowedMemoryNodes", list),
        Limit::Reservation(_)
        | Limit::Burst(_)
        | Limit::Idle(_)
        | Limit::Cpus(_)
        | Limit::Mems(_)
        // It knows devices by their paths only.
        | Limit::Throttle { .. } => Vec::new(),
    }
}

/// A quota of a period as one of a second, in systemd's steps, not below what was asked for.
fn per_second(quota: u64, period: u64) -> u64 {
    let second = quota.saturating_mul(1_000_000).checked_div(period);
    second.unwrap_or(0).next_multiple_of(QUOTA_STEP)
}

/// A list such as `0-3,8` as a mask of bits, the lowest first.
fn bits(name: &'static str, list: &str) -> Vec<(&'static str, Value)> {
    /// More CPUs than Linux takes.
    const MAX: usize = 1 << 14;
    let mut mask: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            // The kernel says what is wrong with it.
            return Vec::new();
        };
        for number in first..=last.min(MAX) {
            let at = number / 8;
            if mask.len() <= at {
                mask.resize(at + 1, 0);
            }
            if let Some(byte) = mask.get_mut(at) {
                *byte |= 1 << (number % 8);
            }
        }
    }
    vec![(name, Value::Bytes(mask))]
}

/// Asks for a job and waits until it is done.
fn job(
    bus: &mut Bus,
    unit: &str,
    ask: impl FnOnce(&mut Bus) -> Result<Message, BusError>,
) -> Result<(), BusError> {
    bus.listen(&format!(
        "type='signal',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
    ))?;
    manager(bus, "Subscribe", "", Writer::default())?;
    let job = ask(bus)?.body().text()?;
    loop {
        let signal = bus.signal()?;
        if signal.kind != SIGNAL || signal.member != "JobRemoved" {
            continue;
        }
        let mut body = signal.body();
        body.u32()?;
        if body.text()? != job {
            continue;
        }
        body.text()?;
        let result = body.text()?;
        if result == "done" {
            return Ok(());
        }
        return Err(BusError::Refused {
            name: "the job ended".to_owned(),
            text: result,
        });
    }
}

/// Lets systemd forget a unit that failed. There is none, as a rule.
fn forget(bus: &mut Bus, unit: &str) {
    let mut body = Writer::default();
    body.text(unit);
    if let Err(error) = manager(bus, "ResetFailedUnit", "s", body) {
        tracing::debug!("{unit} is not reset: {error}");
    }
}

fn manager(
    bus: &mut Bus,
    member: &str,
    signature: &str,
    body: Writer,
) -> Result<Message, BusError> {
    bus.call(&Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: MANAGER,
        member,
        signature,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> Option<String> {
        let scope = Scope::parse(text, "c1")?;
        Some(scope.group().display().to_string())
    }

    #[test]
    fn path_names_slice_and_scope() {
        for (text, expected) in [
            (
                "machine.slice:libpod:abc",
                "/machine.slice/libpod-abc.scope",
            ),
            (
                "a-b-c.slice:docker:x",
                "/a.slice/a-b.slice/a-b-c.slice/docker-x.scope",
            ),
            (":docker:x", "/system.slice/docker-x.scope"),
            ("-.slice::x", "/x.scope"),
            ("", "/system.slice/bulkhead-c1.scope"),
        ] {
            assert_eq!(group(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn path_in_another_form_refused() {
        for text in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a.slice:b:",
            "a.slice:b:c/../d",
            "../a.slice:b:c",
            "a--b.slice:b:c",
            "a.slice:b:c.slice",
            "a.slice:b:c'd",
        ] {
            assert_eq!(group(text), None, "{text}");
        }
    }

    #[test]
    fn limits_are_properties_of_each_version() {
        let quota = Limit::Quota {
            quota: 33_333,
            period: 100_000,
        };
        let limits = [
            Limit::Memory(5),
            Limit::Shares(1024),
            quota,
            Limit::Processes(None),
            Limit::Cpus("0-1,9".to_owned()),
        ];
        let of = |version| -> Vec<_> { limits.iter().flat_map(|l| property(l, version)).collect() };

        let quota = [
            ("CPUQuotaPeriodUSec", Value::U64(100_000)),
            ("CPUQuotaPerSecUSec", Value::U64(340_000)),
            ("TasksMax", Value::U64(INFINITY)),
        ];
        let first = [
            ("MemoryLimit", Value::U64(5)),
            ("CPUShares", Value::U64(1024)),
        ];
        assert_eq!(of(Version::V1), [&first[..], &quota].concat());
        let first = [("MemoryMax", Value::U64(5)), ("CPUWeight", Value::U64(39))];
        let last = [("AllowedCPUs", Value::Bytes(vec![3, 2]))];
        assert_eq!(of(Version::V2), [&first[..], &quota, &last].concat());
    }

    #[test]
    fn quota_without_limit_is_infinite() {
        let none = Limit::Quota {
            quota: -1,
            period: 100_000,
        };
        assert!(
            property(&none, Version::V2).contains(&("CPUQuotaPerSecUSec", Value::U64(INFINITY)))
        );
    }
}
