//! `run --image`: OCI layouts and archives, their configuration, and that nobody changes them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_tests::harness::rootfs::{self, add_script};
use bulkhead_tests::harness::suite::skip;
use bulkhead_tests::{Image, Test, suite};
use serde_json::{Value, json};

suite! {
    both:
        layout_directory_runs,
        docker_archive_runs;
    uml:
        layout_directory_with_tag_runs,
        oci_archive_runs,
        command_of_the_image_runs,
        entrypoint_of_the_image_takes_the_given_arguments,
        environment_of_the_image_is_set_and_overridden,
        user_of_the_image_applies,
        working_directory_of_the_image_applies,
        options_win_over_the_image,
        container_changes_stay_its_own,
        container_that_is_kept_is_removed_with_its_changes,
        upper_layers_replace_and_remove_files,
        owners_and_modes_are_the_images,
        image_that_is_missing_is_an_error,
        image_without_command_is_an_error;
}

/// An image of busybox.
fn image(test: &Test, config: &Value) -> Image {
    let root = test.new_rootfs();
    add_script(&root, "/bin/args", "echo \"[$@]\"");
    Image::make(&test.new_dir(), &[&root], config)
}

fn layout_directory_runs(test: &Test) {
    let image = image(test, &json!({}));

    let output = test.run(["echo", "hello"]).image(&image.dir).output();

    assert_eq!(output.text(), "hello");
}

fn layout_directory_with_tag_runs(test: &Test) {
    let image = image(test, &json!({}));

    let tagged = test
        .run(["echo", "hello"])
        .image(format!("{}:v1", image.dir.display()))
        .output();
    let other = test
        .run(["echo", "hello"])
        .image(format!("{}:v2", image.dir.display()))
        .output();

    assert_eq!(tagged.text(), "hello");
    other.expect_code(125);
    other.expect_error(&["v2"]);
}

/// The image in an archive; skips the test without the program that makes archives.
fn archive(test: &Test, format: &str) -> Option<PathBuf> {
    let file = test.dir().join("image.tar");
    match image(test, &json!({ "Cmd": ["echo", "from an archive"] })).archive(format, &file) {
        Ok(()) => Some(file),
        Err(reason) => {
            skip(&test.name, &reason);
            None
        }
    }
}

fn docker_archive_runs(test: &Test) {
    let Some(file) = archive(test, "docker-archive") else {
        return;
    };

    let output = test.run(&[] as &[&str]).image(file).output();

    assert_eq!(output.text(), "from an archive");
}

fn oci_archive_runs(test: &Test) {
    let Some(file) = archive(test, "oci-archive") else {
        return;
    };

    let output = test.run(&[] as &[&str]).image(file).output();

    assert_eq!(output.text(), "from an archive");
}

fn command_of_the_image_runs(test: &Test) {
    let image = image(test, &json!({ "Cmd": ["args", "of", "image"] }));

    let default = test.run(&[] as &[&str]).image(&image.dir).output();
    let given = test.run(["args", "given"]).image(&image.dir).output();

    assert_eq!(default.text(), "[of image]");
    assert_eq!(given.text(), "[given]");
}

fn entrypoint_of_the_image_takes_the_given_arguments(test: &Test) {
    let image = image(
        test,
        &json!({ "Entrypoint": ["args", "always"], "Cmd": ["default"] }),
    );

    let default = test.run(&[] as &[&str]).image(&image.dir).output();
    let given = test.run(["given"]).image(&image.dir).output();

    assert_eq!(default.text(), "[always default]");
    assert_eq!(given.text(), "[always given]");
}

fn environment_of_the_image_is_set_and_overridden(test: &Test) {
    let image = image(test, &json!({ "Env": ["A=image", "B=image", "PATH=/bin"] }));
    let run = test.sh("echo $A $B $C $PATH").image(&image.dir);

    let output = run.options(["-e", "B=given", "-e", "C=given"]).output();

    assert_eq!(output.text(), "image given given /bin");
}

fn user_of_the_image_applies(test: &Test) {
    let image = image(test, &json!({ "User": "alice" }));

    let output = test
        .sh("id -u; id -G; echo $HOME")
        .image(&image.dir)
        .output();

    assert_eq!(output.text(), "1000\n1000 44 50\n/home/alice");
}

fn working_directory_of_the_image_applies(test: &Test) {
    let image = image(test, &json!({ "WorkingDir": "/srv/app" }));

    let output = test.run(["/bin/pwd"]).image(&image.dir).output();

    assert_eq!(output.text(), "/srv/app");
}

fn options_win_over_the_image(test: &Test) {
    let image = image(test, &json!({ "User": "alice", "WorkingDir": "/srv" }));

    let run = test
        .sh("id -u; pwd")
        .image(&image.dir)
        .options(["-u", "daemon", "-w", "/etc"]);

    assert_eq!(run.output().text(), "1\n/etc");
}

fn container_changes_stay_its_own(test: &Test) {
    let image = image(test, &json!({}));
    let script = "echo mine >>/etc/passwd; rm /bin/ls; echo x >/new; mkdir /etc/dir";

    test.sh(script).image(&image.dir).output().expect_code(0);
    let second = test
        .sh("ls /new /etc/dir; wc -l </etc/passwd")
        .image(&image.dir)
        .output();

    assert_eq!(second.text(), "3");
    assert_eq!(
        second.error().matches("No such file").count(),
        2,
        "{second}"
    );
}

fn container_that_is_kept_is_removed_with_its_changes(test: &Test) {
    let image = image(test, &json!({}));
    let id = test.new_id();
    let layers = || {
        let entries = fs::read_dir("/var/lib/bulkhead/layers")
            .into_iter()
            .flatten()
            .flatten();
        let prefix = format!("{id}@");
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&prefix)).count()
    };
    let run = test.sh("echo x >/new").image(&image.dir).name(&id).keep();
    run.output().expect_code(0);
    let kept = layers();

    test.verb(["delete", &id]).output().expect_code(0);

    assert_eq!((kept, layers()), (1, 0));
}

fn upper_layers_replace_and_remove_files(test: &Test) {
    let base = test.new_dir();
    rootfs::make(&base);
    for file in ["replaced", "removed", "dir/hidden"] {
        fs::create_dir_all(base.join("data/dir")).unwrap();
        fs::write(base.join("data").join(file), "base").unwrap();
    }
    let top = test.new_dir();
    let write = |path: &str, text: &str| {
        let path: PathBuf = top.join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text).unwrap();
    };
    write("data/replaced", "top");
    write("data/.wh.removed", "");
    write("data/dir/.wh..wh..opq", "");
    write("data/dir/shown", "top");
    let image = Image::make(&test.new_dir(), &[&base, &top], &json!({}));

    let output = test
        .sh("cd /data; ls -A . dir; cat replaced")
        .image(&image.dir)
        .output();

    assert_eq!(output.text(), ".:\ndir\nreplaced\n\ndir:\nshown\ntop");
}

fn owners_and_modes_are_the_images(test: &Test) {
    let image = image(test, &json!({}));

    let output = test
        .sh("stat -c '%u:%g %a' /home/alice /tmp /root")
        .image(&image.dir)
        .output();

    assert_eq!(output.text(), "1000:1000 755\n0:0 1777\n0:0 700");
}

fn image_that_is_missing_is_an_error(test: &Test) {
    let output = test.run(["true"]).image("/no/such/image.tar").output();

    output.expect_code(125);
    output.expect_error(&["/no/such/image.tar"]);
}

fn image_without_command_is_an_error(test: &Test) {
    let image = image(test, &json!({}));

    let output = test.run(&[] as &[&str]).image(&image.dir).output();

    output.expect_code(125);
    output.expect_error(&["No command"]);
}
