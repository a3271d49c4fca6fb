//! Finding the program to run, and running it.

use std::{
    ffi::{CStr, CString, c_char},
    os::unix::ffi::OsStrExt,
    ptr,
};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, accessat, statat},
    io::Errno,
};

use super::{
    Failure, FailureKind,
    failure::{Step, shown},
    sys,
};

/// Searched if the container's environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks `name` up as a shell does: with a slash it is a path, without one it
/// is searched in `path`, the value of PATH. To be called as the container's
/// user, in its working directory.
pub fn find(name: &CStr, path: Option<&[u8]>) -> Step<CString> {
    if name.to_bytes().contains(&b'/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(errno) => Err(failure(name, errno)),
        };
    }
    let mut worst = Errno::NOENT;
    for dir in path.unwrap_or(DEFAULT_PATH).split(|&byte| byte == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        let candidate = [dir, b"/", name.to_bytes()].concat();
        let Ok(candidate) = CString::new(candidate) else {
            continue;
        };
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => worst = errno,
        }
    }
    Err(match worst {
        // The words engines look for, to answer with 127.
        Errno::NOENT => Failure {
            kind: FailureKind::NotFound,
            step: format!("run {:?}: executable file not found in $PATH", shown(name)),
            errno: 0,
            field: Some("process.args".to_owned()),
        },
        errno => failure(name, errno),
    })
}

fn executable(path: &CStr) -> Result<(), Errno> {
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    match FileType::from_raw_mode(statat(CWD, path, AtFlags::empty())?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}

/// A null-terminated array for `execve`; valid as long as the strings are.
pub fn pointers<'a>(strings: impl IntoIterator<Item = &'a CString>) -> Vec<*const c_char> {
    strings
        .into_iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Becomes `program`. Returns only if that failed.
pub fn run(program: &CStr, args: &[*const c_char], env: &[*const c_char]) -> Failure {
    let error = sys::execve(program, args, env);
    failure(program, Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn failure(program: &CStr, errno: Errno) -> Failure {
    Failure {
        kind: match errno {
            Errno::NOENT | Errno::NOTDIR => FailureKind::NotFound,
            _ => FailureKind::NotExecutable,
        },
        step: format!("run {:?}", shown(program)),
        errno: errno.raw_os_error(),
        field: Some("process.args".to_owned()),
    }
}

/// The value of `name` in an environment of `NAME=value` strings.
pub fn value_of<'a>(env: &'a [CString], name: &str) -> Option<&'a [u8]> {
    env.iter().find_map(|entry| {
        entry
            .as_bytes()
            .strip_prefix(name.as_bytes())?
            .strip_prefix(b"=")
    })
}

/// The working directory as bytes for a C string.
pub fn path_bytes(path: &std::path::Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
