//! Key frames as the language model gets them: one video or single images, or clips of several sizes at their own times, with
//! subtitles where they are wanted.

use std::sync::Arc;

use candle_core::Tensor;

use super::item::Item;
use super::method::Choosing;
use super::settings::{Form, Settings};
use crate::benchmarks::subtitles::{self, Line, Piece};
use crate::error::Result;
use crate::models::language::VideoLanguageModel;
use crate::models::qwen2_5_vl::Prompt;
use crate::models::qwen2_5_vl::chat::Qwen2_5VlChat;
use crate::models::qwen2_5_vl::mrope::{Media, Timing};
use crate::models::qwen2_5_vl::processor::{Budget, Size};
use crate::pipeline::{FrameTiming, ShowKeyFrames};
use crate::rl::footage::Footage;
use crate::rl::gallery::Showing;
use crate::select::Selection;
use crate::text::Part;

/// Frames that are shown together, and the piece of the gallery that shows them.
#[derive(Debug, Clone)]
pub struct Exhibit {
    /// The frames and their size.
    pub showing: Showing,
    /// Whether its slices are given their own times instead of one interval.
    exact: bool,
    /// Time of the frame shown before it: the clock of a medium begins there.
    since: f64,
}

/// Size of a full key frame when `frames` are asked for; `apart` as for [`Budget::of_key_frames`].
///
/// # Errors
/// As the processor's plan.
pub fn full_size(
    chat: &Qwen2_5VlChat,
    dimensions: (u32, u32),
    frames: usize,
    apart: bool,
    settings: &Settings,
) -> Result<Size> {
    let budget = Budget::of_key_frames(frames, settings.key_frame_tokens, apart);
    chat.plan(dimensions.0, dimensions.1, &budget)
}

/// Whether the frames of a method may take a temporal slice each. `separate` as for [`exhibits`].
pub fn apart(choosing: Choosing, separate: bool, settings: &Settings) -> bool {
    separate || settings.show == ShowKeyFrames::Images || matches!(choosing, Choosing::Adaptive(_))
}

/// What is shown of a selection, in the order of time. `separate`: every frame by itself, so that words fit between.
///
/// # Errors
/// A size that cannot be planned.
pub fn exhibits(
    chat: &Qwen2_5VlChat,
    footage: &Arc<Footage>,
    selection: &Selection,
    full: Size,
    settings: &Settings,
    separate: bool,
) -> Result<Vec<Exhibit>> {
    let show = if separate { ShowKeyFrames::Images } else { settings.show };
    let sized = !selection.scales.is_empty();
    let mut since = 0.;
    let mut exhibits = vec![];
    for run in selection.runs() {
        let scale = selection.scales.get(run.start).copied().unwrap_or(1.);
        let size = chat.plan(full.width, full.height, &Budget::Scaled { scale })?;
        let frames = selection.frames[run].to_vec();
        let last = frames.last().and_then(|&frame| footage.seconds.get(frame)).copied();
        let showing = Showing { footage: footage.clone(), frames, size, show };
        exhibits.push(Exhibit { showing, exact: sized || settings.timing == FrameTiming::Exact, since });
        since = last.unwrap_or(since);
    }
    Ok(exhibits)
}

impl Exhibit {
    /// Temporal slices.
    pub fn slices(&self) -> usize {
        let step = if self.showing.show == ShowKeyFrames::Images { 1 } else { 2 };
        self.showing.frames.len().div_ceil(step)
    }

    /// The media with the times of their slices. The times of a medium count from the last frame shown before it, so that
    /// positions go on by the time that has passed.
    pub fn timed(&self, media: Vec<Media>) -> Vec<Media> {
        let at = |frame: &usize| self.showing.footage.seconds.get(*frame).copied().unwrap_or_default();
        let seconds: Vec<f64> = self.showing.frames.iter().map(at).collect();
        let timed = |medium| match medium {
            Media::Video { grid, .. } if self.exact => {
                Media::Video { grid, timing: Timing::since(self.since, &seconds) }
            }
            other => other,
        };
        media.into_iter().map(timed).collect()
    }
}

/// The prompt of the answer turn: media with their features, in order, and the question; subtitles between frames or
/// before the question.
pub(super) fn prompt(
    chat: &Qwen2_5VlChat,
    item: &Item,
    shown: (Vec<Media>, Vec<Tensor>),
    words: Option<&[Line]>,
    seconds: &[f64],
    form: Form,
) -> Result<Prompt> {
    let (media, features) = shown;
    let question = question(chat, item, form);
    let Some(lines) = words else {
        return Ok(Prompt { input_ids: chat.input_ids(&question, &media)?, media, features });
    };
    let between = between_frames(item);
    let mut parts: Vec<Part> = vec![];
    if between && media.len() == seconds.len() {
        parts.extend(subtitles::insert(lines, seconds).into_iter().map(|piece| match piece {
            Piece::Frame(at) => part(&media[at]),
            Piece::Text(text) => Part::text(format!("{text}\n")),
        }));
        parts.push(Part::text(question));
    } else {
        parts.extend(media.iter().map(part));
        let texts = subtitles::shown(lines, seconds);
        let listed = if texts.is_empty() { "(none)".to_owned() } else { texts.join("\n") };
        parts.push(Part::text(format!("Subtitles during these frames:\n{listed}\n\n{question}")));
    }
    Ok(Prompt { input_ids: chat.ids_of_parts(parts, &media)?, media, features })
}

/// LongVideoBench puts subtitles between frames, the others before the question.
pub(super) fn between_frames(item: &Item) -> bool {
    item.entry().is_some_and(|entry| entry.benchmark == crate::benchmarks::Benchmark::LongVideoBench)
}

fn part(medium: &Media) -> Part {
    match medium {
        Media::Image { .. } => Part::Image,
        Media::Video { .. } => Part::Video,
    }
}

fn question(chat: &Qwen2_5VlChat, item: &Item, form: Form) -> String {
    match form {
        Form::Dialogue => chat.dialogue.answer(&item.question),
        Form::Letter => format!(
            "{}\n\nThe frames above are from the video in question. Reply with one letter, that of the option that fits best.",
            item.question
        ),
    }
}
