//! Which control group hierarchies this host has, and where this process is in them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::error::CgroupError;

/// The two kinds of hierarchies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller, or a few of them.
    V1,
    /// One for all.
    V2,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its kind.
    pub version: Version,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers by name. For version 1 also the hierarchy's own name, as in `name=systemd`.
    pub controllers: Vec<String>,
    /// The directory of the group this process was in when it looked.
    pub own: PathBuf,
}

impl Hierarchy {
    /// Whether it has a controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The directory of the group named by `linux.cgroupsPath`.
    ///
    /// An absolute path begins at the root of the hierarchy; a relative one at the group of this
    /// process, or, where a group may not have both processes and groups with controllers (version 2
    /// alone), at that group's parent.
    fn group(&self, path: &Path, alone: bool) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if path.is_absolute() {
            return self.mount.join(relative);
        }
        let base = match self.own.parent() {
            Some(parent) if alone && self.own != self.mount => parent,
            _ => &self.own,
        };
        base.join(relative)
    }
}

/// All hierarchies of this host that are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies(pub Vec<Hierarchy>);

const MOUNTS: &str = "/proc/self/mountinfo";
const MEMBERSHIP: &str = "/proc/self/cgroup";

impl Hierarchies {
    /// Looks at the host. Takes well under a millisecond.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn discover() -> Result<Self, CgroupError> {
        let read = |path: &'static str| {
            fs::read_to_string(path).map_err(|source| CgroupError::Discover { path, source })
        };
        let mut found = Self::parse(&read(MOUNTS)?, &read(MEMBERSHIP)?);
        for hierarchy in &mut found.0 {
            if hierarchy.version == Version::V2 {
                let list = hierarchy.mount.join("cgroup.controllers");
                let list = fs::read_to_string(list).unwrap_or_default();
                hierarchy.controllers = list.split_whitespace().map(str::to_owned).collect();
            }
        }
        Ok(found)
    }

    /// Makes sense of `/proc/self/mountinfo` and `/proc/self/cgroup`. The controllers of version 2
    /// are in neither.
    fn parse(mounts: &str, membership: &str) -> Self {
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        let mut found = Vec::new();
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let version = if controllers.is_empty() {
                Version::V2
            } else {
                Version::V1
            };
            let controllers: Vec<String> = controllers
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect();
            let is_it = |mount: &&Mount| {
                mount.version == version
                    && controllers.iter().all(|name| mount.options.contains(name))
            };
            // A hierarchy may be mounted more than once; one that shows all of it is preferred.
            let mount = mounts
                .iter()
                .filter(is_it)
                .find(|mount| mount.root == Path::new("/"))
                .or_else(|| mounts.iter().find(is_it));
            if let Some(mount) = mount {
                found.push(Hierarchy {
                    version,
                    own: mount.show(Path::new(path)),
                    mount: mount.place.clone(),
                    controllers,
                });
            }
        }
        Self(found)
    }

    /// The directories of the group that `linux.cgroupsPath` names, one a hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::SystemdForm`] and [`CgroupError::Path`] for a path that is none, and
    /// [`CgroupError::None`] without hierarchies.
    pub fn groups(&self, path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
        let text = path.to_string_lossy();
        if text.matches(':').count() == 2 && !text.contains('/') {
            return Err(CgroupError::SystemdForm(text.into_owned()));
        }
        let names_one = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            && path.file_name().is_some()
            && !text.contains('\0');
        if !names_one {
            return Err(CgroupError::Path(text.into_owned()));
        }
        if self.0.is_empty() {
            return Err(CgroupError::None);
        }
        let alone = self.0.iter().all(|one| one.version == Version::V2);
        Ok(self.0.iter().map(|one| one.group(path, alone)).collect())
    }
}

/// A mount of a control group file system.
#[derive(Debug)]
struct Mount {
    version: Version,
    root: PathBuf,
    place: PathBuf,
    options: Vec<String>,
}

impl Mount {
    /// A line of mountinfo, if it is one of a hierarchy (see proc(5)).
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = right.nth(1).unwrap_or_default();
        let mut left = left.split(' ').skip(3);
        Some(Self {
            version,
            root: unescape(left.next()?),
            place: unescape(left.next()?),
            options: options.split(',').map(str::to_owned).collect(),
        })
    }

    /// Where a group is shown by this mount.
    fn show(&self, group: &Path) -> PathBuf {
        let below = group.strip_prefix(&self.root).unwrap_or(Path::new(""));
        self.place.join(below)
    }
}

/// Blanks, tabs, line ends and backslashes are written as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escaped) = rest.split_at(at);
        out.push_str(before);
        let digits = escaped.get(1..4);
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = escaped.get(4..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = escaped.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 30 0:22 / /proc rw,relatime - proc proc rw
45 31 0:35 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
46 31 0:36 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
47 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
48 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn dirs(groups: &[PathBuf]) -> Vec<&str> {
        groups.iter().map(|dir| dir.to_str().unwrap()).collect()
    }

    #[test]
    fn groups_of_a_hybrid_host_one_in_each_hierarchy() {
        let found = Hierarchies::parse(
            HYBRID,
            "9:name=systemd:/\n4:memory:/engine/x\n1:cpu:/\n0::/\n",
        );

        let absolute = found.groups(Path::new("/docker/abc")).unwrap();
        assert_eq!(
            dirs(&absolute),
            [
                "/sys/fs/cgroup/systemd/docker/abc",
                "/sys/fs/cgroup/memory/docker/abc",
                "/sys/fs/cgroup/cpu/docker/abc",
                "/sys/fs/cgroup/unified/docker/abc",
            ]
        );
        let relative = found.groups(Path::new("abc")).unwrap();
        assert_eq!(
            dirs(&relative),
            [
                "/sys/fs/cgroup/systemd/abc",
                "/sys/fs/cgroup/memory/engine/x/abc",
                "/sys/fs/cgroup/cpu/abc",
                "/sys/fs/cgroup/unified/abc",
            ]
        );
    }

    #[test]
    fn groups_of_version_2_alone_relative_path_beside_our_own() {
        let mounts = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

        let found = Hierarchies::parse(mounts, "0::/system.slice/engine.service\n");
        let groups = found.groups(Path::new("abc")).unwrap();
        assert_eq!(dirs(&groups), ["/sys/fs/cgroup/system.slice/abc"]);

        let found = Hierarchies::parse(mounts, "0::/\n");
        let groups = found.groups(Path::new("abc")).unwrap();
        assert_eq!(dirs(&groups), ["/sys/fs/cgroup/abc"]);
    }

    #[test]
    fn parse_controllers_together_and_part_of_a_hierarchy_mounted() {
        let mounts = "\
40 31 0:33 /outer /mnt/with\\040blank rw - cgroup cgroup rw,cpu,cpuacct
41 31 0:34 /outer /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
        let found =
            Hierarchies::parse(mounts, "3:cpu,cpuacct:/outer/inner\n2:pids:/outer\n7:x:/\n");

        assert_eq!(found.0.len(), 2);
        assert_eq!(found.0[0].own, Path::new("/mnt/with blank/inner"));
        assert!(found.0[0].has("cpuacct") && found.0[0].has("cpu"));
        assert_eq!(found.0[1].own, Path::new("/sys/fs/cgroup/pids"));
    }

    #[test]
    fn groups_path_that_names_none_refused() {
        let found = Hierarchies::parse(HYBRID, "1:cpu:/\n");

        let groups = |path: &str| found.groups(Path::new(path));
        assert!(matches!(
            groups("system.slice:docker:abc"),
            Err(CgroupError::SystemdForm(_))
        ));
        for path in ["/", "", "../up", "/a/../../b", "/a\0b"] {
            assert!(matches!(groups(path), Err(CgroupError::Path(_))), "{path}");
        }
        assert!(matches!(
            Hierarchies(Vec::new()).groups(Path::new("/a")),
            Err(CgroupError::None)
        ));
    }
}
