//! What to tell those who found nothing: names like theirs, and what is there of that name.

use super::filter::{Filter, Pattern};
use super::names::Names;
use std::collections::BTreeSet;

/// Names that are offered.
pub(super) const NEAR_MAX: usize = 10;

/// What there is instead of what was looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instead {
    /// Names like those asked for, to which something of that kind happened.
    pub happened: Vec<String>,
    /// Relations of that very name: they are known, and nothing like that happened to them.
    pub known: Vec<String>,
    /// Relations with names like those asked for.
    pub like: Vec<String>,
    /// The databases there are, when there is none of the name asked for.
    pub databases: Vec<String>,
}

impl Instead {
    /// Looks through the names that are known at the end of the WAL.
    pub(super) fn of(filter: &Filter, names: &Names, happened: BTreeSet<String>) -> Self {
        let mut instead = Self { happened: happened.into_iter().take(NEAR_MAX).collect(), ..Self::default() };
        let asked: Vec<&Pattern> = filter.words.iter().chain(&filter.tables).collect();
        if let Some(database) = &filter.database
            && !names.databases().any(|name| database.matches(name))
        {
            instead.databases = names.databases().map(str::to_owned).collect();
            instead.databases.sort();
        }
        let mut like = Vec::new();
        for (key, name) in names.users().filter(|_| !asked.is_empty()) {
            let Some(distance) = asked.iter().filter_map(|pattern| pattern.distance(name)).min() else { continue };
            let object = names.object_of_oid(key.0, key.1);
            if asked.iter().any(|pattern| pattern.matches_object(&object)) {
                instead.known.push(object.to_string());
            } else {
                like.push((distance, object.to_string()));
            }
        }
        // What was dropped and made anew is known several times.
        like.sort();
        like.dedup();
        instead.known.sort();
        instead.known.dedup();
        instead.known.truncate(NEAR_MAX);
        instead.like = like.into_iter().map(|(_, name)| name).take(NEAR_MAX).collect();
        instead
    }
}

impl Pattern {
    /// How far a name is from this one, when it is near: 0 when it is met, or one is a part of the other.
    fn distance(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        let own = self.relation();
        if self.matches(&name) || own == name {
            return Some(0);
        }
        if own.len() >= 3 && name.contains(own) || name.len() >= 3 && own.contains(&name) {
            return Some(1);
        }
        let far = own.chars().count().max(name.chars().count()) / 3;
        let distance = edits(own, &name);
        (distance <= far.min(3)).then_some(distance + 1)
    }

    /// Whether a name is not meant, but perhaps was.
    pub(super) fn is_near(&self, name: &str) -> bool {
        self.distance(name).is_some()
    }
}

/// How many characters must be put in, left out, changed, or swapped with their neighbour to come from one to the other.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    let mut last = None;
    for (at, char) in one.chars().enumerate() {
        let mut next = vec![at + 1];
        for (to, other_char) in other.iter().enumerate() {
            let changed = row[to] + usize::from(char != *other_char);
            let mut best = changed.min(row[to + 1] + 1).min(next[to] + 1);
            if to > 0 && last == Some(*other_char) && other[to - 1] == char {
                best = best.min(before[to - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(char);
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_near() {
        for (asked, name, near) in [
            ("orders", "orders", true),
            ("order", "orders", true),
            ("ordres", "orders", true),
            ("sales.oders", "orders", true),
            ("Ordesr", "orders", true),
            ("orders", "orders_2024", true),
            ("customer", "orders", false),
            ("x", "orders", false),
            ("t1", "t2", false),
            ("", "orders", false),
        ] {
            assert_eq!(Pattern::new(asked).is_near(name), near, "{asked} {name}");
        }
        assert_eq!(
            (edits("abc", "abc"), edits("abc", "acb"), edits("", "ab"), edits("kitten", "sitting")),
            (0, 1, 2, 3)
        );
    }
}
