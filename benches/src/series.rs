//! A row of measurements.

use std::time::Duration;

/// Values of one kind for one runtime.
#[derive(Debug)]
pub struct Series {
    name: String,
    values: Vec<f64>,
}

impl Series {
    /// No values yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            values: Vec::new(),
        }
    }

    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
        self.values.sort_by(f64::total_cmp);
    }

    /// Adds a time, in milliseconds.
    pub fn add_ms(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e3);
    }

    fn at(&self, part: usize, of: usize) -> f64 {
        let last = self.values.len().saturating_sub(1);
        self.values
            .get(last * part / of)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

/// Prints minimum, median, maximum, and each median's ratio to the first row's.
pub fn print(title: &str, rows: &[Series]) {
    let first = rows.first().map_or(f64::NAN, |row| row.at(1, 2));
    println!("{title}");
    println!(
        "  {:<16} {:>4} {:>9} {:>9} {:>9} {:>8}",
        "", "n", "min", "median", "max", "ratio"
    );
    for row in rows {
        let (min, median, max) = (row.at(0, 1), row.at(1, 2), row.at(1, 1));
        println!(
            "  {:<16} {:>4} {min:>9.1} {median:>9.1} {max:>9.1} {:>7.2}x",
            row.name,
            row.values.len(),
            median / first
        );
    }
    println!();
}

/// The medians by name.
pub fn json(rows: &[Series]) -> serde_json::Value {
    rows.iter()
        .map(|row| (row.name.clone(), serde_json::json!(row.at(1, 2))))
        .collect()
}
