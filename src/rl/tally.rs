//! Metrics that add up: over micro-batches, and to what one batch would have given.

use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Entry {
    Mean { sum: f64, count: f64 },
    Sum(f64),
    Min(f64),
    Max(f64),
}

/// Named sums, counts and extremes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally(BTreeMap<&'static str, Entry>);

impl Tally {
    /// Adds to a mean `sum` over `count` things.
    pub fn mean(&mut self, name: &'static str, sum: f64, count: f64) {
        self.put(name, Entry::Mean { sum, count });
    }

    /// Adds to a total.
    pub fn sum(&mut self, name: &'static str, value: f64) {
        self.put(name, Entry::Sum(value));
    }

    /// Adds the seconds since `start` to a total.
    pub fn time(&mut self, name: &'static str, start: Instant) {
        self.sum(name, start.elapsed().as_secs_f64());
    }

    /// Multiplies a total.
    pub fn scale(&mut self, name: &str, factor: f64) {
        if let Some(Entry::Sum(value)) = self.0.get_mut(name) {
            *value *= factor;
        }
    }

    /// A total over another, which is then no longer listed by itself.
    pub fn rate(&mut self, name: &'static str, of: &str, over: &str) {
        if let (Some(Entry::Sum(of)), Some(over)) = (self.0.remove(of), self.get(over)) {
            self.sum(name, of / over);
        }
    }

    /// Lowers a minimum.
    pub fn min(&mut self, name: &'static str, value: f64) {
        self.put(name, Entry::Min(value));
    }

    /// Raises a maximum.
    pub fn max(&mut self, name: &'static str, value: f64) {
        self.put(name, Entry::Max(value));
    }

    /// Adds everything that another tally holds.
    pub fn merge(&mut self, other: &Self) {
        for (&name, &entry) in &other.0 {
            self.put(name, entry);
        }
    }

    /// The value of one metric: `None` when it is unknown or a mean over nothing.
    pub fn get(&self, name: &str) -> Option<f64> {
        match *self.0.get(name)? {
            Entry::Mean { sum, count } => (count > 0.).then(|| sum / count),
            Entry::Sum(value) | Entry::Min(value) | Entry::Max(value) => Some(value),
        }
    }

    /// All metrics that have a value, by name.
    pub fn values(&self) -> BTreeMap<&'static str, f64> {
        self.0.keys().filter_map(|&name| Some((name, self.get(name)?))).collect()
    }

    fn put(&mut self, name: &'static str, new: Entry) {
        let entry = match (self.0.get(name), new) {
            (Some(Entry::Mean { sum, count }), Entry::Mean { sum: s, count: c }) => {
                Entry::Mean { sum: sum + s, count: count + c }
            }
            (Some(Entry::Sum(a)), Entry::Sum(b)) => Entry::Sum(a + b),
            (Some(Entry::Min(a)), Entry::Min(b)) => Entry::Min(a.min(b)),
            (Some(Entry::Max(a)), Entry::Max(b)) => Entry::Max(a.max(b)),
            (_, new) => new,
        };
        self.0.insert(name, entry);
    }
}
