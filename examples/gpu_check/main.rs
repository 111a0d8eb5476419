//! Checks and times the CUDA kernels on a GPU: every operation against its CPU twin on fresh random inputs, the small
//! models of `models/toy` on both in f32 and bf16, one step of GRPO and REINFORCE and one whole step of joint training on both, and the time of
//! every operation, of a question and of a step of training at 7B shape.
//!
//! ```text
//! $ cargo run --release --features cuda --example gpu_check -- --out gpu
//! ```
//!
//! Prints a table and writes `gpu.md` and `gpu.json` to `--out`. It ends with 1 where a check failed, or without a GPU.
//! `benches/peers/gpu.py` times the same shapes in PyTorch and puts both side by side.

#[cfg(feature = "cuda")]
mod clock;
#[cfg(feature = "cuda")]
mod model7b;
#[cfg(feature = "cuda")]
mod models;
#[cfg(feature = "cuda")]
mod ops;
#[cfg(feature = "cuda")]
mod ops_layer;
#[cfg(feature = "cuda")]
mod random;
#[cfg(feature = "cuda")]
mod report;
#[cfg(feature = "cuda")]
mod run;
#[cfg(feature = "cuda")]
mod step;
#[cfg(feature = "cuda")]
mod timing;
#[cfg(feature = "cuda")]
mod timing_layer;
#[cfg(feature = "cuda")]
mod trainer;

use std::process::ExitCode;

#[cfg(feature = "cuda")]
fn main() -> ExitCode {
    run::main()
}

#[cfg(not(feature = "cuda"))]
fn main() -> ExitCode {
    eprintln!(
        "error: gpu_check was built without CUDA, so there is nothing to check: on a machine with an NVIDIA GPU and the \
         CUDA toolkit, run it with --features cuda"
    );
    ExitCode::FAILURE
}
