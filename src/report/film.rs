//! The chosen frames below the timeline, in the order of time and near their places.

use std::fmt::Write;

use super::answered::Frame;
use super::html::base64;
use super::numbers::clock;

/// Frames side by side: few are shown large.
fn across(count: usize) -> usize {
    if count <= 16 { 8 } else { 10 }
}

/// The column of each frame: the one below its place, or the nearest later one with room, such that the order of time is kept
/// and all fit. `places` are shares of the video, ascending.
fn seats(places: &[f64], across: usize) -> Vec<usize> {
    let (count, deep) = (places.len(), places.len().div_ceil(across) + 2);
    let mut taken = vec![0; across];
    let mut before = 0;
    let mut seats = Vec::with_capacity(count);
    for (at, place) in places.iter().enumerate() {
        // As many must find a place behind this one.
        let latest = across - 1 - (count - 1 - at) / deep;
        let wanted = (place.clamp(0.0, 1.0) * across as f64) as usize;
        let mut seat = wanted.max(before).min(latest).max(before);
        while taken[seat] == deep && seat + 1 < across {
            seat += 1;
        }
        taken[seat] += 1;
        before = seat;
        seats.push(seat);
    }
    seats
}

/// Threads from the frames' places to their pictures, and the pictures in a list.
pub(super) fn film(frames: &[Frame], duration: f64) -> String {
    if frames.is_empty() {
        return "<p class=\"none\">No frame was chosen.</p>".to_owned();
    }
    let across = across(frames.len());
    let share = |frame: &Frame| if duration > 0.0 { (frame.seconds / duration).clamp(0.0, 1.0) } else { 0.0 };
    let places: Vec<f64> = frames.iter().map(share).collect();
    let seats = seats(&places, across);
    let (mut threads, mut items) = (String::new(), String::new());
    let mut depth = vec![0; across];
    for ((frame, number), (&seat, place)) in frames.iter().zip(1..).zip(seats.iter().zip(&places)) {
        let (from, to) = (1000.0 * place, 1000.0 * (seat as f64 + 0.5) / across as f64);
        depth[seat] += 1;
        let first = if depth[seat] == 1 { "" } else { " class=\"more\"" };
        let _ = write!(threads, "<path{first} d=\"M{from:.1} 0V12C{from:.1} 60 {to:.1} 40 {to:.1} 100\"/>");
        let time = clock(frame.seconds);
        let picture = match &frame.picture {
            Some(picture) => format!(
                "<img src=\"data:image/jpeg;base64,{}\" width=\"{}\" height=\"{}\" alt=\"Key frame {number} at {time}\">",
                base64(&picture.jpeg),
                picture.width,
                picture.height
            ),
            None => "<div class=\"nopicture\" role=\"img\" aria-label=\"no picture kept\"></div>".to_owned(),
        };
        let side = if seat == 0 {
            " first"
        } else if seat + 1 == across {
            " last"
        } else {
            ""
        };
        let _ = write!(
            items,
            "<li class=\"shot{side}\" style=\"grid-column:{};grid-row:{}\"><figure>{picture}<figcaption>\
             <b>{number}</b> <time>{time}</time></figcaption></figure></li>",
            seat + 1,
            depth[seat]
        );
    }
    format!(
        "<svg class=\"threads\" viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{threads}</svg>\
         <ol class=\"film\" style=\"--across:{across}\">{items}</ol>"
    )
}
