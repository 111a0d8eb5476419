//! Long-video question answering in pure Rust: a reimplementation of MSJoE (arXiv 2602.22932) on candle.
//!
//! ```text
//! video -> frames -> previews -> queries -> similarity -> sampling weights -> key frames -> answer
//! ```
//!
//! [`pipeline`] is that line as one function and the first file to read; each arrow is one module below, in its order.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]

pub mod pipeline;

pub mod video;

pub mod text;

pub mod similarity;

pub mod select;

pub mod models;
pub mod parity;

pub mod benchmarks;
pub mod data;
pub mod evaluation;
pub mod optim;
pub mod rl;
pub mod supervised;

pub mod nn;
pub mod ops;

pub mod checkpoint;
pub mod device;
pub mod error;
pub mod hub;
pub mod metrics;
pub mod report;
pub mod statistics;

pub use error::{Error, Result};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
