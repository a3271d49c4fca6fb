//! Who the process runs as: ids, groups, umask, and where its home is.

use std::{ffi::CString, io::Read, os::fd::OwnedFd};

use oci_spec::runtime::User as Spec;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    process::umask,
    thread::{
        Gid, Uid, set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{
    ContainerError,
    failure::{During, Step},
};

/// What a container has where nothing is said.
const DEFAULT_UMASK: u32 = 0o022;
/// No account file of an honest image is larger.
const MAX_PASSWD_BYTES: u64 = 4 << 20;

/// The user of a process.
#[derive(Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
}

impl User {
    /// Checks `process.user`.
    pub fn plan(spec: &Spec) -> Result<Self, ContainerError> {
        let check = |field: &str, id: u32| {
            if id == u32::MAX {
                return Err(ContainerError::invalid(field, "4294967295 is not an id"));
            }
            Ok(id)
        };
        let uid = check("process.user.uid", spec.uid())?;
        let gid = check("process.user.gid", spec.gid())?;
        let mut groups = Vec::new();
        for &id in spec.additional_gids().iter().flatten() {
            groups.push(Gid::from_raw(check("process.user.additionalGids", id)?));
        }
        let umask = spec.umask().unwrap_or(DEFAULT_UMASK);
        if umask > 0o777 {
            return Err(ContainerError::invalid(
                "process.user.umask",
                "it is larger than 0777",
            ));
        }
        Ok(Self {
            uid,
            gid,
            groups,
            umask,
        })
    }

    /// Becomes the user. The permitted capabilities survive, so that the sets
    /// can be chosen afterwards; the effective ones do not unless it is root.
    pub fn apply(&self) -> Step {
        let field = |failure: super::Failure| failure.with_field("process.user");
        set_thread_groups(&self.groups)
            .during(|| "set the supplementary groups".to_owned())
            .map_err(field)?;
        // The agent is root already.
        if self.gid != 0 {
            let gid = Gid::from_raw(self.gid);
            set_thread_res_gid(gid, gid, gid)
                .during(|| format!("become group {}", self.gid))
                .map_err(field)?;
        }
        if self.uid != 0 {
            let uid = Uid::from_raw(self.uid);
            set_keep_capabilities(true)
                .and_then(|()| set_thread_res_uid(uid, uid, uid))
                .during(|| format!("become user {}", self.uid))
                .map_err(field)?;
        }
        umask(Mode::from_raw_mode(self.umask));
        Ok(())
    }
}

/// The home directory that the container's `/etc/passwd` names for `uid`, `/`
/// if it names none.
pub fn home(uid: u32) -> Step<CString> {
    let step = || "read the container's /etc/passwd for HOME".to_owned();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = openat2(
        CWD,
        c"/etc/passwd",
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    );
    let file: OwnedFd = match opened {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(c"/".to_owned()),
        result => result.during(step)?,
    };
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX_PASSWD_BYTES)
        .read_to_end(&mut text)
        .during(step)?;
    Ok(home_in(&text, uid)
        .and_then(|home| CString::new(home).ok())
        .unwrap_or(c"/".to_owned()))
}

/// The sixth field of the first line whose third is `uid`.
fn home_in(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    passwd.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let id = std::str::from_utf8(fields.nth(2)?)
            .ok()?
            .parse::<u32>()
            .ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_of_a_listed_user_is_its_sixth_field() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv/app:/bin/false\n";

        assert_eq!(home_in(passwd, 1000), Some(&b"/srv/app"[..]));
        assert_eq!(home_in(passwd, 0), Some(&b"/root"[..]));
    }

    #[test]
    fn home_of_a_broken_or_missing_line_is_none() {
        let passwd = b"\n:::\nx:y:z\napp:x:1000\nshort:x:7:7::\nno:x:8:8:::";

        assert_eq!(home_in(passwd, 1000), None);
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }
}
