//! What is said on stdout and stderr.

use std::path::Path;

use anyhow::{Context, Result};
use msjoe::benchmarks::{Benchmark, Loaded};
use msjoe::evaluation::{Check, Counts, FrameRate, Questions, Selections, judge, main_group};

use crate::loading::Args;

pub fn said(counts: &Counts, folder: &Path) -> String {
    let mut text = format!(
        "{} of {} answers: {} from before, {} now, {} failed, {} left; {}",
        counts.before + counts.answered,
        counts.wanted,
        counts.before,
        counts.answered,
        counts.failed,
        counts.left(),
        folder.display()
    );
    for (what, cause) in &counts.failures {
        text += &format!("\nfailed: {what}: {cause}");
    }
    text
}

pub fn missing(questions: &Questions) {
    if !questions.missing.is_empty() {
        let skipped: usize = questions.missing.values().sum();
        let names: Vec<&str> = questions.missing.keys().map(String::as_str).take(20).collect();
        let more = questions.missing.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        eprintln!(
            "{} videos are missing, {skipped} questions skipped: {}{more}",
            questions.missing.len(),
            names.join(", ")
        );
    }
}

pub fn remarks(loaded: &Loaded) {
    loaded.refused.iter().take(20).for_each(|remark| eprintln!("refused: {remark}"));
    if !loaded.refused.is_empty() || !loaded.notes.is_empty() {
        eprintln!("{} rows refused, {} notes", loaded.refused.len(), loaded.notes.len());
    }
}

pub fn check(args: &Args, loaded: &Loaded, check: &Check) -> Result<()> {
    for remark in loaded.refused.iter().chain(&loaded.notes) {
        eprintln!("{remark}");
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(check)?);
        return Ok(());
    }
    println!(
        "{}: {} questions of {} published, {} refused, {} notes, {} with evidence; {} of {} videos and {} subtitle files are \
         there; read in {:.3} s",
        check.benchmark,
        check.questions,
        check.published,
        check.refused,
        check.notes,
        check.with_evidence,
        check.videos_there,
        check.videos,
        check.subtitles_there,
        check.seconds
    );
    for (name, values) in &check.groups {
        let values: Vec<String> = values.iter().map(|(value, count)| format!("{value} {count}")).collect();
        println!("{name}: {}", values.join(", "));
    }
    Ok(())
}

pub fn selections(
    args: &Args,
    benchmark: Benchmark,
    loaded: &Loaded,
    data: &Path,
    file: &Path,
) -> Result<()> {
    let chosen = Selections::read(file)?;
    let rate = args.video_fps.unwrap_or(FrameRate::Known);
    let judged = judge(loaded, data, &chosen, rate).with_context(|| file.display().to_string())?;
    judged.messages.iter().for_each(|message| eprintln!("{message}"));
    eprintln!("{}", judged.counts());
    let table = judged.markdown(main_group(Some(benchmark)));
    print!("{}", if args.json { serde_json::to_string_pretty(&judged)? + "\n" } else { table });
    Ok(())
}
