//! Which crate may use which, and why each dependency from outside is there.

use super::Tree;
use crate::sh;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// A crate may use only crates that stand before it.
const ORDER: [&str; 14] = [
    "pg-format",
    "pg-wal",
    "pg-wire",
    "store",
    "repo",
    "engine",
    "dump",
    "mount",
    "agent",
    "import",
    "pgkeep-archive",
    "pgkeep",
    "testkit",
    "xtask",
];

/// Crates that only tests and tasks may use.
const NOT_FOR_PRODUCT: [&str; 2] = ["testkit", "xtask"];

/// The one crate with `unsafe`, and so with lints of its own: it is loaded into PostgreSQL
/// (docs/decisions/013-archive-library.md). No crate is built on it.
const WITH_UNSAFE: &str = "pgkeep-archive";

#[derive(Debug)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug)]
struct Dependency {
    name: String,
    for_tests: bool,
}

pub(super) fn check(tree: &Tree) -> Result<Vec<String>> {
    let text = sh::quiet(sh::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let packages = parse(&text)?;
    let mut problems = direction(&packages);
    let document = tree.text("docs/dependencies.md").unwrap_or_default();
    problems.extend(reasons(&packages, &document));
    problems.extend(stale(&packages, &document));
    for package in &packages {
        let manifest = format!("crates/{}/Cargo.toml", package.name);
        let own_lints = package.name == WITH_UNSAFE;
        if !own_lints && !tree.text(&manifest).is_some_and(|text| text.contains("[lints]\nworkspace = true")) {
            problems
                .push(format!("{manifest}: must take the workspace's lints (or the crate's folder has another name)"));
        }
    }
    Ok(problems)
}

fn parse(metadata: &str) -> Result<Vec<Package>> {
    let value: Value = serde_json::from_str(metadata).context("cargo metadata printed no JSON")?;
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let packages = value["packages"].as_array().context("cargo metadata names no packages")?;
    let parse_dependency =
        |value: &Value| Dependency { name: text(value, "name"), for_tests: value["kind"].as_str() == Some("dev") };
    Ok(packages
        .iter()
        .map(|package| Package {
            name: text(package, "name"),
            dependencies: package["dependencies"].as_array().into_iter().flatten().map(parse_dependency).collect(),
        })
        .collect())
}

fn direction(packages: &[Package]) -> Vec<String> {
    let place = |name: &str| ORDER.iter().position(|known| *known == name);
    let mut problems = Vec::new();
    for package in packages {
        let Some(own) = place(&package.name) else {
            problems.push(format!("crate {} has no place in the order of crates", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.for_tests) {
            let Some(other) = place(&dependency.name) else { continue };
            let product = !NOT_FOR_PRODUCT.contains(&package.name.as_str());
            let closed = dependency.name == WITH_UNSAFE;
            if other >= own || closed || product && NOT_FOR_PRODUCT.contains(&dependency.name.as_str()) {
                problems.push(format!("crate {} may not use {}: it stands above it", package.name, dependency.name));
            }
        }
    }
    problems
}

/// Each dependency from outside stands in the document, in backquotes, with some words about it.
fn reasons(packages: &[Package], document: &str) -> Vec<String> {
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        for dependency in &package.dependencies {
            if !ORDER.contains(&dependency.name.as_str()) {
                users.entry(&dependency.name).or_default().push(&package.name);
            }
        }
    }
    let explained = |name: &str| {
        let quoted = format!("`{name}`");
        document.lines().any(|line| line.contains(&quoted) && line.len() > quoted.len() + 20)
    };
    users
        .iter()
        .filter(|(name, _)| !explained(name))
        .map(|(name, users)| {
            format!("docs/dependencies.md does not say why `{name}` is used (by {})", users.join(", "))
        })
        .collect()
}

/// Rows of the document about crates that nobody uses any more.
fn stale(packages: &[Package], document: &str) -> Vec<String> {
    let used = |name: &str| packages.iter().flat_map(|package| &package.dependencies).any(|used| used.name == name);
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name)
        .filter(|name| !used(name))
        .map(|name| format!("docs/dependencies.md explains `{name}`, which no crate uses"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        let dependencies =
            dependencies.iter().map(|(name, for_tests)| Dependency { name: (*name).to_owned(), for_tests: *for_tests });
        Package { name: name.to_owned(), dependencies: dependencies.collect() }
    }

    #[test]
    fn only_crates_above_may_be_used() {
        assert!(direction(&[package("engine", &[("repo", false), ("testkit", true), ("serde", false)])]).is_empty());
        assert_eq!(
            direction(&[package("store", &[("repo", false)])]),
            ["crate store may not use repo: it stands above it"]
        );
        assert_eq!(direction(&[package("pgkeep", &[("testkit", false)])]).len(), 1);
        assert_eq!(direction(&[package("extra", &[])]).len(), 1);
        assert_eq!(direction(&[package("pgkeep", &[("pgkeep-archive", false)])]).len(), 1);
        assert!(direction(&[package("pgkeep", &[("pgkeep-archive", true)])]).is_empty(), "tests load it");
    }

    #[test]
    fn each_dependency_needs_a_reason() {
        let packages = [package("store", &[("bytes", false), ("repo", true)])];
        assert!(reasons(&packages, "| `bytes` | cheap slices of one buffer |").is_empty());
        assert_eq!(
            reasons(&packages, "| `bytes` |"),
            ["docs/dependencies.md does not say why `bytes` is used (by store)"]
        );
    }

    #[test]
    fn what_nobody_uses_is_not_explained() {
        let packages = [package("store", &[("bytes", false)])];
        assert_eq!(
            stale(&packages, "| crate | why |\n| `bytes` | x |\n| `old` | y |"),
            ["docs/dependencies.md explains `old`, which no crate uses"]
        );
    }

    #[test]
    fn reads_what_cargo_prints() {
        let packages =
            parse(r#"{"packages":[{"name":"a","dependencies":[{"name":"b","kind":null},{"name":"c","kind":"dev"}]}]}"#);
        let packages = packages.unwrap();
        assert_eq!(packages[0].name, "a");
        assert_eq!(packages[0].dependencies.iter().map(|d| d.for_tests).collect::<Vec<_>>(), [false, true]);
    }
}
