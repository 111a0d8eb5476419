//! The description of one video, from which every frame and caption follows.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use rand::rngs::StdRng;

use super::canvas::Canvas;
use super::phrase::Phrase;
use super::sample::Family;
use super::thing::{Place, Thing};
use crate::video::{H264Writer, Rational};
use crate::{Error, Result};

/// A stretch of video in one place with the same things.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// First second.
    pub start: usize,
    /// Number of seconds.
    pub seconds: usize,
    /// The background.
    pub place: Place,
    /// What is there, top to bottom and left to right; no noun twice.
    pub things: Vec<Thing>,
    /// Decides the part of the texture and the light.
    pub look: u64,
}

impl Scene {
    /// Its seconds.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.seconds
    }
}

/// One video.
#[derive(Debug, Clone)]
pub struct Script {
    /// Unique within the world: seed, split and index.
    pub id: String,
    /// Length.
    pub seconds: usize,
    /// In the order of time, without gaps.
    pub scenes: Vec<Scene>,
    /// The families it has a question of, in the order of [`Family::ALL`].
    pub families: Vec<Family>,
    pub(super) canvas: Arc<Canvas>,
    /// Decides the noise.
    pub(super) seed: u64,
}

impl Script {
    /// Index of the scene on display at `second`; the last one for a second behind the end.
    pub fn scene_index(&self, second: usize) -> usize {
        self.scenes.partition_point(|scene| scene.start <= second).saturating_sub(1)
    }

    /// The scene on display at `second`; the last one for a second behind the end.
    pub fn scene_at(&self, second: usize) -> &Scene {
        &self.scenes[self.scene_index(second)]
    }

    /// The picture at `second`.
    pub fn frame(&self, second: usize) -> RgbImage {
        self.frame_at(second as f64)
    }

    /// The picture at a time in seconds between whole ones.
    pub fn frame_at(&self, seconds: f64) -> RgbImage {
        let scene = self.scene_at(seconds as usize);
        let noise = self.seed.wrapping_add((seconds * 1000.).round() as u64);
        self.canvas.paint(scene, (seconds - scene.start as f64) as f32, noise)
    }

    /// What is at each cell of a raster of `grid` x `grid` over the frame at `second`, row by row: the thing whose circle
    /// holds the cell's centre, or `None` where only the place shows.
    pub fn raster(&self, second: usize, grid: usize) -> Vec<Option<&Thing>> {
        let scene = self.scene_at(second);
        let seconds = second.saturating_sub(scene.start) as f32;
        let at = |cell: usize| (cell as f32 + 0.5) / grid as f32;
        let cells = (0..grid * grid).map(|cell| {
            let (x, y) = (at(cell % grid), at(cell / grid));
            scene.things.iter().find(|thing| {
                let [left, top] = thing.centre(seconds);
                (left - x).powi(2) + (top - y).powi(2) <= thing.radius.powi(2)
            })
        });
        cells.collect()
    }

    /// Everything there is to see at `second`: `a red hammer and a small blue star on grass`.
    pub fn caption(&self, second: usize) -> String {
        Phrase::full(self.scene_at(second)).to_string()
    }

    /// A random phrase that is true at `second`.
    pub fn phrase(&self, second: usize, rng: &mut StdRng) -> Phrase {
        Phrase::draw(self.scene_at(second), rng)
    }

    /// [`Self::phrase`] in words.
    pub fn phrases(&self, second: usize, rng: &mut StdRng) -> String {
        self.phrase(second, rng).to_string()
    }

    /// Encodes the video as H.264 in MP4 with `fps` frames per second.
    ///
    /// # Errors
    /// [`Error::Input`] for no or more than 240 frames per second, else as [`H264Writer`].
    pub fn write_video(&self, path: impl AsRef<Path>, fps: usize) -> Result<()> {
        if !(1..=240).contains(&fps) {
            return Err(Error::Input(format!("world: expected 1 to 240 frames per second, got {fps}")));
        }
        let side = self.canvas.side() as u32;
        let mut writer = H264Writer::create(path, side, side, Rational(fps as i32, 1))?;
        for frame in 0..self.seconds * fps {
            writer.push(&self.frame_at(frame as f64 / fps as f64))?;
        }
        writer.finish()
    }
}
