//! Verbs on containers that are not there, and with arguments that make no sense.

use std::fs;

use bulkhead_tests::Test;

use crate::expect::nothing_left;

pub fn verbs_on_nothing_refused(test: &Test) {
    for verb in [
        "state", "ps", "kill", "pause", "resume", "delete", "logs", "why",
    ] {
        let output = test.verb([verb, "nobody"]).output();
        assert_eq!(output.code(), 1, "{output}");
        let error = output.expect_error(&["bulkhead: ", "nobody", "does not exist"]);
        assert!(error.contains("bulkhead list"), "no remedy: {error}");
    }
    let output = test.verb(["exec", "nobody", "/bin/true"]).output();
    assert_eq!(output.code(), 255, "{output}");
    output.expect_error(&["nobody", "does not exist"]);
    // As in runc: what is not there need not be removed.
    test.verb(["delete", "--force", "nobody"])
        .output()
        .expect_code(0);
    nothing_left(test);
}

pub fn verbs_with_bad_arguments_refused(test: &Test) {
    let container = test.sh("echo ready; exec sleep 100000").start().ready();
    let id = container.id.as_str();
    for (args, parts) in [
        (&["kill", id, "SIGNONE"][..], &["SIGNONE", "SIGTERM"][..]),
        (&["kill", id, "65"], &["65"]),
        (&["delete", id], &["running", "--force"]),
        (&["resume", id], &["running"]),
        (&["exec", id], &["No command"]),
        (
            &["exec", "-u", "nobody-here", id, "/bin/true"],
            &["nobody-here"],
        ),
        (&["exec", "--cap", "FLY", id, "/bin/true"], &["FLY"]),
        (&["state", "../escape"], &["Container id"]),
        (&["delete", "--force", "../etc"], &["Container id"]),
    ] {
        let output = test.verb(args).output();
        assert_ne!(output.code(), 0, "{output}");
        let error = output.expect_error(parts);
        assert!(error.starts_with("bulkhead: "), "{output}");
    }
    for (program, code) in [("/no/such", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let output = container.exec([program]).output();
        output.expect_code(code);
        output.expect_error(&["bulkhead: ", program]);
    }
    let process = test.dir().join("process.json");
    fs::write(&process, "{ \"args\": ").unwrap();
    let output = test
        .verb(["exec", "--process"])
        .arg(&process)
        .arg(id)
        .output();
    assert_ne!(output.code(), 0);
    output.expect_error(&["bulkhead: ", "process.json"]);

    // None of it has harmed the container.
    assert_eq!(container.state()["status"], "running");
    assert_eq!(container.sh("echo well").text(), "well");
}
