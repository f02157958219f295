//! Rules for single source files: length, header, leftovers, and words that must not be in the tree.

use super::Tree;

/// Longer files are split; tests are not counted.
const LINES_MAX: usize = 600;

pub(super) fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for path in tree.ending(".rs") {
        let Some(text) = tree.text(path) else {
            problems.push(format!("{path}: is not UTF-8"));
            continue;
        };
        let in_src = path.contains("/src/");
        if in_src && !is_test_file(path) && code_lines(&text) > LINES_MAX {
            problems.push(format!("{path}: {} lines without tests, at most {LINES_MAX}", code_lines(&text)));
        }
        if !text.starts_with("//!") && !path.ends_with("/tests.rs") {
            problems.push(format!("{path}: must begin with a `//!` header that says what it is"));
        }
        problems.extend(leftovers(&text).map(|what| format!("{path}: {what}")));
    }
    let checkout = tree.root.to_string_lossy();
    for path in &tree.files {
        let Some(text) = tree.text(path) else { continue };
        problems.extend(forbidden(path, &text, &checkout));
    }
    problems
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

/// Lines before the test module at the end of the file.
fn code_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{'));
    tests.unwrap_or(lines.len())
}

fn leftovers(text: &str) -> impl Iterator<Item = String> {
    // Put together here, so that this file does not find itself.
    ["todo", "dbg", "unimplemented"].into_iter().map(|name| format!("{name}!(")).flat_map(|call| {
        let lines = text.lines().enumerate();
        let found: Vec<String> = lines
            .filter(|(_, line)| line.contains(&call) && !line.trim_start().starts_with("//"))
            .map(|(number, _)| format!("line {}: `{call}...)` is a leftover", number + 1))
            .collect();
        found
    })
}

/// Paths of somebody's machine do not belong into the tree: home directories, and where this checkout lies.
fn forbidden(path: &str, text: &str, checkout: &str) -> Vec<String> {
    // The lock file is cargo's, and this file holds the words.
    if path.ends_with(".lock") || path.ends_with("tidy/sources.rs") {
        return Vec::new();
    }
    // A checkout directly below the root may have the name of anything.
    let words = ["/home/", "/root/", checkout].into_iter().filter(|word| word.matches('/').count() > 1);
    let words: Vec<&str> = words.collect();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in words.iter().filter(|word| line.contains(**word)) {
            found.push(format!("{path}:{}: '{word}' does not belong into the tree", number + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_not_counted() {
        assert_eq!(code_lines("a\nb\n#[cfg(test)]\nmod tests {\nc\n}\n"), 2);
        assert_eq!(code_lines("a\n#[cfg(test)]\nfn helper() {}\nb\n"), 4);
        assert_eq!(code_lines("a\n#[cfg(test)]\nmod tests;\nb\n"), 4);
    }

    #[test]
    fn leftovers_are_found() {
        let call = format!("fn f() {{\n    {}!()\n}}\n", "todo");
        assert_eq!(leftovers(&call).collect::<Vec<_>>(), [format!("line 2: `{}!(...)` is a leftover", "todo")]);
        assert_eq!(leftovers("// no code\n").count(), 0);
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        let check = |path, text| forbidden(path, text, "/srv/pgkeep");
        assert_eq!(check("README.md", "see /home/me/x"), ["README.md:1: '/home/' does not belong into the tree"]);
        assert_eq!(check("a.rs", "x\n/srv/pgkeep/y"), ["a.rs:2: '/srv/pgkeep' does not belong into the tree"]);
        assert!(check("Cargo.lock", "/home/me").is_empty());
        assert!(forbidden("a.rs", "/usr", "/usr").is_empty());
    }
}
