//! Reports as single HTML files: [`Answered`] for one question, [`Training`] for runs, [`Evaluation`] for methods side by side.
//!
//! Plain data goes in, a complete page comes out. It loads nothing, opens offline, follows the reader's light or dark theme,
//! prints, and gives every picture a second time as a table. What comes from outside is escaped, and the page's own policy
//! lets no other script run. Pictures are drawn here as SVG; the script only adds read-outs under the pointer or the arrow
//! keys.
//!
//! ```
//! use msjoe::report::{Answered, write};
//! let page = Answered { question: "What is on the table?".into(), duration: 60.0, ..Answered::default() };
//! let folder = tempfile::tempdir().unwrap();
//! write(folder.path().join("report.html"), &page.html())?;
//! # Ok::<(), msjoe::Error>(())
//! ```

mod answered;
mod chart;
mod evaluation;
mod film;
mod heat;
mod html;
mod numbers;
mod outcome;
mod picture;
mod run;
mod timeline;
mod training;

use std::path::Path;

pub use answered::{Answered, Cost, Frame, Said};
pub use evaluation::{Evaluation, Method};
pub use numbers::clock;
pub use picture::Picture;
pub use run::FILE;
pub use training::{Run, Training};

use crate::checkpoint::write_file;
use crate::error::Result;

/// Writes a page in one stroke: there is the whole file, or what was there before.
///
/// # Errors
/// [`crate::Error::Io`] for a folder or file that cannot be written.
pub fn write(path: impl AsRef<Path>, html: &str) -> Result<()> {
    write_file(path.as_ref(), html.as_bytes())
}
