//! A bar with the time left on stderr.

use indicatif::{ProgressBar, ProgressStyle};

pub fn bar(name: &str, done: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_position(done).with_prefix(name.to_owned());
    bar.reset_eta();
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {eta} left {msg}") {
        bar.set_style(style);
    }
    bar
}
