//! The outlines of the nouns as signed distances, negative inside, in a box of -1 to 1 with y pointing down.
//!
//! Only additions, products, quotients and square roots: the same pixels on every machine.

use super::thing::Noun;

/// A point.
type P = [f32; 2];

/// Distance to the coloured body of a noun.
pub(super) fn body(noun: Noun, p: P) -> f32 {
    match noun {
        Noun::Apple => {
            let lobes = disc(p, [-0.3, 0.2], 0.58).min(disc(p, [0.3, 0.2], 0.58));
            let lobes = lobes.min(disc(p, [0., 0.42], 0.5));
            let leaf = disc(p, [0.52, -0.92], 0.42).max(disc(p, [0.18, -0.52], 0.42));
            lobes.max(-disc(p, [0., -0.55], 0.26)).min(leaf)
        }
        // a crescent, open upwards, with the left end cut off
        Noun::Banana => {
            let crescent = disc(p, [0., -0.42], 1.08).max(-disc(p, [0.1, -1.03], 1.12));
            crescent.max(half_plane(p, [-0.88, 0.], [-1., -0.5]))
        }
        Noun::Cherry => {
            let fruits = disc(p, [-0.5, 0.5], 0.42).min(disc(p, [0.5, 0.5], 0.42));
            let leaf = disc(p, [0.55, -0.95], 0.42).max(disc(p, [0.35, -0.5], 0.42));
            fruits.min(leaf)
        }
        Noun::Car => {
            let low = polygon(p, &[[-0.98, -0.02], [0.98, -0.02], [0.98, 0.45], [-0.98, 0.45]]);
            let cabin = polygon(p, &[[-0.68, 0.02], [-0.42, -0.55], [0.32, -0.55], [0.62, 0.02]]);
            low.min(cabin)
        }
        Noun::Boat => {
            let hull = polygon(p, &[[-0.98, 0.35], [0.98, 0.35], [0.6, 0.88], [-0.62, 0.88]]);
            let main = polygon(p, &[[-0.06, -0.95], [-0.06, 0.2], [-0.8, 0.2]]);
            let fore = polygon(p, &[[0.14, -0.7], [0.14, 0.2], [0.72, 0.2]]);
            hull.min(main).min(fore)
        }
        Noun::Plane => plane(p),
        Noun::Hammer => {
            let handle = segment(p, [0., -0.4], [0., 0.86], 0.13);
            let head =
                polygon(p, &[[-0.72, -0.92], [0.35, -0.92], [0.92, -0.6], [0.35, -0.38], [-0.72, -0.38]]);
            handle.min(head)
        }
        Noun::Key => {
            let bow = disc(p, [-0.52, 0.], 0.46).max(-disc(p, [-0.52, 0.], 0.2));
            let shaft = segment(p, [-0.1, 0.], [0.88, 0.], 0.1);
            let teeth = polygon(p, &[[0.42, 0.], [0.58, 0.], [0.58, 0.42], [0.42, 0.42]]);
            let last = polygon(p, &[[0.78, 0.], [0.96, 0.], [0.96, 0.46], [0.78, 0.46]]);
            bow.min(shaft).min(teeth).min(last)
        }
        Noun::Saw => saw(p),
        Noun::Star => polygon(p, &STAR),
        Noun::Ring => disc(p, [0., 0.], 0.9).max(-disc(p, [0., 0.], 0.46)),
        Noun::Cross => {
            let upright = polygon(p, &[[-0.3, -0.92], [0.3, -0.92], [0.3, 0.92], [-0.3, 0.92]]);
            let across = polygon(p, &[[-0.92, -0.3], [0.92, -0.3], [0.92, 0.3], [-0.92, 0.3]]);
            upright.min(across)
        }
    }
}

fn plane(p: P) -> f32 {
    let hull = segment(p, [0., -0.82], [0., 0.8], 0.15);
    let wings = polygon(p, &[[0., -0.32], [0.98, 0.3], [0.98, 0.48], [0., 0.2], [-0.98, 0.48], [-0.98, 0.3]]);
    let tail = polygon(p, &[[0., 0.5], [0.42, 0.82], [0.42, 0.96], [0., 0.84], [-0.42, 0.96], [-0.42, 0.82]]);
    hull.min(wings).min(tail)
}

/// Distance to the dark details drawn over the body.
pub(super) fn ink(noun: Noun, p: P) -> f32 {
    match noun {
        Noun::Apple => segment(p, [0., -0.3], [0.06, -0.82], 0.07),
        Noun::Banana => segment(p, [0.92, -0.3], [0.98, -0.5], 0.1).min(disc(p, [-0.84, -0.06], 0.11)),
        Noun::Cherry => {
            segment(p, [-0.46, 0.12], [0.1, -0.85], 0.06).min(segment(p, [0.46, 0.12], [0.1, -0.85], 0.06))
        }
        Noun::Car => {
            let wheels = disc(p, [-0.5, 0.5], 0.25).min(disc(p, [0.5, 0.5], 0.25));
            let rear = polygon(p, &[[-0.48, -0.06], [-0.33, -0.4], [-0.1, -0.4], [-0.1, -0.06]]);
            let front = polygon(p, &[[0.06, -0.06], [0.06, -0.4], [0.24, -0.4], [0.42, -0.06]]);
            wheels.min(rear).min(front)
        }
        Noun::Boat => segment(p, [0.04, -0.95], [0.04, 0.35], 0.06),
        Noun::Hammer => polygon(p, &[[-0.16, -0.38], [0.16, -0.38], [0.16, -0.28], [-0.16, -0.28]]),
        _ => f32::MAX,
    }
}

/// Five points on a circle of radius 1 (moved down a little), the inner ones at 0.42.
const STAR: [P; 10] = [
    [0.0, -0.95],
    [0.247, -0.29],
    [0.951, -0.259],
    [0.399, 0.18],
    [0.588, 0.859],
    [0.0, 0.47],
    [-0.588, 0.859],
    [-0.399, 0.18],
    [-0.951, -0.259],
    [-0.247, -0.29],
];

/// A blade with four teeth and a handle with a hole.
fn saw(p: P) -> f32 {
    let blade = polygon(
        p,
        &[
            [-0.45, -0.35],
            [0.98, -0.2],
            [0.98, 0.05],
            [0.8, 0.38],
            [0.62, 0.08],
            [0.44, 0.4],
            [0.26, 0.1],
            [0.08, 0.42],
            [-0.1, 0.12],
            [-0.28, 0.44],
            [-0.45, 0.14],
        ],
    );
    let handle = polygon(p, &[[-0.98, -0.5], [-0.38, -0.5], [-0.38, 0.3], [-0.62, 0.55], [-0.98, 0.55]]);
    blade.min(handle.max(-disc(p, [-0.7, 0.02], 0.16)))
}

fn length(p: P) -> f32 {
    (p[0] * p[0] + p[1] * p[1]).sqrt()
}

fn disc(p: P, centre: P, radius: f32) -> f32 {
    length([p[0] - centre[0], p[1] - centre[1]]) - radius
}

/// Negative on the side that `normal` points away from.
fn half_plane(p: P, at: P, normal: P) -> f32 {
    ((p[0] - at[0]) * normal[0] + (p[1] - at[1]) * normal[1]) / length(normal)
}

/// A line from `a` to `b` with round ends.
fn segment(p: P, a: P, b: P, radius: f32) -> f32 {
    to_line(p, a, b) - radius
}

fn to_line(p: P, a: P, b: P) -> f32 {
    let (along, from) = ([b[0] - a[0], b[1] - a[1]], [p[0] - a[0], p[1] - a[1]]);
    let squared = along[0] * along[0] + along[1] * along[1];
    let part = ((from[0] * along[0] + from[1] * along[1]) / squared).clamp(0., 1.);
    length([from[0] - part * along[0], from[1] - part * along[1]])
}

/// A closed polygon without crossings.
fn polygon(p: P, corners: &[P]) -> f32 {
    let (mut nearest, mut inside) = (f32::MAX, false);
    for (at, &a) in corners.iter().enumerate() {
        let b = corners[(at + 1) % corners.len()];
        nearest = nearest.min(to_line(p, a, b));
        let crosses = (a[1] > p[1]) != (b[1] > p[1]);
        if crosses && p[0] < (b[0] - a[0]) * (p[1] - a[1]) / (b[1] - a[1]) + a[0] {
            inside = !inside;
        }
    }
    if inside { -nearest } else { nearest }
}
