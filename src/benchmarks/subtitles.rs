//! Subtitles: SRT files (Video-MME), the two JSON forms of LongVideoBench, and their place between frames.

use std::path::Path;

use serde_json::Value;

use super::evidence::clock;
use super::rows::{self, Place, Remark};
use crate::text::one_line;
use crate::{Error, Result};

/// A subtitle, in seconds of the subtitles' clock; `end` is at or after `start`.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// When it appears.
    pub start: f64,
    /// When it goes; infinite where the file leaves it open.
    pub end: f64,
    /// What it says, in one line and without markup; never empty.
    pub text: String,
}

/// The subtitles of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtitles {
    /// Ordered by their start; can be none.
    pub lines: Vec<Line>,
    /// What cannot be used, each with the reason.
    pub refused: Vec<Remark>,
}

/// A piece of a prompt with frames and subtitles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A frame, by its place among the times given.
    Frame(usize),
    /// A subtitle's text.
    Text(&'a str),
}

/// Reads a file that ends in `.srt` or `.json`.
///
/// JSON is an array of `{"start": "00:00:01.200", "end": ..., "line": ...}` or of `{"timestamp": [1.2, 3.4], "text": ...}`,
/// where the second time may be null: the line stays to the end of the video. Bytes that are not UTF-8 become
/// replacement characters in SRT. Lines without a text are left out.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read; [`Error::Input`] for another ending, or JSON that is no array of objects.
pub fn read(path: impl AsRef<Path>) -> Result<Subtitles> {
    let path = path.as_ref();
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let found = match ending.as_str() {
        "srt" => {
            let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
            srt(&String::from_utf8_lossy(&bytes))
        }
        "json" => rows::read(path)?.into_iter().map(|row| row.and_then(|row| from_json(&row))).collect(),
        _ => {
            let cause = format!("{}: expected subtitles that end in .srt or .json", path.display());
            return Err(Error::Input(cause));
        }
    };
    let (mut lines, mut refused) = (vec![], vec![]);
    for found in found {
        match found {
            Ok(line) if line.text.is_empty() => {}
            Ok(line) => lines.push(line),
            Err((place, cause)) => refused.push(Remark { file: path.to_owned(), place, cause }),
        }
    }
    lines.sort_by(|a, b| a.start.total_cmp(&b.start));
    Ok(Subtitles { lines, refused })
}

type Found = std::result::Result<Line, (Place, String)>;

/// Blocks of a number, a line of times and lines of text, apart by blank lines. Only the times are needed to know a block.
fn srt(text: &str) -> Vec<Found> {
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().collect();
    let mut found = vec![];
    for (index, times) in lines.iter().enumerate().filter(|(_, line)| line.contains("-->")) {
        let after = lines[index + 1..].iter().take_while(|line| !line.trim().is_empty());
        let mut words: Vec<&str> = after.copied().take_while(|line| !line.contains("-->")).collect();
        // Without a blank line between blocks the number of the next one is no text of this one.
        let next = lines.get(index + 1 + words.len()).is_some_and(|line| line.contains("-->"));
        if next && words.last().is_some_and(|line| line.trim().parse::<u32>().is_ok()) {
            words.pop();
        }
        let place = Place::Line(index + 1);
        let cause = || (place, format!("expected hh:mm:ss,mmm --> hh:mm:ss,mmm, got {:?}", times.trim()));
        let range = times.split_once("-->").and_then(|(start, end)| {
            // A position on the screen may follow the times.
            Some((clock(start)?, clock(end.split_whitespace().next()?)?))
        });
        found
            .push(range.ok_or_else(cause).and_then(|(start, end)| line(start, end, &words.join(" "), place)));
    }
    found
}

fn line(start: f64, end: f64, text: &str, place: Place) -> Found {
    if end < start {
        return Err((place, format!("expected an end after the start, got {start} s to {end} s")));
    }
    Ok(Line { start, end, text: one_line(&without_markup(text)) })
}

/// Takes out `<i>`, `</font>` and `{\an8}`; a lone `<` is a character like others.
fn without_markup(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['<', '{']) {
        let tail = &rest[at..];
        let close = if tail.starts_with('<') { '>' } else { '}' };
        let begins = tail[1..].starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '\\'));
        let end = tail.find(close).filter(|_| begins);
        kept.push_str(&rest[..at]);
        match end {
            Some(end) => rest = &tail[end + 1..],
            None => {
                kept.push_str(&tail[..1]);
                rest = &tail[1..];
            }
        }
    }
    kept + rest
}

fn from_json(row: &rows::Row) -> Found {
    let seconds = |value: &Value| match value {
        Value::String(text) => clock(text),
        other => other.as_f64(),
    };
    let (start, end, text) = match row.value(&["timestamp"]) {
        Some(Value::Array(times)) => (times.first(), times.get(1), row.value(&["text"])),
        _ => (row.value(&["start"]), row.value(&["end"]), row.value(&["line", "text"])),
    };
    let open = end.is_none_or(Value::is_null);
    let times = (start.and_then(seconds), if open { Some(f64::INFINITY) } else { end.and_then(seconds) });
    let (Some(start), Some(end), text) = (times.0, times.1, text.and_then(Value::as_str)) else {
        let got = rows::brief(&Value::Object(row.fields.clone()));
        return Err((row.place, format!("expected start, end and line, or timestamp and text, got {got}")));
    };
    line(start, end, text.unwrap_or_default(), row.place)
}

impl Subtitles {
    /// The lines in the clock of a video that begins at `offset` and takes `duration`, in seconds: moved, and without those
    /// that lie outside of it. An open end becomes the end of the video. (The authors' code moves that end by the offset
    /// too, and takes a whole number for an open end.)
    pub fn in_video(&self, offset: f64, duration: f64) -> Vec<Line> {
        let moved = self.lines.iter().map(|line| Line {
            start: line.start - offset,
            end: if line.end.is_finite() { line.end - offset } else { duration },
            text: line.text.clone(),
        });
        moved.filter(|line| line.end >= 0. && line.start <= duration && line.start <= line.end).collect()
    }
}

/// The times at which a frame counts as showing a line: at least a second around its middle, borders excluded.
fn shows(line: &Line, seconds: f64) -> bool {
    let middle = (line.start + line.end) / 2.;
    let (start, end) =
        if line.end - line.start < 1. { (middle - 0.5, middle + 0.5) } else { (line.start, line.end) };
    start < seconds && seconds < end
}

/// LongVideoBench's insertion: frames and subtitles in the order of time, a subtitle by its middle. A subtitle counts only
/// if one of the frames falls into it (into a second around its middle, if it is shorter). `lines` are in the video's clock,
/// see [`Subtitles::in_video`]; `frames` are the frames' times in seconds, ascending. Every frame is there once.
pub fn insert<'a>(lines: &'a [Line], frames: &[f64]) -> Vec<Piece<'a>> {
    let mut pieces = vec![];
    let mut placed = 0;
    for line in lines {
        let middle = (line.start + line.end) / 2.;
        while frames.get(placed).is_some_and(|&seconds| seconds <= middle) {
            pieces.push(Piece::Frame(placed));
            placed += 1;
        }
        if frames.iter().any(|&seconds| shows(line, seconds)) {
            pieces.push(Piece::Text(&line.text));
        }
    }
    pieces.extend((placed..frames.len()).map(Piece::Frame));
    pieces
}

/// The subtitles on screen in the frames, for a list before the question as the field does for Video-MME: those during which
/// one of `frames` (seconds, any order) falls, start included and end excluded, in the order of time, without direct
/// repetitions.
pub fn shown<'a>(lines: &'a [Line], frames: &[f64]) -> Vec<&'a str> {
    let during = |line: &&Line| frames.iter().any(|seconds| (line.start..line.end).contains(seconds));
    let mut texts: Vec<&str> = lines.iter().filter(during).map(|line| line.text.as_str()).collect();
    texts.dedup();
    texts
}
