//! Pillow's bicubic on bytes, bit for bit: fixed-point weights, across first, rounded to bytes between the passes.
//!
//! Follows the arithmetic of Pillow's `Resample.c`: weights normalised in f64, kept with 22 bits after the point, sums
//! rounded half up. Pillow 13.0 goes down first when an image grows across and shrinks down, and so do we; it also does
//! for some very uneven shrinking, where we stay with the order of earlier Pillow:
//! there values next to hard edges differ. Both passes work on 16 values side by side, so that they vectorise.

use pulp::Arch;

const BITS: u32 = 22;
const LANES: usize = 16;

/// Weights of the source values that one target value draws from.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resizes rows of `width` RGB pixels to `to_width` x `to_height`.
pub(super) fn bicubic(
    pixels: &[u8],
    width: usize,
    height: usize,
    to_width: usize,
    to_height: usize,
) -> Vec<u8> {
    let arch = Arch::new();
    let go_across = |pixels: &[u8], height: usize| {
        let taps = taps(width, to_width);
        arch.dispatch(|| across(pixels, width, height, &taps))
    };
    let go_down = |pixels: &[u8], width: usize| {
        let taps = taps(height, to_height);
        arch.dispatch(|| down(pixels, width * 3, &taps))
    };
    match (width == to_width, height == to_height) {
        (true, true) => pixels.to_vec(),
        (false, true) => go_across(pixels, height),
        (true, false) => go_down(pixels, width),
        (false, false) if to_width > width && to_height < height => {
            go_across(&go_down(pixels, width), to_height)
        }
        (false, false) => go_down(&go_across(pixels, height), to_width),
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let tap = |target: usize| {
        let center = (target as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|at| cubic((at as f64 - center + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = if sum == 0.0 { *weight } else { weight / sum } * f64::from(1 << BITS);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(tap).collect()
}

#[inline(always)]
fn rounded(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The pass across: 16 rows at a time, each value of the row beside those of the rows below.
#[inline(always)]
fn across(pixels: &[u8], width: usize, height: usize, taps: &[Taps]) -> Vec<u8> {
    let (row, to_row) = (width * 3, taps.len() * 3);
    let mut out = vec![0u8; to_row * height];
    let mut block = vec![[0i32; LANES]; row];
    for top in (0..height).step_by(LANES) {
        let lanes = LANES.min(height - top);
        for lane in 0..lanes {
            let source = &pixels[(top + lane) * row..][..row];
            for (values, &value) in block.iter_mut().zip(source) {
                values[lane] = i32::from(value);
            }
        }
        for (target, tap) in taps.iter().enumerate() {
            for channel in 0..3 {
                let mut sums = [1i32 << (BITS - 1); LANES];
                let values = block[tap.first * 3 + channel..].iter().step_by(3);
                for (&weight, values) in tap.weights.iter().zip(values) {
                    for (sum, &value) in sums.iter_mut().zip(values) {
                        *sum += weight * value;
                    }
                }
                for (lane, &sum) in sums.iter().enumerate().take(lanes) {
                    out[(top + lane) * to_row + target * 3 + channel] = rounded(sum);
                }
            }
        }
    }
    out
}

/// The pass down: a target row is a weighted sum of whole rows.
#[inline(always)]
fn down(pixels: &[u8], row: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = vec![0u8; row * taps.len()];
    let mut sums = vec![0i32; row];
    for (target, tap) in out.chunks_exact_mut(row).zip(taps) {
        sums.fill(1 << (BITS - 1));
        for (&weight, source) in tap.weights.iter().zip(pixels[tap.first * row..].chunks_exact(row)) {
            for (sum, &value) in sums.iter_mut().zip(source) {
                *sum += weight * i32::from(value);
            }
        }
        for (value, &sum) in target.iter_mut().zip(&sums) {
            *value = rounded(sum);
        }
    }
    out
}
