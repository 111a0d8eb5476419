//! Score curves: one number per frame, checked and brought to a common scale.

use crate::error::{Error, Result};

/// Refuses a score that is NaN or infinite; `method` begins the message.
pub(super) fn finite(method: &str, scores: &[f32]) -> Result<()> {
    match scores.iter().position(|score| !score.is_finite()) {
        Some(at) => Err(Error::Input(format!(
            "{method}: score {at} of {} is {}, expected a finite number",
            scores.len(),
            scores[at]
        ))),
        None => Ok(()),
    }
}

/// The curve with its smallest value at 0 and its largest at 1; `None` where all are equal. In f64, so that no pair of finite
/// scores overflows.
pub(super) fn unit(scores: &[f32]) -> Option<Vec<f64>> {
    let low = scores.iter().copied().fold(f32::INFINITY, f32::min);
    let high = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (low, span) = (f64::from(low), f64::from(high) - f64::from(low));
    (span > 0.).then(|| scores.iter().map(|&score| (f64::from(score) - low) / span).collect())
}

/// Indices from the largest value down; of equal values the lower index first.
pub(super) fn falling(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Adding 0 makes -0 and 0 equal, as `==` has it.
    order.sort_by(|&a, &b| (values[b] + 0.).total_cmp(&(values[a] + 0.)));
    order
}

/// Index of the largest value among `of`, the first of equals; `None` where `of` is empty.
pub(super) fn largest(values: &[f64], of: impl IntoIterator<Item = usize>) -> Option<usize> {
    of.into_iter().fold(None, |best, at| match best {
        Some(best) if values[at] <= values[best] => Some(best),
        _ => Some(at),
    })
}

/// Softmax of `values / temperature`; empty for no values.
pub(super) fn softmax(values: &[f64], temperature: f64) -> Vec<f64> {
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = values.iter().map(|value| ((value - high) / temperature).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

/// `frames` in time.
pub(super) fn ascending(mut frames: Vec<usize>) -> Vec<usize> {
    frames.sort_unstable();
    frames
}
