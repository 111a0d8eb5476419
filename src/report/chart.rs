//! Line charts: curves with bands, points with intervals, a legend, a read-out, and the same in a table.
//!
//! Lines are drawn in a box that stretches with the page; marks, ticks and text are placed by percentages, so that they keep
//! their form at every width.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::html::{Table, escape};
use super::numbers::{Axis, Unit, extent};
use crate::text::one_line;

/// Most points of a line; more are averaged.
const POINTS: usize = 400;
/// Colours of the style sheet.
const COLOURS: usize = 6;
/// Marks of the style sheet, as paths around the origin.
const MARKS: [&str; 4] = [
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4h8v8h-8z",
    "M0-5.6L5.6 0L0 5.6L-5.6 0z",
    "M0-5.4L5.2 4H-5.2z",
];

/// A value with the stretch around it: an interval, or the extremes of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    pub low: f64,
    pub high: f64,
}

impl Point {
    fn finite(&self) -> bool {
        [self.x, self.y, self.low, self.high].iter().all(|value| value.is_finite())
    }

    /// Whether there is a stretch to speak of.
    pub fn wide(&self) -> bool {
        self.high > self.low
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line in its band; noisy ones get a running mean.
    Line,
    /// A line in its band with a mark at each point.
    Marked,
    /// Marks with whiskers.
    Dots,
}

pub(super) struct Series {
    pub name: String,
    pub style: Style,
    /// Whether the stretch around the points is drawn; it is in the table in any case.
    pub band: bool,
    pub points: Vec<Point>,
}

pub(super) struct Chart {
    /// Unique on the page.
    pub id: String,
    pub title: String,
    /// What is shown, in a sentence or two.
    pub note: String,
    /// What runs along either axis, with the unit.
    pub x: &'static str,
    pub y: &'static str,
    pub unit: Unit,
    pub series: Vec<Series>,
}

impl Chart {
    pub fn html(mut self) -> String {
        let mut notes = vec![std::mem::take(&mut self.note)];
        let given: usize = self.series.iter().map(|series| series.points.len()).sum();
        for series in &mut self.series {
            series.points.retain(Point::finite);
        }
        let left: usize = self.series.iter().map(|series| series.points.len()).sum();
        if left < given {
            notes.push(format!("{} points are left out: their values are not finite.", given - left));
        }
        self.series.retain(|series| !series.points.is_empty());
        let lines = self.series.iter().filter(|series| series.style == Style::Line);
        let most = lines.map(|series| series.points.len()).max().unwrap_or(0);
        let together = most.div_ceil(POINTS).max(1);
        if together > 1 {
            notes.push(format!("Each point of a line stands for the mean of {together} steps."));
            let lines = self.series.iter_mut().filter(|series| series.style == Style::Line);
            lines.for_each(|series| series.points = averaged(&series.points, together));
        }
        let steps = window(most.div_ceil(together)) * together;
        if steps > together {
            notes.push(format!("Strong lines: running means of {steps} steps."));
        }
        let (id, title) = (&self.id, escape(&self.title));
        let note = escape(notes.join(" ").trim());
        let mut out = format!(
            "<figure class=\"chart\" aria-labelledby=\"{id}-t\"><figcaption><h3 id=\"{id}-t\">{title}</h3>\
             <p class=\"note\">{note}</p></figcaption>"
        );
        match self.series.is_empty() {
            true => out.push_str("<p class=\"none\">Nothing was recorded.</p>"),
            false => {
                let _ = write!(out, "{}{}", self.legend(), self.plot());
                out.push_str(&self.table().folded("Numbers of this chart"));
            }
        }
        out.push_str("</figure>");
        out
    }

    fn legend(&self) -> String {
        let mut out = String::from("<ul class=\"legend\">");
        for (at, series) in self.series.iter().enumerate() {
            let line = match series.style {
                Style::Dots => "",
                _ => "<line class=\"l\" x1=\"1\" x2=\"27\" y1=\"7\" y2=\"7\"/>",
            };
            let mark = match series.style {
                Style::Line => String::new(),
                _ => format!("<path class=\"m\" transform=\"translate(14 7)\" d=\"{}\"/>", mark(at)),
            };
            let _ = write!(
                out,
                "<li><svg class=\"{}\" width=\"28\" height=\"14\" aria-hidden=\"true\">{line}{mark}</svg>\
                 <span dir=\"auto\">{}</span></li>",
                class(at),
                escape(&series.name)
            );
        }
        out.push_str("</ul>");
        out
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let mut xs: Vec<f64> = points().map(|point| point.x).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let ys: Vec<f64> = points().flat_map(|p| [p.low, p.y, p.high]).collect();
        let few = xs.len() <= 10 && self.series.iter().all(|series| series.style == Style::Marked);
        (if few { Axis::at(&xs) } else { Axis::exact(&xs) }, Axis::around(&ys, self.unit))
    }

    fn plot(&self) -> String {
        let (x, y) = self.axes();
        let (mut lines, mut marks) = (String::new(), String::new());
        let dots = self.series.iter().filter(|series| series.style == Style::Dots).count() as f64;
        // Dots at the same place stand beside each other.
        let mut aside = -3.5 * (dots - 1.0);
        for (at, series) in self.series.iter().enumerate() {
            if series.style != Style::Dots {
                lines.push_str(&stretched(series, &class(at), &x, &y));
            }
            if series.style != Style::Line {
                let dodge = if series.style == Style::Dots { aside } else { 0.0 };
                let _ =
                    write!(marks, "<g transform=\"translate({dodge} 0)\">{}</g>", marked(series, at, &x, &y));
                aside += if series.style == Style::Dots { 7.0 } else { 0.0 };
            }
        }
        let (mut grid, mut left, mut below) = (String::new(), String::new(), String::new());
        for (value, text) in &y.ticks {
            let place = percent(1.0 - y.place(*value));
            let _ = write!(grid, "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{place}\" y2=\"{place}\"/>");
            let _ = write!(left, "<span style=\"top:{place}\">{text}</span>");
        }
        for (value, text) in &x.ticks {
            let _ = write!(below, "<span style=\"left:{}\">{text}</span>", percent(x.place(*value)));
        }
        let log = if x.doubling() { ", logarithmic" } else { "" };
        format!(
            "<div class=\"axes\"><p class=\"yname\" aria-hidden=\"true\">{}</p>\
             <div class=\"yticks\" aria-hidden=\"true\">{left}</div>\
             <div class=\"plot\" data-read=\"{}\"><svg role=\"img\" aria-label=\"{}\">{grid}\
             <svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\">{lines}</svg>{marks}\
             <line class=\"cursor\" x1=\"0\" x2=\"0\" y1=\"0\" y2=\"100%\"/></svg></div>\
             <div class=\"xticks\" aria-hidden=\"true\">{below}</div>\
             <p class=\"xname\" aria-hidden=\"true\">{}{log}</p></div><output class=\"read\"></output>",
            escape(self.y),
            escape(&self.readings(&x)),
            escape(&self.description()),
            escape(self.x),
        )
    }

    /// One line per place along the axis: where, a blank, what to say.
    fn readings(&self, x: &Axis) -> String {
        let mut out = String::new();
        for (place, values) in self.by_x() {
            let _ = write!(out, "{:.4} {} {}", x.place(place.0), self.x, super::numbers::number(place.0));
            for (series, point) in self.series.iter().zip(values) {
                if let Some(point) = point {
                    // A reading is one line.
                    let name = one_line(&series.name);
                    let _ = write!(out, " · {name} {}", self.said(point));
                }
            }
            out.push('\n');
        }
        out
    }

    fn said(&self, point: &Point) -> String {
        let say = |value| self.unit.say(value);
        match point.wide() {
            true => format!("{} [{}, {}]", say(point.y), say(point.low), say(point.high)),
            false => say(point.y),
        }
    }

    /// What is at each place, a value per series.
    fn by_x(&self) -> BTreeMap<Ordered, Vec<Option<&Point>>> {
        let mut rows: BTreeMap<Ordered, Vec<Option<&Point>>> = BTreeMap::new();
        for (at, series) in self.series.iter().enumerate() {
            for point in &series.points {
                rows.entry(Ordered(point.x)).or_insert_with(|| vec![None; self.series.len()])[at] =
                    Some(point);
            }
        }
        rows
    }

    /// For those who do not see the picture: what it spans, and where each series begins and ends.
    fn description(&self) -> String {
        let (low, high) =
            extent(&self.series.iter().flat_map(|s| &s.points).map(|p| p.x).collect::<Vec<_>>());
        let number = super::numbers::number;
        let mut out =
            format!("{}: {} over {} {} to {}.", self.title, self.y, self.x, number(low), number(high));
        for series in &self.series {
            if let (Some(first), Some(last)) = (series.points.first(), series.points.last()) {
                let (from, to) = (self.unit.say(first.y), self.unit.say(last.y));
                let _ = write!(out, " {}: from {from} to {to}.", series.name);
            }
        }
        out
    }

    fn table(&self) -> Table {
        let mut head = vec![escape(self.x)];
        head.extend(self.series.iter().map(|series| format!("<bdi>{}</bdi>", escape(&series.name))));
        let cell = |point: Option<&Point>| point.map_or("–".to_owned(), |point| self.said(point));
        let rows = self.by_x().into_iter().map(|(x, values)| {
            let cells = values.into_iter().map(cell);
            std::iter::once(super::numbers::number(x.0)).chain(cells).collect()
        });
        let caption = escape(&format!("{} by {}; in brackets the lowest and the highest", self.y, self.x));
        Table { caption, head, rows: rows.collect() }
    }
}

/// A line in its band, in the box of 1000 by 1000.
fn stretched(series: &Series, class: &str, x: &Axis, y: &Axis) -> String {
    let spot =
        |at: f64, value: f64| format!("{:.1} {:.1}", 1000.0 * x.place(at), 1000.0 * (1.0 - y.place(value)));
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| -> String {
        points.map(|(at, value)| spot(at, value)).collect::<Vec<_>>().join("L")
    };
    let points = &series.points;
    let mut out = format!("<g class=\"{class}\">");
    if series.band && points.iter().any(Point::wide) {
        let mut edge = points.iter().map(|p| (p.x, p.high)).chain(points.iter().rev().map(|p| (p.x, p.low)));
        let _ = write!(out, "<path class=\"band\" d=\"M{}z\"/>", path(&mut edge));
    }
    let width = window(points.len());
    if series.style == Style::Line && width > 1 {
        let raw = path(&mut points.iter().map(|p| (p.x, p.y)));
        let mean = path(&mut running(points, width).into_iter());
        let _ = write!(out, "<path class=\"raw\" d=\"M{raw}\"/><path class=\"l\" d=\"M{mean}\"/>");
    } else {
        // A single point would be invisible as a line.
        let tail = if points.len() == 1 { "h.1" } else { "" };
        let _ =
            write!(out, "<path class=\"l\" d=\"M{}{tail}\"/>", path(&mut points.iter().map(|p| (p.x, p.y))));
    }
    out.push_str("</g>");
    out
}

/// Marks with whiskers, placed by percentages.
fn marked(series: &Series, number: usize, x: &Axis, y: &Axis) -> String {
    let mut out = format!("<g class=\"{}\">", class(number));
    for point in &series.points {
        let (at, height) = (percent(x.place(point.x)), percent(1.0 - y.place(point.y)));
        if series.style == Style::Dots && point.wide() {
            let (top, foot) = (percent(1.0 - y.place(point.high)), percent(1.0 - y.place(point.low)));
            let _ = write!(out, "<line class=\"w\" x1=\"{at}\" x2=\"{at}\" y1=\"{top}\" y2=\"{foot}\"/>");
        }
        let _ = write!(
            out,
            "<svg x=\"{at}\" y=\"{height}\" overflow=\"visible\"><path class=\"m\" d=\"{}\"/></svg>",
            mark(number)
        );
    }
    out.push_str("</g>");
    out
}

/// Colour and dashes; together with the mark no two of 24 series look alike.
fn class(series: usize) -> String {
    format!("c{} d{}", series % COLOURS, turn(series))
}

fn mark(series: usize) -> &'static str {
    MARKS[turn(series)]
}

fn turn(series: usize) -> usize {
    (series + series / COLOURS) % MARKS.len()
}

pub(super) fn percent(share: f64) -> String {
    let text = format!("{:.2}", 100.0 * share);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Points of a running mean; 1 leaves a curve as it is.
fn window(points: usize) -> usize {
    if points < 40 { 1 } else { (points / 20).max(3) }
}

/// Means over `width` points around each; fewer at the ends, as many on either side.
fn running(points: &[Point], width: usize) -> Vec<(f64, f64)> {
    let mean = |at: usize| {
        let reach = (width / 2).min(at).min(points.len() - 1 - at);
        let near = &points[at - reach..=at + reach];
        near.iter().map(|point| point.y).sum::<f64>() / near.len() as f64
    };
    points.iter().enumerate().map(|(at, point)| (point.x, mean(at))).collect()
}

/// Means of `together` points each, in their order; the extremes are kept.
fn averaged(points: &[Point], together: usize) -> Vec<Point> {
    let one = |points: &[Point]| {
        let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        let low = points.iter().map(|point| point.low).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|point| point.high).fold(f64::NEG_INFINITY, f64::max);
        Point { x: points.last().map_or(0.0, |point| point.x), y: mean(|point| point.y), low, high }
    };
    points.chunks(together).map(one).collect()
}

/// A number that is a key.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ordered(f64);

impl Eq for Ordered {}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
