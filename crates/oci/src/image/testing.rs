//! Makes archives and images for tests, good ones and evil ones.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::digest::Digest;

/// A tar archive in the making, with no opinion on what goes into it.
#[derive(Default)]
pub(super) struct Tarball {
    pub(super) bytes: Vec<u8>,
}

impl Tarball {
    /// Adds an entry; `change` may set anything but the checksum.
    pub(super) fn with(
        mut self,
        typ: EntryType,
        name: &str,
        content: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(typ);
        header.set_mode(if typ == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // The crate's own setter refuses the names these tests are about.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.with(EntryType::Directory, name, b"", |_| {})
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.with(EntryType::Regular, name, content.as_bytes(), |_| {})
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.with(EntryType::Symlink, name, b"", |header| {
            set_link(header, target)
        })
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Self {
        self.with(EntryType::Link, name, b"", |header| {
            set_link(header, target)
        })
    }

    /// Adds PAX records for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..)
                .find(|digits| (rest + digits).to_string().len() == *digits)
                .unwrap()
                + rest;
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.with(EntryType::XHeader, "pax", &text, |_| {})
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

fn set_link(header: &mut Header, target: &str) {
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes a blob of a layout and describes it.
pub(super) fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
}

/// Writes manifest and configuration for layers (each the file and the archive in it), and
/// describes the manifest.
pub(super) fn manifest(dir: &Path, architecture: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Value {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|(_, tar)| Digest::of(tar).to_string())
        .collect();
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["A=1"], "Entrypoint": null},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(
        dir,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let layers: Vec<_> = layers
        .iter()
        .map(|(file, _)| blob(dir, "application/vnd.oci.image.layer.v1.tar", file))
        .collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    blob(dir, media_type, manifest.to_string().as_bytes())
}

/// Writes the index of a layout.
pub(super) fn index(dir: &Path, manifests: &[Value]) {
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// A layout with one image for this machine, of plain layers.
pub(super) fn layout(dir: &Path, layers: &[Vec<u8>]) {
    let layers: Vec<_> = layers
        .iter()
        .map(|tar| (tar.clone(), tar.clone()))
        .collect();
    let manifest = manifest(dir, crate::run::go_architecture(), &layers);
    index(dir, &[manifest]);
}

/// Whether this process may make device nodes and change owners, as root may.
pub(super) fn privileged() -> bool {
    rustix::process::geteuid().is_root()
}
