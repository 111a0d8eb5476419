//! How the wanted frames are divided into runs of decoding.

use std::ops::Range;

use super::index::Index;
use super::times::Pick;

/// Runs shorter than this many packets are joined: starting a run costs a seek and a few frames past its end.
const SHORTEST_RUN: usize = 64;

/// One run of a decoder: from a cut until the last of its picks has come out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Number of the cut in the index.
    pub cut: usize,
    /// The picks, as a range of the sorted list.
    pub picks: Range<usize>,
}

/// Runs for `picks` (sorted by frame). A stretch between two cuts without a wanted frame is never decoded; with
/// `parallel`, runs also end at cuts so that several decoders share the work.
pub(super) fn plan(index: &Index, picks: &[Pick], parallel: bool) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    let mut last_cut = 0;
    for (number, pick) in picks.iter().enumerate() {
        let cut = index.cuts.partition_point(|cut| cut.pts <= index.ids[pick.frame]).max(1) - 1;
        let cut = if index.cuts.len() == 1 { 0 } else { cut };
        let starts = match jobs.last() {
            None => true,
            Some(job) => {
                let run = index.cuts[cut].packet - index.cuts[job.cut].packet;
                cut > last_cut + 1 || (parallel && cut > last_cut && run >= SHORTEST_RUN)
            }
        };
        if starts {
            jobs.push(Job { cut, picks: number..number });
        }
        if let Some(job) = jobs.last_mut() {
            job.picks.end = number + 1;
        }
        last_cut = cut;
    }
    jobs
}

/// Runs over the images of a folder: nothing joins them but the picks that show the same one.
pub(super) fn plan_images(picks: &[Pick]) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for (number, pick) in picks.iter().enumerate() {
        match jobs.last_mut() {
            Some(job) if picks[job.picks.start].frame == pick.frame => job.picks.end = number + 1,
            _ => jobs.push(Job { cut: 0, picks: number..number + 1 }),
        }
    }
    jobs
}
