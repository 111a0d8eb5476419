//! The frames with the largest scores.

use crate::error::{Error, Result};

/// Indices of the `k` largest scores, ascending; all of them when there are fewer. Of equal scores the lower index wins.
///
/// # Errors
/// A score that is NaN.
///
/// ```
/// assert_eq!(msjoe::select::top_k(&[0.2, 0.9, 0.2, 0.5], 3)?, [0, 1, 3]);
/// # Ok::<(), msjoe::Error>(())
/// ```
pub fn top_k(scores: &[f32], k: usize) -> Result<Vec<usize>> {
    let mut best = descending(scores, k)?;
    best.sort_unstable();
    Ok(best)
}

/// As [`top_k`], from the largest score down.
pub(super) fn descending(scores: &[f32], k: usize) -> Result<Vec<usize>> {
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::Input(format!("top-k: score {at} of {} is NaN", scores.len())));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding 0 makes -0 and 0 equal, as `==` has it.
    order.sort_by(|&a, &b| (scores[b] + 0.).total_cmp(&(scores[a] + 0.)));
    order.truncate(k);
    Ok(order)
}
