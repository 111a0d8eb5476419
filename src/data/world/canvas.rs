//! Painting frames: textures and outlines are computed once per world, a frame is looked up from them.

use image::RgbImage;

use super::scene::Scene;
use super::silhouette;
use super::spec::Spec;
use super::texture;
use super::thing::{Noun, Place, Thing};

/// Cells per side of a distance grid, which covers [-REACH, REACH].
const GRID: usize = 96;
const REACH: f32 = 1.4;
/// Numbers in the noise table.
const NOISE: usize = 1 << 16;
/// Outlines and details.
const DARK: [f32; 3] = [22., 20., 26.];

/// What frames of one world are painted from.
pub(super) struct Canvas {
    side: usize,
    /// Per place, RGB of `extent` x `extent` pixels.
    textures: Vec<Vec<u8>>,
    extent: usize,
    /// Per noun, distances in units of the thing's radius to its body and to its dark details.
    outlines: Vec<[Vec<f32>; 2]>,
    /// Roughly normal, standard deviation `noise` in 1/64.
    noise: Vec<i16>,
}

impl std::fmt::Debug for Canvas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Canvas {{ side: {} }}", self.side)
    }
}

impl Canvas {
    pub fn new(spec: &Spec) -> Self {
        let extent = 2 * spec.side;
        let scale = spec.side as f32 / 56.;
        let grid = |distance: &dyn Fn([f32; 2]) -> f32| -> Vec<f32> {
            let at = |cell: usize| cell as f32 / (GRID - 1) as f32 * 2. * REACH - REACH;
            (0..GRID * GRID).map(|n| distance([at(n % GRID), at(n / GRID)]).min(REACH)).collect()
        };
        let outline =
            |noun: Noun| [grid(&|p| silhouette::body(noun, p)), grid(&|p| silhouette::ink(noun, p))];
        let sum = |n: usize| {
            let bytes = (texture::hash(n as u64, 0x5EED) as u32).to_le_bytes();
            bytes.iter().map(|&byte| f32::from(byte)).sum::<f32>() - 510.
        };
        // The sum of four bytes has the standard deviation 147.8.
        let noise = (0..NOISE).map(|n| (sum(n) * spec.noise * 64. / 147.8).round() as i16).collect();
        Self {
            side: spec.side,
            textures: Place::ALL.map(|place| texture::texture(place, extent, scale)).into(),
            extent,
            outlines: Noun::ALL.map(outline).into(),
            noise,
        }
    }

    pub fn side(&self) -> usize {
        self.side
    }

    /// `scene` as it looks `seconds` after its start.
    pub fn paint(&self, scene: &Scene, seconds: f32, noise: u64) -> RgbImage {
        let mut pixels = self.background(scene, seconds);
        for thing in &scene.things {
            self.draw(thing, seconds, &mut pixels);
        }
        self.add_noise(&mut pixels, noise);
        RgbImage::from_raw(self.side as u32, self.side as u32, pixels).unwrap_or_default()
    }

    /// A part of the texture that drifts by a pixel every other second, in the scene's light.
    fn background(&self, scene: &Scene, seconds: f32) -> Vec<u8> {
        let (texture, room) = (&self.textures[scene.place as usize], self.extent - self.side);
        let pick = |salt: u64, below: usize| texture::hash(scene.look, salt) as usize % below;
        let drift = (seconds / 2.) as usize;
        let (x, y) = ((pick(1, room) + drift) % room, pick(2, room));
        let light = pick(3, 25) as i16 - 12;
        let mut pixels = Vec::with_capacity(self.side * self.side * 3);
        for row in y..y + self.side {
            let line = &texture[(row * self.extent + x) * 3..][..self.side * 3];
            pixels.extend(line.iter().map(|&value| (i16::from(value) + light).clamp(0, 255) as u8));
        }
        pixels
    }

    fn draw(&self, thing: &Thing, seconds: f32, pixels: &mut [u8]) {
        let side = self.side as f32;
        let [x, y] = thing.centre(seconds).map(|part| part * side);
        let radius = thing.radius * side;
        let rim = (side / 56.).max(0.75);
        // Cosine and sine from the tangent of half the angle.
        let (t, norm) = (thing.tilt, 1. + thing.tilt * thing.tilt);
        let (cos, sin) = ((1. - t * t) / norm, 2. * t / norm);
        let mut colour = [0f32; 3];
        for (value, (base, tint)) in colour.iter_mut().zip(thing.colour.rgb().into_iter().zip(thing.tint)) {
            *value = (i16::from(base) + tint).clamp(0, 255).into();
        }
        let reach = radius * 1.1 + rim + 1.;
        let span = |centre: f32| {
            ((centre - reach).max(0.) as usize)..((centre + reach).ceil().clamp(0., side) as usize)
        };
        let [body, ink] = &self.outlines[thing.noun as usize];
        for row in span(y) {
            for column in span(x) {
                let (dx, dy) = ((column as f32 + 0.5 - x) / radius, (row as f32 + 0.5 - y) / radius);
                let p = [cos * dx + sin * dy, cos * dy - sin * dx];
                let (shape, detail) = (sample(body, p) * radius, sample(ink, p) * radius);
                let outer = (0.5 + rim - shape.min(detail)).clamp(0., 1.);
                if outer == 0. {
                    continue;
                }
                let fill = (0.5 - shape).clamp(0., 1.) * (1. - (0.5 - detail).clamp(0., 1.));
                let pixel = &mut pixels[(row * self.side + column) * 3..][..3];
                for (value, (colour, dark)) in pixel.iter_mut().zip(colour.into_iter().zip(DARK)) {
                    let under = f32::from(*value);
                    let rimmed = under + (dark - under) * outer;
                    *value = (rimmed + (colour - rimmed) * fill + 0.5) as u8;
                }
            }
        }
    }

    fn add_noise(&self, pixels: &mut [u8], seed: u64) {
        for (row, line) in pixels.chunks_exact_mut(self.side * 3).enumerate() {
            let from = texture::hash(seed, row as u64) as usize % (NOISE - line.len());
            for (value, noise) in line.iter_mut().zip(&self.noise[from..]) {
                *value = (i16::from(*value) + ((noise + 32) >> 6)).clamp(0, 255) as u8;
            }
        }
    }
}

/// Distance at `p`, linear between the grid's cells.
fn sample(grid: &[f32], p: [f32; 2]) -> f32 {
    let [(column, x), (row, y)] = p.map(|value| {
        let at = ((value + REACH) * ((GRID - 1) as f32 / (2. * REACH))).clamp(0., (GRID - 1) as f32 - 0.001);
        (at as usize, at - (at as usize) as f32)
    });
    let at = row * GRID + column;
    let (upper, lower) = (&grid[at..at + 2], &grid[at + GRID..at + GRID + 2]);
    let upper = upper[0] + (upper[1] - upper[0]) * x;
    let lower = lower[0] + (lower[1] - lower[0]) * x;
    upper + (lower - upper) * y
}
