//! Frames of a request as a bounded stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::window::{Next, Window};
use super::worker::{self, Source, Task};
use super::{Fit, Request, Sample, Video, plan};
use crate::{Error, Result};

/// Bytes of finished frames that may wait for the reader.
const WAITING_BYTES: usize = 192 << 20;
/// Bytes that all decoders together may hold.
const DECODER_BYTES: usize = 512 << 20;

/// Frames in order of time; dropped early, it ends its threads.
pub struct Samples {
    task: Arc<Task>,
    workers: Vec<JoinHandle<()>>,
    left: usize,
    warning: Option<String>,
    ended: bool,
}

impl Samples {
    pub(super) fn start(video: &Video, request: &Request) -> Result<Self> {
        if request.fits.is_empty() {
            return Err(Error::Input("fits: expected at least one size, got none".to_owned()));
        }
        let picks = request.times.picks(&video.timeline, video.info.frame_rate)?;
        let size = (video.info.width, video.info.height);
        let threads = match request.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let threads = threads.min((DECODER_BYTES / worker::decoder_bytes(size).max(1)).max(1));
        let jobs = match &video.source {
            Source::File(index) => plan::plan(index, &picks, threads > 1),
            Source::Folder(_) => plan::plan_images(&picks),
        };
        let count = threads.min(jobs.len());
        let limit = (WAITING_BYTES / sample_bytes(size, &request.fits)).max(2);
        let left = picks.len();
        let task = Arc::new(Task {
            path: video.path.clone(),
            source: video.source.clone(),
            size,
            seconds: shown_seconds(video),
            window: Window::new(jobs.len(), count, limit),
            picks,
            jobs,
            fits: request.fits.clone(),
            decoder_threads: threads / count.max(1),
            failures: AtomicUsize::new(0),
        });
        let workers = (0..count).map(|_| spawn(&task)).collect::<Result<_>>()?;
        Ok(Self { task, workers, left, warning: video.warning.clone(), ended: false })
    }

    /// What was wrong with the file although frames came: known for sure after the last sample.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    fn end(&mut self) {
        self.ended = true;
        self.task.window.stop();
        for worker in self.workers.drain(..) {
            // a panic of a worker has been reported as a missing sample
            let _ = worker.join();
        }
        let failures = self.task.failures.load(Ordering::Relaxed);
        if failures > 0 && self.warning.is_none() {
            let warning = format!("{failures} damaged packets could not be decoded");
            tracing::warn!(path = %self.task.path.display(), "{warning}");
            self.warning = Some(warning);
        }
    }
}

fn spawn(task: &Arc<Task>) -> Result<JoinHandle<()>> {
    let shared = task.clone();
    let spawned = std::thread::Builder::new().name("msjoe-video".into()).spawn(move || worker::run(&shared));
    spawned.map_err(|error| {
        task.window.stop();
        Error::io(&task.path, error)
    })
}

/// Times by frame number, where frames are not recognised by their timestamps.
fn shown_seconds(video: &Video) -> Vec<f64> {
    video.timeline.frames.iter().map(|&ticks| video.timeline.seconds(ticks)).collect()
}

fn sample_bytes(native: (u32, u32), fits: &[Fit]) -> usize {
    let pixels = |fit: &Fit| match *fit {
        Fit::Native => native.0 as usize * native.1 as usize,
        Fit::Exact { width, height } | Fit::ExactFloat { width, height } => width as usize * height as usize,
        Fit::ShortEdgeCrop(edge) => edge as usize * edge as usize,
    };
    fits.iter().map(pixels).sum::<usize>().saturating_mul(3).max(1)
}

impl Iterator for Samples {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.task.window.pop() {
            Next::Item(Ok(sample)) => {
                self.left = self.left.saturating_sub(1);
                return Some(Ok(sample));
            }
            Next::Item(Err(error)) => {
                self.end();
                return Some(Err(error));
            }
            Next::End => {}
            Next::Deserted => {
                self.end();
                return Some(Err(worker::deserted(&self.task.path)));
            }
        }
        self.end();
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(if self.ended { 0 } else { self.left }))
    }
}

impl Drop for Samples {
    fn drop(&mut self) {
        self.end();
    }
}
