//! One decoding thread: takes jobs, decodes, keeps only the wanted frames.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::RgbImage;
use video_rs::ffmpeg::frame;

use super::convert::Converter;
use super::decode::FrameDecoder;
use super::demux::Demuxer;
use super::index::{Identity, Index};
use super::orientation::Orientation;
use super::plan::Job;
use super::times::Pick;
use super::window::Window;
use super::{Fit, Sample, images, resize};
use crate::{Error, Result};

/// Where the frames come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    File(Arc<Index>),
    Folder(Arc<Vec<PathBuf>>),
}

/// What all workers of a request share.
pub(super) struct Task {
    pub path: PathBuf,
    pub source: Source,
    /// Size of a displayed frame.
    pub size: (u32, u32),
    pub seconds: Vec<f64>,
    pub picks: Vec<Pick>,
    pub jobs: Vec<Job>,
    pub fits: Vec<Fit>,
    pub decoder_threads: usize,
    pub window: Window<Result<Sample>>,
    /// Packets that could not be decoded.
    pub failures: AtomicUsize,
}

/// Runs jobs until none is left, and leaves the window even when a job panics.
pub(super) fn run(task: &Task) {
    struct Leave<'a>(&'a Task);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.window.leave();
        }
    }
    let _leave = Leave(task);
    let mut worker = None;
    while let Some(job) = task.window.take_job() {
        let outcome = match &task.source {
            Source::Folder(files) => show_image(task, job, files),
            Source::File(index) => show_frames(task, job, index, &mut worker),
        };
        if let Err(error) = outcome {
            task.window.push(job, Err(error));
        }
        task.window.finish(job);
    }
    if let Some(worker) = worker {
        task.failures.fetch_add(worker.decoder.failures, Ordering::Relaxed);
    }
}

fn show_image(task: &Task, job: usize, files: &[PathBuf]) -> Result<()> {
    let picks = &task.picks[task.jobs[job].picks.clone()];
    let file = &files[picks[0].frame];
    let images = fitted(images::load(file)?, task)?;
    for pick in picks {
        let seconds = task.seconds[pick.frame];
        task.window.push(job, Ok(Sample { index: pick.index, seconds, images: images.clone() }));
    }
    Ok(())
}

fn show_frames(task: &Task, job: usize, index: &Arc<Index>, worker: &mut Option<Worker>) -> Result<()> {
    let mut started = match worker.take() {
        Some(worker) => worker,
        None => Worker::open(task, index)?,
    };
    let mut cut = task.jobs[job].cut;
    // A wanted frame that does not come out shows the one before, which may lie before the cut.
    while !started.run(task, job, cut)? {
        cut -= 1;
    }
    *worker = Some(started);
    Ok(())
}

/// All fits of one displayed frame, brought to the video's size first should it differ.
fn fitted(image: RgbImage, task: &Task) -> Result<Vec<RgbImage>> {
    let image = if image.dimensions() == task.size {
        image
    } else {
        resize::resize(&image, task.size.0, task.size.1)?
    };
    if let [Fit::Native] = task.fits[..] {
        return Ok(vec![image]);
    }
    task.fits.iter().map(|&fit| resize::fit(&image, fit)).collect()
}

/// Demuxer, decoder and converter of one thread.
struct Worker {
    index: Arc<Index>,
    demuxer: Demuxer,
    decoder: FrameDecoder,
    converter: Converter,
    interlaced: bool,
}

/// How far a job has come.
struct Progress<'a> {
    task: &'a Task,
    job: usize,
    picks: &'a [Pick],
    /// Picks already delivered.
    done: usize,
    /// The last frame that came out: on display until the next.
    held: Option<(i64, frame::Video)>,
    /// The held frame as delivered, once it is.
    images: Option<Vec<RgbImage>>,
}

impl Worker {
    fn open(task: &Task, index: &Arc<Index>) -> Result<Self> {
        let demuxer = Demuxer::open(&task.path)?;
        let decoder = FrameDecoder::open(&demuxer, task.decoder_threads, &task.path)?;
        let orientation = index.matrix.as_ref().and_then(Orientation::from_matrix);
        Ok(Self {
            index: index.clone(),
            demuxer,
            decoder,
            converter: Converter::new(orientation.unwrap_or(Orientation::UPRIGHT)),
            interlaced: false,
        })
    }

    /// Decodes from `cut` until the job's picks are delivered. False when the first of them lies before whatever comes
    /// out from there, with nothing delivered yet.
    fn run(&mut self, task: &Task, job: usize, cut: usize) -> Result<bool> {
        let index = self.index.clone();
        self.demuxer.go_to(&index.cuts[cut])?;
        self.decoder.flush();
        let picks = &task.picks[task.jobs[job].picks.clone()];
        let mut progress = Progress { task, job, picks, done: 0, held: None, images: None };
        let mut ordinal = 0;
        let mut more = true;
        while more && progress.done < picks.len() && !task.window.stopped() {
            let packet = if self.demuxer.position() < index.packets { self.demuxer.read() } else { None };
            more = packet.is_some();
            if index.disposable {
                let wanted = packet.as_ref().and_then(|packet| packet.pts()).is_none_or(|pts| {
                    picks[progress.done..].binary_search_by_key(&pts, |pick| index.ids[pick.frame]).is_ok()
                });
                self.decoder.skip_disposable(!wanted && !self.interlaced);
            }
            self.decoder.send(packet.as_ref());
            while let Some(frame) = self.decoder.receive() {
                self.interlaced |= frame.is_interlaced();
                let id = match index.identity {
                    Identity::Ordinal => ordinal,
                    Identity::Timestamp => frame.pts().or(frame.timestamp()).unwrap_or(i64::MIN),
                };
                ordinal += 1;
                // leading pictures of a mid-stream start refer to what was not decoded
                if id >= index.cuts[cut].pts && !progress.take(self, frame, id, cut > 0)? {
                    return Ok(false);
                }
            }
        }
        if !more && progress.done < picks.len() {
            if progress.held.is_none() && cut > 0 {
                return Ok(false);
            }
            progress.show_held(self, i64::MAX)?;
        }
        Ok(true)
    }
}

impl Progress<'_> {
    /// A frame has come out: everything wanted before it shows the held one. False when there is none to show.
    fn take(&mut self, worker: &mut Worker, frame: frame::Video, id: i64, mid_stream: bool) -> Result<bool> {
        let wanted = |done: usize| self.picks.get(done).map(|pick| worker.index.ids[pick.frame]);
        if self.held.is_none() && mid_stream && wanted(self.done).is_some_and(|wanted| wanted < id) {
            return Ok(false);
        }
        if self.held.is_some() {
            self.show_held(worker, id)?;
        }
        self.held = Some((id, frame));
        self.images = None;
        self.show_held(worker, id.saturating_add(1))?;
        Ok(true)
    }

    /// Delivers the held frame for the picks wanted before `until`.
    fn show_held(&mut self, worker: &mut Worker, until: i64) -> Result<()> {
        let Some((id, frame)) = &self.held else { return Ok(()) };
        while let Some(pick) = self.picks.get(self.done).filter(|p| worker.index.ids[p.frame] < until) {
            let images = match self.images.take() {
                Some(images) => images,
                None => fitted(worker.converter.convert(frame, &self.task.path)?, self.task)?,
            };
            let seconds = match worker.index.identity {
                Identity::Timestamp => worker.index.timeline.seconds(id.saturating_sub(worker.index.origin)),
                Identity::Ordinal => self.task.seconds.get(*id as usize).copied().unwrap_or_default(),
            };
            self.done += 1;
            let repeats = self.picks.get(self.done).is_some_and(|p| worker.index.ids[p.frame] < until);
            if repeats {
                self.images = Some(images.clone());
            }
            let sample = Sample { index: pick.index, seconds, images };
            self.task.window.push(self.job, Ok(sample));
        }
        Ok(())
    }
}

/// Bytes that one decoder may hold: a full picture buffer and what waits in it, at the deepest sample size.
pub(super) fn decoder_bytes(size: (u32, u32)) -> usize {
    const PICTURES: usize = 20;
    size.0 as usize * size.1 as usize * 3 / 2 * PICTURES
}

/// A panic-free reason for a request whose workers are gone.
pub(super) fn deserted(path: &Path) -> Error {
    Error::video(path, "a decoding thread ended unexpectedly")
}
