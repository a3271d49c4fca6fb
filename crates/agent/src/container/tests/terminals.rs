//! Processes with a terminal.

use std::{
    fs::File,
    io::{Read, Write},
};

use serde_json::{Value, json};

use super::harness::{
    Sleeper, create, isolated, reap, rootfs, shell, sleeping, start, wait_ready, with,
};
use crate::container::{Child, Io};

fn terminal_spec(script: &str) -> Value {
    with(shell(script), "/process/terminal", json!(true))
}

/// Reads what the terminal shows until `done` is content or no process has it
/// open any more, which a master reports as EIO.
fn read_until(master: &mut File, text: &mut Vec<u8>, done: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 1024];
    while !done(text) {
        match master.read(&mut buffer) {
            Ok(len) => text.extend(&buffer[..len]),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Starts a created process, types something once it has shown a word; what its
/// terminal showed in all, and its exit code.
fn watch(mut child: Child, typed: Option<(&str, &[u8])>) -> (String, i32) {
    let pid = child.pid;
    let mut master = File::from(child.terminal.take().expect("the agent gets the master"));
    let reports = wait_ready(&child).unwrap();
    assert_eq!(start(child, reports), None);
    let mut text = Vec::new();
    if let Some((word, keys)) = typed {
        let word = word.as_bytes();
        read_until(&mut master, &mut text, |text| {
            text.windows(word.len()).any(|w| w == word)
        });
        master.write_all(keys).unwrap();
    }
    read_until(&mut master, &mut text, |_| false);
    (
        String::from_utf8(text).unwrap().replace("\r\n", "\n"),
        reap(pid),
    )
}

fn run(spec: Value, columns: u16, rows: u16, typed: Option<(&str, &[u8])>) -> (String, i32) {
    let rootfs = rootfs();
    isolated(|| {
        let io = Io::Terminal { columns, rows };
        let (container, child) = create(spec, rootfs.path(), io).unwrap();
        let seen = watch(child, typed);
        container.destroy().unwrap();
        seen
    })
}

#[test]
fn terminal_is_the_containers_own_and_controls_the_process() {
    let script = "tty; readlink /proc/self/fd/1; echo controlled > /dev/tty; stty size; \
        echo console > /dev/console; stat -c %t:%T /dev/console; exit 3";

    let (text, code) = run(terminal_spec(script), 132, 43, None);

    assert_eq!(
        text,
        "/dev/pts/0\n/dev/pts/0\ncontrolled\n43 132\nconsole\n88:0\n"
    );
    assert_eq!(code, 3);
}

#[test]
fn terminal_size_comes_from_the_specification_where_the_caller_has_none() {
    let size = json!({"width": 91, "height": 17});

    let (text, _) = run(
        with(terminal_spec("stty size"), "/process/consoleSize", size),
        0,
        0,
        None,
    );

    assert_eq!(text, "17 91\n");
}

#[test]
fn interrupt_typed_at_the_terminal_reaches_the_process() {
    // As the first process it is ended by signals it handles only.
    let (text, code) = run(
        terminal_spec("trap 'echo caught; exit 9' INT; echo ready; read line; echo never"),
        80,
        24,
        Some(("ready", b"\x03")),
    );

    assert!(text.contains("caught") && !text.contains("never"), "{text}");
    assert_eq!(code, 9);
}

#[test]
fn terminal_belongs_to_an_unprivileged_user() {
    let spec = with(
        terminal_spec("stat -c '%u %a' /dev/pts/0; echo x > /dev/pts/0"),
        "/process/user",
        json!({"uid": 1000, "gid": 1000}),
    );

    let (text, code) = run(spec, 80, 24, None);

    assert_eq!((text.as_str(), code), ("1000 620\nx\n", 0));
}

#[test]
fn further_process_gets_a_terminal_of_the_same_container() {
    let rootfs = rootfs();
    let process = json!({"terminal": true, "user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["sh", "-c", "tty; stty size; echo ok > /dev/tty"], "env": ["PATH=/bin"]});

    let (text, code) = isolated(|| {
        let sleeper = Sleeper::start(rootfs.path(), sleeping());
        let process = serde_json::from_value(process).unwrap();
        let io = Io::Terminal {
            columns: 70,
            rows: 20,
        };
        let child = sleeper.container.exec(&process, io).unwrap();
        let seen = watch(child, None);
        sleeper.kill();
        seen
    });

    assert_eq!((text.as_str(), code), ("/dev/pts/0\n20 70\nok\n", 0));
}

#[test]
fn terminal_without_devpts_is_an_error_naming_the_field() {
    let rootfs = rootfs();
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let spec = with(terminal_spec("true"), "/mounts", mounts);

    let error = isolated(|| {
        create(
            spec,
            rootfs.path(),
            Io::Terminal {
                columns: 1,
                rows: 1,
            },
        )
        .unwrap_err()
        .to_string()
    });

    assert!(error.contains("process.terminal"), "{error}");
}

#[test]
fn terminal_where_the_specification_wants_none_is_an_error() {
    let rootfs = rootfs();

    let error = isolated(|| {
        let io = Io::Terminal {
            columns: 1,
            rows: 1,
        };
        create(shell("true"), rootfs.path(), io)
            .unwrap_err()
            .to_string()
    });

    assert!(error.starts_with("Invalid process.terminal"), "{error}");
}
