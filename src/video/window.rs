//! The bounded stretch of results between the decoders and whoever reads them.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Hands results of numbered jobs over in order of the jobs, with at most `limit` of them waiting.
pub(super) struct Window<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    limit: usize,
}

struct State<T> {
    queues: BTreeMap<usize, Queue<T>>,
    /// Job whose results are read now.
    head: usize,
    /// Next job nobody has taken.
    next: usize,
    jobs: usize,
    waiting: usize,
    workers: usize,
    stopped: bool,
}

struct Queue<T> {
    items: std::collections::VecDeque<T>,
    finished: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { items: Default::default(), finished: false }
    }
}

/// What the reader finds.
pub(super) enum Next<T> {
    Item(T),
    End,
    /// Every worker has left although jobs are open.
    Deserted,
}

impl<T> Window<T> {
    pub fn new(jobs: usize, workers: usize, limit: usize) -> Self {
        let state =
            State { queues: BTreeMap::new(), head: 0, next: 0, jobs, waiting: 0, workers, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job for a worker; `None` when all are taken or the reader is gone.
    pub fn take_job(&self) -> Option<usize> {
        let mut state = self.lock();
        if state.stopped || state.next == state.jobs {
            return None;
        }
        state.next += 1;
        Some(state.next - 1)
    }

    /// Adds a result; waits while the window is full. False when the reader is gone.
    pub fn push(&self, job: usize, item: T) -> bool {
        let mut state = self.lock();
        // The job being read may always have one result waiting: no order of work can lock up.
        while !state.stopped
            && state.waiting >= self.limit
            && !(job == state.head && state.queues.get(&job).is_none_or(|queue| queue.items.is_empty()))
        {
            state = self.wait(state);
        }
        if state.stopped {
            return false;
        }
        state.queues.entry(job).or_default().items.push_back(item);
        state.waiting += 1;
        self.changed.notify_all();
        true
    }

    /// Marks a job as complete.
    pub fn finish(&self, job: usize) {
        self.lock().queues.entry(job).or_default().finished = true;
        self.changed.notify_all();
    }

    /// A worker has ended, for whatever reason.
    pub fn leave(&self) {
        self.lock().workers -= 1;
        self.changed.notify_all();
    }

    /// Whether the reader is gone.
    pub fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Tells the workers that nobody reads any more.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for the next result in order.
    pub fn pop(&self) -> Next<T> {
        let mut state = self.lock();
        loop {
            let head = state.head;
            if head == state.jobs {
                return Next::End;
            }
            if let Some(queue) = state.queues.get_mut(&head) {
                if let Some(item) = queue.items.pop_front() {
                    state.waiting -= 1;
                    self.changed.notify_all();
                    return Next::Item(item);
                }
                if queue.finished {
                    state.queues.remove(&head);
                    state.head += 1;
                    self.changed.notify_all();
                    continue;
                }
            }
            if state.workers == 0 {
                return Next::Deserted;
            }
            state = self.wait(state);
        }
    }
}
