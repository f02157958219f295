//! Documents that must be there, and links between them that must lead somewhere.

use super::Tree;
use std::path::{Component, Path, PathBuf};

const REQUIRED: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/format.md",
    "docs/glossary.md",
    "docs/dependencies.md",
];

pub(super) fn check(tree: &Tree) -> Vec<String> {
    let missing = REQUIRED.iter().filter(|path| !tree.has(path)).map(|path| format!("{path} is missing"));
    let mut problems: Vec<String> = missing.collect();
    for path in tree.ending(".md") {
        let Some(text) = tree.text(path) else { continue };
        for (line, link) in links(&text) {
            if let Some(problem) = follow(tree, path, &text, &link) {
                problems.push(format!("{path}:{line}: {problem}"));
            }
        }
    }
    problems
}

/// Targets of `[text](target)` outside of code, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Text in backquotes is code too.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        let mut rest = prose.as_str();
        while let Some(begin) = rest.find("](") {
            rest = &rest[begin + 2..];
            let Some(end) = rest.find(')') else { break };
            found.push((number + 1, rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    found
}

fn follow(tree: &Tree, from: &str, text: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { PathBuf::from(from) } else { Path::new(from).parent()?.join(file) };
    let target = normal(&target);
    if !tree.has(&target) {
        return Some(format!("the link to '{link}' leads nowhere"));
    }
    if anchor.is_empty() || target.extension().is_none_or(|ending| ending != "md") {
        return None;
    }
    let other = tree.text(&target.to_string_lossy());
    let text = if file.is_empty() { text } else { other.as_deref()? };
    let headings = text.lines().filter(|line| line.starts_with('#')).map(slug);
    let there = headings.into_iter().any(|heading| heading == anchor);
    (!there).then(|| format!("there is no heading '#{anchor}' in {}", target.display()))
}

/// The anchor that code hosts give a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            letter if letter.is_alphanumeric() || letter == '-' || letter == '_' => Some(letter),
            _ => None,
        })
        .collect()
}

/// Resolves `..` by the text alone.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_links_outside_of_code() {
        let text = "a [b](c.md) and [d](e.md#f)\n```\n[no](x)\n```\n`[no](y)` [z](g)\n";
        assert_eq!(links(text), [(1, "c.md".into()), (1, "e.md#f".into()), (5, "g".into())]);
    }

    #[test]
    fn makes_anchors() {
        assert_eq!(slug("## 3. The repository (v1)"), "3-the-repository-v1");
    }

    #[test]
    fn follows_links() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("docs")).unwrap();
        std::fs::write(root.path().join("README.md"), "# Start here\n").unwrap();
        let tree = Tree { root: root.path().to_owned(), files: Vec::new() };
        assert_eq!(follow(&tree, "docs/a.md", "", "../README.md#start-here"), None);
        assert!(follow(&tree, "docs/a.md", "", "../README.md#end").is_some());
        assert!(follow(&tree, "docs/a.md", "", "b.md").is_some());
        assert_eq!(follow(&tree, "docs/a.md", "", "https://example.com/x"), None);
    }
}
