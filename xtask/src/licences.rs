//! What we depend on: licences, sources, duplicates. The rules are in
//! `deny.toml`, where cargo-deny finds them too; this check needs no extra
//! program and no network.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::{cargo, output};
use crate::{paths, spdx};

/// The part of `deny.toml` that is looked at here.
#[derive(Debug, Deserialize)]
struct Rules {
    licenses: Licences,
    sources: Sources,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Named>,
    #[serde(default)]
    skip: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(alias = "crate")]
    name: String,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    dependencies: Vec<String>,
}

/// The outcome of the check.
#[derive(Debug, Default)]
pub struct Findings {
    /// Rules that are broken, in words.
    pub problems: Vec<String>,
    /// Number of packages that were looked at.
    pub packages: usize,
}

impl Findings {
    /// Prints the outcome; an error if there are problems.
    pub fn report(&self) -> Result<()> {
        for problem in &self.problems {
            eprintln!("licences: {problem}");
        }
        if !self.problems.is_empty() {
            bail!(
                "{} dependencies break a rule of deny.toml",
                self.problems.len()
            );
        }
        println!(
            "licences: {} packages keep the rules of deny.toml",
            self.packages
        );
        Ok(())
    }
}

/// Compares the dependencies, as locked, with the rules.
pub fn check() -> Result<Findings> {
    let path = paths::root().join("deny.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("Cannot read {}", path.display()))?;
    let rules: Rules =
        toml::from_str(&text).with_context(|| format!("Cannot parse {}", path.display()))?;
    let json = output(cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Metadata =
        serde_json::from_str(&json).context("Cannot parse cargo's metadata")?;
    Ok(compare(&rules, &metadata))
}

fn compare(rules: &Rules, metadata: &Metadata) -> Findings {
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    // Packages for other platforms are in the list but not in the graph.
    let used: BTreeSet<&str> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| &*node.id)
        .collect();
    let packages: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| used.contains(&*package.id))
        .collect();
    for package in &packages {
        let Package { name, version, .. } = package;
        versions.entry(name).or_default().insert(version);
        let allowed = |licence: &str| rules.licenses.allow.iter().any(|known| known == licence);
        match &package.license {
            Some(licence) if spdx::satisfied(licence, &allowed) => {}
            Some(licence) => {
                problems.push(format!(
                    "{name} {version} is licensed {licence:?}, which is not allowed"
                ));
            }
            None => problems.push(format!("{name} {version} does not name its licence")),
        }
        let from_registry = |source: &String| {
            let url = source.trim_start_matches("registry+");
            rules
                .sources
                .allow_registry
                .iter()
                .any(|allowed| allowed == url)
        };
        // A path dependency has no source: it is ours.
        if !package.source.as_ref().is_none_or(from_registry) {
            problems.push(format!(
                "{name} {version} comes from a source that is not allowed"
            ));
        }
        if rules.bans.deny.iter().any(|banned| banned.name == *name) {
            problems.push(format!("{name} {version} is banned"));
        }
    }
    // What we use ourselves we use in one version only: two of them mean types
    // that do not fit together, and the bytes twice.
    let direct: BTreeSet<&str> = metadata
        .resolve
        .nodes
        .iter()
        .filter(|node| metadata.workspace_members.contains(&node.id))
        .flat_map(|node| &node.dependencies)
        .map(String::as_str)
        .collect();
    let names: BTreeSet<&str> = packages
        .iter()
        .filter(|package| direct.contains(&*package.id))
        .map(|package| &*package.name)
        .collect();
    for name in names {
        let skipped = rules.bans.skip.iter().any(|skip| {
            skip.name
                .split('@')
                .next()
                .is_some_and(|skipped| skipped == name)
        });
        if let Some(found) = versions
            .get(name)
            .filter(|found| found.len() > 1 && !skipped)
        {
            let found: Vec<_> = found.iter().copied().collect();
            problems.push(format!(
                "{name} is a direct dependency and is there in the versions {}",
                found.join(" and ")
            ));
        }
    }
    Findings {
        problems,
        packages: packages.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        [licenses]
        allow = ["MIT"]
        [sources]
        allow-registry = ["https://registry"]
        [bans]
        deny = [{ crate = "bad" }]
        skip = [{ crate = "old@1.0" }]
    "#;

    /// `root` is ours and depends on every package of `packages`.
    fn problems(packages: &[(&str, &str, Option<&str>, &str)]) -> Vec<String> {
        let id = |name: &str, version: &str| format!("{name} {version}");
        let mut metadata = Metadata {
            packages: Vec::new(),
            workspace_members: BTreeSet::from(["root".to_owned()]),
            resolve: Resolve { nodes: Vec::new() },
        };
        let dependencies = packages
            .iter()
            .map(|(name, version, ..)| id(name, version))
            .collect();
        metadata.resolve.nodes.push(Node {
            id: "root".to_owned(),
            dependencies,
        });
        for (name, version, license, source) in packages {
            metadata.resolve.nodes.push(Node {
                id: id(name, version),
                dependencies: Vec::new(),
            });
            metadata.packages.push(Package {
                id: id(name, version),
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                license: license.map(str::to_owned),
                source: Some(format!("registry+{source}")),
            });
        }
        compare(&toml::from_str(RULES).unwrap(), &metadata).problems
    }

    #[test]
    fn dependencies_within_the_rules_have_no_findings() {
        let fine = [("a", "1.0", Some("MIT"), "https://registry")];

        assert_eq!(problems(&fine), [""; 0]);
    }

    #[test]
    fn dependency_breaking_a_rule_is_named() {
        let url = "https://registry";
        for (package, words) in [
            (("a", "1.0", Some("GPL-3.0"), url), "licensed"),
            (("a", "1.0", None, url), "does not name"),
            (("a", "1.0", Some("MIT"), "https://elsewhere"), "source"),
            (("bad", "1.0", Some("MIT"), url), "banned"),
        ] {
            let found = problems(&[package]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(words), "{found:?}");
        }
    }

    #[test]
    fn dependency_in_two_versions_is_named_unless_skipped() {
        let url = "https://registry";
        let two = |name| {
            [
                (name, "1.0", Some("MIT"), url),
                (name, "2.0", Some("MIT"), url),
            ]
        };

        assert_eq!(problems(&two("new")).len(), 1);
        assert_eq!(problems(&two("old")), [""; 0]);
    }
}
