//! A video's time cut into the columns of a picture, and the colours of its heat map.

use std::fmt::Write;
use std::ops::Range;

/// Most columns of a timeline: about the pixels that it gets on a wide screen.
pub(super) const COLUMNS: usize = 800;
/// Steps of the colour scale.
pub(super) const LEVELS: usize = 16;
/// Units across a strip.
const WIDTH: f64 = 10_000.0;

/// From few to much on a light page; lightness alone tells the order.
const LIGHT: [[f64; 3]; 5] =
    [[243., 242., 233.], [190., 222., 200.], [92., 178., 178.], [34., 108., 158.], [26., 38., 104.]];
/// The same on a dark page.
const DARK: [[f64; 3]; 5] =
    [[34., 38., 50.], [36., 72., 116.], [38., 130., 152.], [124., 198., 148.], [252., 240., 150.]];

/// Candidate frames that share a column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    /// From where to where, in shares of the video.
    pub span: Range<f64>,
    /// Which candidates, never none.
    pub frames: Range<usize>,
}

/// Candidates at `seconds` (T) of a video of `duration` seconds in at most [`COLUMNS`] columns: one per candidate where there
/// are fewer. A column ends where the next begins. Times that are not ascending are taken as evenly spaced.
pub(super) fn columns(seconds: &[f64], duration: f64) -> Vec<Column> {
    let count = seconds.len();
    let sound = duration > 0.0 && seconds.iter().all(|time| time.is_finite()) && seconds.is_sorted();
    let share = |at: usize| match sound {
        true => (seconds[at] / duration).clamp(0.0, 1.0),
        false => at as f64 / count as f64,
    };
    let bin = |at: usize| match count > COLUMNS {
        true => ((share(at) * COLUMNS as f64) as usize).min(COLUMNS - 1),
        false => at,
    };
    let mut columns: Vec<Column> = vec![];
    for at in 0..count {
        match columns.last_mut() {
            Some(last) if bin(last.frames.start) == bin(at) => last.frames.end = at + 1,
            last => {
                // Before the first candidate there is nothing else to show.
                let start = if at == 0 { 0.0 } else { share(at) };
                if let Some(last) = last {
                    last.span.end = start;
                }
                columns.push(Column { span: start..1.0, frames: at..at + 1 });
            }
        }
    }
    columns
}

/// The largest finite value of each column.
pub(super) fn largest(values: &[f32], columns: &[Column]) -> Vec<Option<f32>> {
    let of = |column: &Column| {
        let values = values.get(column.frames.clone()).unwrap_or_default();
        values.iter().copied().filter(|value| value.is_finite()).reduce(f32::max)
    };
    columns.iter().map(of).collect()
}

/// The finite values of each column added up.
pub(super) fn sums(values: &[f32], columns: &[Column]) -> Vec<f64> {
    let of = |column: &Column| {
        let values = values.get(column.frames.clone()).unwrap_or_default();
        values.iter().filter(|value| value.is_finite()).map(|&value| f64::from(value)).sum()
    };
    columns.iter().map(of).collect()
}

/// A row of colours: `values` between `low` and `high`, a path per colour.
pub(super) fn strip(values: &[Option<f32>], columns: &[Column], (low, high): (f64, f64)) -> String {
    let level = |value: f32| {
        let share = if high > low { (f64::from(value) - low) / (high - low) } else { 0.5 };
        ((share * LEVELS as f64) as usize).min(LEVELS - 1)
    };
    let mut paths = vec![String::new(); LEVELS];
    let mut at = 0;
    while at < columns.len() {
        let here = values[at].map(level);
        let same = (at + 1..columns.len()).find(|&next| values[next].map(level) != here);
        let end = same.unwrap_or(columns.len());
        if let Some(level) = here {
            let (x, to) = (unit(columns[at].span.start), unit(columns[end - 1].span.end));
            let _ = write!(paths[level], "M{x} 0H{to}V1H{x}z");
        }
        at = end;
    }
    let mut out = strip_open("heat");
    for (level, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let _ = write!(out, "<path class=\"h{level}\" d=\"{path}\"/>");
    }
    out
}

/// Bars of `values` over their columns as high as the largest; `marked` columns once more in another colour.
pub(super) fn bars(values: &[f64], columns: &[Column], marked: impl Fn(usize) -> bool) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let height = |at: usize| if most > 0.0 { 1.0 - values[at] / most } else { 1.0 };
    let (mut all, mut some) = (String::from("M0 1"), String::new());
    for (at, column) in columns.iter().enumerate() {
        let (x, to, y) = (unit(column.span.start), unit(column.span.end), height(at));
        let _ = write!(all, "H{x}V{y:.3}H{to}");
        if marked(at) {
            let _ = write!(some, "M{x} 1V{y:.3}H{to}V1z");
        }
    }
    format!(
        "{}<path class=\"bar\" d=\"{all}V1z\"/><path class=\"bar chosen\" d=\"{some}\"/>",
        strip_open("bars")
    )
}

/// Stretches of the video, in shares of it.
pub(super) fn stretches(spans: &[Range<f64>]) -> String {
    let mut path = String::new();
    for span in spans {
        let (x, to) = (unit(span.start.clamp(0.0, 1.0)), unit(span.end.clamp(0.0, 1.0)));
        let _ = write!(path, "M{x} 0H{}V1H{x}z", to.max(x + 10));
    }
    format!("{}<path class=\"evidence\" d=\"{path}\"/>", strip_open("thin"))
}

/// Begins a drawing whose time axis stretches with the page; the caller closes it.
fn strip_open(class: &str) -> String {
    format!(
        "<svg class=\"strip {class}\" viewBox=\"0 0 {WIDTH} 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
    )
}

/// A place within a strip.
pub(super) fn unit(share: f64) -> i64 {
    (WIDTH * share).round() as i64
}

/// Colours of the heat map for the style sheet.
pub(super) fn style() -> String {
    let rules = |stops: &[[f64; 3]; 5]| -> String {
        (0..LEVELS).map(|level| format!(".h{level}{{fill:{}}}", colour(stops, level))).collect()
    };
    let scale = |stops: &[[f64; 3]; 5]| -> String {
        let colours: Vec<String> = (0..LEVELS).map(|level| colour(stops, level)).collect();
        format!(".scale{{background:linear-gradient(to right,{})}}", colours.join(","))
    };
    let (light, dark) = (rules(&LIGHT) + &scale(&LIGHT), rules(&DARK) + &scale(&DARK));
    format!("{light}\n@media screen and (prefers-color-scheme:dark){{{dark}}}\n")
}

fn colour(stops: &[[f64; 3]; 5], level: usize) -> String {
    let at = level as f64 / (LEVELS - 1) as f64 * (stops.len() - 1) as f64;
    let (first, part) = ((at as usize).min(stops.len() - 2), at - (at as usize).min(stops.len() - 2) as f64);
    let mix = |channel: usize| {
        let (from, to) = (stops[first][channel], stops[first + 1][channel]);
        (from + part * (to - from)).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}
