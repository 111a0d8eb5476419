//! The knobs of a world.

use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// From `min` to `max`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Span {
    pub min: usize,
    pub max: usize,
}

impl Span {
    /// `min..=max`.
    pub const fn new(min: usize, max: usize) -> Self {
        Self { min, max }
    }

    pub(super) fn draw(self, rng: &mut StdRng) -> usize {
        rng.random_range(self.min..=self.max)
    }
}

/// What decides how long a video is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// Seconds; as many scenes as fill them.
    Seconds(Span),
    /// Number of scenes; as many seconds as they take.
    Scenes(Span),
}

/// Difficulty of a world. `Default` is the world of long videos that results are reported on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// Length of a video.
    pub length: Length,
    /// Seconds of a scene.
    pub scene_seconds: Span,
    /// Seconds of the scenes that answer needle, category, neighbour and order, and of the short occurrences of count.
    pub evidence_seconds: Span,
    /// Things in a scene, 1 to 3.
    pub things: Span,
    /// Width and height of a frame in pixels; even, 28 to 224.
    pub side: usize,
    /// Extent of a small thing as part of the side.
    pub small: f32,
    /// Extent of a large thing as part of the side, below one half.
    pub large: f32,
    /// Standard deviation of each frame's pixel noise, of 255.
    pub noise: f32,
    /// Most a thing moves per second in each direction, as part of the side.
    pub motion: f32,
    /// Probability that a thing no question needs is made to look like one that is asked for: its noun in another
    /// colour, or its colour on another noun.
    pub distractors: f64,
    /// Largest deviation of red, green and blue of a thing from its colour's.
    pub tint: usize,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            length: Length::Seconds(Span::new(120, 600)),
            scene_seconds: Span::new(2, 20),
            evidence_seconds: Span::new(3, 8),
            things: Span::new(1, 3),
            side: 56,
            small: 18. / 56.,
            large: 27. / 56.,
            noise: 8.,
            motion: 0.03,
            distractors: 0.3,
            tint: 12,
        }
    }
}

impl Spec {
    /// Clips of 1 to 8 scenes of 2 to 6 s each, for the first steps of training.
    pub fn short() -> Self {
        Self {
            length: Length::Scenes(Span::new(1, 8)),
            scene_seconds: Span::new(2, 6),
            evidence_seconds: Span::new(2, 4),
            ..Self::default()
        }
    }

    /// Refuses values outside of what the fields say.
    ///
    /// # Errors
    /// [`Error::Input`] names the field, what it holds and what it may hold.
    pub fn validate(&self) -> Result<()> {
        let length = match self.length {
            Length::Seconds(span) => ("length (seconds)", span, 2, 24 * 3600),
            Length::Scenes(span) => ("length (scenes)", span, 1, 10_000),
        };
        let scene = self.scene_seconds;
        let spans = [
            length,
            ("scene_seconds", scene, 1, 3600),
            ("evidence_seconds", self.evidence_seconds, scene.min, scene.max),
            ("things", self.things, 1, 3),
        ];
        for (name, Span { min, max }, low, high) in spans {
            if min > max || min < low || max > high {
                return Err(Error::Input(format!(
                    "world: {name} is {min} to {max}, expected a range within {low} to {high}"
                )));
            }
        }
        if let Length::Seconds(span) = self.length
            && span.min < scene.min
        {
            return Err(Error::Input(format!(
                "world: a video of {} s is shorter than the shortest scene, {} s",
                span.min, scene.min
            )));
        }
        if scene.max < 2 * scene.min {
            return Err(Error::Input(format!(
                "world: scene_seconds is {} to {}, expected the longest scene to last twice the shortest or more",
                scene.min, scene.max
            )));
        }
        if !(28..=224).contains(&self.side) || !self.side.is_multiple_of(2) {
            return Err(Error::Input(format!(
                "world: side is {}, expected an even number of 28 to 224",
                self.side
            )));
        }
        let numbers = [
            ("small", f64::from(self.small), 0.1, 0.5),
            ("large", f64::from(self.large), f64::from(self.small), 0.5),
            ("noise", f64::from(self.noise), 0., 64.),
            ("motion", f64::from(self.motion), 0., 0.5),
            ("distractors", self.distractors, 0., 1.),
            ("tint", self.tint as f64, 0., 40.),
        ];
        for (name, value, low, high) in numbers {
            if !(low..=high).contains(&value) {
                return Err(Error::Input(format!(
                    "world: {name} is {}, expected {} to {}",
                    value as f32, low as f32, high as f32
                )));
            }
        }
        Ok(())
    }
}
