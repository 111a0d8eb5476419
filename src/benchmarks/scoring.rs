//! The field's scoring: which letter a reply names, and accuracy overall and by group.
//!
//! The letter is read as the harness lmms-eval does for Video-MME, LongVideoBench and MLVU (in the tree that TSPO's repository
//! carries at commit 19f4ecb), with two differences: where it draws a letter at random for LongVideoBench, the reply has none
//! here and is wrong; and `Best answer: C`, which a missing comma makes it read as `B` for two of the three, is `C` for all.
//! LVBench has an evaluator of its own, which was not at hand; it is read by the same rule. The rule is loose: `Both cars` and
//! `Best: A` are read as `B`, `Answer: B` as `A`. [`crate::text::answer::parse`] is the crate's own, stricter reading.

use std::cmp::Ordering;

use super::{Benchmark, Entry};

/// Openings that are taken out before a letter is looked for, in this order.
const OPENINGS: [&str; 8] = [
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
];

/// The option that `reply` names by the field's rule: without the usual openings, the first capital from A to D (to E for
/// LongVideoBench, or to the last option where there are more). It may lie beyond the options a question has; such a reply
/// is wrong.
pub fn letter(entry: &Entry, reply: &str) -> Option<usize> {
    let usual = if entry.benchmark == Benchmark::LongVideoBench { 5 } else { 4 };
    let letters = usual.max(entry.question.options().len());
    let said = OPENINGS.iter().fold(reply.to_owned(), |text, opening| text.replace(opening, ""));
    let places = said.chars().filter(char::is_ascii_uppercase).map(|letter| usize::from(letter as u8 - b'A'));
    places.into_iter().find(|&place| place < letters)
}

/// Counts of answered questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Questions asked.
    pub asked: usize,
    /// Those answered rightly.
    pub right: usize,
}

impl Tally {
    /// The share of right answers, 0 to 1; `None` when nothing was asked.
    pub fn accuracy(self) -> Option<f64> {
        (self.asked > 0).then(|| self.right as f64 / self.asked as f64)
    }

    fn add(&mut self, right: bool) {
        self.asked += 1;
        self.right += usize::from(right);
    }
}

/// The questions that share a value of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// `duration`, `task_type`, ...
    pub name: &'static str,
    /// `short`, `plotQA`, ...
    pub value: String,
    /// Its counts.
    pub tally: Tally,
}

/// The result of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scores {
    /// All questions: the field's main number for all four, also called micro average.
    pub overall: Tally,
    /// By group and value; groups in the benchmark's order, values from short to long, by number or by alphabet.
    pub groups: Vec<Group>,
}

impl Scores {
    /// The mean of the accuracies of a group's values, as in MLVU's paper over `task_type`; `None` for a group without
    /// questions.
    pub fn macro_average(&self, group: &str) -> Option<f64> {
        let shares: Vec<f64> = self
            .groups
            .iter()
            .filter(|one| one.name == group)
            .filter_map(|one| one.tally.accuracy())
            .collect();
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// Scores answers: each entry with the option that was chosen, `None` for a reply without one, which is wrong. The order
/// does not matter.
pub fn score<'a>(answers: impl IntoIterator<Item = (&'a Entry, Option<usize>)>) -> Scores {
    let mut scores = Scores::default();
    for (entry, choice) in answers {
        let right = entry.is_right(choice);
        scores.overall.add(right);
        for (name, value) in &entry.groups {
            let known = scores.groups.iter_mut().find(|group| group.name == *name && group.value == *value);
            match known {
                Some(group) => group.tally.add(right),
                None => {
                    let tally = Tally { asked: 1, right: usize::from(right) };
                    scores.groups.push(Group { name, value: value.clone(), tally });
                }
            }
        }
    }
    scores
        .groups
        .sort_by(|a, b| place(a.name).cmp(&place(b.name)).then_with(|| by_value(&a.value, &b.value)));
    scores
}

/// The place of a group in reports.
pub(crate) fn place(name: &str) -> (usize, &str) {
    const ORDER: [&str; 9] = [
        "duration",
        "duration_group",
        "task_type",
        "question_type",
        "question_category",
        "type",
        "domain",
        "sub_category",
        "topic_category",
    ];
    (ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len()), name)
}

/// The order of a group's values: from short to long, by number, or by alphabet.
pub(crate) fn by_value(a: &str, b: &str) -> Ordering {
    let length = |value: &str| ["short", "medium", "long"].iter().position(|known| *known == value);
    match (a.parse::<f64>(), b.parse::<f64>(), length(a), length(b)) {
        (Ok(a), Ok(b), _, _) => a.total_cmp(&b),
        (_, _, Some(a), Some(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}
