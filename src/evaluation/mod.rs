//! Every selection method on a benchmark or on the toy world, side by side.
//!
//! ```text
//! benchmark --item--> questions --run (videos one after another)--> predictions.jsonl --results--> table, JSON, page
//!                                        methods x K x seeds           (resumed)       statistics
//! published frame lists --selections--> evidence recall, hit rate, coverage
//! ```
//!
//! [`run()`] orders the work by video: a video is decoded and goes through CLIP once for all methods and numbers of frames, a
//! question is asked for queries once, and frames that several methods choose go through the vision tower once. What is
//! answered is a line in the [`Journal`] at once, so that nothing is lost and a run goes on where it stopped.

mod check;
mod files;
mod harness;
mod item;
mod journal;
mod look;
mod method;
mod page;
mod results;
mod run;
mod selections;
mod settings;
mod shown;
mod table;

pub use check::Check;
pub use files::write;
pub use item::{Item, Origin, Questions, by_video, folders, main_group, of_benchmark, of_file, of_world};
pub use journal::{Journal, Prediction};
pub use method::{Choosing, Column, Method, Seeds, Source, columns, methods};
pub use results::{Group, Mean, Pair, Results, Row, results};
pub use run::{Counts, Event, Models, Observer, Work, asks, needs_clip, run};
pub use selections::{FrameRate, Judged, Scored, Selections, judge};
pub use settings::{Form, Settings, hash_of, identity};
pub use shown::{Exhibit, apart, exhibits, full_size};
