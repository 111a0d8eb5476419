//! MaxInfo (arXiv 2502.03183): the frames whose embeddings span the video's main directions best, blind to the question.
//!
//! Differs from the published code: embeddings are brought to length 1 before the decomposition, features with fewer directions
//! than the rank (repeated frames) lower the rank instead of failing, and all frames are returned when there are no more than
//! asked for.

use super::curve::{ascending, largest};
use super::features::Features;
use super::low_rank::leading;
use super::uniform::uniform;
use crate::error::{Error, Result};

// The published limits of the first, square choice.
const SWAPS: usize = 10;
const SWAP_GAIN: f64 = 1.05;

/// Settings of [`max_info`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaxInfo {
    /// Directions of the decomposition. Published: 8.
    pub rank: usize,
    /// A frame is left out when the chosen ones make it with weights of at most this length. Published: 0.3.
    pub tolerance: f64,
}

impl Default for MaxInfo {
    fn default() -> Self {
        Self { rank: 8, tolerance: 0.3 }
    }
}

/// At most `k` frames, ascending, whose rows of the rank-8 decomposition of the features have maximal volume: first as many as
/// there are directions, then each the one that the chosen make worst, until all are made within the tolerance. The number
/// depends on the video: from `min(rank, k)` (fewer if the features have fewer directions) to `k`, and mostly `k`, since a
/// frame that repeats `m` chosen ones is made with weights of length `1 / sqrt(m)`. All frames when `k` is not below their
/// number; one when there is nothing in any.
///
/// `features` (T, D). O(T (D rank + k^2)).
///
/// # Errors
/// A rank of 0, a tolerance that is negative or NaN.
pub fn max_info(features: &Features, k: usize, settings: MaxInfo) -> Result<Vec<usize>> {
    let MaxInfo { rank, tolerance } = settings;
    if rank == 0 || tolerance.is_nan() || tolerance < 0. {
        return Err(Error::Input(format!(
            "maxinfo: expected a rank above 0 and a tolerance from 0, got {rank} and {tolerance}"
        )));
    }
    if k == 0 || k >= features.len() {
        return Ok(uniform(features.len(), k));
    }
    let columns = leading(features, rank.min(k));
    if columns.is_empty() {
        // Nothing but zeros: any frame is as good as another.
        return Ok(uniform(features.len(), 1));
    }
    let (mut pivots, mut made) = square(columns);
    rectangular(&mut pivots, &mut made, k, tolerance);
    Ok(ascending(pivots))
}

/// As many rows as there are columns, of large determinant, and the weights (columns of T) with which they make every row.
fn square(columns: Vec<Vec<f64>>) -> (Vec<usize>, Vec<Vec<f64>>) {
    let (mut pivots, mut made) = (vec![], columns);
    // Gauss-Jordan elimination by columns: at a pivot row, column j is 1 and the others are 0.
    for j in 0..made.len() {
        let free = (0..made[j].len()).filter(|row| !pivots.contains(row));
        let sizes: Vec<f64> = made[j].iter().map(|x| x.abs()).collect();
        let Some(pivot) = largest(&sizes, free).filter(|&pivot| sizes[pivot] > 0.) else {
            // Rounding has eaten this direction.
            made.truncate(j);
            break;
        };
        pivots.push(pivot);
        let head = made[j][pivot];
        made[j].iter_mut().for_each(|x| *x /= head);
        let unit = made[j].clone();
        for (_, column) in made.iter_mut().enumerate().filter(|(other, _)| *other != j) {
            let weight = column[pivot];
            column.iter_mut().zip(&unit).for_each(|(x, u)| *x -= weight * u);
        }
    }
    for _ in 0..SWAPS {
        let tops = made.iter().enumerate().map(|(j, column)| {
            let row = (0..column.len())
                .fold(0, |best, row| if column[row].abs() > column[best].abs() { row } else { best });
            (j, row, column[row].abs())
        });
        let Some((j, row, _)) = tops.filter(|top| top.2 > SWAP_GAIN).max_by(|a, b| a.2.total_cmp(&b.2))
        else {
            break;
        };
        swap(&mut made, j, row);
        pivots[j] = row;
    }
    (pivots, made)
}

/// Puts `row` in the place of pivot `j`.
fn swap(made: &mut [Vec<f64>], j: usize, row: usize) {
    let head = made[j][row];
    let unit: Vec<f64> = made[j].iter().map(|x| x / head).collect();
    for (other, column) in made.iter_mut().enumerate() {
        let weight = if other == j { column[row] - 1. } else { column[row] };
        column.iter_mut().zip(&unit).for_each(|(x, u)| *x -= weight * u);
    }
}

/// Adds the row with the longest weights until none is longer than `tolerance` or there are `k`.
fn rectangular(pivots: &mut Vec<usize>, made: &mut Vec<Vec<f64>>, k: usize, tolerance: f64) {
    let rows = made.first().map_or(0, Vec::len);
    let mut taken = vec![false; rows];
    pivots.iter().for_each(|&pivot| taken[pivot] = true);
    let mut lengths = vec![0.; rows];
    for column in made.iter() {
        lengths.iter_mut().zip(column).for_each(|(length, x)| *length += x * x);
    }
    while pivots.len() < k {
        let Some(next) = largest(&lengths, (0..rows).filter(|&row| !taken[row])) else { return };
        if lengths[next] <= tolerance * tolerance {
            return;
        }
        let mut along = vec![0.; rows];
        for column in made.iter() {
            let weight = column[next];
            along.iter_mut().zip(column).for_each(|(sum, x)| *sum += weight * x);
        }
        let share = 1. / (1. + along[next]);
        for column in made.iter_mut() {
            let weight = share * column[next];
            column.iter_mut().zip(&along).for_each(|(x, v)| *x -= weight * v);
        }
        lengths.iter_mut().zip(&along).for_each(|(length, v)| *length -= share * v * v);
        along.iter_mut().for_each(|v| *v *= share);
        made.push(along);
        taken[next] = true;
        pivots.push(next);
    }
}
