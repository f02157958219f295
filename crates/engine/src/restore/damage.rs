//! What turned out to be damaged while a backup was fetched.

use super::fetch::Destination;
use repo::RepoError;

/// Damaged objects and files that are kept for the error.
const DAMAGE_SHOWN_MAX: usize = 200;

/// What turned out to be damaged: object, what is wrong, files that need it.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    found: Vec<(String, Vec<String>)>,
    files: u64,
}

impl Damage {
    pub(crate) fn add<'a, T: Destination>(&mut self, error: &RepoError, files: impl Iterator<Item = &'a T>) {
        let text = error.to_string();
        let index = self.found.iter().position(|(known, _)| *known == text).unwrap_or_else(|| {
            self.found.push((text, Vec::new()));
            self.found.len() - 1
        });
        for file in files {
            self.files += 1;
            let names = &mut self.found[index].1;
            let name = String::from_utf8_lossy(file.name()).into_owned();
            if names.len() < DAMAGE_SHOWN_MAX && !names.contains(&name) {
                names.push(name);
            }
        }
        self.found.truncate(DAMAGE_SHOWN_MAX);
    }

    /// The damage in words; `None` without any.
    pub(crate) fn text(&self) -> Option<String> {
        const FILES: usize = 3;
        if self.found.is_empty() {
            return None;
        }
        let one = |(error, files): &(String, Vec<String>)| {
            let shown = files.iter().take(FILES).cloned().collect::<Vec<_>>().join(", ");
            let more =
                if files.len() > FILES { format!(" and {} more files", files.len() - FILES) } else { String::new() };
            format!("{error} (needed for {shown}{more})")
        };
        Some(self.found.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}
