//! OCI images made by hand, and put into archives by `skopeo`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An OCI image layout with one image, tagged `v1`.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layout's directory.
    pub dir: PathBuf,
}

impl Image {
    /// Makes an image of directories, one a layer, the lowest first. `config` is the image
    /// configuration's `config`: `Cmd`, `Env` and so on.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn make(dir: &Path, layers: &[&Path], config: &Value) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| tar(layer)).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let image_config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| blob(dir, "application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let config = image_config.to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(dir, "application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": layers,
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut entry = blob(dir, kind, manifest.to_string().as_bytes());
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Copies it to a file in another format (`oci-archive`, `docker-archive`), under the name
    /// `example/box:v1`.
    ///
    /// # Errors
    /// When `skopeo` is not installed.
    ///
    /// # Panics
    /// When `skopeo` fails.
    pub fn archive(&self, format: &str, file: &Path) -> Result<(), String> {
        let skopeo = super::driver::in_path("skopeo").ok_or("skopeo is not installed")?;
        let output = Command::new(skopeo)
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:{}:v1", self.dir.display()))
            .arg(format!("{format}:{}:example/box:v1", file.display()))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo copy: {errors}");
        Ok(())
    }
}

/// The digest of bytes, as images have it.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Adds a blob and returns its descriptor.
fn blob(dir: &Path, kind: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    let name = digest.trim_start_matches("sha256:");
    fs::write(dir.join("blobs/sha256").join(name), bytes).unwrap();
    json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
}

pub(super) fn tar(dir: &Path) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--numeric-owner", "-c", "-C"])
        .arg(dir)
        .arg(".")
        .output()
        .expect("tar is installed");
    assert!(output.status.success(), "tar {}", dir.display());
    output.stdout
}
