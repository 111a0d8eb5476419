//! Backgrounds, one per place: muted colours, told apart by texture and hue. Integer hashes and straight lines only.

use super::thing::Place;

/// A well-mixed number for a key and a salt (the finaliser of splitmix64).
pub(super) fn hash(key: u64, salt: u64) -> u64 {
    let mut x = key ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// RGB of `extent` x `extent` pixels; features grow with `scale`, which is 1 for frames of 56 pixels.
pub(super) fn texture(place: Place, extent: usize, scale: f32) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(extent * extent * 3);
    for row in 0..extent {
        for column in 0..extent {
            let (x, y) = ((column as f32 / scale) as i32, (row as f32 / scale) as i32);
            let base = match place {
                Place::Grass => [96, 116, 70],
                Place::Sand => [196, 174, 136],
                Place::Water => [96, 140, 160],
                Place::Night => [36, 38, 62],
                Place::Snow => [208, 214, 222],
                Place::Bricks => [142, 98, 84],
            };
            let shade = shade(place, x, y);
            let value = |channel: usize| (base[channel] + shade[channel]).clamp(0, 255) as u8;
            pixels.extend([value(0), value(1), value(2)]);
        }
    }
    pixels
}

fn shade(place: Place, x: i32, y: i32) -> [i32; 3] {
    let random = |a: i32, b: i32, below: i32| {
        (hash(a as u32 as u64 | (b as u32 as u64) << 32, place as u64) % below as u64) as i32
    };
    match place {
        // upright blades, each a few pixels long
        Place::Grass => {
            let length = 4 + random(x, -1, 4);
            let blade = random(x, (y + random(x, -2, 16)) / length, 44) - 22;
            [blade, blade + 4, blade / 2]
        }
        // grains
        Place::Sand => {
            let grain = if random(x, y, 7) == 0 { -26 } else { random(x, y, 13) - 6 };
            [grain; 3]
        }
        // lying waves: a zigzag that moves up and down
        Place::Water => {
            let zigzag = ((x + random(0, y / 7, 12)) % 12 - 6).abs() / 2;
            let crest = (y + zigzag) % 7;
            let wave = [34, 18, 4, -6, -14, -10, 2][crest as usize];
            [wave, wave, wave]
        }
        // single stars
        Place::Night => match random(x, y, 46) {
            0 => [150, 150, 120],
            1 => [70, 70, 70],
            _ => [random(x / 8, y / 8, 9) - 4; 3],
        },
        // soft bluish drifts
        Place::Snow => {
            let drift = random((x + y / 2) / 9, (y - x / 5 + 64) / 5, 22);
            [-drift, -drift * 3 / 4, -drift / 3]
        }
        // rows of bricks, every other one shifted by half
        Place::Bricks => {
            let course = y / 6;
            let along = x + (course % 2) * 5;
            if y % 6 == 0 || along % 10 == 0 {
                return [44, 70, 72];
            }
            let brick = random(along / 10, course, 26) - 13;
            [brick; 3]
        }
    }
}
