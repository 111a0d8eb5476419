//! The toy world: long videos that are rendered, with multiple-choice questions whose answers and evidence are known.
//!
//! A video is a sequence of scenes, each in one place with one to three things. It is built around its questions, at most
//! one of each [`Family`]: the scenes they need are placed first, then others are put between them that leave every
//! question its one answer. Everything follows from (seed, split, index): the same on every machine, and no two splits
//! share a seed. Frames are rendered in memory ([`Script::frame`]) or encoded ([`Script::write_video`]).
//!
//! Without the video the questions cannot be answered better than by chance: answers are drawn uniformly, wrong options
//! from what the same video shows, the right option's place by itself.
//!
//! ```
//! use msjoe::data::world::{Spec, Split, World};
//! let world = World::new(Spec::default(), 1)?;
//! let script = world.script(Split::Train, 0);
//! assert_eq!(script.frame(3).dimensions(), (56, 56));
//! for sample in world.samples(Split::Train, 0) {
//!     assert_eq!(sample.question.options().len(), 4);
//! }
//! # Ok::<(), msjoe::Error>(())
//! ```

mod canvas;
mod phrase;
mod plan;
mod questions;
mod sample;
mod scene;
mod silhouette;
mod spec;
mod texture;
mod thing;
mod timeline;

pub use phrase::{Phrase, Wording};
pub use questions::{NUMBERS, first_options, how_often, next_to, which_first};
pub use sample::{Family, Sample, Split};
pub use scene::{Scene, Script};
pub use spec::{Length, Span, Spec};
pub use thing::{Category, Colour, Kind, Noun, Place, Size, Thing};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::text::Question;
use canvas::Canvas;
use plan::Plan;
use questions::Source;

/// Raised whenever the same seed gives another video or question.
pub const VERSION: u32 = 1;

/// A world of videos and questions. Cheap to clone, and usable from any thread.
#[derive(Debug, Clone)]
pub struct World {
    /// Its difficulty.
    pub spec: Spec,
    /// Another seed is another world.
    pub seed: u64,
    canvas: Arc<Canvas>,
    families: Vec<Family>,
}

impl World {
    /// The world of `spec` and `seed`.
    ///
    /// # Errors
    /// Those of [`Spec::validate`].
    pub fn new(spec: Spec, seed: u64) -> Result<Self> {
        spec.validate()?;
        let canvas = Arc::new(Canvas::new(&spec));
        let mut world = Self { spec, seed, canvas, families: vec![] };
        // A spec can be too short for some families: those that none of many videos serve are not offered.
        let found: BTreeSet<Family> =
            (0..256).flat_map(|index| world.script(Split::Train, index).families).collect();
        world.families = found.into_iter().collect();
        Ok(world)
    }

    /// The families that this world has questions of, in the order of [`Family::ALL`].
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// The description of one video.
    pub fn script(&self, split: Split, index: u64) -> Script {
        self.build(split, index).0
    }

    /// The questions of one video, at most one per family, in the order of [`Family::ALL`].
    pub fn samples(&self, split: Split, index: u64) -> Vec<Sample> {
        self.build(split, index).1
    }

    /// The first `count` samples of a split, its families taking turns: sample i is of family i modulo their number.
    /// Each family takes its videos in order and leaves out those that do not serve it, so neighbouring samples mostly
    /// share a video.
    pub fn dataset(&self, split: Split, count: usize) -> Vec<Sample> {
        let mut cursors: BTreeMap<Family, u64> = BTreeMap::new();
        let mut built: BTreeMap<u64, Vec<Sample>> = BTreeMap::new();
        let mut dataset = Vec::with_capacity(count);
        for &family in self.families.iter().cycle().take(count) {
            let cursor = cursors.entry(family).or_default();
            loop {
                let samples = built.entry(*cursor).or_insert_with(|| self.samples(split, *cursor));
                *cursor += 1;
                if let Some(sample) = samples.iter().find(|sample| sample.family == family) {
                    dataset.push(sample.clone());
                    break;
                }
            }
            let done = self.families.iter().map(|family| cursors.get(family).copied().unwrap_or_default());
            let done = done.min().unwrap_or_default();
            built.retain(|&index, _| index >= done);
        }
        dataset
    }

    fn build(&self, split: Split, index: u64) -> (Script, Vec<Sample>) {
        let mut rng = self.rng(split, index);
        let spec = &self.spec;
        let length = match spec.length {
            Length::Seconds(span) | Length::Scenes(span) => span.draw(&mut rng),
        };
        let plan = Plan::draw(spec, length, &mut rng);
        let drafts = timeline::build(spec, &plan, length, &mut rng);
        let scenes = timeline::stage(spec, &drafts, &mut rng);
        let asked = Source { spec, plan: &plan, drafts: &drafts, scenes: &scenes }.ask(&mut rng);
        let id = format!("world{}-{}-{index:06}", self.seed, split.name());
        let sample = |asked: questions::Asked| {
            let (options, answer) = questions::shuffled(asked.options, &mut rng);
            Some(Sample {
                id: format!("{id}-{}", asked.family.name()),
                split,
                video: index,
                family: asked.family,
                question: Question::new(asked.text, options).ok()?,
                answer,
                evidence: asked.evidence,
                subjects: asked.subjects,
            })
        };
        let samples: Vec<Sample> = asked.into_iter().filter_map(sample).collect();
        let script = Script {
            id: id.clone(),
            seconds: scenes.iter().map(|scene| scene.seconds).sum(),
            families: samples.iter().map(|sample| sample.family).collect(),
            scenes,
            canvas: self.canvas.clone(),
            seed: rng.random(),
        };
        (script, samples)
    }

    fn rng(&self, split: Split, index: u64) -> StdRng {
        let key = format!("msjoe world {VERSION}, seed {}, {}, video {index}", self.seed, split.name());
        StdRng::from_seed(Sha256::digest(key).into())
    }
}

/// Every word of the world's questions, options, captions and phrases, sorted; texts also use `?` and `,`.
pub fn vocabulary() -> Vec<&'static str> {
    let glue = "a an and at on with what colour is the comes right after before which first or both once neither how many \
                separate times shown place most";
    let mut words: BTreeSet<&str> = glue.split_whitespace().collect();
    words.extend(Noun::ALL.map(Noun::name));
    words.extend(Category::ALL.map(Category::name));
    words.extend(Colour::ALL.map(Colour::name));
    words.extend(Size::ALL.map(Size::name));
    words.extend(Place::ALL.map(Place::name));
    words.extend(questions::NUMBERS);
    words.into_iter().collect()
}
