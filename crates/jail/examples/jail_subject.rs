//! What the tests of this crate put into jails. `jail_subject exec CONFIG` executes a program as the
//! `bulkhead jailed` hat does; `jail_subject act JAIL ACTION` enters and does one thing itself.

#![allow(clippy::expect_used, reason = "test code")]

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use bulkhead_jail::exec::{self, ExecConfig};
use bulkhead_jail::{Command, Jail, Namespaces};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [_, "exec", config] => {
            let config: ExecConfig = serde_json::from_str(config).expect("configuration");
            fail(&exec::main(config));
        }
        [_, "act", jail, action] => {
            let jail: Jail = serde_json::from_str(jail).expect("jail");
            let descriptors = match *action {
                "descriptors" => Some(bulkhead_jail::own_descriptors().expect("own descriptors")),
                "outside" => Some(std::fs::File::open("/").expect("the host's root").into()),
                _ => None,
            };
            if let Err(error) = jail.enter() {
                fail(&error);
            }
            act(action, descriptors);
        }
        [_, "parent", jail] => parent(jail),
        _ => panic!("usage: jail_subject exec CONFIG | act JAIL ACTION | parent JAIL"),
    }
}

fn fail(error: &dyn std::error::Error) -> ! {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    eprintln!("{text}");
    std::process::exit(125)
}

fn act(action: &str, descriptors: Option<std::os::fd::OwnedFd>) {
    match action {
        // Announces itself, then stays until its standard input ends.
        "wait" => {
            say("ready");
            let _ = std::io::stdin().read(&mut [0]);
        }
        "socket" => {
            // SAFETY: integers only.
            unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
            say("survived");
        }
        "socket_inet" => {
            // SAFETY: integers only.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
            say("survived");
        }
        "tun_offload" => {
            // SAFETY: integers only; standard input is no tap and refuses.
            unsafe { libc::ioctl(0, libc::TUNSETOFFLOAD, 0) };
            say("survived");
        }
        "tun_persist" => {
            // SAFETY: as above.
            unsafe { libc::ioctl(0, libc::TUNSETPERSIST, 1) };
            say("survived");
        }
        "unshare_mount" => {
            // SAFETY: integers only.
            unsafe { libc::unshare(libc::CLONE_NEWNS) };
            say("survived");
        }
        "unshare_fs" => {
            // SAFETY: integers only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0);
            say("survived");
        }
        "execve" => {
            // SAFETY: a terminated string, and null arrays, which Linux takes for empty ones.
            unsafe { libc::execve(c"/nothing".as_ptr(), std::ptr::null(), std::ptr::null()) };
            say("survived");
        }
        "clone3" => {
            // SAFETY: a null argument of size 0 is refused by the kernel.
            let result = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
            assert_eq!(result, -1);
            say(&std::io::Error::last_os_error()
                .raw_os_error()
                .expect("an error")
                .to_string());
        }
        "thread" => {
            std::thread::spawn(|| say("survived"))
                .join()
                .expect("thread");
        }
        // Without standard error a panic message would be lost in a full jail.
        "descriptors" => {
            let directory = descriptors.expect("opened before");
            let at = |name: &std::ffi::CStr| {
                // SAFETY: a terminated string and a directory that is open.
                unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), libc::O_PATH) }
            };
            let own = CString::new("0").expect("name");
            say(&format!("{} {}", at(&own) >= 0, at(c"../status") >= 0));
        }
        // Goes out by a directory of the host that was left open.
        "outside" => {
            let directory = descriptors.expect("opened before");
            let path = c"etc/passwd";
            // SAFETY: a terminated string and a directory that is open.
            if unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), libc::O_RDONLY) } >= 0 {
                say("opened");
            } else {
                say(&std::io::Error::last_os_error().kind().to_string());
            }
        }
        other => panic!("unknown action {other}"),
    }
}

/// A process between the test and the jailed one, to be killed.
fn parent(jail: &str) {
    let args = ["act", jail, "wait"]
        .map(|arg| CString::new(arg).expect("argument"))
        .to_vec();
    // SAFETY: the test has put the pipes at these numbers.
    let (input, output) = unsafe {
        (
            std::os::fd::OwnedFd::from_raw_fd(0),
            std::os::fd::OwnedFd::from_raw_fd(1),
        )
    };
    let child = bulkhead_jail::spawn(Command {
        program: std::env::current_exe().expect("own path"),
        args,
        fds: vec![(input, 0), (output, 1)],
        namespaces: Namespaces::default(),
    })
    .expect("spawn");
    eprintln!("{}", child.pid);
    loop {
        std::thread::park();
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).expect("standard output");
    out.write_all(b"\n").expect("standard output");
    out.flush().expect("standard output");
}
