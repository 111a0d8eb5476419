//! Completing a choice that came out too small.

use super::curve::falling;

/// `chosen` without repetitions, in its order, and then frames of `0..preference.len()` up to `k` (or all there are): first
/// those of positive preference, largest first and of equals the lower index, then the middle of the longest stretch in which
/// no frame is chosen, the first of equals, again and again.
pub(super) fn fill(chosen: &[usize], preference: &[f64], k: usize) -> Vec<usize> {
    let mut taken = vec![false; preference.len()];
    let mut order = vec![];
    let mut take = |frame: usize, order: &mut Vec<usize>| {
        if !std::mem::replace(&mut taken[frame], true) {
            order.push(frame);
        }
    };
    chosen.iter().for_each(|&frame| take(frame, &mut order));
    if order.len() < k {
        for frame in falling(preference) {
            if order.len() == k || preference[frame] <= 0. {
                break;
            }
            take(frame, &mut order);
        }
    }
    while order.len() < k.min(preference.len()) {
        let frame = middle_of_longest_gap(&order, preference.len());
        order.push(frame);
    }
    order.truncate(k);
    order
}

/// At least one of the `n` frames is free.
fn middle_of_longest_gap(chosen: &[usize], n: usize) -> usize {
    let mut bounds = chosen.to_vec();
    bounds.sort_unstable();
    bounds.push(n);
    let (mut start, mut best) = (0, (0, 0));
    for bound in bounds {
        let length = bound - start;
        if length > best.1 {
            best = (start, length);
        }
        start = bound + 1;
    }
    best.0 + best.1.saturating_sub(1) / 2
}
