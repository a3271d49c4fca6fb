//! A hostile guest and the files of the host: `attack.c` runs as root with every capability and
//! without a filter inside a container, and never reaches a file that was not shared.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod outside;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::Instant;

use bulkhead_tests::{Output, Run, Test, suite, wait};
use outside::{Outside, attack_program, text_of};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

suite! {
    both:
        symlinks_planted_in_every_share_reach_nothing_outside,
        share_mounted_again_shows_only_what_is_shared,
        share_seen_by_the_guests_own_root_holds_and_allows_no_more,
        ports_of_the_host_nobody_expects_refused_by_the_thousand;
    uml:
        device_nodes_are_those_of_the_guest,
        files_of_read_only_volumes_not_linked_elsewhere,
        read_only_volume_stays_so_after_remounts,
        file_handles_made_up_open_nothing_outside,
        renames_raced_against_lookups_reach_nothing_outside,
        renames_of_two_guests_raced_reach_nothing_outside,
        fifos_and_sockets_of_the_host_have_no_guest_at_the_other_end,
        names_of_any_length_depth_and_byte_served,
        attributes_of_the_hosts_kernel_not_settable,
        files_beyond_the_hosts_descriptors_end_in_an_error_not_in_the_end,
        accounts_behind_symlinks_not_read_from_the_host,
        mount_points_behind_symlinks_stay_in_the_guest,
        host_directory_moved_away_takes_nothing_with_it,
        text_of_a_guest_never_drives_a_terminal;
}

/// What a hostile container has.
struct Prey {
    outside: Outside,
    /// Shared for writing at `/data`.
    data: PathBuf,
    /// Shared read-only at `/ro`; holds `file`.
    read_only: PathBuf,
    before: Vec<String>,
}

impl Prey {
    fn new(test: &Test) -> Self {
        fs::copy(attack_program(), test.rootfs().join("attack")).unwrap();
        let (data, read_only) = (test.new_dir(), test.new_dir());
        fs::write(data.join("hello"), "hello\n").unwrap();
        fs::write(read_only.join("file"), format!("read-only {}\n", test.name)).unwrap();
        let before = outside::snapshot(&read_only);
        Self {
            outside: Outside::new(test),
            data,
            read_only,
            before,
        }
    }

    fn secret(&self) -> &str {
        self.outside.path.to_str().unwrap()
    }

    /// `run` of `attack ARGUMENTS…` with every right a container can have.
    fn attack<'t>(&self, test: &'t Test, arguments: &[&str]) -> Run<'t> {
        // In the end the shares must still be served.
        let script = "/attack \"$@\" && cat /data/hello && echo still served";
        let command = ["/bin/sh", "-c", script, "sh"]
            .into_iter()
            .chain(arguments.iter().copied());
        test.run(command)
            .options(["--cap-add", "ALL"])
            .options(["--security-opt", "seccomp=unconfined"])
            .options(["--security-opt", "systempaths=unconfined"])
            .volume(&self.data, "/data")
            .volume(&self.read_only, "/ro:ro")
    }

    /// Runs it to its end, which must be an orderly one, and looks at what it has reached.
    #[track_caller]
    fn attacked(&self, test: &Test, arguments: &[&str]) -> String {
        let output = self.attack(test, arguments).output();
        self.judge(&output, arguments[0])
    }

    /// The same as the guest's root, outside of the container.
    #[track_caller]
    fn attacked_outside(&self, test: &Test, arguments: &[&str]) -> String {
        let id = test.new_id();
        let outside = [&["outside", &id], arguments].concat();
        let output = self.attack(test, &outside).name(&id).output();
        self.judge(&output, arguments[0])
    }

    #[track_caller]
    fn judge(&self, output: &Output, name: &str) -> String {
        output.expect_code(0);
        let text = text_of(output);
        for line in [
            format!("done {name}"),
            "hello".into(),
            "still served".into(),
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?}: {output}"
            );
        }
        let breaches: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("BREACH"))
            .collect();
        assert!(breaches.is_empty(), "{breaches:#?}");
        self.outside.assert_untouched(output);
        assert_eq!(
            outside::snapshot(&self.read_only),
            self.before,
            "the read-only volume"
        );
        text
    }
}

fn symlinks_planted_in_every_share_reach_nothing_outside(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["links", prey.secret(), "/", "/data", "/tmp"]);

    // The links are really there, on the host.
    let planted = fs::read_link(prey.data.join("link-0")).unwrap();
    assert_eq!(planted, prey.outside.path, "{text}");
}

fn device_nodes_are_those_of_the_guest(test: &Test) {
    let prey = Prey::new(test);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new())
        .unwrap()
        .into_string()
        .unwrap();
    let number = name.strip_prefix("/dev/pts/").unwrap();
    let slave =
        rustix::fs::open(name.as_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();

    let text = prey.attacked(test, &["nodes", number, "/", "/data"]);

    assert!(
        text.contains("mknod /data/node-0: ok"),
        "nothing was tried: {text}"
    );
    assert!(
        !wait::readable(terminal.as_fd(), Instant::now()),
        "the guest wrote to a terminal of the host"
    );
    // The node is there, as an entry of a directory; the guest cannot use it, nor can the device
    // process, whose mounts are without devices.
    let node = fs::symlink_metadata(prey.data.join("node-0")).unwrap();
    assert_eq!(rustix::fs::major(node.rdev()), 136);
    drop(slave);
}

fn files_of_read_only_volumes_not_linked_elsewhere(test: &Test) {
    let prey = Prey::new(test);
    let data = fs::metadata(prey.read_only.join("file")).unwrap();

    let text = prey.attacked(test, &["hardlinks", "/ro/file", "/", "/data"]);

    assert!(text.contains("tried link /data/hardlink"), "{text}");
    let after = fs::metadata(prey.read_only.join("file")).unwrap();
    assert_eq!((after.nlink(), after.ino()), (1, data.ino()));
}

fn read_only_volume_stays_so_after_remounts(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["readonly", "/ro"]);

    assert!(
        text.contains("tried remount /ro: ok"),
        "the guest's own flag held: {text}"
    );
}

fn share_mounted_again_shows_only_what_is_shared(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["again", prey.secret()]);

    let mounted = "tried mount the share at /tmp/share: ok";
    assert!(text.contains(mounted), "{text}");
}

fn share_seen_by_the_guests_own_root_holds_and_allows_no_more(test: &Test) {
    let prey = Prey::new(test);
    let content = fs::read_to_string(prey.read_only.join("file")).unwrap();

    let text = prey.attacked_outside(test, &["root", prey.secret(), &content]);

    assert!(text.contains("found the read-only volume: yes"), "{text}");
    let listed = |prefix: &str| {
        let mut names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(prefix))
            .collect();
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(listed("shared "), "m0 m1 rootfs", "{text}");
    assert_eq!(listed("container ").split(' ').count(), 1, "{text}");
}

fn file_handles_made_up_open_nothing_outside(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["handles", prey.secret(), "/", "/data", "/ro"]);
    assert_eq!(text.matches("opened ").count(), 3, "{text}");

    let share = "/run/bulkhead/share";
    let text = prey.attacked_outside(test, &["handles", prey.secret(), share]);
    assert_eq!(text.matches("opened ").count(), 1, "{text}");
}

fn renames_raced_against_lookups_reach_nothing_outside(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["race", "400", prey.secret(), "/data"]);

    assert!(
        text.contains("reached the own file yes"),
        "the race never ran: {text}"
    );
}

fn renames_of_two_guests_raced_reach_nothing_outside(test: &Test) {
    let prey = Prey::new(test);
    let arguments = ["race", "300", prey.secret(), "/data"];

    let first = prey.attack(test, &arguments).start();
    let second = prey.attack(test, &arguments).start();

    prey.judge(&first.finish(), "race");
    prey.judge(&second.finish(), "race");
}

fn fifos_and_sockets_of_the_host_have_no_guest_at_the_other_end(test: &Test) {
    let prey = Prey::new(test);
    let fifo = prey.data.join("host.fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let reader = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(&fifo)
        .unwrap();
    let listener = UnixListener::bind(prey.data.join("host.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let datagrams = UnixDatagram::bind(prey.data.join("host.dgram")).unwrap();

    let text = prey.attacked(test, &["pipes", "/data"]);

    assert!(text.contains("tried mkfifo /data/guest.fifo: ok"), "{text}");
    for fd in [reader.as_fd(), listener.as_fd(), datagrams.as_fd()] {
        assert!(
            !wait::readable(fd, Instant::now()),
            "something came from the guest"
        );
    }
}

fn names_of_any_length_depth_and_byte_served(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["names", "/data"]);

    assert!(text.contains("came back to 0"), "{text}");
    let left: Vec<_> = fs::read_dir(&prey.data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["hello"]);
}

fn attributes_of_the_hosts_kernel_not_settable(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["xattrs", "/", "/data"]);

    for dir in [test.rootfs(), &prey.data] {
        let names = outside::attributes(&dir.join("attributed"));
        let foreign = |name: &&String| !name.starts_with("user.");
        let foreign: Vec<_> = names.iter().filter(foreign).collect();
        assert!(foreign.is_empty(), "{foreign:?} on the host: {text}");
    }
}

fn ports_of_the_host_nobody_expects_refused_by_the_thousand(test: &Test) {
    let prey = Prey::new(test);

    let text = prey.attacked(test, &["vsock", "2000"]);

    assert!(
        text.contains("tried connect type 1 port 1024: ECONNRESET"),
        "{text}"
    );
    assert!(text.contains("refused 2000 of 2000 one by one"), "{text}");
    let at_once = text
        .lines()
        .find(|line| line.ends_with(" at once"))
        .unwrap();
    let numbers: Vec<&str> = at_once.split(' ').collect();
    assert_eq!(numbers[1], numbers[3], "{at_once}");
    assert!(numbers[3].parse::<u32>().unwrap() > 200, "{at_once}");
}

/// Each file a guest's kernel remembers costs the device process a descriptor.
fn files_beyond_the_hosts_descriptors_end_in_an_error_not_in_the_end(test: &Test) {
    let prey = Prey::new(test);
    let run = prey.attack(test, &["files", "6000", "/data"]).invocation();

    let output = outside::with_open_files(run, 4096).output();

    let text = prey.judge(&output, "files");
    let made = text
        .lines()
        .find_map(|line| line.strip_prefix("made "))
        .unwrap();
    let (made, saw) = made.split_once(" saw ").unwrap();
    let (made, saw): (u32, u32) = (made.parse().unwrap(), saw.parse().unwrap());
    assert!((1000..6000).contains(&made), "{text}");
    assert!(saw >= made, "{text}");
}

/// A container's `/etc/passwd` is read on the host, to resolve `--user`.
fn accounts_behind_symlinks_not_read_from_the_host(test: &Test) {
    let outside = test.new_dir();
    fs::write(outside.join("passwd"), "mallory:x:4242:4242::/:/bin/sh\n").unwrap();
    let climb = format!("{}{}", "../".repeat(20), outside.join("passwd").display());
    let passwd = test.rootfs().join("etc/passwd");

    for target in [outside.join("passwd"), PathBuf::from(climb)] {
        fs::remove_file(&passwd).unwrap();
        symlink(&target, &passwd).unwrap();
        let output = test.run(["/bin/id"]).options(["-u", "mallory"]).output();
        assert_eq!(output.code(), 125, "{output}");
        output.expect_error(&["bulkhead: "]);
    }
    // The directory above, too.
    let etc = test.rootfs().join("etc");
    fs::remove_dir_all(&etc).unwrap();
    symlink(&outside, &etc).unwrap();
    let output = test.run(["/bin/id"]).options(["-u", "mallory"]).output();
    assert_eq!(output.code(), 125, "{output}");
    // And a FIFO there keeps nobody waiting.
    fs::remove_file(&etc).unwrap();
    fs::create_dir(&etc).unwrap();
    mknodat(CWD, &passwd, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    let output = test.run(["/bin/id"]).options(["-u", "mallory"]).output();
    assert_eq!(output.code(), 125, "{output}");
}

fn mount_points_behind_symlinks_stay_in_the_guest(test: &Test) {
    let outside = Outside::new(test);
    let before = outside::snapshot(&outside.dir);
    let volume = test.new_dir();
    fs::write(volume.join("file"), "shared\n").unwrap();
    symlink(&outside.dir, test.rootfs().join("link")).unwrap();
    let climb = format!("{}{}", "../".repeat(20), outside.dir.display());
    symlink(climb, test.rootfs().join("climb")).unwrap();
    fs::remove_dir(test.rootfs().join("proc")).unwrap();
    symlink(&outside.dir, test.rootfs().join("proc")).unwrap();

    for place in ["/link", "/link/new", "/climb", "/climb/new"] {
        let output = test
            .sh("cat \"$PLACE/file\"; echo pwned >\"$PLACE/planted\"; ls / /proc")
            .volume(&volume, place)
            .options(["-e", &format!("PLACE={place}")])
            .options(["-w", place])
            .output();
        // Refused, or mounted in the container's own root: both are right.
        outside.assert_untouched(&output);
        assert_eq!(outside::snapshot(&outside.dir), before, "{place}: {output}");
    }
}

/// The host moves a directory out of a volume while a guest is in it: `..` does not follow.
fn host_directory_moved_away_takes_nothing_with_it(test: &Test) {
    let prey = Prey::new(test);
    fs::create_dir_all(prey.data.join("a/b")).unwrap();
    let script = "cd /data/a/b; echo ready; read line; for n in 1 2 3 4 5 6 7 8; do \
        cat ../secret ../*/secret; ls ..; cd ..; done; cat /data/hello; echo done";
    let mut container = test
        .sh(script)
        .option("-i")
        .with(bulkhead_tests::Invocation::stdin_pipe)
        .volume(&prey.data, "/data")
        .start()
        .ready();

    fs::rename(prey.data.join("a/b"), prey.outside.dir.join("b")).unwrap();
    container.write_line("moved");
    let output = container.finish();

    output.expect_code(0);
    let text = text_of(&output);
    assert!(
        text.contains("hello") && text.ends_with("done\n"),
        "{output}"
    );
    assert!(!text.contains(&prey.outside.secret), "{output}");
    fs::remove_dir(prey.outside.dir.join("b")).unwrap();
}

fn text_of_a_guest_never_drives_a_terminal(test: &Test) {
    fs::copy(attack_program(), test.rootfs().join("attack")).unwrap();
    let id = test.new_id();
    let script = "/attack outside \"$0\" kmsg \"$TEXT\" >/dev/null; echo ready; \
        exec sh -c 'sleep 100000; true' \"$TEXT\"";
    let text = "pwned \u{1b}]0;pwned\u{7}\u{1b}[2J";
    let container = test
        .run(["/bin/sh", "-c", script, &id])
        .name(&id)
        .options(["--cap-add", "ALL"])
        .options(["--security-opt", "seccomp=unconfined"])
        .options(["--security-opt", "systempaths=unconfined"])
        .options(["-e", &format!("TEXT={text}")])
        .start()
        .ready();

    let mut shown = Vec::new();
    for verb in ["ps", "logs", "why", "state"] {
        shown.push(container.verb(verb, &[]).output());
    }
    shown.push(test.verb(["list"]).output());
    let failed = container.exec(["/no/such/\u{1b}[2J"]).output();

    for output in &shown {
        output.expect_code(0);
    }
    for (index, word) in [(0, "pwned"), (1, "pwned")] {
        assert!(
            text_of(&shown[index]).contains(word),
            "nothing was tried: {}",
            shown[index]
        );
    }
    for output in shown.iter().chain([&failed]) {
        let odd = |byte: &u8| byte.is_ascii_control() && *byte != b'\n' && *byte != b'\t';
        let clean = !output.stdout.iter().chain(&output.stderr).any(odd);
        assert!(clean, "{output:?}");
    }
}
