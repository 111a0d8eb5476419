//! What an evaluation leaves in its folder beside the answers.

use super::harness;
use super::item::Item;
use super::journal::Journal;
use super::method::Column;
use super::page::page;
use super::results::Results;
use crate::benchmarks::Benchmark;
use crate::checkpoint::{write_file, write_json};
use crate::error::Result;
use crate::report;

/// Writes `table.md`, `results.json`, `report.html`, and the field's files under `lmms-eval`.
///
/// # Errors
/// [`crate::Error::Io`] for files that cannot be written.
pub fn write(
    results: &Results,
    items: &[Item],
    columns: &[Column],
    journal: &Journal,
    benchmark: Option<Benchmark>,
) -> Result<()> {
    let folder = journal.folder();
    write_file(&folder.join("table.md"), results.markdown().as_bytes())?;
    write_json(&folder.join("results.json"), results)?;
    report::write(folder.join("report.html"), &page(results))?;
    harness::write(&results.settings, items, columns, journal, benchmark)?;
    Ok(())
}
