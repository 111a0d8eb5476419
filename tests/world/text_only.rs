//! What can be guessed without the video: a naive Bayes classifier over words, options and positions.

use std::collections::BTreeMap;

use msjoe::data::world::{Family, Sample};

/// What speaks for an option: its text, its position, its text beside each word of the question, whether and where the
/// question names it, and the same with the words of the option.
fn features(sample: &Sample, at: usize) -> Vec<String> {
    let (question, option) = (sample.question.text().trim_end_matches('?'), &sample.question.options()[at]);
    let family = sample.family.name();
    let words: Vec<&str> = question.split([' ', ',']).collect();
    let named = question
        .find(option.as_str())
        .map_or("not named", |byte| if byte < question.len() / 2 { "named early" } else { "named late" });
    let mut features =
        vec![format!("{family} {option}"), format!("{family} at {at}"), format!("{family} {named}")];
    features.push(format!("{option} at {at}"));
    features.extend(words.iter().map(|word| format!("{word}: {option}")));
    for part in option.split(' ') {
        features.push(format!("{family} part {part}"));
        features.push(format!("{family} {part} in question {}", words.contains(&part)));
        features.extend(words.iter().map(|word| format!("{word}: part {part}")));
    }
    features
}

/// Accuracy on `test` of a predictor that has counted on `train`: over all, then per family.
pub fn accuracy(train: &[Sample], test: &[Sample]) -> Vec<f64> {
    let mut counts: BTreeMap<String, [f64; 2]> = BTreeMap::new();
    for sample in train {
        for at in 0..4 {
            for feature in features(sample, at) {
                counts.entry(feature).or_default()[usize::from(at == sample.answer)] += 1.;
            }
        }
    }
    // Log odds against the 1 : 3 of chance, smoothed towards it.
    let score = |sample: &Sample, at: usize| -> f64 {
        let odds = |feature: String| {
            let [wrong, right] = counts.get(&feature).copied().unwrap_or_default();
            ((right + 5.) / (wrong + 15.) * 3.).ln()
        };
        features(sample, at).into_iter().map(odds).sum()
    };
    let right = |sample: &&Sample| {
        let scores: Vec<f64> = (0..4).map(|at| score(sample, at)).collect();
        (0..4).max_by(|&a, &b| scores[a].total_cmp(&scores[b])) == Some(sample.answer)
    };
    let part = |samples: Vec<&Sample>| {
        let count = samples.len() as f64;
        samples.into_iter().filter(right).count() as f64 / count
    };
    let mut parts = vec![part(test.iter().collect())];
    for family in Family::ALL {
        parts.push(part(test.iter().filter(|sample| sample.family == family).collect()));
    }
    parts
}
