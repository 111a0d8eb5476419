//! Key-frame selection: which K of T candidate frames the answer is given from.
//!
//! | strategy | frames | needs |
//! |---|---|---|
//! | `uniform` | evenly spaced over the video | the number of frames |
//! | `top-k` | the largest similarities, each frame at its best query | the similarity matrix |
//! | `msjoe` | drawn by, or spread over, the sampler's distribution; kept apart where the sampler says so | the sampler's logits, features to keep apart |
//! | `tspo` | largest of, or drawn by, the temporal agent's distribution | the agent's logits |
//! | `bolt` | at even steps of the mass under the similarity curve | the similarity matrix |
//! | `aks` | the largest similarities of every part of an adaptively halved video | the similarity matrix |
//! | `q-frame` | drawn by similarity, in one size or three | the similarity matrix, a seed |
//! | `bin-max` | the largest similarity of every even stretch | the similarity matrix |
//! | `mdp3` | fitting and different, by segments | the similarity matrix, features |
//! | `dpp` | fitting and different, over the whole video | the similarity matrix, features |
//! | `maxinfo` | spanning the video's main directions; K or fewer | features |
//! | `focus` | from the stretches that few scored frames promise most of | the similarity matrix (some of it), a seed |
//! | `qca` | from every segment, by variety and similarity | the similarity matrix, features |
//! | `f2c` | in clips around the peaks of similarity | the similarity matrix, features if there are any |
//!
//! [`select`] is the one interface; the functions behind it are public too, and each method's module says where it differs from
//! the published code. They hold the same rules: frames in range, ascending, none twice, as many as asked for (all where there
//! are no more) unless the table says otherwise; ties decided the same way every time; a score that is NaN is an error. All of
//! it works on host numbers, except [`log_prob`], [`log_prob_apart`] and [`independent_log_prob`], which carry the gradient.

mod aks;
mod apart;
mod bin_max;
mod bolt;
mod curve;
mod dpp;
mod draw;
mod f2c;
mod features;
mod fill;
mod focus;
mod log_prob;
mod low_rank;
mod max_info;
mod mdp3;
mod q_frame;
mod qca;
mod settings;
mod strategy;
mod top_k;
mod uniform;

pub use aks::{Aks, aks};
pub use apart::{Apart, MOST as MOST_APART, draw_apart, draw_apart_log_prob, log_prob_apart, take_apart};
pub use bin_max::bin_max;
pub use bolt::{Bolt, bolt, inverse_transform};
pub use dpp::{Dpp, dpp, greedy_map};
pub use draw::{draw, draw_log_prob, spread, weights};
pub use f2c::{Clips, F2c, f2c};
pub use features::Features;
pub use focus::{FinalArms, Focus, Focused, focus};
pub use log_prob::{independent_log_prob, log_prob};
pub use max_info::{MaxInfo, max_info};
pub use mdp3::{Mdp3, mdp3};
pub use q_frame::{Levels, QFrame, q_frame};
pub use qca::{Qca, qca};
pub use settings::{Resolution, Settings};
pub use strategy::{Draw, Scores, Selection, Strategy, select};
pub use top_k::top_k;
pub use uniform::uniform;
