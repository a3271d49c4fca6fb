//! The group of one container on the host.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::CgroupError;
use super::hierarchy::{Hierarchies, Hierarchy, Version};
use super::limit::Limit;
use super::record::{self, Record};
use super::systemd::Scope;

/// Controllers of version 2 that are handed down to the group: those engines read and limits need.
const HANDED_DOWN: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// How often a group that is to be left is looked at for processes that came meanwhile.
const HAND_OVER_ROUNDS: usize = 8;

/// Where a group is going to be. Nothing of it has been made.
#[derive(Debug, Clone)]
pub struct Place {
    members: Vec<Member>,
    scope: Option<Scope>,
}

/// A group that was made.
#[derive(Debug)]
pub struct Group {
    members: Vec<Member>,
    scope: Option<Scope>,
    record: Record,
}

/// The group in one hierarchy.
#[derive(Debug, Clone)]
struct Member {
    hierarchy: Hierarchy,
    dir: PathBuf,
}

impl Place {
    /// Finds the directories that `linux.cgroupsPath` names on this host.
    ///
    /// # Errors
    /// See [`Hierarchies::groups`].
    pub fn find(path: &Path) -> Result<Self, CgroupError> {
        Self::within(Hierarchies::discover()?, path)
    }

    /// The same for `--systemd-cgroup`: the directories are those of a scope.
    ///
    /// # Errors
    /// See [`Scope::find`] and [`Hierarchies::groups`].
    pub fn of_scope(path: &Path, id: &str) -> Result<Self, CgroupError> {
        let scope = Scope::find(path, id)?;
        let place = Self::find(&scope.group())?;
        Ok(Self {
            scope: Some(scope),
            ..place
        })
    }

    fn within(hierarchies: Hierarchies, path: &Path) -> Result<Self, CgroupError> {
        let dirs = hierarchies.groups(path)?;
        let members = hierarchies.0.into_iter().zip(dirs);
        let members = members.map(|(hierarchy, dir)| Member { hierarchy, dir });
        Ok(Self {
            members: members.collect(),
            scope: None,
        })
    }

    /// What the journal has to hold before the group is made.
    #[must_use]
    pub fn record(&self) -> Record {
        let dirs = self.members.iter();
        let dirs = dirs.map(|member| (member.hierarchy.mount.clone(), member.dir.clone()));
        let record = Record::of(&dirs.collect::<Vec<_>>());
        match &self.scope {
            Some(scope) => record.with_scope(scope),
            None => record,
        }
    }

    /// Makes the group. `record` is what was noted of it. systemd makes no scope without a process, and
    /// wants to know of its limits: `pid` is in the group then, but they are still to be [set](Group::set).
    /// Blocks while systemd does so, some milliseconds.
    ///
    /// # Errors
    /// When a directory cannot be made; those made until then are removed. When systemd refuses.
    pub fn make(self, record: Record, pid: u32, limits: &[Limit]) -> Result<Group, CgroupError> {
        if let Some(scope) = &self.scope {
            scope.start(pid, limits, version(&self.members))?;
        }
        for member in &self.members {
            if let Err(source) = member.make() {
                record.remove();
                return Err(CgroupError::Make {
                    path: member.dir.clone(),
                    source,
                });
            }
        }
        Ok(Group {
            members: self.members,
            scope: self.scope,
            record,
        })
    }
}

impl Group {
    /// Sets limits, all or none of those that lack a controller.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] before anything was written, [`CgroupError::Set`] for what the
    /// kernel does not take.
    pub fn set(&self, limits: &[Limit]) -> Result<(), CgroupError> {
        let mut writes = Vec::new();
        for limit in limits {
            let member = self.member_for(limit)?;
            let entries = limit.entries(member.hierarchy.version);
            writes.push((limit.field(), &member.dir, entries));
        }
        for (field, dir, mut entries) in writes {
            // A new quota may fit with the new period only, or the period with the new quota only.
            if write_all(dir, &entries).is_err() {
                entries.reverse();
                write_all(dir, &entries).map_err(|(path, value, source)| CgroupError::Set {
                    field,
                    value,
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Changes limits, also in what systemd knows of them. All or none, as [`Self::set`].
    ///
    /// # Errors
    /// See [`Self::set`] and [`Scope::set`].
    pub fn change(&self, limits: &[Limit]) -> Result<(), CgroupError> {
        self.set(limits)?;
        match &self.scope {
            Some(scope) => scope.set(limits, version(&self.members)),
            None => Ok(()),
        }
    }

    fn member_for(&self, limit: &Limit) -> Result<&Member, CgroupError> {
        let missing = CgroupError::NoController {
            field: limit.field(),
            controller: limit.controller(version(&self.members)),
        };
        let member = self.members.iter().find(|member| {
            let hierarchy = &member.hierarchy;
            hierarchy.has(limit.controller(hierarchy.version))
        });
        let there = |member: &&Member| {
            let entries = limit.entries(member.hierarchy.version);
            let mut files = entries.iter().map(|(file, _)| member.dir.join(file));
            files.all(|file| file.exists())
        };
        member.filter(there).ok_or(missing)
    }

    /// Moves a process of the host into the group.
    ///
    /// # Errors
    /// When there is no such process, or the kernel refuses.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        for member in &self.members {
            move_to(&member.dir, pid).map_err(|source| CgroupError::Join {
                pid,
                path: member.dir.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Moves this process into the group; what it starts from then on is born there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), CgroupError> {
        // 0 names whoever writes it.
        self.add(0)
    }

    /// Moves this process back to where it came from, and with it `others`, as far as they still run.
    pub fn leave(&self, others: &[u32]) {
        for member in &self.members {
            for pid in others {
                // It may have ended, which is as good.
                let _ = member.send_home(*pid);
            }
            if let Err(error) = member.send_home(0) {
                let dir = member.dir.display();
                tracing::warn!("Failed to leave the control group {dir}: {error}");
            }
        }
    }

    /// Moves a process back to where this one came from.
    pub fn let_go(&self, pid: u32) {
        for member in &self.members {
            // It may have ended, which is as good.
            let _ = member.send_home(pid);
        }
    }

    /// Moves every process out: into `heir`, or to where this process came from.
    pub fn hand_over(&self, heir: Option<&Self>) {
        for (number, member) in self.members.iter().enumerate() {
            let heir = heir.and_then(|heir| heir.members.get(number));
            // Those that are moved may fork in between.
            for _ in 0..HAND_OVER_ROUNDS {
                let list = fs::read_to_string(member.dir.join("cgroup.procs")).unwrap_or_default();
                if list.is_empty() {
                    break;
                }
                for pid in list.lines().filter_map(|line| line.parse().ok()) {
                    let moved = heir.is_some_and(|heir| move_to(&heir.dir, pid).is_ok());
                    if !moved {
                        // It may have ended, which is as good.
                        let _ = member.send_home(pid);
                    }
                }
            }
        }
    }

    /// Whether a process is in the group, in any hierarchy.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        let pid = pid.to_string();
        self.members.iter().any(|member| {
            let list = fs::read_to_string(member.dir.join("cgroup.procs"));
            list.unwrap_or_default().lines().any(|line| line == pid)
        })
    }

    /// Removes the group. Its processes must have ended or left.
    pub fn remove(self) {
        self.record.remove();
    }

    /// For a process that is to start where this one came from: open files each of which takes the
    /// number 0 for whoever writes it.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn way_out(&self) -> io::Result<Vec<fs::File>> {
        let open = |member: &Member| {
            let file = member.hierarchy.own.join("cgroup.procs");
            fs::OpenOptions::new().write(true).open(file)
        };
        self.members.iter().map(open).collect()
    }
}

impl Member {
    /// Moves a process to where this one came from, or to the hierarchy's root if that is gone.
    fn send_home(&self, pid: u32) -> io::Result<()> {
        move_to(&self.hierarchy.own, pid).or_else(|_| move_to(&self.hierarchy.mount, pid))
    }

    fn make(&self) -> io::Result<()> {
        let mount = &self.hierarchy.mount;
        match self.hierarchy.version {
            Version::V1 if self.hierarchy.has("cpuset") => {
                record::make(mount, &self.dir, inherit_cpuset)
            }
            Version::V1 => record::make(mount, &self.dir, |_| Ok(())),
            Version::V2 => record::make(mount, &self.dir, |dir| {
                hand_down(dir);
                Ok(())
            }),
        }
    }
}

/// The kind of the hierarchy that limits are set in.
fn version(members: &[Member]) -> Version {
    let mut hierarchies = members.iter().map(|member| &member.hierarchy);
    hierarchies
        .find(|hierarchy| hierarchy.has("memory"))
        .map_or(Version::V2, |hierarchy| hierarchy.version)
}

fn move_to(group: &Path, pid: u32) -> io::Result<()> {
    write(&group.join("cgroup.procs"), &pid.to_string())
}

/// A group of version 1 begins without CPUs and memory nodes, and takes no process then.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(dir.join(file))?.trim().is_empty() {
            let inherited = fs::read_to_string(parent.join(file))?;
            write(&dir.join(file), inherited.trim())?;
        }
    }
    Ok(())
}

/// Lets a group of version 2 have its parent's controllers, as far as the parent can: a limit that
/// then has no file is told by its name.
fn hand_down(dir: &Path) {
    let Some(parent) = dir.parent() else { return };
    let read = |file| fs::read_to_string(parent.join(file)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let in_list = |list: &str, name| list.split_whitespace().any(|other| other == name);
    for name in HANDED_DOWN {
        if in_list(&available, name) && !in_list(&enabled, name) {
            let written = write(&parent.join("cgroup.subtree_control"), &format!("+{name}"));
            if let Err(error) = written {
                tracing::debug!("Controller {name} is not handed down to {dir:?}: {error}");
            }
        }
    }
}

type Refused = (PathBuf, String, io::Error);

fn write_all(dir: &Path, entries: &[super::limit::Entry]) -> Result<(), Refused> {
    for (file, value) in entries {
        let path = dir.join(file);
        if let Err(error) = write(&path, value) {
            return Err((path, value.clone(), error));
        }
    }
    Ok(())
}

/// In one `write(2)`: a control file takes a value whole or not at all.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}
