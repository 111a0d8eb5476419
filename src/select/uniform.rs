//! Evenly spaced frames.

/// `k` of `t` frames, first and last included: frame `j` is `round(j * (t - 1) / (k - 1))`, ties to even, ascending and
/// without repetition; all frames when `k >= t`, and the middle one, `(t - 1) / 2`, for `k = 1`.
///
/// This is `torch.linspace(0, t - 1, k).round()`, the rule of qwen-vl-utils and of the lmms-eval pipelines behind published
/// uniform baselines, computed in integers; there a single frame would be the first.
///
/// ```
/// assert_eq!(msjoe::select::uniform(63, 8), [0, 9, 18, 27, 35, 44, 53, 62]);
/// assert_eq!(msjoe::select::uniform(63, 1), [31]);
/// ```
pub fn uniform(t: usize, k: usize) -> Vec<usize> {
    match k {
        0 => Vec::new(),
        _ if k >= t => (0..t).collect(),
        1 => vec![(t - 1) / 2],
        _ => (0..k).map(|j| divide_ties_to_even(j as u128 * (t as u128 - 1), k as u128 - 1)).collect(),
    }
}

fn divide_ties_to_even(numerator: u128, denominator: u128) -> usize {
    let (quotient, rest) = (numerator / denominator, numerator % denominator);
    let up = 2 * rest > denominator || (2 * rest == denominator && quotient % 2 == 1);
    (quotient + u128::from(up)) as usize
}
