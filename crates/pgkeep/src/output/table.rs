//! Plain tables: columns separated by two spaces, numbers to the right.

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table for people.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; control characters, which could confuse a terminal, are shown as `?`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The lines, without spaces at their ends.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.columns[column].0.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((cell, (_, align)), &width) in cells.zip(&self.columns).zip(&widths) {
                let space = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if *align == Align::Right { (space.as_str(), "") } else { ("", space.as_str()) };
                line += &format!("{before}{cell}{after}  ");
            }
            line.trim_end().to_owned()
        };
        let mut lines = vec![line(&mut self.columns.iter().map(|(name, _)| *name))];
        lines.extend(self.rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
        lines.join("\n")
    }
}

/// Facts with their names, one below the other. Facts without a value are left out.
pub(crate) fn facts(facts: &[(&str, Option<String>)]) -> String {
    let width = facts.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0);
    let lines = facts.iter().filter_map(|(name, value)| {
        let value = printable(value.as_ref()?);
        Some(format!("{name:width$}  {value}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The text without control characters, which could confuse a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&[("ID", Align::Left), ("SIZE", Align::Right), ("LABEL", Align::Left)]);
        table.row(["a".into(), "1 B".into(), "x\u{1b}[1m".into()]);
        table.row(["long".into(), "10.0 MiB".into(), String::new()]);
        assert_eq!(table.render(), "ID        SIZE  LABEL\na          1 B  x?[1m\nlong  10.0 MiB");
        assert_eq!(facts(&[("a", Some("1".into())), ("none", None), ("bcd", Some("2".into()))]), "a    1\nbcd  2");
    }
}
