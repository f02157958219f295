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
        writeln!(
            f,
            "| | seconds (median) | all runs | first ÷ this | CPU seconds | first ÷ this | stored MB | first ÷ this | peak memory MB |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        let first = self.rows.first().map_or(&[][..], |(_, runs)| runs);
        for (name, runs) in &self.rows {
            let all: Vec<String> = runs.iter().map(|run| format!("{:.1}", run.seconds)).collect();
            let stored = median(runs.iter().map(|run| run.stored_bytes as f64 / 1e6));
            let memory = runs.iter().map(|run| run.memory_bytes).max().unwrap_or(0) as f64 / 1e6;
            let own = median(runs.iter().map(|run| run.seconds));
            let time_ratio = ratio(first, runs, |run| run.seconds);
            write!(f, "| {name} | {own:.2} | {} | {time_ratio:.2} | ", all.join(" "))?;
            let cpu = median(runs.iter().map(|run| run.cpu_seconds));
            write!(f, "{cpu:.1} | {:.2} | ", ratio(first, runs, |run| run.cpu_seconds))?;
            if runs.iter().any(|run| run.stored_bytes > 0) {
                let digits = if stored < 10.0 { 2 } else { 0 };
                write!(f, "{stored:.digits$} | {:.2} | ", ratio(first, runs, |run| run.stored_bytes as f64))?;
            } else {
                write!(f, "| | ")?;
            }
            writeln!(f, "{memory:.0} |")?;
        }
        Ok(())
    }
}

/// The median of the ratios of runs made in the same round: what slowed down both does not count.
fn ratio(first: &[Run], other: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    if first.len() == other.len() {
        return median(first.iter().zip(other).map(|(first, other)| value(first) / value(other)));
    }
    median(first.iter().map(&value)) / median(other.iter().map(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_medians_and_ratios() {
        let run = |seconds, stored_bytes| Run { seconds, cpu_seconds: 1.0, memory_bytes: 50_000_000, stored_bytes };
        let table = Table {
            title: "Backup".into(),
            rows: vec![
                ("a".into(), vec![run(1.0, 7_000_000), run(3.0, 7_000_000), run(2.0, 7_000_000)]),
                ("b".into(), vec![run(4.0, 14_000_000)]),
                ("c".into(), vec![run(2.0, 0), run(30.0, 0), run(8.0, 0)]),
            ],
        };
        let text = table.to_string();
        assert!(text.contains("| a | 2.00 | 1.0 3.0 2.0 | 1.00 | 1.0 | 1.00 | 7.00 | 1.00 | 50 |"), "{text}");
        assert!(text.contains("| b | 4.00 | 4.0 | 0.50 | 1.0 | 1.00 | 14 | 0.50 | 50 |"), "{text}");
        assert!(
            text.contains("| c | 8.00 | 2.0 30.0 8.0 | 0.25 | 1.0 | 1.00 | | | 50 |"),
            "the ratios are 0.5, 0.1, 0.25: {text}"
        );
    }
}
