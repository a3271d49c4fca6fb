//! Parsers of `-v SRC:DST[:OPTIONS]` and `--tmpfs DST[:OPTIONS]`.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::error::{OptionError, VolumeProblem};

const VOLUME_OPTIONS: &str =
    "ro, rw, bind, rbind, private, rprivate, (no)suid, (no)dev, (no)exec, z or Z";
const TMPFS_OPTIONS: &str = "size=, mode=, uid=, gid=, nr_inodes=, ro, rw, (no)suid, (no)dev, (no)exec, (no|rel|strict)atime, (no)diratime";

/// Options of a volume that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "shared",
        "mounts made in the guest cannot appear on the host",
    ),
    (
        "rshared",
        "mounts made in the guest cannot appear on the host",
    ),
    (
        "slave",
        "mounts made on the host after the start do not appear in the guest",
    ),
    (
        "rslave",
        "mounts made on the host after the start do not appear in the guest",
    ),
    (
        "U",
        "changing the owner of the source's files is not built in this version",
    ),
    ("O", "overlays over volumes are not built in this version"),
    ("idmap", "id-mapped mounts are not built in this version"),
];

/// A path of the host shown in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// On the host, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub destination: PathBuf,
    /// Mount options, beginning with `bind` or `rbind`.
    pub options: Vec<String>,
}

/// A file system in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// In the container, absolute.
    pub destination: PathBuf,
    /// Mount options.
    pub options: Vec<String>,
}

/// Parses a volume; a source that begins with `.` is relative to `cwd`.
///
/// Without options the source is bound with everything mounted below it, private and
/// writable, as in docker. `z` and `Z` (SELinux labels) mean nothing on a host without
/// SELinux, which `selinux` says, and are refused on one with it.
///
/// # Errors
///
/// [`OptionError::Volume`] with what is wrong.
pub fn parse_volume(text: &str, cwd: &Path, selinux: bool) -> Result<Volume, OptionError> {
    volume(text, cwd, selinux).map_err(|problem| OptionError::Volume {
        volume: text.to_owned(),
        problem,
    })
}

fn volume(text: &str, cwd: &Path, selinux: bool) -> Result<Volume, VolumeProblem> {
    let mut parts = text.split(':');
    let (source, destination, words) = match (parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(destination), words) if parts.next().is_none() => {
            (source, destination, words.unwrap_or_default())
        }
        _ => return Err(VolumeProblem::Shape),
    };
    if text.contains('\0') {
        return Err(VolumeProblem::HasNul);
    }
    if source.is_empty() {
        return Err(VolumeProblem::Shape);
    }
    if !source.starts_with(['/', '.']) {
        return Err(VolumeProblem::Named);
    }
    let destination = destination_path(destination)?;
    let mut bind = "rbind";
    let mut propagation = "rprivate";
    let mut options = Vec::new();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        if let Some((_, reason)) = REFUSED.iter().find(|(name, _)| *name == word) {
            return Err(VolumeProblem::Refused {
                option: word.to_owned(),
                reason,
            });
        }
        match word {
            "bind" | "rbind" => bind = word,
            "private" | "rprivate" => propagation = word,
            "ro" | "rw" | "suid" | "nosuid" | "dev" | "nodev" | "exec" | "noexec" => {
                options.push(word.to_owned());
            }
            "z" | "Z" if !selinux => {}
            "z" | "Z" => {
                return Err(VolumeProblem::Refused {
                    option: word.to_owned(),
                    reason: "the guest has no SELinux, relabel the source on the host if other containers need it",
                });
            }
            _ => {
                let option = word.to_owned();
                return Err(VolumeProblem::Option {
                    option,
                    known: VOLUME_OPTIONS,
                });
            }
        }
    }
    options.splice(0..0, [bind.to_owned(), propagation.to_owned()]);
    Ok(Volume {
        source: cwd.join(source),
        destination,
        options,
    })
}

/// Parses a tmpfs. Without options it is `noexec,nosuid,nodev`, as in docker.
///
/// # Errors
///
/// [`OptionError::Tmpfs`] with what is wrong.
pub fn parse_tmpfs(text: &str) -> Result<Tmpfs, OptionError> {
    tmpfs(text).map_err(|problem| OptionError::Tmpfs {
        tmpfs: text.to_owned(),
        problem,
    })
}

fn tmpfs(text: &str) -> Result<Tmpfs, VolumeProblem> {
    if text.contains('\0') {
        return Err(VolumeProblem::HasNul);
    }
    let (destination, words) = text.split_once(':').unwrap_or((text, ""));
    let destination = destination_path(destination)?;
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        if !tmpfs_option(word) {
            let option = word.to_owned();
            return Err(VolumeProblem::Option {
                option,
                known: TMPFS_OPTIONS,
            });
        }
        // `exec` takes the place of `noexec`; a later `size=` that of an earlier one.
        options.retain(|other| !same_setting(other, word));
        options.push(word.to_owned());
    }
    Ok(Tmpfs {
        destination,
        options,
    })
}

fn tmpfs_option(word: &str) -> bool {
    let flags = [
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "diratime",
        "nodiratime",
    ];
    let decimal = |value: &str| !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match word.split_once('=') {
        None => flags.contains(&word),
        Some(("size" | "nr_inodes", value)) => decimal(
            value
                .strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', '%'])
                .unwrap_or(value),
        ),
        Some(("mode", value)) => {
            (1..=5).contains(&value.len()) && value.bytes().all(|b| (b'0'..=b'7').contains(&b))
        }
        Some(("uid" | "gid", value)) => decimal(value) && value.parse::<u32>().is_ok(),
        Some(_) => false,
    }
}

/// Whether two options set the same thing.
fn same_setting(one: &str, other: &str) -> bool {
    fn setting(option: &str) -> &str {
        match option.split_once('=') {
            Some((name, _)) => name,
            None => match option {
                "ro" | "rw" => "rw",
                _ => option.strip_prefix("no").unwrap_or(option),
            },
        }
    }
    setting(one) == setting(other)
}

/// An absolute path inside the container, other than its root, without trailing slashes.
fn destination_path(text: &str) -> Result<PathBuf, VolumeProblem> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(VolumeProblem::Destination(text.to_owned()));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(VolumeProblem::Climbs(text.to_owned()));
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        Err(VolumeProblem::Root)
    } else {
        Ok(clean)
    }
}

impl Volume {
    pub(super) fn mount(&self) -> Mount {
        mount(
            "bind",
            &self.source,
            &self.destination,
            self.options.clone(),
        )
    }
}

impl Tmpfs {
    pub(super) fn mount(&self) -> Mount {
        mount(
            "tmpfs",
            Path::new("tmpfs"),
            &self.destination,
            self.options.clone(),
        )
    }
}

/// A mount of the configuration.
pub(super) fn mount(typ: &str, source: &Path, destination: &Path, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_destination(destination.to_owned())
        .set_options(Some(options));
    mount
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Volume, VolumeProblem> {
        volume(text, Path::new("/work"), false)
    }

    #[test]
    fn parse_volume_plain_is_recursive_private_and_writable() {
        let volume = parsed("/data:/srv/").unwrap();
        assert_eq!(volume.source, Path::new("/data"));
        assert_eq!(volume.destination, Path::new("/srv"));
        assert_eq!(volume.options, ["rbind", "rprivate"]);
    }

    #[test]
    fn parse_volume_options_are_kept() {
        let volume = parsed("./data:/srv:ro,bind,noexec,z").unwrap();
        assert_eq!(volume.source, Path::new("/work/./data"));
        assert_eq!(volume.options, ["bind", "rprivate", "ro", "noexec"]);
    }

    #[test]
    fn parse_volume_what_is_wrong_is_told() {
        assert_eq!(parsed("/data"), Err(VolumeProblem::Shape));
        assert_eq!(parsed(":/data"), Err(VolumeProblem::Shape));
        assert_eq!(parsed("/a:/b:ro:x"), Err(VolumeProblem::Shape));
        assert_eq!(parsed("data:/srv"), Err(VolumeProblem::Named));
        assert_eq!(
            parsed("/data:srv"),
            Err(VolumeProblem::Destination("srv".into()))
        );
        assert_eq!(parsed("/data:/"), Err(VolumeProblem::Root));
        assert_eq!(parsed("/data://."), Err(VolumeProblem::Root));
        assert_eq!(
            parsed("/data:/a/../b"),
            Err(VolumeProblem::Climbs("/a/../b".into()))
        );
        assert!(matches!(
            parsed("/a:/b:rshared"),
            Err(VolumeProblem::Refused { .. })
        ));
        assert!(matches!(
            parsed("/a:/b:fast"),
            Err(VolumeProblem::Option { .. })
        ));
    }

    #[test]
    fn parse_volume_selinux_label_on_selinux_host_is_refused() {
        let problem = volume("/a:/b:Z", Path::new("/"), true);
        assert!(
            matches!(problem, Err(VolumeProblem::Refused { .. })),
            "{problem:?}"
        );
    }

    #[test]
    fn parse_tmpfs_defaults_are_overridden_by_name() {
        assert_eq!(
            tmpfs("/run").unwrap().options,
            ["noexec", "nosuid", "nodev"]
        );
        assert_eq!(
            tmpfs("/run:exec,size=64m,mode=1777,size=1g")
                .unwrap()
                .options,
            ["nosuid", "nodev", "exec", "mode=1777", "size=1g"]
        );
        assert_eq!(
            tmpfs("/run:ro,rw").unwrap().options,
            ["noexec", "nosuid", "nodev", "rw"]
        );
    }

    #[test]
    fn parse_tmpfs_unknown_option_is_named() {
        for option in ["size=", "size=1x", "mode=9", "lowerdir=/etc", "uid=-1"] {
            let problem = tmpfs(&format!("/run:{option}"));
            assert!(
                matches!(&problem, Err(VolumeProblem::Option { option: named, .. }) if named == option),
                "{problem:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn parsers_any_text_never_panic(text in ".*", selinux: bool) {
            let _ = parse_volume(&text, Path::new("/"), selinux);
            let _ = parse_tmpfs(&text);
        }

        #[test]
        fn parse_volume_accepted_ones_pass_as_mounts(
            text in "[./a-z]{1,6}:[./a-z]{1,6}(:(ro|rw|bind|z|noexec|,){0,4})?"
        ) {
            if let Ok(volume) = parse_volume(&text, Path::new("/"), false) {
                prop_assert!(volume.destination.is_absolute());
                prop_assert!(crate::plan::is_bind(&volume.mount()));
            }
        }
    }
}
