//! Elementary functions on slices that the compiler turns into vector code, chosen for the CPU at run time.

/// `exp` to within 2 units in the last place for inputs in [-87, 88]; smaller inputs give 0, larger ones saturate.
///
/// Range reduction to `[-ln 2 / 2, ln 2 / 2]` and a polynomial of degree 7 (Cephes' `expf`), without branches.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let q = 1.987_569_2e-4;
    let q = q * r + 1.398_2e-3;
    let q = q * r + 8.333_452e-3;
    let q = q * r + 4.166_579_6e-2;
    let q = q * r + 1.666_666_5e-1;
    let q = q * r + 0.5;
    let p = q * (r * r) + r + 1.0;
    let power =
        f32::from_bits(((shifted.to_bits() & 0xFF_FFFF).wrapping_sub(0x40_0000).wrapping_add(127)) << 23);
    // NaN must stay NaN; -inf (a masked score) must be exactly 0.
    let y = p * power;
    if x < -87.0 { 0.0 } else { y }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Runs `f` compiled for the best instruction set of this CPU.
#[inline(always)]
pub(crate) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

const LANES: usize = 16;

/// Largest value of a slice; `-inf` when it is empty.
#[inline(always)]
pub(crate) fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    (lanes.iter().chain(rest)).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Replaces each `x` by `exp(x - shift)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum(xs: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (blocks, rest) = xs.as_chunks_mut::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *x = exp(*x - shift);
            *lane += *x;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for x in rest {
        *x = exp(*x - shift);
        sum += *x;
    }
    sum
}

/// Sum of `f` over the slice, in a fixed order that does not depend on the instruction set.
#[inline(always)]
pub(crate) fn sum_by(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// Sum of `f` over pairs, in a fixed order.
#[inline(always)]
pub(crate) fn sum_pairs(xs: &[f32], ys: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(*x, *y);
        }
    }
    lanes.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| f(*x, *y)).sum::<f32>()
}
