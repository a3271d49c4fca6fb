//! What `/proc` says about the processes of a container.

use std::{fs, io, time::Duration};

use nix::unistd::Pid;
use rustix::param::clock_ticks_per_second;

use super::{ContainerError, ProcessInfo, cgroup::Cgroup, failure::During};

/// The processes of a group, by PID; those that end meanwhile are left out.
pub fn of(cgroup: &Cgroup) -> Result<Vec<ProcessInfo>, ContainerError> {
    let mut processes = Vec::new();
    for pid in cgroup.processes()? {
        match read(pid) {
            Ok(process) => processes.extend(process),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                return Err(error).while_trying(|| format!("read what /proc says about {pid}"));
            }
        }
    }
    Ok(processes)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn read(pid: Pid) -> io::Result<Option<ProcessInfo>> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let status = fs::read(format!("/proc/{pid}/status"))?;
    let cmdline = fs::read(format!("/proc/{pid}/cmdline"))?;
    let ticks = clock_ticks_per_second();
    Ok(parse(
        pid.as_raw().unsigned_abs(),
        &stat,
        &status,
        &cmdline,
        ticks,
    ))
}

/// Fields as in proc(5). The command's name is the process' own choice and may
/// contain anything, so it ends at the last parenthesis.
fn parse(pid: u32, stat: &[u8], status: &[u8], cmdline: &[u8], ticks: u64) -> Option<ProcessInfo> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let command = stat.get(open + 1..close)?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    // The third field of the file is the first after the name.
    let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3);
    let number = |n: usize| field(n)?.parse::<u64>().ok();
    let time = |ticked: u64| {
        let ticks = ticks.max(1);
        Duration::from_millis(ticked.saturating_mul(1000) / ticks)
    };
    let status = String::from_utf8_lossy(status);
    let uid = status.lines().find_map(|line| {
        line.strip_prefix("Uid:")?
            .split_ascii_whitespace()
            .nth(1)?
            .parse()
            .ok()
    })?;
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let args = match cmdline {
        b"" => Vec::new(),
        _ => cmdline
            .split(|&b| b == 0)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect(),
    };
    Some(ProcessInfo {
        pid,
        parent: field(4)?.parse().ok()?,
        uid,
        command: String::from_utf8_lossy(command).into_owned(),
        args,
        cpu: time(number(14)?.saturating_add(number(15)?)),
        started: time(number(22)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &[u8] = b"Name:\tsh\nUid:\t0\t1000\t0\t0\n";

    #[test]
    fn process_with_parentheses_and_newline_in_its_name_is_read() {
        let stat =
            b"7 (a) b\n(c) S 3 7 7 0 -1 4194560 10 20 30 40 150 50 0 0 20 0 1 0 1200 1000 9\n";

        let process = parse(7, stat, STATUS, b"sh\0-c\0\0", 100).unwrap();

        assert_eq!(process.command, "a) b\n(c");
        assert_eq!(process.parent, 3);
        assert_eq!(process.uid, 1000);
        assert_eq!(process.args, ["sh", "-c", ""]);
        assert_eq!(process.cpu, Duration::from_secs(2));
        assert_eq!(process.started, Duration::from_secs(12));
    }

    #[test]
    fn process_without_a_command_line_has_no_arguments() {
        let stat = b"7 (z) Z 3 7 7 0 -1 4194560 10 20 30 40 1 0 0 0 20 0 1 0 0 0 0\n";

        assert_eq!(
            parse(7, stat, STATUS, b"", 100).unwrap().args,
            Vec::<String>::new()
        );
    }

    #[test]
    fn process_file_that_is_cut_short_is_no_process() {
        assert_eq!(parse(7, b"7 (z) Z 3", STATUS, b"", 100), None);
        assert_eq!(parse(7, b"", b"", b"", 100), None);
    }
}
