//! `-v`, `--tmpfs`, `--read-only`: what of the host a container sees, and what it may write.

#![allow(clippy::unwrap_used)]

use std::fs;

use bulkhead_tests::{Test, suite};

suite! {
    both:
        volume_shares_both_ways,
        volume_read_only_refuses_writes,
        root_read_only_refuses_writes;
    uml:
        volume_of_a_file_shares_it,
        volume_of_a_relative_path_is_from_here,
        volume_changes_show_while_the_container_runs,
        volume_under_a_volume_is_seen,
        volume_read_only_goes_for_the_mounts_below,
        volume_that_is_missing_is_an_error,
        volume_by_name_is_an_error,
        tmpfs_has_its_options_and_leaves_nothing,
        root_read_only_has_writable_volumes,
        rootfs_is_written_to_directly,
        large_file_in_a_volume_is_the_same;
}

fn volume_shares_both_ways(test: &Test) {
    let dir = test.new_dir();
    fs::write(dir.join("in"), "from the host").unwrap();

    let output = test
        .sh("cat /data/in; echo from inside >/data/out")
        .volume(&dir, "/data")
        .output();

    assert_eq!(output.text(), "from the host");
    assert_eq!(
        fs::read_to_string(dir.join("out")).unwrap(),
        "from inside\n"
    );
}

fn volume_read_only_refuses_writes(test: &Test) {
    let dir = test.new_dir();
    fs::write(dir.join("in"), "safe").unwrap();
    let script = "cat /data/in; echo x >/data/in; echo x >/data/new; rm /data/in; mount -o remount,rw /data; true";

    let output = test.sh(script).volume(&dir, "/data:ro").output();

    assert_eq!(output.text(), "safe");
    assert_eq!(
        output.error().matches("Read-only file system").count(),
        3,
        "{output}"
    );
    assert_eq!(fs::read_to_string(dir.join("in")).unwrap(), "safe");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

fn volume_read_only_goes_for_the_mounts_below(test: &Test) {
    let dir = test.new_dir();
    fs::create_dir(dir.join("sub")).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(
        Some("tmpfs"),
        &dir.join("sub"),
        Some("tmpfs"),
        flags,
        None::<&str>,
    )
    .unwrap();

    let output = test
        .sh("echo x >/data/sub/x")
        .volume(&dir, "/data:ro")
        .output();

    let written = dir.join("sub/x").exists();
    nix::mount::umount(&dir.join("sub")).unwrap();
    assert!(output.error().contains("Read-only file system"), "{output}");
    assert!(!written);
}

fn volume_of_a_file_shares_it(test: &Test) {
    let file = test.new_dir().join("file");
    fs::write(&file, "before").unwrap();

    let output = test
        .sh("cat /etc/new.conf; echo after >/etc/new.conf")
        .volume(&file, "/etc/new.conf")
        .output();

    assert_eq!(output.text(), "before");
    assert_eq!(fs::read_to_string(&file).unwrap(), "after\n");
}

fn volume_of_a_relative_path_is_from_here(test: &Test) {
    let dir = test.new_dir();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/file"), "here").unwrap();
    let run = test
        .run(["cat", "/data/file"])
        .options(["-v", "./sub:/data"]);

    let output = run.with(|command| command.dir(&dir)).output();

    assert_eq!(output.text(), "here");
}

fn volume_changes_show_while_the_container_runs(test: &Test) {
    let dir = test.new_dir();
    fs::write(dir.join("file"), "one").unwrap();
    let script = "cat /data/file; echo; read line; cat /data/file; echo";
    let run = test.sh(script).option("-i").volume(&dir, "/data");
    let mut container = run.with(|command| command.stdin_pipe()).start();
    container.line_is("one");

    fs::write(dir.join("file"), "two").unwrap();
    container.write_line("");

    assert_eq!(container.line(), "two");
    container.end().expect_code(0);
}

fn volume_under_a_volume_is_seen(test: &Test) {
    let (outer, inner) = (test.new_dir(), test.new_dir());
    fs::create_dir(outer.join("sub")).unwrap();
    fs::write(inner.join("inner"), "").unwrap();

    // The inner one comes first: the order of the options does not matter.
    let run = test
        .sh("ls /data/sub")
        .volume(&inner, "/data/sub")
        .volume(&outer, "/data");

    assert_eq!(run.output().text(), "inner");
}

fn volume_that_is_missing_is_an_error(test: &Test) {
    let missing = test.dir().join("missing");

    let output = test.run(["true"]).volume(&missing, "/data").output();

    output.expect_code(125);
    output.expect_error(&["missing"]);
    assert!(!missing.exists());
}

fn volume_by_name_is_an_error(test: &Test) {
    let output = test.run(["true"]).options(["-v", "data:/data"]).output();

    output.expect_code(125);
    output.expect_error(&["data:/data", "named volumes"]);
}

fn tmpfs_has_its_options_and_leaves_nothing(test: &Test) {
    let script = "stat -c %a /scratch; cd /scratch; dd if=/dev/zero of=x bs=1k count=2000 2>/dev/null; wc -c <x";

    let output = test
        .sh(script)
        .options(["--tmpfs", "/scratch:size=1m,mode=700"])
        .output();

    assert_eq!(output.text(), "700\n1048576");
    let below = fs::read_dir(test.rootfs().join("scratch"));
    assert_eq!(below.map_or(0, Iterator::count), 0);
}

fn root_read_only_refuses_writes(test: &Test) {
    let output = test
        .sh("echo x >/x; echo x >/tmp/x; rm /bin/ls; true")
        .option("--read-only")
        .output();

    output.expect_code(0);
    assert_eq!(
        output.error().matches("Read-only file system").count(),
        3,
        "{output}"
    );
    assert!(test.rootfs().join("bin/ls").is_symlink());
}

fn root_read_only_has_writable_volumes(test: &Test) {
    let dir = test.new_dir();
    let run = test.sh("echo x >/data/x && echo x >/tmp/x && echo x >/dev/shm/x && echo done");

    let output = run
        .options(["--read-only", "--tmpfs", "/tmp"])
        .volume(&dir, "/data")
        .output();

    assert_eq!(output.text(), "done");
    assert!(dir.join("x").exists());
}

fn rootfs_is_written_to_directly(test: &Test) {
    test.sh("echo kept >/file; rm /bin/ls")
        .output()
        .expect_code(0);

    assert_eq!(
        fs::read_to_string(test.rootfs().join("file")).unwrap(),
        "kept\n"
    );
    assert!(!test.rootfs().join("bin/ls").is_symlink());
}

fn large_file_in_a_volume_is_the_same(test: &Test) {
    let dir = test.new_dir();
    let bytes: Vec<u8> = (0..64_u32 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("in"), &bytes).unwrap();

    test.sh("cp /data/in /data/out")
        .volume(&dir, "/data")
        .output()
        .expect_code(0);

    assert!(fs::read(dir.join("out")).unwrap() == bytes);
}
