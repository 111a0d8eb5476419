//! Sizes of the sampler network.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::select::MOST_APART;

/// Sizes of [`super::UNet1d`]. The default has 2.1 M parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels per level, from full length down; each level has half the length of the one before.
    pub channels: Vec<usize>,
    /// Channels of the stem that reads each query's row.
    pub stem: usize,
    /// Groups of every normalisation; divides each entry of `channels`.
    pub groups: usize,
    /// Kernel of the convolutions along time, odd.
    pub kernel: usize,
    /// What the nearness to the best match around a frame (0 to 1) is multiplied by at the start, shared equally by the windows;
    /// trained from there. A frame at a peak is `exp(gain)` times as likely as one far from any: less would leave most draws
    /// from ten minutes outside of a scene of few seconds.
    #[serde(default = "eight")]
    pub gain: f64,
    /// Windows, in frames to either side, within which the nearest match is looked for: 0 is the frame itself, and wider
    /// ones see that a match is near. Ascending.
    #[serde(default = "windows")]
    pub windows: Vec<usize>,
    /// How strongly the frames of a draw keep apart, in training and after it; see [`crate::select::draw_apart`]. 0 is the paper's draw.
    #[serde(default)]
    pub apart: f64,
}

fn eight() -> f64 {
    8.0
}

fn windows() -> Vec<usize> {
    vec![0, 2, 4, 8]
}

impl Default for Config {
    fn default() -> Self {
        Self {
            channels: vec![64, 96, 128, 192, 256],
            stem: 32,
            groups: 8,
            kernel: 3,
            gain: eight(),
            windows: windows(),
            apart: 0.0,
        }
    }
}

impl Config {
    /// Whether a network can be built: 1 to 8 levels of 1 to 1024 channels, groups that divide them, an odd kernel up to 31, a
    /// gain up to 100, 1 to 8 ascending windows up to 1024, draws kept apart with a strength up to 100.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let Self { channels, stem, groups, kernel, gain, windows, apart } = self;
        if !(1..=8).contains(&channels.len()) || channels.iter().any(|c| !(1..=1024).contains(c)) {
            bail!("sampler config: channels must be 1 to 8 numbers from 1 to 1024, got {channels:?}")
        }
        if !(1..=1024).contains(stem) {
            bail!("sampler config: stem must be from 1 to 1024, got {stem}")
        }
        if *groups == 0 || channels.iter().any(|c| !c.is_multiple_of(*groups)) {
            bail!("sampler config: groups must divide every entry of channels {channels:?}, got {groups}")
        }
        if !(1..=31).contains(kernel) || kernel.is_multiple_of(2) {
            bail!("sampler config: kernel must be odd and at most 31, got {kernel}")
        }
        if !(0.0..=100.0).contains(gain) {
            bail!("sampler config: gain must be from 0 to 100, got {gain}")
        }
        if !(1..=8).contains(&windows.len())
            || !windows.is_sorted_by(|a, b| a < b)
            || windows.iter().any(|window| *window > 1024)
        {
            bail!("sampler config: windows must be 1 to 8 ascending numbers up to 1024, got {windows:?}")
        }
        if !(0.0..=MOST_APART).contains(apart) {
            bail!("sampler config: apart must be from 0 to {MOST_APART}, got {apart}")
        }
        Ok(())
    }
}
