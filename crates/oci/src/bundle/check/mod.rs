//! Checks a configuration that was parsed: every value a container is made from is
//! there, has the right shape and is in range. Nothing here touches the host's files.

mod hooks;
mod linux;
mod mounts;
mod process;

use std::path::{Component, Path};

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};

use super::{BundleError, Problem};

/// What to do about a missing root.
pub(super) const ROOT_REMEDY: &str = "add \"root\": {\"path\": \"rootfs\"}";

/// Longest name the kernel keeps for a host or a domain, in bytes (`__NEW_UTS_LEN`).
const HOST_NAME_MAX: usize = 64;

type Checked = Result<(), BundleError>;

/// Checks the whole configuration, in the order a reader meets the fields.
pub(super) fn spec(spec: &Spec) -> Checked {
    version(spec.version())?;
    root(spec)?;
    process::check(spec)?;
    mounts::check(spec.mounts().as_deref().unwrap_or_default())?;
    let Some(section) = spec.linux() else {
        return fail(
            "linux",
            Problem::Missing("a Linux container needs its namespaces there"),
        );
    };
    linux::check(section)?;
    if let Some(section) = spec.hooks() {
        hooks::check(section)?;
    }
    names(spec)
}

/// Checks limits that are to be changed while a container runs.
pub(super) fn resources(resources: &LinuxResources) -> Checked {
    linux::limits(resources)
}

/// Versions are `1.minor.patch`, perhaps with a suffix. Fields of later minor versions
/// are ignored, as the specification asks.
fn version(version: &str) -> Checked {
    if version.is_empty() {
        return fail(
            "ociVersion",
            Problem::Missing("add \"ociVersion\": \"1.0.2\""),
        );
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let mut parts = core.split('.');
    let numbers = [parts.next(), parts.next(), parts.next()].map(|part| {
        part.filter(|p| p.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|p| p.parse::<u32>().ok())
    });
    match numbers {
        [Some(1), Some(_), Some(_)] if parts.next().is_none() => Ok(()),
        _ => Err(BundleError::Version {
            version: version.into(),
        }),
    }
}

fn root(spec: &Spec) -> Checked {
    let Some(root) = spec.root() else {
        return fail("root", Problem::Missing(ROOT_REMEDY));
    };
    if root.path().as_os_str().is_empty() {
        return fail(
            "root.path",
            Problem::Empty("give the directory, as in \"rootfs\""),
        );
    }
    no_nul("root.path", root.path().to_str().unwrap_or_default())
}

fn names(spec: &Spec) -> Checked {
    let own_uts = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref())
        .is_some_and(|list| list.iter().any(|ns| ns.typ() == LinuxNamespaceType::Uts));
    for (field, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else {
            continue;
        };
        no_nul(field, name)?;
        if name.len() > HOST_NAME_MAX {
            return fail(
                field,
                Problem::OutOfRange {
                    value: format!("{} bytes long", name.len()),
                    range: "at most 64 bytes",
                },
            );
        }
        if name
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '/')
        {
            return fail(
                field,
                Problem::Malformed("holds a space, a slash or a control character; remove it"),
            );
        }
        if !own_uts {
            return fail(
                field,
                Problem::Conflict(
                    "is set, but linux.namespaces has no \"uts\" entry; add {\"type\": \"uts\"}",
                ),
            );
        }
    }
    Ok(())
}

/// An error about one field.
fn fail(field: impl Into<String>, problem: Problem) -> Checked {
    Err(BundleError::field(field, problem))
}

/// Refuses a NUL byte, which would end the string early in a system call.
fn no_nul(field: impl Into<String>, value: &str) -> Checked {
    if value.contains('\0') {
        fail(field, Problem::HasNul)
    } else {
        Ok(())
    }
}

/// Checks a path inside the container: absolute, no NUL, no `..`.
fn inside_path(field: impl Fn() -> String, path: &Path) -> Checked {
    let text = path.to_str().unwrap_or_default();
    if text.contains('\0') {
        return fail(field(), Problem::HasNul);
    }
    if !path.is_absolute() {
        return fail(field(), Problem::NotAbsolute(text.into()));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return fail(field(), Problem::Climbs(text.into()));
    }
    Ok(())
}

/// Checks that a number is in a range.
fn in_range<T: PartialOrd + std::fmt::Display>(
    field: impl FnOnce() -> String,
    value: T,
    range: std::ops::RangeInclusive<T>,
    words: &'static str,
) -> Checked {
    if range.contains(&value) {
        Ok(())
    } else {
        fail(
            field(),
            Problem::OutOfRange {
                value: value.to_string(),
                range: words,
            },
        )
    }
}
