//! Numbers of a run over its steps: `metrics.jsonl`, and the same as TensorBoard events.
//!
//! ```json
//! {"step":12,"time":1763726400.25,"grad_norm":0.71,"reward":0.4375,"rewards/accuracy":0.5}
//! ```
//!
//! Names are those of the field (TRL, verl): `reward`, `rewards/accuracy`, `reward_std`, `kl`, `clip_ratio`, `entropy`,
//! `sampler/entropy`, `grad_norm`, `learning_rate`, `tokens_per_second`, `step_time`, ... JSON has no word for a number that
//! is not finite: it is written as the string `NaN`, `inf` or `-inf`. `time` is in seconds since 1970. The JSONL file is
//! the record; the event file is made from it anew whenever a run is resumed.

pub mod events;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::checkpoint::{files, write_file};
use crate::{Error, Result};

/// Name of the record in a run's folder.
pub const FILE: &str = "metrics.jsonl";
const EVENTS: &str = "events.out.tfevents.";

/// What was logged at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The optimizer step.
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// Numbers by name.
    pub values: BTreeMap<String, f64>,
}

/// The open record of a run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    events_path: PathBuf,
    events: File,
    step: u64,
}

impl Metrics {
    /// A new record in `folder`, which exists.
    ///
    /// # Errors
    /// [`Error::Input`] when there is a record already; [`Error::Io`] when the folder cannot be written.
    pub fn create(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(FILE);
        if path.exists() {
            return Err(Error::Input(format!(
                "{}: the record of another run; resume that one, or choose another folder",
                path.display()
            )));
        }
        write_file(&path, b"")?;
        Self::open(path, &[])
    }

    /// Goes on with the record in `folder` behind `step`: later lines, and a last one that was cut off, are dropped in one
    /// stroke, and the events are written anew from what is left.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no record or it cannot be written; as [`read`] for what was there before.
    pub fn resume(folder: impl AsRef<Path>, step: u64) -> Result<Self> {
        let path = folder.as_ref().join(FILE);
        let (bytes, whole) = (contents(&path)?, lines(&path)?);
        let kept: Vec<Line> =
            whole.iter().map(|(_, line)| line).filter(|line| line.step <= step).cloned().collect();
        let texts = whole.iter().filter(|(_, line)| line.step <= step);
        let text: Vec<u8> = texts.flat_map(|(range, _)| bytes[range.clone()].iter().copied()).collect();
        if text != bytes {
            write_file(&path, &text)?;
        }
        Self::open(path, &kept)
    }

    fn open(path: PathBuf, lines: &[Line]) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let before = event_files(folder)?;
        let now = seconds_since_1970();
        // TensorBoard reads files in the order of their names.
        let number = (now as u64).max(before.last().map_or(0, |(number, _)| number + 1));
        let events_path = folder.join(format!("{EVENTS}{number:010}.msjoe"));
        let mut records = events::header(lines.first().map_or(now, |line| line.time));
        for line in lines {
            records.extend(events::scalars(line.time, line.step, &line.values));
        }
        write_file(&events_path, &records)?;
        for (_, old) in before {
            std::fs::remove_file(&old).map_err(|error| Error::io(&old, error))?;
        }
        let append =
            |path: &Path| OpenOptions::new().append(true).open(path).map_err(|error| Error::io(path, error));
        let (file, events) = (append(&path)?, append(&events_path)?);
        let step = lines.last().map_or(0, |line| line.step);
        Ok(Self { path, file, events_path, events, step })
    }

    /// Adds a line. Several lines may have the same step.
    ///
    /// # Errors
    /// [`Error::Input`] for a step before the last one, no values, or a value named `step` or `time`; [`Error::Io`] when
    /// a file cannot be written.
    pub fn log(&mut self, step: u64, values: &BTreeMap<String, f64>) -> Result<()> {
        if step < self.step {
            return Err(Error::Input(format!(
                "metrics: step {step} after step {}; resume at the earlier step to go back",
                self.step
            )));
        }
        if values.is_empty() || values.contains_key("step") || values.contains_key("time") {
            let names: Vec<&str> = values.keys().map(String::as_str).collect();
            return Err(Error::Input(format!(
                "metrics: expected at least one value, none of them named step or time, got [{}]",
                names.join(", ")
            )));
        }
        // Milliseconds: short to read, and the same number again when it is read.
        let time = (seconds_since_1970() * 1000.).round() / 1000.;
        let mut object = Map::from_iter([("step".to_owned(), step.into()), ("time".to_owned(), time.into())]);
        for (name, &value) in values {
            let value = if value.is_finite() { value.into() } else { Value::String(value.to_string()) };
            object.insert(name.clone(), value);
        }
        let line = format!("{}\n", Value::Object(object));
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::io(&self.path, error))?;
        let record = events::scalars(time, step, values);
        self.events.write_all(&record).map_err(|error| Error::io(&self.events_path, error))?;
        self.step = step;
        Ok(())
    }
}

/// The lines of a record. A last line that was cut off (without its line feed) is left out with a warning in the log.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read; [`Error::Input`] with the line's number for one that is not as
/// [`Metrics::log`] writes it.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Line>> {
    Ok(lines(path.as_ref())?.into_iter().map(|(_, line)| line).collect())
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(path, error))
}

/// Every whole line with its bytes' range.
fn lines(path: &Path) -> Result<Vec<(std::ops::Range<usize>, Line)>> {
    let bytes = contents(path)?;
    let (mut start, mut lines) = (0, vec![]);
    for text in bytes.split_inclusive(|&byte| byte == b'\n') {
        let range = start..start + text.len();
        start = range.end;
        if text.last() != Some(&b'\n') {
            tracing::warn!("{}: the last line was cut off and is left out", path.display());
            break;
        }
        let number = lines.len() + 1;
        let line =
            parse(text).map_err(|cause| Error::Input(format!("{}:{number}: {cause}", path.display())))?;
        lines.push((range, line));
    }
    Ok(lines)
}

fn parse(text: &[u8]) -> std::result::Result<Line, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let step = object.shift_remove("step").and_then(|step| step.as_u64());
    let time = object.shift_remove("time").and_then(|time| time.as_f64());
    let (Some(step), Some(time)) = (step, time) else {
        return Err("expected a step and a time, got a line without".into());
    };
    let number = |(name, value): (String, Value)| {
        let number = match &value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok().filter(|number: &f64| !number.is_finite()),
            _ => None,
        };
        number
            .map(|number| (name.clone(), number))
            .ok_or_else(|| format!("{name}: expected a number, got {value}"))
    };
    let values = object.into_iter().map(number).collect::<std::result::Result<_, _>>()?;
    Ok(Line { step, time, values })
}

/// The event files of a folder with their numbers, ascending.
fn event_files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let numbered = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy();
        let number = name.strip_prefix(EVENTS)?.strip_suffix(".msjoe")?.parse().ok()?;
        Some((number, path))
    };
    let mut numbered: Vec<_> = files(folder)?.into_iter().filter_map(numbered).collect();
    numbered.sort();
    Ok(numbered)
}

fn seconds_since_1970() -> f64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(time) => time.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
