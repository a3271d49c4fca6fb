//! Checking the mounts of a specification.

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

use oci_spec::runtime::Mount as Spec;

use super::{BindSource, Elsewhere, Kind, Mount, options::MountOptions};
use crate::container::ContainerError;

/// File systems that need nothing of the agent's root, so that they can be
/// mounted from inside the container.
const SOURCELESS: &[&str] = &[
    "binfmt_misc",
    "bpf",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// Checks the mounts of the specification, in order.
pub fn plan(mounts: &[Spec]) -> Result<Vec<Mount>, ContainerError> {
    mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| plan_one(index, mount))
        .collect()
}

fn plan_one(index: usize, spec: &Spec) -> Result<Mount, ContainerError> {
    let field = format!("mounts[{index}]");
    let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
    if mapped(spec.uid_mappings()) || mapped(spec.gid_mappings()) {
        return Err(ContainerError::unsupported(
            format!("{field}.uidMappings"),
            "mounts with mapped ids need a user namespace, which the guest does not make",
        ));
    }
    let destination = destination(&field, spec.destination())?;
    let words = spec.options().as_deref().unwrap_or_default();
    let mut options = MountOptions::parse(words).map_err(|(word, refusal)| {
        ContainerError::unsupported(format!("{field}.options[{word}]"), refusal.0)
    })?;
    let filesystem = spec.typ().as_deref().unwrap_or_default();
    let source = spec
        .source()
        .as_deref()
        .map(Path::as_os_str)
        .unwrap_or_default();
    let is_bind = options.bind.is_some() || filesystem == "bind";
    if options.copy_up && (is_bind || filesystem != "tmpfs") {
        return Err(ContainerError::invalid(
            format!("{field}.options"),
            "only a tmpfs can be filled with what it hides (tmpcopyup)",
        ));
    }
    let kind = if is_bind {
        check_bind(&field, &options)?;
        if source.is_empty() {
            return Err(ContainerError::invalid(
                format!("{field}.source"),
                "a bind mount needs one",
            ));
        }
        Kind::Bind {
            source: match Elsewhere::parse(Path::new(source)) {
                Some(elsewhere) => BindSource::Elsewhere(elsewhere),
                None => BindSource::Here(c_string(&field, "source", source.as_bytes())?),
            },
            recursive: options.bind.unwrap_or(false),
        }
    } else {
        // Nothing is below a new file system.
        let recursive = std::mem::take(&mut options.recursive);
        options.attributes.merge(recursive);
        new_filesystem(&field, filesystem, source.as_bytes(), &options)?
    };
    Ok(Mount {
        field,
        destination,
        kind,
        options,
    })
}

fn destination(field: &str, path: &Path) -> Result<CString, ContainerError> {
    let name = || format!("{field}.destination");
    if !path.is_absolute() {
        return Err(ContainerError::invalid(
            name(),
            "it must be an absolute path",
        ));
    }
    let mut clean = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => {
                clean.push(b'/');
                clean.extend(part.as_bytes());
            }
            Component::ParentDir => {
                return Err(ContainerError::invalid(
                    name(),
                    "it must not contain \"..\"",
                ));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean.is_empty() {
        return Err(ContainerError::unsupported(
            name(),
            "the root itself cannot be mounted over",
        ));
    }
    c_string(field, "destination", &clean)
}

/// A bind mount shows an existing file system, so it cannot have flags and
/// options of one of its own.
fn check_bind(field: &str, options: &MountOptions) -> Result<(), ContainerError> {
    if let Some(word) = options.data.first() {
        return Err(ContainerError::unsupported(
            format!("{field}.options"),
            format!("{word:?} is not an option of a bind mount"),
        ));
    }
    if !options.superblock.is_empty() {
        return Err(ContainerError::unsupported(
            format!("{field}.options"),
            "a bind mount cannot change how its file system writes (sync, dirsync, lazytime, mand)",
        ));
    }
    Ok(())
}

fn new_filesystem(
    field: &str,
    filesystem: &str,
    source: &[u8],
    options: &MountOptions,
) -> Result<Kind, ContainerError> {
    // A guest has the one hierarchy of version 2 only.
    let filesystem = if filesystem == "cgroup" {
        "cgroup2"
    } else {
        filesystem
    };
    if filesystem.is_empty() {
        return Err(ContainerError::invalid(
            format!("{field}.type"),
            "it is missing",
        ));
    }
    if !SOURCELESS.contains(&filesystem) {
        let source = String::from_utf8(source.to_vec())
            .map_err(|_| ContainerError::invalid(format!("{field}.source"), "it is not UTF-8"))?;
        return Ok(Kind::Outside {
            filesystem: filesystem.to_owned(),
            source,
        });
    }
    let source = if source.is_empty() {
        filesystem.as_bytes()
    } else {
        source
    };
    Ok(Kind::Inside {
        filesystem: c_string(field, "type", filesystem.as_bytes())?,
        source: c_string(field, "source", source)?,
        flags: options.mount_flags(),
        data: c_string(field, "options", options.data_string().as_bytes())?,
    })
}

fn c_string(field: &str, part: &str, bytes: &[u8]) -> Result<CString, ContainerError> {
    CString::new(bytes)
        .map_err(|_| ContainerError::invalid(format!("{field}.{part}"), "it contains a null byte"))
}
