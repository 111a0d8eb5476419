//! From frames to patch rows: target sizes within a pixel budget, normalisation, and the order of the patches.
//!
//! Resizing itself is [`crate::video`]'s; this module says to which size, and turns frames of that size into the rows that
//! the vision tower reads. Values are those of transformers 4.51.3's `Qwen2VLImageProcessor` (the slow class), sizes those
//! of it or of qwen-vl-utils 0.0.14, see [`Rule`].
//!
//! Tokens: two consecutive frames share one temporal slice, so a video of n frames with merged tokens R x C per frame costs
//! `ceil(n / 2) * R * C` tokens; an odd last frame, and an image, is paired with itself. [`Processor::tokens`] counts.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use serde::Deserialize;

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// Height over width, or the inverse, may not exceed this (both references).
const MAX_RATIO: f64 = 200.0;
/// Merged tokens of a frame pair, least and most, in qwen-vl-utils.
const VIDEO_TOKENS: (f64, f64) = (128.0, 768.0);
/// Merged tokens of an image, least and most, in qwen-vl-utils.
const IMAGE_TOKENS: (f64, f64) = (4.0, 16384.0);
/// Merged tokens of a whole video in qwen-vl-utils 0.0.14: nine tenths of the context.
const TOTAL_TOKENS: f64 = 128_000.0;

/// A frame size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// Least and most pixels of one frame. Fractions occur: qwen-vl-utils divides a budget by the number of frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelLimits {
    /// Smaller frames are enlarged to at least this.
    pub min: f64,
    /// Larger frames are reduced to at most this.
    pub max: f64,
}

/// Whose `smart_resize` decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// qwen-vl-utils 0.0.14: edges below one merged token count as one.
    QwenVlUtils,
    /// transformers 4.49 to 4.51.3: edges below one merged token are an error.
    Transformers,
    /// transformers 5: no check, and reducing never goes below one merged token.
    Transformers5,
}

/// The pixel budget of one video, as qwen-vl-utils 0.0.14 takes it; `None` stands for its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct VideoBudget {
    /// Least pixels of a frame (default 128 merged tokens).
    pub min_pixels: Option<u64>,
    /// Most pixels of a frame (default 768 merged tokens); never above what the total leaves for a frame pair.
    pub max_pixels: Option<u64>,
    /// Pixels of all frame pairs together (default 115,200 merged tokens). The least pixels of a frame go before it.
    pub total_pixels: Option<u64>,
}

/// What a frame may cost, for [`Processor::plan`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// The processor's own limits for an image.
    Image,
    /// qwen-vl-utils' rule for a video of this many frames. Its least size goes before the total: it may exceed it.
    Video {
        /// Frames that share the budget.
        frames: usize,
        /// The limits.
        budget: VideoBudget,
    },
    /// At most this many merged tokens per temporal slice: one image, or two frames of a video. For previews.
    Slice {
        /// Merged tokens.
        tokens: usize,
    },
    /// At most this many merged tokens for all frames together, never exceeded, and at most 768 per slice. For key frames
    /// in a bounded prompt.
    Total {
        /// Frames, two to a slice.
        frames: usize,
        /// Merged tokens.
        tokens: usize,
    },
    /// A smaller size for a frame of planned size: about `scale` squared as many merged tokens, at most that rounded, at
    /// least one.
    Scaled {
        /// In (0, 1], of the side length.
        scale: f32,
    },
}

impl Budget {
    /// For `frames` key frames within `tokens`. `apart`: each may take a temporal slice of its own, as images and clips of
    /// several sizes do.
    pub fn of_key_frames(frames: usize, tokens: usize, apart: bool) -> Self {
        Self::Total { frames: if apart { 2 * frames } else { frames }, tokens }
    }
}

/// Patch rows of one image or video.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// N rows of `width` values, normalised; four consecutive rows form one merged token (with a merge size of 2), and the
    /// values of a row are in the order channel, frame, row, column.
    pub rows: Vec<f32>,
    /// Values of one row.
    pub width: usize,
    /// Patch grid `[t, h, w]`, with N = t * h * w.
    pub grid: [usize; 3],
}

impl Patches {
    /// The rows as a tensor (N, width), f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn into_tensor(self, device: &Device) -> candle_core::Result<Tensor> {
        let [t, h, w] = self.grid;
        Tensor::from_vec(self.rows, (t * h * w, self.width), device)
    }
}

/// The image processor of a checkpoint, from its `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Processor {
    /// Pixel limits of an image.
    pub limits: PixelLimits,
    /// Edge of a patch, in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Patches along each edge of one merged token.
    pub merge_size: usize,
    /// Factor from 0..255 to 0..1.
    pub rescale_factor: f64,
    /// Mean of each channel, in 0..1.
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
}

/// `preprocessor_config.json`, as far as it concerns us.
#[derive(Deserialize)]
struct ProcessorFile {
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
    size: Option<EdgeFile>,
    patch_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    merge_size: Option<usize>,
    rescale_factor: Option<f64>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    do_resize: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
}

/// The limits under their later names.
#[derive(Deserialize)]
struct EdgeFile {
    shortest_edge: Option<u64>,
    longest_edge: Option<u64>,
}

impl Default for Processor {
    /// The class defaults of transformers 4.51.3, CLIP's mean and deviation.
    fn default() -> Self {
        Self {
            limits: PixelLimits { min: 3136.0, max: 1_003_520.0 },
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            rescale_factor: 1.0 / 255.0,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

impl Processor {
    /// Reads `preprocessor_config.json` in the folder `dir`, or the file itself. Absent keys take the class defaults.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Checkpoint`] when it is no such file, switches a step off, or
    /// contradicts itself.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref();
        let path = if path.is_dir() { path.join("preprocessor_config.json") } else { path.to_owned() };
        Self::from_file(read_json(&path)?).map_err(|cause| Error::checkpoint(&path, cause))
    }

    fn from_file(file: ProcessorFile) -> std::result::Result<Self, String> {
        let steps =
            [("resize", file.do_resize), ("rescale", file.do_rescale), ("normalize", file.do_normalize)];
        if let Some((step, _)) = steps.iter().find(|(_, on)| *on == Some(false)) {
            return Err(format!("do_{step} is off, which is not implemented; expected true"));
        }
        let standard = Self::default();
        let (shortest, longest) =
            file.size.map_or((None, None), |size| (size.shortest_edge, size.longest_edge));
        let pixels = |value: Option<u64>, standard: f64| value.map_or(standard, |value| value as f64);
        let processor = Self {
            limits: PixelLimits {
                min: pixels(file.min_pixels.or(shortest), standard.limits.min),
                max: pixels(file.max_pixels.or(longest), standard.limits.max),
            },
            patch_size: file.patch_size.unwrap_or(standard.patch_size),
            temporal_patch_size: file.temporal_patch_size.unwrap_or(standard.temporal_patch_size),
            merge_size: file.merge_size.unwrap_or(standard.merge_size),
            rescale_factor: file.rescale_factor.unwrap_or(standard.rescale_factor),
            mean: file.image_mean.unwrap_or(standard.mean),
            std: file.image_std.unwrap_or(standard.std),
        };
        let sizes = [processor.patch_size, processor.temporal_patch_size, processor.merge_size];
        if sizes.iter().any(|size| !(1..=1024).contains(size)) {
            return Err(format!("patch, temporal patch and merge size {sizes:?}, expected 1 to 1024"));
        }
        if processor.limits.max < processor.limits.min || processor.limits.max < 1.0 {
            let PixelLimits { min, max } = processor.limits;
            return Err(format!("max_pixels {max} is below min_pixels {min}"));
        }
        if processor.std.iter().any(|std| !std.is_finite() || *std <= 0.0) {
            return Err(format!("image_std {:?}, expected positive numbers", processor.std));
        }
        Ok(processor)
    }

    /// Edge of one merged token in pixels (28 in the published files); planned sizes are multiples of it.
    pub fn token_edge(&self) -> u32 {
        (self.patch_size * self.merge_size) as u32
    }

    /// Merged tokens of `frames` frames of a planned size: one image is one frame.
    pub fn tokens(&self, size: Size, frames: usize) -> usize {
        let edge = self.token_edge();
        frames.div_ceil(self.temporal_patch_size)
            * (size.height / edge) as usize
            * (size.width / edge) as usize
    }

    /// The size to bring frames of `width` x `height` pixels to, in multiples of [`Self::token_edge`], near their aspect
    /// ratio and within `budget`.
    ///
    /// [`Budget::Slice`] and [`Budget::Total`] never enlarge a frame by more than what completes its last token.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty frame, one longer than 200 times its width, a budget below one token per slice, and a
    /// scale out of range.
    pub fn plan(&self, width: u32, height: u32, budget: &Budget) -> Result<Size> {
        let from = Size { width, height };
        let edge = self.token_edge();
        match *budget {
            Budget::Image => smart_resize(from, edge, self.limits, Rule::Transformers),
            Budget::Video { frames, budget } => {
                smart_resize(from, edge, budget.limits(frames, edge)?, Rule::QwenVlUtils)
            }
            Budget::Slice { tokens } => fit_tokens(from, edge, tokens),
            Budget::Total { frames, tokens } => {
                let slices = frames.div_ceil(self.temporal_patch_size);
                if slices == 0 || tokens < slices {
                    return Err(Error::Input(format!(
                        "{frames} frames in {tokens} visual tokens: expected at least one frame, and one token for each of \
                         the {slices} temporal slices; take fewer frames or allow more tokens"
                    )));
                }
                fit_tokens(from, edge, (tokens / slices).min(VIDEO_TOKENS.1 as usize))
            }
            Budget::Scaled { scale } if !(scale > 0.0 && scale <= 1.0) => {
                Err(Error::Input(format!("scale of a frame: expected above 0 and at most 1, got {scale}")))
            }
            Budget::Scaled { scale: 1.0 } => Ok(from),
            Budget::Scaled { scale } => {
                let tokens = self.tokens(from, 1) as f32 * scale * scale;
                fit_tokens(from, edge, (tokens.round() as usize).max(1))
            }
        }
    }

    /// Patch rows of an image (one frame) or a video, from frames that already have a planned size.
    ///
    /// The last frame is repeated until the count is a multiple of the temporal patch size.
    ///
    /// # Errors
    /// [`Error::Input`] for no frames, frames of different sizes, or a size that is not a multiple of
    /// [`Self::token_edge`].
    pub fn patches(&self, frames: &[RgbImage]) -> Result<Patches> {
        let edge = self.token_edge();
        let Some(first) = frames.first() else {
            return Err(Error::Input("no frames to turn into patches: expected at least one".to_owned()));
        };
        let (width, height) = first.dimensions();
        if width == 0 || height == 0 || !width.is_multiple_of(edge) || !height.is_multiple_of(edge) {
            return Err(Error::Input(format!(
                "frames of {width} x {height} pixels: expected multiples of {edge}; resize them to a planned size first"
            )));
        }
        if let Some(i) = frames.iter().position(|frame| frame.dimensions() != (width, height)) {
            let (w, h) = frames[i].dimensions();
            return Err(Error::Input(format!(
                "frame {i} has {w} x {h} pixels, frame 0 has {width} x {height}"
            )));
        }
        let patch = self.patch_size;
        let grid = [
            frames.len().div_ceil(self.temporal_patch_size),
            height as usize / patch,
            width as usize / patch,
        ];
        let row = 3 * self.temporal_patch_size * patch * patch;
        let mut rows = vec![0f32; grid.iter().product::<usize>() * row];
        let levels = self.levels();
        // One chunk is a row of merged tokens: independent, and long enough to be worth a task.
        let blocks = grid[1] / self.merge_size;
        rows.par_chunks_mut(grid[2] * self.merge_size * row).enumerate().for_each(|(i, chunk)| {
            self.fill_block_row(chunk, frames, (i / blocks, i % blocks), &levels);
        });
        Ok(Patches { rows, width: row, grid })
    }

    /// Fills the patch rows of one row of merged tokens, `(slice, row of merged tokens)`.
    fn fill_block_row(
        &self,
        out: &mut [f32],
        frames: &[RgbImage],
        at: (usize, usize),
        levels: &[[f32; 256]; 3],
    ) {
        let (patch, merge, depth) = (self.patch_size, self.merge_size, self.temporal_patch_size);
        let (slice, block) = at;
        for (i, values) in out.chunks_exact_mut(3 * depth * patch * patch).enumerate() {
            // Rows of a merged token follow each other: (token, patch row in it, patch column in it).
            let (token, inside) = (i / (merge * merge), i % (merge * merge));
            let top = (block * merge + inside / merge) * patch;
            let left = (token * merge + inside % merge) * patch;
            for (j, line) in values.chunks_exact_mut(patch).enumerate() {
                let (channel, t, y) = (j / (depth * patch), j / patch % depth, j % patch);
                let frame = &frames[(slice * depth + t).min(frames.len() - 1)];
                let stride = frame.width() as usize * 3;
                let start = (top + y) * stride + left * 3 + channel;
                let pixels = frame.as_raw()[start..].iter().step_by(3);
                for (value, level) in line.iter_mut().zip(pixels) {
                    *value = levels[channel][usize::from(*level)];
                }
            }
        }
    }

    /// The normalised value of each of the 256 levels per channel, rounded where transformers 4.51.3 rounds: scaled in
    /// f64, rounded to f32, then normalised in f32.
    fn levels(&self) -> [[f32; 256]; 3] {
        let mut levels = [[0f32; 256]; 3];
        for (channel, table) in levels.iter_mut().enumerate() {
            let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
            for (level, value) in table.iter_mut().enumerate() {
                *value = ((level as f64 * self.rescale_factor) as f32 - mean) / std;
            }
        }
        levels
    }
}

impl VideoBudget {
    /// Pixel limits of one of `frames` frames; `edge` is the edge of a merged token.
    ///
    /// # Errors
    /// [`Error::Input`] for no frames, and for limits that exclude each other.
    pub fn limits(&self, frames: usize, edge: u32) -> Result<PixelLimits> {
        if frames == 0 {
            return Err(Error::Input("a video of 0 frames: expected at least one".to_owned()));
        }
        // The reference completes an odd frame list before it counts.
        let frames = frames.next_multiple_of(2) as f64;
        let token = f64::from(edge) * f64::from(edge);
        let min = self.min_pixels.map_or(VIDEO_TOKENS.0 * token, |pixels| pixels as f64);
        let total = self.total_pixels.map_or(TOTAL_TOKENS * token * 0.9, |pixels| pixels as f64);
        let most = (VIDEO_TOKENS.1 * token).min(total / frames * 2.0).max((min * 1.05).floor());
        let max = self.max_pixels.map_or(most, |pixels| most.min(pixels as f64));
        if max < min {
            return Err(Error::Input(format!("max_pixels {max} is below min_pixels {min}")));
        }
        Ok(PixelLimits { min, max })
    }

    /// The two sizes that qwen-vl-utils 0.0.14 takes a list of frames through: first each frame as an image, at multiples
    /// of twice `edge` (it passes 28 where the patch size 14 is expected), then all frames as a video. Resizing twice is
    /// needed to reproduce its pixels; one resize to [`Budget::Video`] is sharper.
    ///
    /// # Errors
    /// As [`smart_resize`] and [`Self::limits`].
    pub fn frame_list_sizes(&self, from: Size, frames: usize, edge: u32) -> Result<[Size; 2]> {
        let double = edge.saturating_mul(2);
        let token = f64::from(double) * f64::from(double);
        let limits = PixelLimits {
            min: self.min_pixels.map_or(IMAGE_TOKENS.0 * token, |pixels| pixels as f64),
            max: self.max_pixels.map_or(IMAGE_TOKENS.1 * token, |pixels| pixels as f64),
        };
        let image = smart_resize(from, double, limits, Rule::QwenVlUtils)?;
        let video = smart_resize(image, edge, self.limits(frames, edge)?, Rule::QwenVlUtils)?;
        Ok([image, video])
    }
}

/// The multiple of `factor` nearest to `from` on each edge (ties to even), scaled into `limits` when outside them.
///
/// # Errors
/// [`Error::Input`] for an empty frame, an aspect ratio beyond 200, an edge below `factor` where the rule forbids it,
/// limits that exclude each other, and where the reference would return an empty frame.
pub fn smart_resize(from: Size, factor: u32, limits: PixelLimits, rule: Rule) -> Result<Size> {
    check_ratio(from)?;
    let Size { width, height } = from;
    if factor == 0 || (rule == Rule::Transformers && (height < factor || width < factor)) {
        return Err(Error::Input(format!(
            "frame of {width} x {height} pixels: expected at least {factor} on each edge"
        )));
    }
    if limits.min > limits.max || limits.max.is_nan() || limits.min.is_nan() {
        return Err(Error::Input(format!("max_pixels {} is below min_pixels {}", limits.max, limits.min)));
    }
    let (h, w, factor) = (f64::from(height), f64::from(width), f64::from(factor));
    let least = |edge: f64, on: bool| if on { edge.max(factor) } else { edge };
    let near = |edge: f64| least((edge / factor).round_ties_even() * factor, rule == Rule::QwenVlUtils);
    let (mut down, mut across) = (near(h), near(w));
    if down * across > limits.max {
        let beta = (h * w / limits.max).sqrt();
        let reduce = |edge: f64| least((edge / beta / factor).floor() * factor, rule == Rule::Transformers5);
        (down, across) = (reduce(h), reduce(w));
    } else if down * across < limits.min {
        let beta = (limits.min / (h * w)).sqrt();
        let enlarge = |edge: f64| (edge * beta / factor).ceil() * factor;
        (down, across) = (enlarge(h), enlarge(w));
    }
    if down < 1.0 || across < 1.0 || down.max(across) > f64::from(u32::MAX) {
        return Err(Error::Input(format!(
            "frame of {width} x {height} pixels cannot be brought into {} to {} pixels in multiples of {factor}: that \
             would be {across} x {down}",
            limits.min, limits.max
        )));
    }
    Ok(Size { width: across as u32, height: down as u32 })
}

/// The grid of at most `tokens` merged tokens with the most tokens, discounted by the fourth power of how far it bends the
/// aspect ratio: a size is preferred that is at most three quarters of a token off on one edge.
/// `smart_resize` would waste up to half of a small budget, or return an empty frame.
fn fit_tokens(from: Size, edge: u32, tokens: usize) -> Result<Size> {
    check_ratio(from)?;
    if tokens == 0 {
        return Err(Error::Input("a budget of 0 visual tokens per slice: expected at least 1".to_owned()));
    }
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    let (most_rows, most_columns) = (from.height.div_ceil(edge), from.width.div_ceil(edge));
    let ratio = f64::from(from.width) / f64::from(from.height);
    let mut best = (0.0, 1, 1);
    for rows in 1..=most_rows.min(tokens) {
        let widest = most_columns.min(tokens / rows);
        // The score rises up to the true ratio and falls beyond it: the two neighbours decide.
        let ideal = (f64::from(rows) * ratio).floor() as u32;
        for columns in [ideal.clamp(1, widest), ideal.saturating_add(1).clamp(1, widest)] {
            let bent = f64::from(columns) / f64::from(rows) / ratio;
            let score = f64::from(rows * columns) * bent.min(1.0 / bent).powi(4);
            if score > best.0 {
                best = (score, rows, columns);
            }
        }
    }
    Ok(Size { width: best.2 * edge, height: best.1 * edge })
}

fn check_ratio(from: Size) -> Result<()> {
    let Size { width, height } = from;
    if width == 0 || height == 0 {
        return Err(Error::Input(format!("frame of {width} x {height} pixels is empty")));
    }
    let (long, short) = (f64::from(width.max(height)), f64::from(width.min(height)));
    if long / short > MAX_RATIO {
        return Err(Error::Input(format!(
            "frame of {width} x {height} pixels: expected an aspect ratio of at most {MAX_RATIO}"
        )));
    }
    Ok(())
}
