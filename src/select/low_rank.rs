//! The leading part of the singular value decomposition of frame features.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::features::{Features, dot};

// Krylov blocks: the leading directions of real embeddings stand still to f32 after three.
const BLOCKS: usize = 5;
// Directions below this part of what they were, or of the leading one, are rounding of f32.
const SMALLEST: f64 = 1e-5;

/// The columns of `U S` for the at most `rank` largest singular values of the features (T, D), each of length T, largest
/// first; fewer when the features have fewer directions. Their signs are arbitrary.
///
/// By block Krylov iteration (arXiv 1504.05477) from a fixed start. O(T D rank).
pub(super) fn leading(features: &Features, rank: usize) -> Vec<Vec<f64>> {
    let mut rng = StdRng::seed_from_u64(0);
    let width = features.width();
    let mut block: Vec<Vec<f64>> =
        (0..rank.min(width)).map(|_| (0..width).map(|_| rng.random_range(-1.0..1.0)).collect()).collect();
    let (mut basis, mut images): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (vec![], vec![]);
    for _ in 0..BLOCKS {
        let known = basis.len();
        block.into_iter().for_each(|direction| add_direction(&mut basis, direction));
        let new = images_of(features, &basis[known..]);
        block = pull_back(features, &new);
        images.extend(new);
        if basis.len() == known {
            break;
        }
    }
    let (values, vectors) = eigen(gram(&images));
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let most = order.first().map_or(0., |&first| values[first]);
    let kept = order.into_iter().filter(|&at| values[at] > 0. && values[at] > most * SMALLEST * SMALLEST);
    kept.take(rank).map(|at| combine(&images, vectors.iter().map(|row| row[at]))).collect()
}

/// Appends what is new in a direction, at length 1.
fn add_direction(basis: &mut Vec<Vec<f64>>, mut direction: Vec<f64>) {
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let before = inner(&direction, &direction).sqrt();
    // Twice, for the rounding of the first time.
    for _ in 0..2 {
        for known in basis.iter() {
            let along = inner(known, &direction);
            direction.iter_mut().zip(known).for_each(|(x, y)| *x -= along * y);
        }
    }
    let length = inner(&direction, &direction).sqrt();
    if length > before * SMALLEST {
        direction.iter_mut().for_each(|x| *x /= length);
        basis.push(direction);
    }
}

/// Features (T, D) times each direction (D,): as many columns (T,).
fn images_of(features: &Features, directions: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let directions: Vec<Vec<f32>> =
        directions.iter().map(|one| one.iter().map(|&x| x as f32).collect()).collect();
    let mut images = vec![Vec::with_capacity(features.len()); directions.len()];
    for row in features.rows() {
        for (image, direction) in images.iter_mut().zip(&directions) {
            image.push(f64::from(dot(row, direction)));
        }
    }
    images
}

/// The transposed features (D, T) times each column (T,): as many directions (D,).
fn pull_back(features: &Features, images: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut directions = vec![vec![0f32; features.width()]; images.len()];
    for (frame, row) in features.rows().enumerate() {
        for (direction, image) in directions.iter_mut().zip(images) {
            let weight = image[frame] as f32;
            direction.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
        }
    }
    directions.into_iter().map(|one| one.into_iter().map(f64::from).collect()).collect()
}

fn gram(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let inner = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).map(|(x, y)| x * y).sum();
    columns.iter().map(|a| columns.iter().map(|b| inner(a, b)).collect()).collect()
}

fn combine(columns: &[Vec<f64>], weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sum = vec![0.; columns.first().map_or(0, Vec::len)];
    for (column, weight) in columns.iter().zip(weights) {
        sum.iter_mut().zip(column).for_each(|(sum, x)| *sum += weight * x);
    }
    sum
}

/// Eigenvalues of a small symmetric matrix, and its eigenvectors as columns, by cyclic Jacobi rotations.
fn eigen(mut matrix: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = matrix.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..40 {
        let off: f64 = (0..n).map(|i| (0..i).map(|j| matrix[i][j].powi(2)).sum::<f64>()).sum();
        let on: f64 = (0..n).map(|i| matrix[i][i].powi(2)).sum();
        if off <= 1e-28 * on {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut matrix, &mut vectors, p, q);
            }
        }
    }
    ((0..n).map(|i| matrix[i][i]).collect(), vectors)
}

/// Makes the entries (p, q) and (q, p) zero; p is below q.
fn rotate(matrix: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if matrix[p][q] == 0. {
        return;
    }
    let theta = (matrix[q][q] - matrix[p][p]) / (2. * matrix[p][q]);
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.));
    let cosine = 1. / tangent.hypot(1.);
    let sine = tangent * cosine;
    let turn = |row: &mut Vec<f64>| {
        (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
    };
    matrix.iter_mut().for_each(turn);
    vectors.iter_mut().for_each(turn);
    let (above, below) = matrix.split_at_mut(q);
    for (a, b) in above[p].iter_mut().zip(&mut below[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}
