//! The order of patches in the vision tower, tensor-free.
//!
//! Most blocks attend inside windows of 112 x 112 pixels. The reference (transformers 4.51.3) permutes the merged
//! tokens window by window, so that a window is a run of rows, and undoes it after the merger. A block with "full"
//! attention spans one temporal slice (a pair of frames), never the whole clip.

use super::config::VisionConfig;

/// Order, segments and coordinates of the patches of several images or videos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchOrder {
    /// Merged tokens in window order: row `i` of the permuted sequence is token `window_index[i]`.
    pub window_index: Vec<u32>,
    /// Patches per window.
    pub windows: Vec<usize>,
    /// Patches per temporal slice.
    pub slices: Vec<usize>,
    /// Row and column of each patch of its frame, in window order.
    pub coordinates: Vec<[usize; 2]>,
}

impl PatchOrder {
    /// For patch grids `[t, h, w]` (slices, patch rows, patch columns), in the order of the pixel rows.
    pub fn new(grids: &[[usize; 3]], config: &VisionConfig) -> Self {
        let merge = config.spatial_merge_size;
        let side = config.window_size / merge / config.patch_size;
        let mut order = Self { window_index: vec![], windows: vec![], slices: vec![], coordinates: vec![] };
        for &[t, h, w] in grids {
            let (rows, columns) = (h / merge, w / merge);
            for _ in 0..t {
                let first = order.window_index.len() as u32;
                order.slices.push(h * w);
                for top in (0..rows).step_by(side) {
                    for left in (0..columns).step_by(side) {
                        order.window(first, [top, left], [rows, columns], (side, merge));
                    }
                }
            }
        }
        order
    }

    /// Appends one window of merged tokens, cut off at the frame's edge.
    fn window(
        &mut self,
        first: u32,
        [top, left]: [usize; 2],
        [rows, columns]: [usize; 2],
        (side, merge): (usize, usize),
    ) {
        let (bottom, right) = ((top + side).min(rows), (left + side).min(columns));
        self.windows.push((bottom - top) * (right - left) * merge * merge);
        for y in top..bottom {
            for x in left..right {
                self.window_index.push(first + (y * columns + x) as u32);
                for dy in 0..merge {
                    self.coordinates.extend((0..merge).map(|dx| [y * merge + dy, x * merge + dx]));
                }
            }
        }
    }

    /// For each merged token its row in window order: undoes `window_index`.
    pub fn inverse(&self) -> Vec<u32> {
        let mut inverse = vec![0; self.window_index.len()];
        for (row, &token) in self.window_index.iter().enumerate() {
            inverse[token as usize] = row as u32;
        }
        inverse
    }
}
