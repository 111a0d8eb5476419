//! Bin-max, the selection of TSPO (arXiv 2508.04369) for Video-MME: the best frame of each of K even stretches.
//!
//! Differs from the published code: a single bin is centred in the middle instead of at the end, which changes nothing, and a
//! score that is NaN is refused.

use super::curve::{finite, largest};
use super::uniform::uniform;
use crate::error::Result;

/// The best frame of each of `k` bins around the evenly spaced centres of [`uniform`], ascending; all frames when `k` is not
/// below their number. A frame between two centres belongs to the nearer one, the earlier when both are as near; of equal
/// scores the lower index wins, so constant scores give the first frame of each bin.
///
/// # Errors
/// A score that is not finite.
///
/// ```
/// assert_eq!(msjoe::select::bin_max(&[0.1, 0.9, 0.8, 0.2, 0.3, 0.1], 2)?, [1, 4]);
/// # Ok::<(), msjoe::Error>(())
/// ```
pub fn bin_max(scores: &[f32], k: usize) -> Result<Vec<usize>> {
    finite("bin-max", scores)?;
    let (n, centres) = (scores.len(), uniform(scores.len(), k));
    let values: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
    // The last frame that is not nearer to the next centre.
    let ends = centres.windows(2).map(|pair| (pair[0] + pair[1]) / 2 + 1).chain([n]);
    let mut start = 0;
    let best = ends.take(centres.len()).filter_map(|end| {
        let bin = start..end;
        start = end;
        largest(&values, bin)
    });
    Ok(best.collect())
}
