//! Images that are broken, or made to break out.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::Test;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::expect::{RUN, nothing_left, refused};

/// An entry of a hand-made layer.
struct Entry<'a> {
    name: &'a str,
    kind: u8,
    link: &'a str,
    content: &'a [u8],
    mode: u32,
}

fn file<'a>(name: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry {
        name,
        kind: b'0',
        link: "",
        content,
        mode: 0o755,
    }
}

fn link<'a>(kind: u8, name: &'a str, link: &'a str) -> Entry<'a> {
    Entry {
        name,
        kind,
        link,
        content: b"",
        mode: 0o777,
    }
}

const SYMLINK: u8 = b'2';
const HARDLINK: u8 = b'1';

/// A tar archive of exactly these entries: no tool would write most of them.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, entry.name.as_bytes());
        put(100, format!("{:07o}\0", entry.mode).as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", entry.content.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[entry.kind]);
        put(157, entry.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(entry.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
}

/// An OCI layout directory with one image.
struct Layout {
    dir: PathBuf,
    layer: String,
    config: String,
}

impl Layout {
    fn new(test: &Test, layer: &[u8]) -> Self {
        Self::described(test, layer, |_, _| {})
    }

    /// Lets `change` alter configuration and manifest before they are written.
    fn described(test: &Test, layer: &[u8], change: impl Fn(&mut Value, &mut Value)) -> Self {
        let dir = test.new_dir();
        let mut layout = Self {
            layer: hex(layer),
            config: String::new(),
            dir,
        };
        fs::create_dir_all(layout.dir.join("blobs/sha256")).unwrap();
        fs::write(
            layout.dir.join("oci-layout"),
            "{\"imageLayoutVersion\":\"1.0.0\"}",
        )
        .unwrap();
        let mut config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layout.layer)] },
        });
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{}", layout.layer), "size": layer.len(),
            }],
        });
        change(&mut config, &mut manifest);
        layout.blob(layer);
        let config = config.to_string();
        layout.config = layout.blob(config.as_bytes());
        if manifest["config"].is_null() {
            manifest["config"] = json!({
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", layout.config), "size": config.len(),
            });
        }
        let manifest = manifest.to_string();
        let digest = layout.blob(manifest.as_bytes());
        layout.index(&digest, manifest.len());
        layout
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = hex(bytes);
        fs::write(self.path(&digest), bytes).unwrap();
        digest
    }

    fn index(&self, digest: &str, size: usize) {
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{digest}"), "size": size,
        }] });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest)
    }

    #[track_caller]
    fn refused(&self, test: &Test, parts: &[&str]) {
        let output = test.run(["/bin/true"]).image(&self.dir).output();
        refused(test, &output, RUN, parts);
        self.not_stored();
    }

    /// Nothing of it is in the store of unpacked images.
    fn not_stored(&self) {
        let found = Command::new("find")
            .args(["/var/lib/bulkhead", "-maxdepth", "4", "(", "-name"])
            .arg(format!("*{}*", self.layer))
            .args(["-o", "-name"])
            .arg(format!("*{}*", self.config))
            .arg(")")
            .output()
            .unwrap();
        assert!(
            found.stdout.is_empty(),
            "{}",
            String::from_utf8_lossy(&found.stdout)
        );
    }
}

/// A layer with a busybox that no other test has.
fn good_layer(test: &Test) -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").unwrap();
    tar(&[
        file("unique", test.name.as_bytes()),
        file("bin/true", &busybox),
    ])
}

pub fn image_missing_refused(test: &Test) {
    let output = test.run(["/bin/true"]).image("/no/such/image").output();
    refused(test, &output, RUN, &["/no/such/image"]);

    let layout = Layout::new(test, &good_layer(test));
    let tagged = format!("{}:no-such-tag", layout.dir.display());
    let output = test.run(["/bin/true"]).image(&tagged).output();
    refused(test, &output, RUN, &["no-such-tag"]);
}

pub fn image_that_is_none_refused(test: &Test) {
    let output = test.run(["/bin/true"]).image(test.new_dir()).output();
    refused(test, &output, RUN, &["not an image"]);

    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"this is no archive, whatever its name is"),
        ("zeroes", &[0; 4096]),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03broken"),
    ] {
        let path = test.dir().join(name);
        fs::write(&path, bytes).unwrap();
        let output = test.run(["/bin/true"]).image(&path).output();
        refused(test, &output, RUN, &[name]);
    }
    let output = test.run(["/bin/true"]).image("/dev/zero").output();
    refused(test, &output, RUN, &["/dev/zero"]);
}

pub fn image_archive_truncated_refused(test: &Test) {
    let layout = Layout::new(test, &good_layer(test));
    let archive = test.dir().join("image.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&layout.dir)
        .arg("-cf")
        .arg(&archive)
        .arg(".")
        .status();
    assert!(packed.unwrap().success());
    let whole = fs::read(&archive).unwrap();

    for part in [1, 3, 5, 7] {
        fs::write(&archive, &whole[..whole.len() * part / 8]).unwrap();
        let output = test.run(["/bin/true"]).image(&archive).output();
        refused(test, &output, RUN, &["image.tar"]);
        layout.not_stored();
    }
    // The whole one is an image: it was not refused for another reason.
    fs::write(&archive, &whole).unwrap();
    test.run(["/bin/true"])
        .image(&archive)
        .output()
        .expect_code(0);
}

pub fn image_with_wrong_digests_refused(test: &Test) {
    let layer = good_layer(test);
    let damage = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let layout = Layout::new(test, &layer);
    damage(&layout.path(&layout.layer));
    layout.refused(test, &[&layout.layer, "digest"]);

    let layout = Layout::new(test, &layer);
    damage(&layout.path(&layout.config));
    layout.refused(test, &[&layout.config, "digest"]);

    // The layer is what the manifest says, and not what the configuration says.
    let layout = Layout::described(test, &layer, |config, _| {
        config["rootfs"]["diff_ids"][0] = format!("sha256:{}", "0".repeat(64)).into();
    });
    layout.refused(test, &["digest"]);

    let layout = Layout::described(test, &layer, |_, manifest| {
        manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into();
    });
    layout.refused(test, &["digest"]);

    let layout = Layout::new(test, &layer);
    fs::remove_file(layout.path(&layout.layer)).unwrap();
    layout.refused(test, &[&layout.layer]);
}

pub fn image_layer_that_leaves_the_root_refused(test: &Test) {
    let planted = test.dir().join("planted");
    let up = format!(
        "{}{}",
        "../".repeat(20),
        planted.strip_prefix("/").unwrap().display()
    );
    let inside_up = format!("a/{up}");
    let canary = test.dir().join("canary");
    fs::write(&canary, "untouched").unwrap();
    let canary_up = format!(
        "{}{}",
        "../".repeat(20),
        canary.strip_prefix("/").unwrap().display()
    );
    let layers: [(&str, Vec<Entry<'_>>); 6] = [
        ("climbing", vec![file(&up, b"pwned")]),
        ("climbing below", vec![file(&inside_up, b"pwned")]),
        (
            "hard link out",
            vec![link(HARDLINK, "link", &canary_up), file("link", b"pwned")],
        ),
        (
            "hard link absolute",
            vec![
                link(HARDLINK, "link", canary.to_str().unwrap()),
                file("link", b"pwned"),
            ],
        ),
        ("whiteout out", vec![file("../../../../../.wh.tmp", b"")]),
        ("nothing but ..", vec![file("..", b"pwned")]),
    ];
    for (what, entries) in &layers {
        let layout = Layout::new(test, &tar(entries));
        let output = test.run(["/bin/true"]).image(&layout.dir).output();
        assert_ne!(output.code(), 0, "{what}: {output}");
        refused(test, &output, RUN, &[]);
        layout.not_stored();
        assert!(!planted.exists(), "{what}");
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched", "{what}");
    }
}

/// Where a name is below a symbolic link or absolute, an image may be honest: it is unpacked, inside.
pub fn image_layer_through_a_symlink_stays_inside(test: &Test) {
    let busybox = fs::read("/bin/busybox").unwrap();
    let outside = test.new_dir();
    fs::write(outside.join("canary"), "untouched").unwrap();
    let target = outside.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(20), target.trim_start_matches('/'));
    let absolute = format!("{target}/planted-absolute");
    let entries = [
        file("bin/true", &busybox),
        link(SYMLINK, "absolute", target),
        file("absolute/planted", b"pwned"),
        file("absolute/canary", b"pwned"),
        link(SYMLINK, "relative", &up),
        file("relative/planted", b"pwned"),
        file("relative/.wh.canary", b""),
        link(SYMLINK, "canary", "absolute/canary"),
        file("canary", b"pwned"),
        link(HARDLINK, "hard", "absolute/canary"),
        file("hard", b"pwned"),
        file(&absolute, b"pwned"),
    ];
    let layout = Layout::new(test, &tar(&entries));

    let output = test.run(["/bin/true"]).image(&layout.dir).output();

    assert!([0, RUN].contains(&output.code()), "{output}");
    let names: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["canary"]);
    assert_eq!(
        fs::read_to_string(outside.join("canary")).unwrap(),
        "untouched"
    );
    nothing_left(test);
}
