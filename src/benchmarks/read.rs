//! From a folder or file to entries.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::rows::{self, Place, Remark, Row};
use super::{Benchmark, Entry, files, long_video_bench, lv_bench, mlvu, video_mme};
use crate::{Error, Result};

/// The questions of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// In the order of the files; at least one.
    pub entries: Vec<Entry>,
    /// Rows that cannot be used, each with the reason.
    pub refused: Vec<Remark>,
    /// What is used but not in full, and what else is worth knowing.
    pub notes: Vec<Remark>,
    /// The files read.
    pub files: Vec<PathBuf>,
}

/// Reads the questions of `benchmark` from `path`: the folder of the benchmark, in which its annotation files are looked
/// for under the names of their authors, or one annotation file (`.json`, `.jsonl`, `.tsv`, `.csv`, `.parquet`).
///
/// # Errors
/// [`Error::Io`] for a path that does not exist or cannot be read; [`Error::Input`] for a folder without a known annotation
/// file (the error lists them), a file that is no such table, and files without a single usable row, with the first reason.
pub fn read(benchmark: Benchmark, path: impl AsRef<Path>) -> Result<Loaded> {
    let path = path.as_ref();
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    let files = if metadata.is_dir() { files::annotations(benchmark, path)? } else { vec![path.to_owned()] };
    let mut reader = Reader {
        benchmark,
        loaded: Loaded { entries: vec![], refused: vec![], notes: vec![], files },
        seen: HashMap::new(),
        rows: 0,
    };
    for file in reader.loaded.files.clone() {
        reader.file(&file)?;
    }
    let loaded = reader.loaded;
    if loaded.entries.is_empty() {
        let cause = match loaded.refused.first() {
            Some(first) => format!("none of {} rows can be used. The first: {first}", loaded.refused.len()),
            None => "the file has no rows".into(),
        };
        return Err(Error::Input(format!("{}: expected questions of {benchmark}; {cause}", path.display())));
    }
    Ok(loaded)
}

struct Reader {
    benchmark: Benchmark,
    loaded: Loaded,
    /// The file and place of each id.
    seen: HashMap<String, (usize, Place)>,
    /// Questions so far, refused ones included.
    rows: usize,
}

impl Reader {
    fn file(&mut self, file: &Path) -> Result<()> {
        let number = self.loaded.files.iter().position(|other| other == file).unwrap_or_default();
        let mut rows = rows::read(file)?;
        if self.benchmark == Benchmark::LvBench {
            rows = lv_bench::expand(rows);
        }
        for (index, row) in rows.into_iter().enumerate() {
            let remark = |place, cause| Remark { file: file.to_owned(), place, cause };
            match row {
                Err((place, cause)) => self.loaded.refused.push(remark(place, cause)),
                Ok(row) => match self.entry(&row, index, file, number) {
                    Err(cause) => self.loaded.refused.push(remark(row.place, within(&row, cause))),
                    Ok((entry, notes)) => {
                        let notes = notes.into_iter().map(|cause| remark(row.place, within(&row, cause)));
                        self.loaded.notes.extend(notes);
                        self.loaded.entries.push(entry);
                    }
                },
            }
            self.rows += 1;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        row: &Row,
        index: usize,
        file: &Path,
        number: usize,
    ) -> std::result::Result<(Entry, Vec<String>), String> {
        let (mut entry, mut notes) = match self.benchmark {
            Benchmark::VideoMme => video_mme::read(row),
            Benchmark::LongVideoBench => long_video_bench::read(row),
            Benchmark::LvBench => lv_bench::read(row),
            Benchmark::Mlvu => mlvu::read(row, index),
        }?;
        entry.row = self.rows;
        if entry.id.is_empty() {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            entry.id = format!("{stem}-{:06}", index + 1);
            // The authors' files of MLVU have no ids at all.
            if self.benchmark != Benchmark::Mlvu {
                notes.push(format!("the row has no id; it is called {}", entry.id));
            }
        }
        if let Some((other, place)) = self.seen.get(&entry.id) {
            let first = Remark {
                file: self.loaded.files[*other].clone(),
                place: *place,
                cause: "there first".into(),
            };
            return Err(format!("the id {:?} is there twice ({first})", entry.id));
        }
        self.seen.insert(entry.id.clone(), (number, row.place));
        Ok((entry, notes))
    }
}

/// The cause, with the question's number where a line has several.
fn within(row: &Row, cause: String) -> String {
    match row.part {
        Some(part) => format!("question {part}: {cause}"),
        None => cause,
    }
}
