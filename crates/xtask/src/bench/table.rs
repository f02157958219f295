//! Results as a table in Markdown, ready for `docs/performance.md`.

use super::measure::{Run, median};
use std::fmt;

/// The runs of all contenders in one benchmark; the first contender is what the others are compared with.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) rows: Vec<(String, Vec<Run>)>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        writeln!(f, "| | seconds (median) | all runs | ratio to the first | stored MB | peak memory MB |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        let seconds = |runs: &[Run]| median(runs.iter().map(|run| run.seconds));
        let first = self.rows.first().map_or(f64::NAN, |(_, runs)| seconds(runs));
        for (name, runs) in &self.rows {
            let all: Vec<String> = runs.iter().map(|run| format!("{:.1}", run.seconds)).collect();
            let stored = median(runs.iter().map(|run| run.stored_bytes as f64 / 1e6));
            let memory = runs.iter().map(|run| run.memory_bytes).max().unwrap_or(0) as f64 / 1e6;
            let own = seconds(runs);
            let ratio = own / first;
            writeln!(f, "| {name} | {own:.2} | {} | {ratio:.2} | {stored:.0} | {memory:.0} |", all.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_medians_and_ratios() {
        let run = |seconds| Run { seconds, memory_bytes: 50_000_000, stored_bytes: 7_000_000 };
        let table = Table {
            title: "Backup".into(),
            rows: vec![("a".into(), vec![run(1.0), run(3.0), run(2.0)]), ("b".into(), vec![run(4.0)])],
        };
        let text = table.to_string();
        assert!(text.contains("| a | 2.00 | 1.0 3.0 2.0 | 1.00 | 7 | 50 |"), "{text}");
        assert!(text.contains("| b | 4.00 | 4.0 | 2.00 | 7 | 50 |"), "{text}");
    }
}
