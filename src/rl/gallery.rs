//! The language model's features of frames, computed once and shown any number of times.
//!
//! The vision tower is frozen in joint training and attends within one temporal slice only, so the features of a slice
//! belong to its frames alone: a single frame where key frames are shown as images, which every draw can reuse, or a pair
//! of neighbours in the draw where they are shown as a video.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::footage::Footage;
use crate::error::{Error, Result};
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::qwen2_5_vl::mrope::{Media, Timing};
use crate::models::qwen2_5_vl::processor::{Patches, Size};
use crate::pipeline::ShowKeyFrames;

/// One temporal slice: its frames in order (the same one twice for an image), at a size.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slice {
    video: Arc<str>,
    frames: [usize; 2],
    width: u32,
    height: u32,
}

/// Frames to be shown in one turn.
#[derive(Debug, Clone)]
pub struct Showing {
    /// The video.
    pub footage: Arc<Footage>,
    /// Candidates, ascending.
    pub frames: Vec<usize>,
    /// Size they are shown at.
    pub size: Size,
    /// As images or as one video.
    pub show: ShowKeyFrames,
}

impl Showing {
    fn slices(&self) -> impl Iterator<Item = Slice> + '_ {
        let step = if self.show == ShowKeyFrames::Images { 1 } else { 2 };
        self.frames.chunks(step).map(|chunk| Slice {
            video: self.footage.id.clone(),
            frames: [chunk[0], chunk[chunk.len() - 1]],
            width: self.size.width,
            height: self.size.height,
        })
    }

    fn grid(&self, chat: &Qwen2_5VlChat, slices: usize) -> [usize; 3] {
        let patch = chat.processor.patch_size;
        [slices, self.size.height as usize / patch, self.size.width as usize / patch]
    }

    /// What the prompt says about them.
    fn media(&self, chat: &Qwen2_5VlChat) -> Vec<Media> {
        match self.show {
            ShowKeyFrames::Images => {
                vec![Media::Image { grid: self.grid(chat, 1) }; self.frames.len()]
            }
            ShowKeyFrames::Video if self.frames.is_empty() => vec![],
            ShowKeyFrames::Video => {
                let seconds = 2.0 * self.footage.duration / self.frames.len() as f64;
                let grid = self.grid(chat, self.frames.len().div_ceil(2));
                vec![Media::Video { grid, timing: Timing::Uniform(seconds as f32) }]
            }
        }
    }
}

/// Patches that go through the vision tower together: on the CPU more small slices at once than one, and large ones each for
/// itself; elsewhere enough to fill the device.
const TOGETHER: usize = 512;
pub(super) const TOGETHER_ON_DEVICE: usize = 16_384;

fn at_once(chat: &Qwen2_5VlChat, [_, h, w]: [usize; 3]) -> usize {
    let together = if chat.model.text().device().is_cpu() { TOGETHER } else { TOGETHER_ON_DEVICE };
    (together / (h * w).max(1)).max(1)
}

/// Features of slices of one size, as many as go together or fewer. Always the same number goes through the tower, the last
/// slice repeated: a product of the same shape sums in the same order, so that the features of a slice do not depend on
/// what is encoded beside it, and a resumed run repeats an uninterrupted one bit for bit.
fn encoded(chat: &Qwen2_5VlChat, slices: &[Patches]) -> Result<Vec<Tensor>> {
    let Some(last) = slices.last() else { return Ok(vec![]) };
    let count = at_once(chat, last.grid);
    let all = slices.iter().chain(std::iter::repeat_n(last, count - slices.len()));
    let rows: Vec<f32> = all.flat_map(|patches| patches.rows.iter().copied()).collect();
    let pixels = Tensor::from_vec(rows, (count * last.rows.len() / last.width, last.width), &Device::Cpu)?;
    let features = chat.model.vision(&pixels, &vec![last.grid; count])?;
    let tokens = features.dim(0)? / count;
    // Of its own memory, so that forgetting a slice frees it; `copy` would keep the whole batch.
    let own = |i| features.narrow(0, i * tokens, tokens)?.force_contiguous();
    (0..slices.len()).map(own).collect::<candle_core::Result<_>>().map_err(Error::from)
}

/// Features by slice, the oldest dropped first when they outgrow their memory.
#[derive(Debug)]
pub struct Gallery {
    limit: usize,
    bytes: usize,
    features: BTreeMap<Slice, Tensor>,
    order: VecDeque<Slice>,
    /// Slices that went through the vision tower.
    pub encoded: usize,
    /// Slices that were asked for.
    pub shown: usize,
}

impl Gallery {
    /// An empty one that keeps at most `limit` bytes between steps.
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, features: BTreeMap::new(), order: VecDeque::new(), encoded: 0, shown: 0 }
    }

    /// Media and features of each showing. What is not known yet goes through the vision tower.
    ///
    /// # Errors
    /// Frames that cannot be decoded or have a wrong size.
    pub fn show(
        &mut self,
        chat: &Qwen2_5VlChat,
        showings: &[Showing],
    ) -> Result<Vec<(Vec<Media>, Vec<Tensor>)>> {
        self.forget();
        let mut missing: BTreeMap<Slice, &Showing> = BTreeMap::new();
        for showing in showings {
            for slice in showing.slices() {
                self.shown += 1;
                if !self.features.contains_key(&slice) {
                    missing.insert(slice, showing);
                }
            }
        }
        self.encode(chat, &missing)?;
        showings.iter().map(|showing| self.shown(chat, showing)).collect()
    }

    fn shown(&self, chat: &Qwen2_5VlChat, showing: &Showing) -> Result<(Vec<Media>, Vec<Tensor>)> {
        let features: Option<Vec<Tensor>> =
            showing.slices().map(|slice| self.features.get(&slice).cloned()).collect();
        let features = features.ok_or_else(|| Error::Input("gallery: a slice was not encoded".to_owned()))?;
        let features = match showing.show {
            ShowKeyFrames::Video if !features.is_empty() => vec![Tensor::cat(&features, 0)?],
            _ => features,
        };
        Ok((showing.media(chat), features))
    }

    fn encode(&mut self, chat: &Qwen2_5VlChat, missing: &BTreeMap<Slice, &Showing>) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut by_video: BTreeMap<(&str, u32, u32), (&Showing, BTreeSet<usize>)> = BTreeMap::new();
        for (slice, showing) in missing {
            let key = (slice.video.as_ref(), slice.width, slice.height);
            by_video.entry(key).or_insert((showing, BTreeSet::new())).1.extend(slice.frames);
        }
        let mut images = BTreeMap::new();
        for ((video, width, height), (showing, frames)) in by_video {
            let frames: Vec<usize> = frames.into_iter().collect();
            let decoded = showing.footage.frames(&frames, showing.size)?;
            for (frame, image) in frames.into_iter().zip(decoded) {
                images.insert((video, frame, width, height), image);
            }
        }
        let mut slices: Vec<&Slice> = missing.keys().collect();
        slices.sort_by_key(|slice| (slice.width, slice.height));
        let patches = |slice: &&Slice| {
            let frame =
                |i: usize| images.get(&(slice.video.as_ref(), slice.frames[i], slice.width, slice.height));
            match (frame(0), frame(1)) {
                (Some(a), Some(b)) => chat.processor.patches(&[a.clone(), b.clone()]),
                _ => Err(Error::Input(format!("gallery: frames {:?} were not decoded", slice.frames))),
            }
        };
        let patches: Vec<Patches> = slices.par_iter().map(patches).collect::<Result<_>>()?;
        let batches: Vec<&[Patches]> = (patches.chunk_by(|a, b| a.grid == b.grid))
            .flat_map(|alike| alike.chunks(at_once(chat, alike[0].grid)))
            .collect();
        // A device has one stream: there is nothing to gain from several threads.
        let features: Vec<Vec<Tensor>> = if chat.model.text().device().is_cpu() {
            batches.into_par_iter().map(|alike| encoded(chat, alike)).collect::<Result<_>>()?
        } else {
            batches.into_iter().map(|alike| encoded(chat, alike)).collect::<Result<_>>()?
        };
        let features = features.into_iter().flatten();
        for (slice, features) in slices.iter().zip(features) {
            self.bytes += features.elem_count() * features.dtype().size_in_bytes();
            self.features.insert((*slice).clone(), features);
            self.order.push_back((*slice).clone());
        }
        self.encoded += slices.len();
        Ok(())
    }

    fn forget(&mut self) {
        while self.bytes > self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(features) = self.features.remove(&oldest) {
                self.bytes -= features.elem_count() * features.dtype().size_in_bytes();
            }
        }
    }
}
