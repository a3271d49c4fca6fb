//! The JSON documents of images, and the choice of one image among those there.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::{ImageConfig, or_default};
use super::digest::Digest;
use super::error::{ImageError, NotAnImage};
use super::limits::{INDEX_DEPTH_MAX, Limits};
use super::source::Source;
use crate::text::one_line;

/// Names an image has in an index, most telling first.
const NAME_ANNOTATIONS: &[&str] = &[
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Most names shown in a message.
const SHOWN: usize = 8;

/// An image that was chosen: everything but its layers is read and verified.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Names the image: the digest of its manifest, or of its configuration in archives
    /// of docker, which have no such manifest.
    pub(super) id: Digest,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<Layer>,
}

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// The file's name in the image.
    pub(super) file: String,
    /// Digest and size of the file, where they are stated.
    pub(super) blob: Option<(Digest, u64)>,
    /// Digest of the archive in it.
    pub(super) diff_id: Digest,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, deserialize_with = "or_default")]
    annotations: HashMap<String, String>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Platform {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "or_default")]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<Descriptor>,
}

/// An entry of docker's manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Configuration {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default, deserialize_with = "or_default")]
    config: ImageConfig,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// Chooses an image: by tag, name or digest, or the only one, or `latest`; of one for
/// several machines that for this one.
pub(super) fn choose(source: &Source, choice: Option<&str>) -> Result<Chosen, ImageError> {
    let limits = Limits::default();
    if source.has("index.json") {
        let index: Index = parse(source, "index.json", &source.document("index.json")?)?;
        let named = Named { source, choice };
        let names = |descriptor: &Descriptor| -> Vec<String> {
            let annotated = NAME_ANNOTATIONS
                .iter()
                .filter_map(|key| descriptor.annotations.get(*key).cloned());
            annotated.chain([descriptor.digest.clone()]).collect()
        };
        let found = named.among(index.manifests, names)?;
        let descriptor = for_this_machine(source, found, choice, 0)?;
        return oci(source, &descriptor, limits);
    }
    if source.has("manifest.json") {
        let images: Vec<DockerImage> =
            parse(source, "manifest.json", &source.document("manifest.json")?)?;
        let named = Named { source, choice };
        let names = |image: &DockerImage| {
            let id = image.config.rsplit('/').next().unwrap_or_default();
            let id = format!("sha256:{}", id.strip_suffix(".json").unwrap_or(id));
            image.repo_tags.iter().cloned().chain([id]).collect()
        };
        let mut found = named.among(images, names)?;
        let several = found.len() > 1;
        return match found.pop() {
            Some(image) if !several => docker(source, image, limits),
            _ => Err(named.ambiguous(found.iter().flat_map(names))),
        };
    }
    let problem = source.plain();
    Err(ImageError::NotAnImage {
        image: source.path.clone(),
        problem,
    })
}

/// The choice among images by their names.
struct Named<'a> {
    source: &'a Source,
    choice: Option<&'a str>,
}

impl Named<'_> {
    /// Those that fit the choice; without one all, or only the latest.
    fn among<T>(
        &self,
        images: Vec<T>,
        names: impl Fn(&T) -> Vec<String>,
    ) -> Result<Vec<T>, ImageError> {
        if images.is_empty() {
            let image = self.source.path.clone();
            let (what, problem) = ("the list of images".into(), "it is empty".into());
            return Err(ImageError::Document {
                image,
                what,
                problem,
            });
        }
        let all: Vec<String> = images.iter().flat_map(&names).collect();
        let (fitting, others): (Vec<T>, Vec<T>) = images
            .into_iter()
            .partition(|image| names(image).iter().any(|name| fits(name, self.choice)));
        match (self.choice, fitting.is_empty()) {
            (_, false) => Ok(fitting),
            (None, true) => Ok(others),
            (Some(wanted), true) => Err(ImageError::NoSuchTag {
                image: self.source.path.clone(),
                wanted: wanted.to_owned(),
                available: list(all),
            }),
        }
    }

    fn ambiguous(&self, names: impl Iterator<Item = String>) -> ImageError {
        ambiguous(self.source, names)
    }
}

/// Whether a name is the chosen one: whole, by its tag, or by its digest.
fn fits(name: &str, choice: Option<&str>) -> bool {
    let wanted = choice.unwrap_or("latest");
    let tag = name
        .rsplit_once(':')
        .map(|(_, tag)| tag)
        .filter(|tag| !tag.contains('/'));
    let digest = name.strip_prefix("sha256:");
    match digest {
        // A digest is chosen whole, or by its first digits as docker shows them.
        Some(hex) => {
            let wanted = wanted.strip_prefix("sha256:").unwrap_or(wanted);
            wanted.len() >= 12 && hex.starts_with(wanted)
        }
        None => {
            name == wanted
                || tag == Some(wanted)
                // docker.io/library/alpine:3 is alpine:3 to most.
                || name.strip_suffix(wanted).is_some_and(|rest| rest.ends_with('/'))
        }
    }
}

/// Goes down through indexes to the manifest for this machine.
fn for_this_machine(
    source: &Source,
    mut found: Vec<Descriptor>,
    choice: Option<&str>,
    depth: usize,
) -> Result<Descriptor, ImageError> {
    let all = found.clone();
    found.retain(|descriptor| descriptor.platform.as_ref().is_none_or(is_this_machine));
    // The same image may be listed under several names.
    let mut seen = std::collections::HashSet::new();
    found.retain(|descriptor| seen.insert(descriptor.digest.clone()));
    let Some(descriptor) = found.first().cloned() else {
        let platforms = all
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref());
        return Err(other_machine(source, platforms));
    };
    // Of the variants of one architecture the first is taken, as its maker put them in order.
    let stated = found.iter().all(|descriptor| descriptor.platform.is_some());
    if found.len() > 1 && !(stated && (depth > 0 || choice.is_some())) {
        let names = found.iter().map(|descriptor| {
            let name = NAME_ANNOTATIONS
                .iter()
                .find_map(|key| descriptor.annotations.get(*key));
            name.unwrap_or(&descriptor.digest).clone()
        });
        return Err(ambiguous(source, names));
    }
    if !is_index(&descriptor.media_type) {
        return Ok(descriptor);
    }
    if depth == INDEX_DEPTH_MAX {
        let (what, problem) = (descriptor.digest, "indexes are nested too deeply".into());
        return Err(ImageError::Document {
            image: source.path.clone(),
            what,
            problem,
        });
    }
    let (bytes, _) = blob(source, &descriptor)?;
    let index: Index = parse(source, &descriptor.digest, &bytes)?;
    for_this_machine(source, index.manifests, choice, depth + 1)
}

fn oci(source: &Source, descriptor: &Descriptor, limits: Limits) -> Result<Chosen, ImageError> {
    let not = |problem| ImageError::NotAnImage {
        image: source.path.clone(),
        problem,
    };
    let (bytes, id) = blob(source, descriptor)?;
    let manifest: Manifest = parse(source, &descriptor.digest, &bytes)?;
    let kind = &manifest.config.media_type;
    if !kind.is_empty() && !kind.contains(".image.") {
        return Err(not(NotAnImage::Artifact(kind.clone())));
    }
    if manifest
        .layers
        .iter()
        .any(|layer| layer.media_type.ends_with("+encrypted"))
    {
        return Err(not(NotAnImage::Encrypted));
    }
    let (bytes, _) = blob(source, &manifest.config)?;
    let configuration: Configuration = parse(source, &manifest.config.digest, &bytes)?;
    let mut layers = Vec::new();
    let diff_ids = diff_ids(source, &configuration, manifest.layers.len(), limits)?;
    for (layer, diff_id) in manifest.layers.into_iter().zip(diff_ids) {
        let digest = digest(source, &layer.digest)?;
        let file = blob_path(&digest);
        layers.push(Layer {
            file,
            blob: Some((digest, layer.size)),
            diff_id,
        });
    }
    finish(source, id, configuration, layers)
}

fn docker(source: &Source, image: DockerImage, limits: Limits) -> Result<Chosen, ImageError> {
    let bytes = source.document(&image.config)?;
    let id = Digest::of(&bytes);
    // Its name states its digest, in all but the oldest archives.
    let name = image.config.rsplit('/').next().unwrap_or_default();
    let stated = format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name));
    if stated.parse::<Digest>().is_ok_and(|stated| stated != id) {
        return Err(ImageError::Digest {
            image: source.path.clone(),
            what: image.config,
            found: id.to_string(),
            expected: stated,
        });
    }
    let configuration: Configuration = parse(source, &image.config, &bytes)?;
    let diff_ids = diff_ids(source, &configuration, image.layers.len(), limits)?;
    let layers = image
        .layers
        .into_iter()
        .zip(diff_ids)
        .map(|(file, diff_id)| Layer {
            file,
            blob: None,
            diff_id,
        })
        .collect();
    finish(source, id, configuration, layers)
}

fn finish(
    source: &Source,
    id: Digest,
    configuration: Configuration,
    layers: Vec<Layer>,
) -> Result<Chosen, ImageError> {
    let platform = &configuration.platform;
    if !platform.os.is_empty() && platform.os != "linux" {
        let problem = NotAnImage::System(platform.os.clone());
        return Err(ImageError::NotAnImage {
            image: source.path.clone(),
            problem,
        });
    }
    if !is_this_machine(platform) {
        return Err(other_machine(source, std::iter::once(platform)));
    }
    Ok(Chosen {
        id,
        config: configuration.config,
        layers,
    })
}

fn diff_ids(
    source: &Source,
    configuration: &Configuration,
    layers: usize,
    limits: Limits,
) -> Result<Vec<Digest>, ImageError> {
    let diff_ids = &configuration.rootfs.diff_ids;
    if layers > limits.layers {
        let limit = u64::try_from(limits.layers).unwrap_or(u64::MAX);
        return Err(ImageError::TooLarge {
            image: source.path.clone(),
            what: "layers",
            limit,
        });
    }
    if diff_ids.len() != layers {
        return Err(ImageError::Document {
            image: source.path.clone(),
            what: "the configuration".into(),
            problem: format!(
                "it names {} layers and the image has {layers}",
                diff_ids.len()
            ),
        });
    }
    diff_ids.iter().map(|text| digest(source, text)).collect()
}

/// Reads a document and verifies its digest and size.
fn blob(source: &Source, descriptor: &Descriptor) -> Result<(Vec<u8>, Digest), ImageError> {
    let expected = digest(source, &descriptor.digest)?;
    let file = blob_path(&expected);
    let bytes = source.document(&file)?;
    let found = Digest::of(&bytes);
    let image = || source.path.clone();
    if found != expected {
        let (found, expected) = (found.to_string(), expected.to_string());
        return Err(ImageError::Digest {
            image: image(),
            what: file,
            found,
            expected,
        });
    }
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size != descriptor.size {
        let expected = descriptor.size;
        return Err(ImageError::Size {
            image: image(),
            what: file,
            found: size,
            expected,
        });
    }
    Ok((bytes, found))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn digest(source: &Source, text: &str) -> Result<Digest, ImageError> {
    text.parse()
        .map_err(|error: super::digest::NotADigest| ImageError::Document {
            image: source.path.clone(),
            what: one_line(text),
            problem: error.to_string(),
        })
}

fn parse<T: DeserializeOwned>(source: &Source, what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Document {
        image: source.path.clone(),
        what: what.to_owned(),
        problem: one_line(&error.to_string()),
    })
}

fn is_index(media_type: &str) -> bool {
    media_type.ends_with("image.index.v1+json") || media_type.ends_with("manifest.list.v2+json")
}

fn is_this_machine(platform: &Platform) -> bool {
    let fits = |stated: &str, wanted: &str| stated.is_empty() || stated == wanted;
    fits(&platform.architecture, architecture()) && fits(&platform.os, "linux")
}

/// This machine's architecture, by the name images have for it.
fn architecture() -> &'static str {
    crate::run::go_architecture()
}

fn other_machine<'a>(source: &Source, platforms: impl Iterator<Item = &'a Platform>) -> ImageError {
    let names = platforms.map(|platform| platform.architecture.clone());
    let mut names: Vec<String> = names.filter(|name| name != "unknown").collect();
    names.sort();
    names.dedup();
    ImageError::Architecture {
        image: source.path.clone(),
        found: list(names),
        wanted: architecture(),
    }
}

fn ambiguous(source: &Source, names: impl Iterator<Item = String>) -> ImageError {
    let names: Vec<String> = names.collect();
    let example = names.first().cloned().unwrap_or_default();
    let separator = if example.starts_with("sha256:") {
        '@'
    } else {
        ':'
    };
    ImageError::Ambiguous {
        image: source.path.clone(),
        example: format!("{}{separator}{example}", source.path.display()),
        available: list(names),
    }
}

/// Some of the names, on one line.
fn list(names: Vec<String>) -> String {
    let others = names.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| one_line(name))
        .collect();
    if others > 0 {
        shown.push(format!("and {others} others"));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_names_are_found_as_people_write_them() {
        for (name, choice) in [
            ("latest", None),
            ("local/bb:latest", None),
            ("local/bb:latest", Some("local/bb:latest")),
            ("local/bb:latest", Some("latest")),
            ("docker.io/library/alpine:3", Some("alpine:3")),
            ("3", Some("3")),
            ("sha256:0123456789abcdef", Some("0123456789ab")),
            ("sha256:0123456789abcdef", Some("sha256:0123456789abcdef")),
        ] {
            assert!(fits(name, choice), "{name} {choice:?}");
        }
        for (name, choice) in [
            ("bb:1", None),
            ("bb:1", Some("b:1")),
            ("localhost:5000/bb", Some("5000/bb")),
            ("sha256:0123456789abcdef", Some("0123")),
        ] {
            assert!(!fits(name, choice), "{name} {choice:?}");
        }
    }
}
