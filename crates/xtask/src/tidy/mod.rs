//! `cargo xtask tidy`: the house rules as code.
//!
//! Each rule looks at the files that git knows or would add. A rule collects everything it dislikes, so that one run
//! shows all there is to mend.

mod documents;
mod metadata;
mod sources;

use crate::sh;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the rules look at.
struct Tree {
    root: PathBuf,
    /// Paths relative to the root, sorted.
    files: Vec<String>,
}

impl Tree {
    fn read() -> Result<Self> {
        let root = sh::repo_root();
        let mut command = Command::new("git");
        command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&root);
        let list = sh::quiet(&mut command)?;
        let mut files: Vec<String> =
            list.split('\0').filter(|path| root.join(path).is_file()).map(str::to_owned).collect();
        files.sort();
        Ok(Self { root, files })
    }

    /// Text of a file; binary files have none.
    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }

    fn has(&self, path: impl AsRef<Path>) -> bool {
        self.root.join(path).exists()
    }

    fn ending<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = &'a String> {
        self.files.iter().filter(move |path| path.ends_with(suffix))
    }
}

/// Checks every rule.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    let mut problems = Vec::new();
    problems.extend(metadata::check(&tree)?);
    problems.extend(sources::check(&tree));
    problems.extend(documents::check(&tree));
    if problems.is_empty() {
        println!("tidy: {} files follow the house rules", tree.files.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    bail!("{} house rules are broken", problems.len())
}
