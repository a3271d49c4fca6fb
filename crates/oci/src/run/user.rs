//! Finds out who `-u USER[:GROUP]` is, from the root file system's own /etc/passwd and
//! /etc/group, with the rules of docker and podman.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::error::RunError;
use crate::beneath::{open_root, read_in_root};

/// Largest /etc/passwd or /etc/group that is read, in bytes.
const ACCOUNTS_MAX: u64 = 8 << 20;
/// -1 means "leave as it is" to the kernel.
const ID_MAX: u32 = u32::MAX - 1;

/// A user as the kernel wants it, with the home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids; the primary one is the first.
    pub groups: Vec<u32>,
    /// Home directory, `/` where none is known.
    pub home: String,
}

/// Finds the user in a root file system. An empty text is root.
///
/// A name is looked up in /etc/passwd; a number need not be there, and then has the
/// primary group 0. Without a group, the supplementary groups are those /etc/group
/// lists the user in; with one, there are none.
///
/// # Errors
///
/// [`RunError::NoUser`] or [`RunError::NoGroup`] for names that are not there,
/// [`RunError::UserSyntax`] for what is neither name nor number, and
/// [`RunError::Accounts`] if a file is there but cannot be read.
pub fn identify(rootfs: &Path, text: &str) -> Result<Identity, RunError> {
    let root = open_root(rootfs).map_err(|errno| RunError::Rootfs {
        path: rootfs.into(),
        source: errno.into(),
    })?;
    let passwd = accounts(&root, rootfs, "etc/passwd")?;
    let group = accounts(&root, rootfs, "etc/group")?;
    in_accounts(text, &passwd, &group)
}

fn accounts(root: &OwnedFd, rootfs: &Path, file: &'static str) -> Result<String, RunError> {
    let bytes =
        read_in_root(root, Path::new(file), ACCOUNTS_MAX).map_err(|source| RunError::Accounts {
            file,
            rootfs: rootfs.into(),
            source,
        })?;
    Ok(bytes
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default())
}

/// A line of /etc/passwd.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of /etc/group.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are not complete are skipped, as the C library does.
fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

fn in_accounts(text: &str, passwd: &str, group: &str) -> Result<Identity, RunError> {
    let syntax = || RunError::UserSyntax(text.to_owned());
    let (user_text, group_text) = match text.split_once(':') {
        Some((user, group)) if !group.contains(':') => (user, Some(group)),
        Some(_) => return Err(syntax()),
        None => (text, None),
    };
    if text.contains(['\0', '\n']) || (user_text.is_empty() && group_text == Some("")) {
        return Err(syntax());
    }
    // A name comes before a number: a user may be called 1000.
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let number = id(user_text);
    let known = users(passwd)
        .find(|user| user.name == user_text)
        .or_else(|| users(passwd).find(|user| Some(user.uid) == number));
    let (uid, own_gid, home) = match (&known, number) {
        (Some(user), _) => (user.uid, user.gid, user.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) if user_text.bytes().all(|b| b.is_ascii_digit()) => return Err(syntax()),
        (None, None) => return Err(RunError::NoUser(user_text.to_owned())),
    };
    let mut ids = Vec::new();
    let gid = match group_text.filter(|text| !text.is_empty()) {
        Some(text) => match (groups(group).find(|group| group.name == text), id(text)) {
            (Some(group), _) => group.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(RunError::NoGroup(text.to_owned())),
        },
        None => {
            let name = known.as_ref().map(|user| user.name);
            let member = |group: &Group<'_>| {
                name.is_some_and(|name| group.members.split(',').any(|member| member == name))
            };
            ids.extend(groups(group).filter(member).map(|group| group.gid));
            own_gid
        }
    };
    ids.insert(0, gid);
    let mut seen = std::collections::HashSet::new();
    ids.retain(|gid| seen.insert(*gid));
    if uid > ID_MAX || ids.iter().any(|gid| *gid > ID_MAX) {
        return Err(syntax());
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(Identity {
        uid,
        gid,
        groups: ids,
        home: home.to_owned(),
    })
}

fn id(text: &str) -> Option<u32> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        ann:x:1000:100:Ann:/home/ann:/bin/sh\n\
        1001:x:7:8::/seven:\n\
        short:x:9:9\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,ann\nusers:x:100:ann\nstaff:x:50:bob,ann\n";

    fn identity(uid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid: groups[0],
            groups: groups.to_vec(),
            home: home.to_owned(),
        }
    }

    #[test]
    fn in_accounts_rules_of_docker() {
        for (text, expected) in [
            ("", identity(0, &[0, 10], "/root")),
            ("root", identity(0, &[0, 10], "/root")),
            ("ann", identity(1000, &[100, 10, 50], "/home/ann")),
            ("1000", identity(1000, &[100, 10, 50], "/home/ann")),
            ("ann:staff", identity(1000, &[50], "/home/ann")),
            ("ann:77", identity(1000, &[77], "/home/ann")),
            ("4242", identity(4242, &[0], "/")),
            ("4242:users", identity(4242, &[100], "/")),
            ("1001", identity(7, &[8], "/seven")),
            ("short", identity(9, &[9], "/")),
            (":users", identity(0, &[100], "/root")),
        ] {
            assert_eq!(
                in_accounts(text, PASSWD, GROUP).unwrap(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn in_accounts_unknown_names_are_named() {
        assert!(
            matches!(in_accounts("bob", PASSWD, GROUP), Err(RunError::NoUser(name)) if name == "bob")
        );
        assert!(
            matches!(in_accounts("ann:x", PASSWD, GROUP), Err(RunError::NoGroup(name)) if name == "x")
        );
        for text in ["4294967295", "99999999999", "a:b:c", ":", "0:4294967295"] {
            let outcome = in_accounts(text, PASSWD, GROUP);
            assert!(
                matches!(outcome, Err(RunError::UserSyntax(_))),
                "{text}: {outcome:?}"
            );
        }
    }

    #[test]
    fn identify_rootfs_without_accounts_is_root() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(identify(dir.path(), "").unwrap(), identity(0, &[0], "/"));
        assert!(matches!(
            identify(dir.path(), "ann"),
            Err(RunError::NoUser(_))
        ));
    }

    #[test]
    fn identify_link_to_the_hosts_accounts_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("../../../../../etc/passwd", dir.path().join("etc/passwd"))
            .unwrap();
        let outcome = identify(dir.path(), "daemon");
        assert!(
            matches!(
                &outcome,
                Err(RunError::Accounts { .. } | RunError::NoUser(_))
            ),
            "{outcome:?}"
        );
    }

    #[test]
    fn identify_missing_rootfs_is_named() {
        let outcome = identify(Path::new("/nonexistent/rootfs"), "");
        assert!(
            matches!(outcome, Err(RunError::Rootfs { .. })),
            "{outcome:?}"
        );
    }

    proptest! {
        #[test]
        fn in_accounts_any_text_never_panics(text in ".*", passwd in "[a-z0-9:\n,]*", group in "[a-z0-9:\n,]*") {
            if let Ok(identity) = in_accounts(&text, &passwd, &group) {
                prop_assert_eq!(identity.groups.first(), Some(&identity.gid));
            }
        }
    }
}
