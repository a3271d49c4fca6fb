//! Terminals: `-t`, `process.terminal`, `exec -t`.
//!
//! Each test but those under `ours` is proved on a peer runtime, as module `peer`.

#![allow(clippy::unwrap_used)]

use bulkhead_tests::{Bundle, Pty, Test, bundle_suite};
use rustix::process::Signal;
use rustix::termios::{LocalModes, Termios};
use serde_json::json;

bundle_suite! {
    both:
        process_has_a_terminal_of_our_size,
        resize_reaches_process,
        interrupt_key_ends_process;
    uml:
        both_output_streams_are_the_terminal,
        typed_text_is_echoed_once_and_read,
        end_of_input_key_ends_input,
        terminal_is_raw_meanwhile_and_restored_afterwards,
        terminal_is_restored_when_start_fails,
        exec_resize_reaches_process,
        process_without_terminal_has_none,
        large_output_arrives_whole;
    ours:
        exec_has_a_terminal_of_its_own_with_our_size,
        tty_option_gives_an_interactive_shell,
        tty_option_without_a_terminal_of_ours_works,
        terminal_variable_is_set;
}

/// A bundle whose process has a terminal.
fn with_terminal<'t>(test: &'t Test, script: &str) -> Bundle<'t> {
    test.bundle_sh(script, |config| config["process"]["terminal"] = json!(true))
}

/// What of a terminal's settings a program changes.
fn modes(settings: &Termios) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        settings.input_modes,
        settings.output_modes,
        settings.control_modes,
        settings.local_modes,
    )
}

fn process_has_a_terminal_of_our_size(test: &Test) {
    let script = "test -t 0 && test -t 1 && test -t 2 && tty; \
                  while read line; do echo \"size $(stty size 2>/dev/null).\"; done";
    let mut pty = Pty::start(with_terminal(test, script).invocation(), 111, 37);
    assert_eq!(pty.read_until("\r\n"), "/dev/pts/0\r\n");

    let size = |pty: &mut Pty| {
        pty.write("\n");
        pty.read_until("size ");
        pty.read_until(".") == "37 111."
    };
    let mut is_ours = size(&mut pty);
    if test.driver.is_peer() {
        // A peer sets the first size when the process already runs, and looks again when told.
        is_ours = is_ours
            || (0..100).any(|_| {
                pty.signal(Signal::WINCH);
                size(&mut pty)
            });
    }

    assert!(is_ours);
    pty.write("\x04");
    assert_eq!(pty.wait().code(), Some(0));
}

fn resize_reaches_process(test: &Test) {
    let script = "trap 'stty size' WINCH; sleep 1000 & echo ready; while :; do wait; done";
    let bundle = with_terminal(test, script);
    let mut pty = Pty::start(bundle.invocation(), 80, 24);
    pty.read_until("ready");

    pty.resize(123, 45);

    pty.read_until("45 123\r\n");
    test.verb(["kill", &bundle.id, "KILL"])
        .output()
        .expect_code(0);
    assert_eq!(pty.wait().code(), Some(137));
}

fn interrupt_key_ends_process(test: &Test) {
    let script = "trap 'echo interrupted; exit 42' INT; sleep 1000 & echo ready; wait";
    let mut pty = Pty::start(with_terminal(test, script).invocation(), 80, 24);
    pty.read_until("ready");

    pty.write("\x03");

    pty.read_until("interrupted\r\n");
    assert_eq!(pty.wait().code(), Some(42));
}

fn both_output_streams_are_the_terminal(test: &Test) {
    let script = "echo one; echo two >&2; echo three >/dev/tty";
    let mut pty = Pty::start(with_terminal(test, script).invocation(), 80, 24);

    let output = pty.read_until("three\r\n");

    assert_eq!(output, "one\r\ntwo\r\nthree\r\n");
}

fn typed_text_is_echoed_once_and_read(test: &Test) {
    let script = "echo ready; read line; echo \"<$line>\"";
    let mut pty = Pty::start(with_terminal(test, script).invocation(), 80, 24);
    pty.read_until("ready");

    pty.write("hällo\n");

    let output = pty.read_until(">");
    assert_eq!(output.trim_start(), "hällo\r\n<hällo>");
    assert_eq!(pty.wait().code(), Some(0));
}

fn end_of_input_key_ends_input(test: &Test) {
    let mut pty = Pty::start(
        with_terminal(test, "echo ready; cat; echo end").invocation(),
        80,
        24,
    );
    pty.read_until("ready");

    pty.write("\x04");

    pty.read_until("end\r\n");
    assert_eq!(pty.wait().code(), Some(0));
}

fn terminal_is_raw_meanwhile_and_restored_afterwards(test: &Test) {
    let mut pty = Pty::start(
        with_terminal(test, "echo ready; read line").invocation(),
        80,
        24,
    );
    // What a new terminal has: the kernel's own, whoever opens it.
    let other = Pty::start(bulkhead_tests::Invocation::new("/bin/true"), 80, 24);
    let before = other.settings();
    pty.read_until("ready");

    let meanwhile = pty.settings();
    pty.write("\n");
    assert_eq!(pty.wait().code(), Some(0));

    let local = meanwhile.local_modes;
    assert!(!local.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
    assert_eq!(modes(&pty.settings()), modes(&before));
}

fn terminal_is_restored_when_start_fails(test: &Test) {
    let bundle = test.bundle(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["args"] = json!(["/bin/none"]);
    });
    let other = Pty::start(bulkhead_tests::Invocation::new("/bin/true"), 80, 24);
    let before = other.settings();

    let mut pty = Pty::start(bundle.invocation(), 80, 24);

    assert_ne!(pty.wait().code(), Some(0));
    assert_eq!(modes(&pty.settings()), modes(&before));
    assert!(pty.rest().contains("/bin/none"));
}

fn exec_has_a_terminal_of_its_own_with_our_size(test: &Test) {
    let container = test.bundle_sh("echo ready; cat", |_| {}).start().ready();
    let exec = container.exec_with(&["--tty"], ["sh", "-c", "tty; stty size; exit 6"]);

    let mut pty = Pty::start(exec, 99, 33);

    assert_eq!(pty.wait().code(), Some(6));
    assert_eq!(pty.rest(), "/dev/pts/0\r\n33 99\r\n");
}

fn exec_resize_reaches_process(test: &Test) {
    let container = test.bundle_sh("echo ready; cat", |_| {}).start().ready();
    // An engine may set the first size after the process runs: only the size asked for ends it.
    let script = "trap 's=$(stty size); echo $s; test \"$s\" = \"20 70\" && exit 0' WINCH; \
                  sleep 1000 & echo ready; while :; do wait; done";
    let mut pty = Pty::start(
        container.exec_with(&["--tty"], ["sh", "-c", script]),
        80,
        24,
    );
    pty.read_until("ready");

    pty.resize(70, 20);

    pty.read_until("20 70\r\n");
    assert_eq!(pty.wait().code(), Some(0));
}

fn process_without_terminal_has_none(test: &Test) {
    let script = "for fd in 0 1 2; do test -t $fd && echo $fd; done; : </dev/tty";
    let bundle = test.bundle_sh(script, |_| {});

    let output = bundle.output();

    assert_ne!(output.code(), 0);
    assert_eq!(output.stdout, b"");
    assert!(output.error().contains("/dev/tty"), "{output}");
}

fn large_output_arrives_whole(test: &Test) {
    let script = "seq 1 20000; echo end";
    let mut pty = Pty::start(with_terminal(test, script).invocation(), 80, 24);

    let output = pty.read_until("end\r\n");

    let wanted: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    assert!(output == wanted + "end\r\n", "{} bytes", output.len());
}

fn tty_option_gives_an_interactive_shell(test: &Test) {
    let run = test.run(["sh"]).options(["-i", "-t"]).invocation();
    let mut pty = Pty::start(run, 80, 24);
    pty.read_until("# ");

    pty.write("echo $((6*7)); exit 7\n");

    pty.read_until("42\r\n");
    assert_eq!(pty.wait().code(), Some(7));
}

fn tty_option_without_a_terminal_of_ours_works(test: &Test) {
    let output = test.run(["tty"]).option("-t").output();

    assert_eq!(output.text(), "/dev/pts/0");
}

fn terminal_variable_is_set(test: &Test) {
    let output = test.sh("echo $TERM").option("-t").output();

    assert_eq!(output.text(), "xterm");
}
