//! Progress out of the working threads, and the caller's wish to stop into them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// The callback is asked at least this often, also while nothing arrives.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What is being done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Asking the Hub which files there are; the file name is empty.
    Listing,
    /// Bytes arrive.
    Downloading,
    /// Bytes on disk are hashed.
    Verifying,
}

/// How far the work on one file is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Path in the repository.
    pub file: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The working threads' end: reports go out, the wish to stop comes in.
pub(super) struct Monitor {
    events: Sender<Progress>,
    stop: Arc<AtomicBool>,
}

impl Monitor {
    /// `Err(Interrupted)` once the caller wants to stop.
    pub(super) fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    pub(super) fn report(&self, stage: Stage, file: &str, (done, total): (u64, u64)) -> Result<()> {
        self.check()?;
        // The receiver outlives the work; without one there is nobody to tell.
        let _ = self.events.send(Progress { stage, file: file.to_owned(), done, total });
        Ok(())
    }

    /// Sleeps for `time`, or until the caller wants to stop.
    pub(super) fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(TICK)),
                _ => return Ok(()),
            }
        }
    }

    /// Runs `work` over `items` on up to `threads` threads; the first error stops the others.
    pub(super) fn in_parallel<T: Sync, R: Send>(
        &self,
        items: &[T],
        threads: usize,
        work: impl Fn(&T) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None::<Error>);
        let mut done: Vec<(usize, R)> = thread::scope(|scope| {
            let worker = || {
                let mut mine = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { return mine };
                    match work(item) {
                        Ok(result) => mine.push((i, result)),
                        Err(error) => {
                            next.store(items.len(), Ordering::Relaxed);
                            self.keep_first(&failed, error);
                        }
                    }
                }
            };
            let threads: Vec<_> =
                (0..threads.clamp(1, items.len().max(1))).map(|_| scope.spawn(worker)).collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            return Err(error);
        }
        done.sort_by_key(|(i, _)| *i);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    fn keep_first(&self, slot: &Mutex<Option<Error>>, error: Error) {
        let mut slot = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slot.get_or_insert(error);
        // Only after the cause is kept: what this stops answers `Interrupted`.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread of its own while this one serves the callback: often, and also when nothing happens.
pub(super) fn watch<T: Send>(
    on_progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    work: impl FnOnce(&Monitor) -> Result<T> + Send,
) -> Result<T> {
    let (events, received) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let monitor = Monitor { events, stop: stop.clone() };
    thread::scope(|scope| {
        // The monitor moves into the thread: when it is dropped there, the channel closes and the loop below ends.
        let worker = scope.spawn(move || work(&monitor));
        let mut last = Progress { stage: Stage::Listing, file: String::new(), done: 0, total: 0 };
        loop {
            match received.recv_timeout(TICK) {
                Ok(progress) => last = progress,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if on_progress(&last).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
