//! Key-frame selection: which K of T candidate frames the answer is given from.
//!
//! | strategy | frames | needs |
//! |---|---|---|
//! | `uniform` | evenly spaced over the video | the number of frames |
//! | `top-k` | the largest similarities, each frame at its best query | the similarity matrix |
//! | `msjoe` | drawn by, or largest of, the sampler's distribution | the sampler's logits |
//!
//! [`select`] is the one interface; the functions behind it are public too. All of it works on host numbers, except
//! [`log_prob`] and [`independent_log_prob`], which carry the gradient.

mod draw;
mod log_prob;
mod strategy;
mod top_k;
mod uniform;

pub use draw::{draw, draw_log_prob, spread, weights};
pub use log_prob::{independent_log_prob, log_prob};
pub use strategy::{Draw, Scores, Selection, Strategy, select};
pub use top_k::top_k;
pub use uniform::uniform;
