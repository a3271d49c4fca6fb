//! File systems whose files show or steer the host's kernel. A guest that reached them
//! through a share would act on the host.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Magic number (statfs `f_type`) and name of each.
const BY_MAGIC: &[(u32, &str)] = &[
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x0000_1cd1, "devpts"),
    (0x1980_0202, "mqueue"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x6265_6570, "configfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x6e73_6673, "nsfs"),
    (0x6573_5543, "fusectl"),
    (0xf97c_ff8c, "selinuxfs"),
];

/// Types that have no magic number of their own, or are seen by their mount only.
const BY_TYPE_ONLY: &[&str] = &["devtmpfs", "fusectl", "hugetlbfs", "rpc_pipefs"];

/// The name of the file system, if it is a view of the host's kernel.
pub(super) fn by_magic(magic: rustix::fs::FsWord) -> Option<&'static str> {
    BY_MAGIC
        .iter()
        .find(|(known, _)| i128::from(*known) == i128::from(magic))
        .map(|(_, name)| *name)
}

/// Where such file systems are mounted on this host.
pub(super) fn mounts() -> io::Result<Vec<PathBuf>> {
    Ok(in_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

/// Mount points of kernel views in the format of proc_pid_mountinfo(5): the fifth field
/// is the mount point, and the first field after the lone dash is the type.
fn in_mountinfo(text: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(point) = fields.nth(4) else { continue };
        let Some(typ) = fields.skip_while(|field| *field != b"-").nth(1) else {
            continue;
        };
        let named = |name: &str| name.as_bytes() == typ;
        if BY_TYPE_ONLY.iter().any(|name| named(name))
            || BY_MAGIC.iter().any(|(_, name)| named(name))
        {
            found.push(PathBuf::from(OsString::from_vec(unescape(point))));
        }
    }
    found
}

/// The kernel writes space, tab, line feed and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if *byte == b'\\' => {
                plain.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_mountinfo_kernel_views_are_found() {
        let text = b"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n\
            23 1 8:1 / / rw - ext4 /dev/sda rw\n\
            24 1 0:6 / /a\\040b/dev rw master:1 propagate_from:2 - devtmpfs udev rw\n";
        assert_eq!(
            in_mountinfo(text),
            [PathBuf::from("/proc"), PathBuf::from("/a b/dev")]
        );
    }

    #[test]
    fn in_mountinfo_garbage_is_skipped() {
        assert_eq!(
            in_mountinfo(b"\n\n - \n1 2 3 4 5\nx \\"),
            Vec::<PathBuf>::new()
        );
    }
}
