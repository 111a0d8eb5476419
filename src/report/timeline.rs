//! The timeline of an answered question: what the queries found, how the sampler weighed it, what was chosen.

use std::fmt::Write;

use super::answered::{Answered, finite};
use super::chart::percent;
use super::film::film;
use super::heat::{COLUMNS, Column, bars, columns, largest, stretches, strip, sums};
use super::html::{Table, escape};
use super::numbers::{Axis, clock, extent, number};

/// The picture with its caption, the frames below it, and both in numbers.
pub(super) fn timeline(answered: &Answered) -> String {
    if answered.candidates.is_empty() {
        let none = "<p class=\"none\">There are no candidate frames.</p>";
        return format!("{none}{}{}", film(&answered.frames, answered.duration), frames(answered));
    }
    let columns = columns(&answered.candidates, answered.duration);
    let scores: Vec<Vec<Option<f32>>> =
        answered.similarity.iter().map(|row| largest(row, &columns)).collect();
    let mass = if answered.weights.is_empty() { vec![] } else { sums(&answered.weights, &columns) };
    let values: Vec<f64> = scores.iter().flatten().flatten().map(|&score| f64::from(score)).collect();
    let scale = extent(&values);
    let figure = format!(
        "<figure class=\"timeline\" aria-labelledby=\"timeline-t\"><figcaption><h3 id=\"timeline-t\">Timeline</h3>\
         <p class=\"note\">{}</p>{}</figcaption><output class=\"read\"></output><div class=\"rows\" data-read=\"{}\">{}\
         </div>{}</figure>",
        caption(answered, &columns),
        if values.is_empty() { String::new() } else { legend(scale) },
        escape(&readings(answered, &columns, &scores, &mass)),
        rows(answered, &columns, &scores, &mass, scale),
        film(&answered.frames, answered.duration),
    );
    let tables = [frames(answered), peaks(answered), numbers(answered, &columns, &scores, &mass)];
    figure + &tables.concat()
}

fn caption(answered: &Answered, columns: &[Column]) -> String {
    let mut out = String::from("From the first to the last second of the video.");
    if !answered.similarity.is_empty() {
        out.push_str(" Each row of colours shows how well the frames match a query.");
    }
    if !answered.weights.is_empty() {
        out.push_str(" Bars show the sampling weights, coloured where a frame was chosen.");
    }
    if columns.len() < answered.candidates.len() {
        let _ = write!(
            out,
            " {} candidate frames share {} columns, at most {COLUMNS}: a column has the colour of its best frame and \
             the weight of all its frames.",
            super::numbers::thousands(answered.candidates.len()),
            columns.len()
        );
    }
    out
}

fn legend((low, high): (f64, f64)) -> String {
    format!(
        "<p class=\"legend\"><span>cosine similarity</span> <span>{}</span><i class=\"scale\" aria-hidden=\"true\"></i>\
         <span>{}</span></p>",
        number(low),
        number(high)
    )
}

fn rows(
    answered: &Answered,
    columns: &[Column],
    scores: &[Vec<Option<f32>>],
    mass: &[f64],
    scale: (f64, f64),
) -> String {
    const CURSOR: &str = "<line class=\"cursor\" x1=\"0\" x2=\"0\" y1=\"0\" y2=\"1\"/></svg>";
    let mut out = String::new();
    for (at, row) in scores.iter().enumerate() {
        let query = answered.queries.get(at).map_or("", |query| query.trim());
        let _ = write!(
            out,
            "<p class=\"rowname\"><b>Query {}</b> <span dir=\"auto\">{}</span></p>{}{CURSOR}",
            at + 1,
            escape(query),
            strip(row, columns, scale)
        );
    }
    if !mass.is_empty() {
        let chosen = |at: usize| {
            let column = &columns[at];
            answered.frames.iter().any(|frame| column.frames.contains(&frame.index))
        };
        let most = number(mass.iter().copied().fold(0.0, f64::max));
        let _ = write!(
            out,
            "<p class=\"rowname\"><b>Sampling weights</b> <span>share of the weight per column, highest bar {most}</span></p>\
             {}{CURSOR}",
            bars(mass, columns, chosen)
        );
    }
    if !answered.evidence.is_empty() {
        let spans = answered
            .evidence
            .iter()
            .map(|span| span.start / answered.duration.max(1e-9)..span.end / answered.duration.max(1e-9));
        let _ = write!(
            out,
            "<p class=\"rowname\"><b>Evidence</b> <span>where the answer can be seen</span></p>{}{CURSOR}",
            stretches(&spans.collect::<Vec<_>>())
        );
    }
    out + &times(answered)
}

/// The axis of time, and where the key frames lie on it.
fn times(answered: &Answered) -> String {
    let mut ticks = String::new();
    for (value, text) in Axis::time(answered.duration.max(1e-3)).ticks {
        let place = value / answered.duration.max(1e-3);
        let edge = if place > 0.95 {
            " class=\"end\""
        } else if place < 0.05 {
            " class=\"start\""
        } else {
            ""
        };
        let _ = write!(ticks, "<span{edge} style=\"left:{}\">{text}</span>", percent(place));
    }
    let mut pins = String::new();
    for frame in &answered.frames {
        let share = (frame.seconds / answered.duration.max(1e-9)).clamp(0.0, 1.0);
        let _ = write!(pins, "<line x1=\"{0}\" x2=\"{0}\" y1=\"0\" y2=\"100%\"/>", percent(share));
    }
    format!(
        "<div class=\"xticks time\" aria-hidden=\"true\">{ticks}</div><p class=\"rowname\"><b>Key frames</b> \
         <span>{} chosen, below in the order of time</span></p><svg class=\"pins\" aria-hidden=\"true\">{pins}</svg>",
        answered.frames.len()
    )
}

/// One line per column: where its middle lies, a blank, what to say.
fn readings(answered: &Answered, columns: &[Column], scores: &[Vec<Option<f32>>], mass: &[f64]) -> String {
    let mut out = String::new();
    for (at, column) in columns.iter().enumerate() {
        let middle = (column.span.start + column.span.end) / 2.0;
        let _ = write!(out, "{middle:.4} {}", clock(answered.candidates[column.frames.start]));
        for (row, query) in scores.iter().zip(1..) {
            if let Some(score) = row[at] {
                let _ = write!(out, " · query {query} {score:.3}");
            }
        }
        if let Some(mass) = mass.get(at) {
            let _ = write!(out, " · weight {}", number(*mass));
        }
        let _ = writeln!(out);
    }
    out
}

/// Every chosen frame in numbers.
fn frames(answered: &Answered) -> String {
    let mut head: Vec<String> = ["Key frame", "Time", "Candidate", "Weight"].map(str::to_owned).to_vec();
    head.extend((1..=answered.similarity.len()).map(|query| format!("Query {query}")));
    let rows = answered.frames.iter().zip(1..).map(|(frame, row)| {
        let mut cells = vec![
            format!("{row}"),
            clock(frame.seconds),
            frame.index.to_string(),
            finite(f64::from(frame.weight)),
        ];
        let scores = answered.similarity.iter().map(|scores| scores.get(frame.index).copied());
        cells.extend(scores.map(|score| score.map_or("–".to_owned(), |score| finite(f64::from(score)))));
        cells
    });
    let caption =
        "Time as hours:minutes:seconds, share of the sampling weight, cosine similarity with each query";
    let table = Table { caption: caption.to_owned(), head, rows: rows.collect() };
    if answered.frames.is_empty() { String::new() } else { table.folded("Key frames in numbers") }
}

/// Where each query fits best.
fn peaks(answered: &Answered) -> String {
    let rows: Vec<Vec<String>> = (answered.similarity.iter().enumerate())
        .map(|(at, scores)| {
            let sound: Vec<(usize, f32)> =
                scores.iter().copied().enumerate().filter(|(_, score)| score.is_finite()).collect();
            let best = sound.iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            let mean = sound.iter().map(|(_, score)| f64::from(*score)).sum::<f64>() / sound.len() as f64;
            let time =
                best.and_then(|best| answered.candidates.get(best.0)).map_or("–".to_owned(), |t| clock(*t));
            let query = answered.queries.get(at).map_or("", |query| query.trim());
            vec![
                format!("{} <bdi>{}</bdi>", at + 1, escape(query)),
                best.map_or("–".to_owned(), |best| number(f64::from(best.1))),
                time,
                finite(mean),
            ]
        })
        .collect();
    let head = ["Query", "Best similarity", "at", "Mean"].map(str::to_owned).to_vec();
    let caption = "Cosine similarity of each query with the candidate frames".to_owned();
    if rows.is_empty() {
        String::new()
    } else {
        Table { caption, head, rows }.folded("Best match of each query")
    }
}

/// The picture in numbers.
fn numbers(answered: &Answered, columns: &[Column], scores: &[Vec<Option<f32>>], mass: &[f64]) -> String {
    let mut head = vec!["Time".to_owned()];
    head.extend((1..=scores.len()).map(|query| format!("Query {query}")));
    if !mass.is_empty() {
        head.push("Weight".to_owned());
    }
    if head.len() == 1 {
        return String::new();
    }
    let row = |(at, column): (usize, &Column)| {
        let mut cells = vec![clock(answered.candidates[column.frames.start])];
        cells.extend(
            scores.iter().map(|row| row[at].map_or("–".to_owned(), |score| finite(f64::from(score)))),
        );
        cells.extend(mass.get(at).map(|&mass| finite(mass)));
        cells
    };
    let rows = columns.iter().enumerate().map(row).collect();
    let caption = match columns.len() < answered.candidates.len() {
        true => "First time of each column, its best similarity with each query, and its sampling weight",
        false => "Time of each candidate frame, its similarity with each query, and its sampling weight",
    };
    Table { caption: caption.to_owned(), head, rows }.folded("Timeline in numbers")
}
