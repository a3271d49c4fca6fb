//! Namespaces of another container: how engines say that containers belong together.
//!
//! An engine writes `/proc/<pid>/ns/<type>`, where the PID is that of another container. If that one is
//! ours, both live in one virtual machine, and the path means the namespace of its process there.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType as Type, Mount, Spec};

use super::is_bind;

/// The types a container can share with another one of its machine.
const SHAREABLE: &[Type] = &[Type::Ipc, Type::Uts, Type::Pid];

/// A namespace a container asks to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Index in `linux.namespaces`.
    pub index: usize,
    /// Its type.
    pub typ: Type,
    /// The process on the host it is named by.
    pub pid: u32,
}

/// Whether the path could be that of a namespace of another container.
pub(crate) fn could_be_a_containers(typ: Type, path: &Path) -> bool {
    SHAREABLE.contains(&typ) && pid_of(typ, path).is_some()
}

fn pid_of(typ: Type, path: &Path) -> Option<u32> {
    let name = match typ {
        Type::Ipc => "ipc",
        Type::Uts => "uts",
        Type::Pid => "pid",
        _ => return None,
    };
    let text = path.to_str()?.strip_prefix("/proc/")?;
    text.strip_suffix(&format!("/ns/{name}"))?.parse().ok()
}

/// The namespaces the container asks to share with another one.
#[must_use]
pub fn joined_namespaces(spec: &Spec) -> Vec<Joined> {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    let joined = namespaces.iter().enumerate().filter_map(|(index, entry)| {
        let typ = entry.typ();
        let pid = pid_of(typ, entry.path().as_deref()?)?;
        Some(Joined { index, typ, pid })
    });
    joined.collect()
}

/// Where the host has the container's `/dev/shm`, if an engine binds one.
#[must_use]
pub fn shared_memory_source(spec: &Spec) -> Option<PathBuf> {
    shared_memory_of(spec.mounts().iter().flatten())
}

fn shared_memory_of<'m>(mounts: impl Iterator<Item = &'m Mount>) -> Option<PathBuf> {
    let mut mounts = mounts;
    let mount = mounts.find(|mount| mount.destination() == Path::new("/dev/shm"))?;
    mount.source().clone().filter(|_| is_bind(mount))
}

/// Rewrites a guest's configuration for a machine that has other containers: `guest_pid` tells the
/// process in the guest that belongs to a process on the host; `shm` is the process in the guest whose
/// `/dev/shm` is to be the container's, too.
///
/// # Errors
/// The first namespace nobody of the machine has.
pub fn join(
    guest: &mut Spec,
    guest_pid: impl Fn(u32) -> Option<u32>,
    shm: Option<u32>,
) -> Result<(), Joined> {
    let joined = joined_namespaces(guest);
    if let Some(namespaces) = guest
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut())
    {
        for entry in joined {
            let Some(pid) = guest_pid(entry.pid) else {
                return Err(entry);
            };
            let path = namespaces.get(entry.index).and_then(|ns| ns.path().clone());
            let name = path.as_deref().and_then(Path::file_name);
            let path = name.map(|name| {
                Path::new("/proc")
                    .join(pid.to_string())
                    .join("ns")
                    .join(name)
            });
            if let Some(namespace) = namespaces.get_mut(entry.index) {
                namespace.set_path(path);
            }
        }
    }
    let Some(pid) = shm else { return Ok(()) };
    let mounts = guest.mounts_mut().iter_mut().flatten();
    for mount in mounts.filter(|mount| mount.destination() == Path::new("/dev/shm")) {
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(format!("/proc/{pid}/root/dev/shm").into()));
        let options = mount.options().clone().unwrap_or_default().into_iter();
        let mut options: Vec<String> = options.filter(|option| !option.contains('=')).collect();
        options.push("bind".to_owned());
        mount.set_options(Some(options));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "mounts": [{ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                         "options": ["nosuid", "size=5"] }],
            "linux": { "namespaces": [
                { "type": "mount" },
                { "type": "ipc", "path": "/proc/12/ns/ipc" },
                { "type": "uts", "path": "/run/uts" }
            ] }
        }))
        .unwrap()
    }

    #[test]
    fn namespace_of_a_process_is_the_one_of_its_counterpart() {
        let mut guest = spec();
        assert_eq!(joined_namespaces(&guest)[0].pid, 12);

        join(&mut guest, |pid| (pid == 12).then_some(24), Some(24)).unwrap();

        let json = serde_json::to_value(&guest).unwrap();
        assert_eq!(json["linux"]["namespaces"][1]["path"], "/proc/24/ns/ipc");
        assert_eq!(json["mounts"][0]["source"], "/proc/24/root/dev/shm");
        assert_eq!(json["mounts"][0]["options"], json!(["nosuid", "bind"]));
    }

    #[test]
    fn namespace_of_a_stranger_is_named() {
        let stranger = join(&mut spec(), |_| None, None).unwrap_err();
        assert_eq!((stranger.index, stranger.pid), (1, 12));
    }

    #[test]
    fn path_of_another_kind_is_none_of_a_container() {
        for path in [
            "/proc/12/ns/uts",
            "/proc/self/ns/ipc",
            "/proc/-1/ns/ipc",
            "/x/12/ns/ipc",
        ] {
            assert!(!could_be_a_containers(Type::Ipc, Path::new(path)), "{path}");
        }
        assert!(!could_be_a_containers(
            Type::Mount,
            Path::new("/proc/12/ns/mnt")
        ));
    }
}
