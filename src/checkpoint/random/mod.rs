//! Small random checkpoints in Hugging Face layout, for tests, benchmarks and the demo.
//!
//! Each folder holds what a published one does: config, weights under the published names, a working byte-level BPE
//! tokenizer, the preprocessor's settings and, for Qwen2.5-VL, chat template and generation settings; transformers
//! 4.51.3 loads them as they are. The same spec and seed give the same bytes, whatever else was generated before.
//!
//! ```no_run
//! use msjoe::checkpoint::random::{self, ClipSpec, QwenSpec};
//! random::qwen2_5_vl("mllm", &QwenSpec::default(), 7)?;
//! random::clip("clip", &ClipSpec::default(), 7)?;
//! # Ok::<(), msjoe::Error>(())
//! ```

mod bpe;
mod clip;
mod qwen;
mod weights;

pub use clip::{ClipSpec, clip};
pub use qwen::{QwenSpec, qwen2_5_vl};
pub(crate) use weights::normals;

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

const IMAGE_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const IMAGE_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

fn write_json(dir: &Path, name: &str, value: &Value) -> Result<()> {
    super::write_json(&dir.join(name), value)
}

fn create(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))
}

/// `Err` naming the spec's field unless `holds`.
fn require(holds: bool, what: impl Into<String>) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Input(what.into())) }
}
