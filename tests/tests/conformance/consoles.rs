//! Terminals, and the socket an engine receives them by.

use bulkhead_tests::harness::console::Console;
use bulkhead_tests::{Bundle, ConsoleSocket, Created};
use serde_json::{Value, json};

use crate::exec::{exit_code, pid_in};
use crate::requirement::Exception::Crun;
use crate::requirement::Requirement;
use crate::requirements;
use crate::subject::Subject;

pub const CONSOLES: &[Requirement] = requirements! {
    "Command line: terminals";
    terminal_is_sent_to_the_socket = "`terminal` and `--console-socket`: a terminal is sent, and is the process's streams";
    typed_text_reaches_the_process = "What is typed reaches the process, and is echoed";
    terminal_is_the_controlling_one = "It is the controlling terminal: an interrupt typed is SIGINT";
    console_size_is_set = "`consoleSize` is the size at first";
    resize_follows = "A new size set by the engine is the container's, with SIGWINCH";
    console_device_is_the_terminal = "`/dev/console` is the terminal";
    terminal_ends_with_the_process = "The engine's side ends when the process has";
    terminal_without_socket_is_an_error = "`create` with `terminal` and without `--console-socket` is an error";
    socket_without_terminal_is_an_error = "`--console-socket` without `terminal` is an error" [
        Crun("1.8 ignores it"),
    ];
    exec_has_a_terminal_of_its_own = "`exec --tty --console-socket --detach`: a terminal of its own";
};

fn terminal(config: &mut Value) {
    config["process"]["terminal"] = json!(true);
}

fn create<'t>(subject: &'t Subject, bundle: Bundle<'t>) -> (Created<'t>, Console) {
    let socket = ConsoleSocket::new(&subject.new_dir());
    let container = Created::new(subject, bundle, |it| {
        it.arg("--console-socket").arg(socket.path())
    });
    let console = socket.terminal();
    (container, console)
}

/// A started container with a terminal, and the engine's side of it.
fn started<'t>(
    subject: &'t Subject,
    script: &str,
    change: impl FnOnce(&mut Value),
) -> (Created<'t>, Console) {
    let bundle = subject.bundle_sh(script, |config| {
        terminal(config);
        change(config);
    });
    let (container, console) = create(subject, bundle);
    container.start();
    (container, console)
}

fn terminal_is_sent_to_the_socket(subject: &Subject) {
    let script = "for fd in 0 1 2; do [ -t $fd ] && echo terminal $fd; done; tty";

    let (mut container, mut console) = started(subject, script, |_| {});

    console.read_until("terminal 0\r\nterminal 1\r\nterminal 2\r\n");
    console.read_until("/dev/");
    container.wait();
}

fn typed_text_reaches_the_process(subject: &Subject) {
    let (mut container, mut console) =
        started(subject, "echo ready; read line; echo got $line", |_| {});
    console.read_until("ready\r\n");

    console.write("some text\n");

    let text = console.read_until("got some text\r\n");
    assert!(text.starts_with("some text\r\n"), "{text:?}");
    container.wait();
}

fn terminal_is_the_controlling_one(subject: &Subject) {
    let script = "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.1; done";
    let (mut container, mut console) = started(subject, script, |_| {});
    console.read_until("ready\r\n");

    console.write("\x03");

    console.read_until("interrupted");
    assert_eq!(container.wait().code(), Some(4));
}

fn console_size_is_set(subject: &Subject) {
    let (mut container, mut console) = started(subject, "stty size", |config| {
        config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    });

    console.read_until("33 77\r\n");
    container.wait();
}

fn resize_follows(subject: &Subject) {
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done";
    let (mut container, mut console) = started(subject, script, |_| {});
    console.read_until("ready\r\n");

    console.resize(101, 41);

    console.read_until("41 101\r\n");
    container.wait();
}

fn console_device_is_the_terminal(subject: &Subject) {
    let (mut container, mut console) = started(
        subject,
        "[ -t 0 ] </dev/console && echo written >/dev/console",
        |_| {},
    );

    console.read_until("written\r\n");
    container.wait();
}

fn terminal_ends_with_the_process(subject: &Subject) {
    let script = "seq 1 2000; echo end";
    let (mut container, console) = started(subject, script, |_| {});

    let text = console.read_to_end();

    assert!(text.ends_with("2000\r\nend\r\n"), "{:?}", text.len());
    assert_eq!(text.lines().count(), 2001);
    container.wait();
}

fn terminal_without_socket_is_an_error(subject: &Subject) {
    subject.refused(terminal);
}

fn socket_without_terminal_is_an_error(subject: &Subject) {
    let socket = ConsoleSocket::new(&subject.new_dir());
    let bundle = subject.bundle(|_| {});
    let path = socket.path().to_str().unwrap();

    subject.refused_bundle(&bundle, &["--console-socket", path]);
}

fn exec_has_a_terminal_of_its_own(subject: &Subject) {
    let container = subject.running(|_| {});
    let socket = ConsoleSocket::new(&subject.new_dir());
    let file = subject.new_dir().join("pid");
    let exec = subject.verb(["exec", "--tty", "--detach", "--pid-file"]);
    let exec = exec.arg(&file).arg("--console-socket");
    let script = "trap 'stty size; exit 0' WINCH; tty; echo ready; while :; do sleep 0.1; done";
    let exec = exec.arg(socket.path()).arg(container.id());
    let mut exec = exec.args(["/bin/sh", "-c", script]).spawn();

    assert!(exec.exited().success());

    let mut console = socket.terminal();
    console.read_until("/dev/");
    console.read_until("ready\r\n");
    console.resize(99, 44);
    console.read_until("44 99\r\n");
    // As its parent: runc waits for half a minute for a group that has a process nobody has waited for.
    assert_eq!(exit_code(pid_in(&file)), Some(0));
    drop(exec);
    drop(container);
}
